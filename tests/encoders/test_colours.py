"""Colours of a tile: by hand, and the same however the tile was scanned."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hescribe.encoders.extract import to_tensor
from hescribe.encoders.stain import load_colours


def colours(tiles: np.ndarray) -> np.ndarray:
    return load_colours(tiles.shape[1]).module(to_tensor(tiles, "cpu")).numpy()


def flat(rgb: tuple[int, int, int], side: int = 56) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, np.uint8), (1, side, side, 3)).copy()


STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)


def by_hand(rgb: tuple[int, int, int]) -> np.ndarray:
    """Amounts of three stains whose densities add up to that of the colour, by solving for them."""
    return np.linalg.solve(STAINS.T, -np.log10((np.array(rgb) + 1) / 256))


def drawn(amounts: np.ndarray) -> np.ndarray:
    """(side, side, 3) amounts of stain → one tile of the light that they let through."""
    return np.clip(np.rint(256 * 10 ** -(amounts @ STAINS) - 1), 0, 255).astype(np.uint8)[None]


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_a_tile_of_one_colour_has_its_stains_and_no_spread(rgb: tuple[int, int, int]) -> None:
    (found,) = colours(flat(rgb))
    np.testing.assert_allclose(found[:3], by_hand(rgb), atol=1e-4)
    np.testing.assert_allclose(found[3:6], 1e-3, atol=1e-4)  # the square root of what keeps glass defined
    np.testing.assert_allclose(found[6:], 0, atol=1e-2)


def test_two_colours_by_hand() -> None:
    tile, pair = flat((120, 60, 140)), ((120, 60, 140), (200, 170, 90))
    tile[:, :, 28:] = pair[1]
    one, other = by_hand(pair[0]), by_hand(pair[1])
    (found,) = colours(tile)
    np.testing.assert_allclose(found[:3], (one + other) / 2, atol=1e-4)
    np.testing.assert_allclose(found[3:6], np.abs(one - other) / 2, atol=2e-3)
    signs = np.sign(one - other)
    expected = [signs[0] * signs[1], signs[0] * signs[2], signs[1] * signs[2]]
    np.testing.assert_allclose(found[6:], expected, atol=0.05)


def test_neither_turns_nor_coarser_scans_change_them() -> None:
    rng = np.random.default_rng(0)
    share = cv2.resize(rng.random((28, 28)).astype("f"), (224, 224), interpolation=cv2.INTER_CUBIC)[..., None]
    noise = rng.normal(0, 8, (224, 224, 3))
    tile = np.clip(np.array([228, 150, 190]) * (1 - share) + np.array([110, 70, 150]) * share + noise, 0, 255)
    tiles = tile.astype(np.uint8)[None]
    (own,) = colours(tiles)
    for turned in (np.rot90(tiles, axes=(1, 2)), tiles[:, ::-1]):
        np.testing.assert_allclose(colours(np.ascontiguousarray(turned))[0], own, atol=1e-4)
    coarse = cv2.resize(cv2.resize(tiles[0], (112, 112), interpolation=cv2.INTER_AREA), (224, 224))
    np.testing.assert_allclose(colours(coarse[None])[0], own, atol=0.02)


def test_brown_instead_of_eosin_is_seen_in_the_residual() -> None:
    amounts = np.full((56, 56, 3), [0.25, 0.2, 0.02])
    amounts[:28, :, 1] = 0.1
    (pink,), (brown,) = colours(drawn(amounts)), colours(drawn(amounts[:, :, [0, 2, 1]]))
    np.testing.assert_allclose(pink[:3], [0.25, 0.15, 0.02], atol=0.005)
    np.testing.assert_allclose(pink[3:6], [0, 0.05, 0], atol=0.005)
    np.testing.assert_allclose(brown[:6], pink[[0, 2, 1, 3, 5, 4]], atol=0.005)


@pytest.mark.parametrize("side", [14, 50, 224])
def test_any_size_and_glass_are_finite(side: int) -> None:
    white = np.full((3, side, side, 3), 255, np.uint8)
    found = colours(white)
    assert found.shape == (3, load_colours(side).width)
    assert np.isfinite(found).all()
    assert torch.equal(*(load_colours(side).module(to_tensor(white, "cpu")) for _ in range(2)))
