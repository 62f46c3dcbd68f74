"""A tile and its surroundings, against slow loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hescribe.encoders import Extraction, describe_tiles, extract_features, load_encoder
from hescribe.encoders.context import centre, gaussian_mean
from hescribe.slides.tiles import SlideTiles
from hescribe.types import Context


@pytest.fixture
def tiles(tmp_path: Path) -> SlideTiles:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8).repeat(10, axis=0).repeat(10, axis=1)
    Image.fromarray(image).save(tmp_path / "slide.png")
    centres = rng.uniform(120, 280, (12, 2))
    return SlideTiles(tmp_path / "slide.png", centres, mpp=2.0, slide_id="s")


def test_the_neighbourhood_by_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    features, centres = rng.normal(size=(30, 4)).astype("f"), rng.uniform(0, 900, (30, 2))
    centres[7] = centres[3]  # two tiles at one place are two tiles
    expected = np.empty((30, 4))
    for i in range(30):
        total, weight = np.zeros(4), 0.0
        for j in range(30):
            distance = np.hypot(*(centres[i] - centres[j]))
            if distance <= 3 * 150.0:
                w = np.exp(-(distance**2) / (2 * 150.0**2))
                total, weight = total + w * features[j], weight + w
        expected[i] = total / weight
    np.testing.assert_allclose(gaussian_mean(features, centres, 150.0), expected, rtol=1e-4, atol=1e-5)


def test_a_lonely_tile_is_its_own_neighbourhood() -> None:
    features = np.array([[1.0, 2.0], [5.0, -1.0]], dtype="f")
    far = np.array([[0.0, 0.0], [1e5, 0.0]])
    np.testing.assert_allclose(gaussian_mean(features, far, 100.0), features)


def test_centring_takes_a_slide_wide_change_out() -> None:
    features = np.random.default_rng(2).normal(size=(40, 5)).astype("f")
    np.testing.assert_allclose(centre(features * 3 + 7), centre(features), atol=1e-4)
    assert not centre(np.full((4, 2), 3.0, "f")).any()


def test_parts_stand_side_by_side(tiles: SlideTiles) -> None:
    encoder = load_encoder("stain")
    context = Context((1.0, 2.0), (100.0,))
    how = Extraction(tile_um=60.0, context=context)
    described = describe_tiles(tiles, encoder, how, use_cache=False)
    small = extract_features(tiles, encoder, Extraction(tile_um=60.0), use_cache=False)
    large = extract_features(tiles, encoder, Extraction(tile_um=120.0), use_cache=False)
    own = np.concatenate([small, large], axis=1)
    np.testing.assert_array_equal(described.plain, small)
    np.testing.assert_array_equal(described.full[:, : own.shape[1]], own)
    around = gaussian_mean(own, tiles.centres * tiles.mpp, 100.0)
    np.testing.assert_array_equal(described.full[:, own.shape[1] :], around)
    assert described.full.shape[1] == context.width(encoder.width)


def test_no_context_is_the_tile_alone(tiles: SlideTiles) -> None:
    described = describe_tiles(tiles, load_encoder("stain"), Extraction(tile_um=60.0), use_cache=False)
    assert described.full is described.plain


@pytest.mark.parametrize("wrong", [{"scales": (2.0,)}, {"scales": ()}, {"spreads_um": (-1.0,)}])
def test_nonsense_is_refused(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match=r"scale|positive"):
        Context(**wrong)  # type: ignore[arg-type]


def test_position_runs_from_edge_to_edge(tiles: SlideTiles) -> None:
    how = Extraction(tile_um=60.0, context=Context(position=True))
    described = describe_tiles(tiles, load_encoder("stain"), how, use_cache=False)
    places = described.full[:, -2:]
    assert places.min(axis=0).tolist() == [0, 0]
    assert places.max(axis=0).tolist() == [1, 1]
    assert places[:, 0].argmax() == tiles.centres[:, 0].argmax()
    assert described.full.shape[1] == how.context.width(described.plain.shape[1])
