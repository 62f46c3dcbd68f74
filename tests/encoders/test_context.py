"""A tile and its surroundings, against slow loops."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from hescribe.encoders import Extraction, describe_tiles, extract_features, load_encoder
from hescribe.encoders.context import centre, gaussian_mean
from hescribe.errors import InputError
from hescribe.slides.tiles import PatchTiles, SlideTiles
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
    with pytest.raises(ValueError, match=r"scale|between 1 and"):
        Context(**wrong)  # type: ignore[arg-type]


def test_position_runs_from_edge_to_edge(tiles: SlideTiles) -> None:
    how = Extraction(tile_um=60.0, context=Context(position=True))
    described = describe_tiles(tiles, load_encoder("stain"), how, use_cache=False)
    places = described.full[:, -2:]
    assert places.min(axis=0).tolist() == [0, 0]
    assert places.max(axis=0).tolist() == [1, 1]
    assert places[:, 0].argmax() == tiles.centres[:, 0].argmax()
    assert described.full.shape[1] == how.context.width(described.plain.shape[1])


def marked(folder: Path, blue: tuple[int, int]) -> Path:
    """A bright slide of 400 × 400 px with one dark tile of 40 px, centred on ``blue``."""
    image = np.random.default_rng(3).integers(200, 255, (400, 400, 3), dtype=np.uint8)
    x, y = blue
    image[y - 20 : y + 20, x - 20 : x + 20] //= 3
    Image.fromarray(image).save(folder / "marked.png")
    return folder / "marked.png"


@pytest.mark.parametrize(
    ("offset", "slot"), [((-40, 0), 11), ((40, 0), 12), ((0, -40), 7), ((80, 80), 23), ((-80, -80), 0)]
)
def test_a_neighbour_lands_in_its_slot(tmp_path: Path, offset: tuple[int, int], slot: int) -> None:
    """Slots run from left to right, then top to bottom, without the middle."""
    path = marked(tmp_path, (200 + offset[0], 200 + offset[1]))
    tiles = SlideTiles(path, np.array([[200.0, 200.0], [40.0, 360.0]]), mpp=1.0, slide_id="s")
    encoder, how = load_encoder("stain"), Extraction(tile_um=40.0, context=Context(grid=5))
    described = describe_tiles(tiles, encoder, how, use_cache=False)
    assert described.full.shape[1] == how.context.width(encoder.width) == 25 * encoder.width
    np.testing.assert_array_equal(described.full[:, : encoder.width], described.plain)
    beside = described.full[0, encoder.width :].reshape(24, -1)
    blue = extract_features(tiles.at(np.array([[200.0 + offset[0], 200 + offset[1]]])), encoder, how, use_cache=False)
    np.testing.assert_allclose(beside[slot], blue[0], atol=1e-4)
    apart = np.abs(beside - blue[0]).max(axis=1)
    assert (apart > 0.1).sum() == 23


def test_beyond_the_edge_a_neighbour_is_white(tmp_path: Path) -> None:
    path = marked(tmp_path, (20, 20))
    tiles = SlideTiles(path, np.array([[20.0, 20.0]]), mpp=1.0, slide_id="s")
    encoder, how = load_encoder("stain"), Extraction(tile_um=40.0, context=Context(grid=3))
    row = describe_tiles(tiles, encoder, how, use_cache=False).full[0].reshape(9, -1)
    white = extract_features(tiles.at(np.array([[-200.0, 900.0]])), encoder, how, use_cache=False)[0]
    beyond = [1, 2, 3, 4, 6]  # the row above and the column on the left
    np.testing.assert_allclose(row[beyond], np.tile(white, (5, 1)), atol=1e-4)
    assert (np.abs(row[[0, 5, 7, 8]] - white).max(axis=1) > 0.1).all()


def test_neighbours_that_are_tiles_have_their_features(tmp_path: Path) -> None:
    """On a grid of adjacent tiles every neighbour is a tile of the grid, and no place is encoded twice."""
    rng = np.random.default_rng(4)
    Image.fromarray(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(tmp_path / "s.png")
    x, y = np.meshgrid(np.arange(20.0, 200, 40), np.arange(20.0, 200, 40))
    tiles = SlideTiles(tmp_path / "s.png", np.stack([x.ravel(), y.ravel()], 1), mpp=1.0, slide_id="s")
    described = describe_tiles(tiles, load_encoder("stain"), Extraction(40.0, context=Context(grid=3)), use_cache=False)
    rows, plain = described.full.reshape(25, 9, -1), described.plain.reshape(5, 5, -1)
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    for row in range(1, 4):
        for column in range(1, 4):
            for slot, (i, j) in enumerate(around):
                np.testing.assert_array_equal(rows[row * 5 + column, 1 + slot], plain[row + i, column + j])


def test_the_raster_by_a_slow_loop(tiles: SlideTiles) -> None:
    encoder = load_encoder("stain")
    how = Extraction(tile_um=60.0, context=Context(raster=3, position=True))
    described = describe_tiles(tiles, encoder, how, use_cache=False)
    d = encoder.width
    places = (tiles.centres - tiles.centres.min(0)) / np.ptp(tiles.centres, axis=0)
    for row in range(3):
        for column in range(3):
            inside = [
                i
                for i, (x, y) in enumerate(places)
                if column / 3 <= x
                and row / 3 <= y
                and (x < (column + 1) / 3 or column == 2)
                and (y < (row + 1) / 3 or row == 2)
            ]
            cell = row * 3 + column
            expected = described.plain[inside].mean(0) if inside else np.zeros(d)
            np.testing.assert_allclose(described.full[0, d * (1 + cell) : d * (2 + cell)], expected, atol=1e-5)
            assert described.full[0, d * 10 + cell] == bool(inside)
    assert (described.full[:, d:-2] == described.full[0, d:-2]).all()
    assert described.full.shape[1] == how.context.width(d) == d * 10 + 9 + 2


def test_the_raster_of_a_single_tile(tmp_path: Path) -> None:
    tiles = SlideTiles(marked(tmp_path, (200, 200)), np.array([[200.0, 200.0]]), mpp=1.0, slide_id="s")
    context = Context(raster=2, position=True, centred=True, grid=3)
    described = describe_tiles(tiles, load_encoder("stain"), Extraction(40.0, context=context), use_cache=False)
    assert np.isfinite(described.full).all()
    assert described.full[0, -6:].tolist() == [1, 0, 0, 0, 0, 0]


def test_the_same_bits_from_the_cache(tiles: SlideTiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HESCRIBE_CACHE", str(tmp_path / "cache"))
    how = Extraction(tile_um=60.0, context=Context(grid=3, raster=2, position=True))
    plain = describe_tiles(tiles, load_encoder("stain"), how, use_cache=False)
    for _ in range(2):
        np.testing.assert_array_equal(describe_tiles(tiles, load_encoder("stain"), how).full, plain.full)
    assert len(list((tmp_path / "cache" / "features").glob("*.npy"))) == 3  # tiles, tiles beside, colours


@pytest.mark.parametrize("wrong", [{"grid": 4}, {"grid": 1}, {"raster": -1}])
def test_a_square_has_a_middle(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"side of a (square|raster)"):
        Context(**wrong)  # type: ignore[arg-type]


def test_patches_have_no_neighbours(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["img"] = np.zeros((1, 224, 224, 3), np.uint8)
        file["barcode"] = np.array([["a"]], dtype="S")
    tiles = PatchTiles(tmp_path / "p.h5", ["a"], np.array([[10.0, 10.0]]), mpp=0.5, slide_id="s")
    with pytest.raises(InputError, match="around a spot"):
        describe_tiles(tiles, load_encoder("stain"), Extraction(112.0, context=Context(grid=3)), use_cache=False)
