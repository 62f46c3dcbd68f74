"""Cells and sweeps: the same tiles as cut one by one, and no block decoded twice."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
import pytest
import tifffile

from hescribe.errors import InputError
from hescribe.slides.blocks import sweep as sweep_module
from hescribe.slides.blocks.cells import Cells, RegionCells, TiffCells, open_cells, quickest_read, reading_threads
from hescribe.slides.blocks.sweep import Sweep
from hescribe.slides.grid import reading_order
from hescribe.slides.reader import open_slide
from hescribe.slides.tiles import SlideTiles, place_tiles

RNG = np.random.default_rng(0)
PIXELS = cv2.resize(RNG.integers(0, 255, (75, 100, 3), dtype=np.uint8), (800, 600), interpolation=cv2.INTER_CUBIC)
MPP, SIDE_UM, SIZE_PX = 0.5, 32.0, 48
SCALES = (1.0, 2.0, 4.0)


def write(path: Path, **how: object) -> Path:
    with tifffile.TiffWriter(path) as tiff:
        for level, factor in enumerate((1, 2, 4)):
            small = PIXELS if factor == 1 else cv2.resize(PIXELS, None, fx=1 / factor, fy=1 / factor)
            tiff.write(
                small, tile=(64, 64), photometric="rgb", subfiletype=int(level > 0), resolution=(20000 / factor,) * 2,
                resolutionunit="CENTIMETER", **how,  # type: ignore[arg-type]
            )  # fmt: skip
    return path


@pytest.fixture(params=["jpeg", "deflate", None])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    how = {"compression": request.param} if request.param else {}
    return write(tmp_path / "slide.tif", **how)


def centres(stride: float = 40.0) -> np.ndarray:
    x, y = np.meshgrid(np.arange(3.0, 800, stride), np.arange(3.0, 600, stride))
    return reading_order(np.column_stack([x.ravel(), y.ravel()]), (64.0, 64.0))


def make(cells: Cells, where: np.ndarray, scales: tuple[float, ...] = SCALES) -> Sweep:
    downsamples = cells.slide.downsamples
    return Sweep(
        cells,
        [place_tiles(downsamples, where, side_px=SIDE_UM * s / MPP, size_px=SIZE_PX) for s in scales],
        SIZE_PX,
    )


@pytest.mark.parametrize("kind", [RegionCells, None])
def test_the_same_tiles_as_one_by_one(path: Path, kind: type[RegionCells] | None) -> None:
    slide = open_slide(path)
    cells = kind(slide) if kind else open_cells(slide)
    assert isinstance(cells, kind or TiffCells)
    where = centres()
    tiles = SlideTiles(path, where, mpp=MPP, slide_id="s")
    parts = list(make(cells, where).batches(17, threads=3))
    assert [p.start for p in parts] == list(range(0, len(where), 17))
    for i, scale in enumerate(SCALES):
        swept = np.concatenate([p.tiles[i] for p in parts])
        expected = tiles.read(np.arange(len(where)), tile_um=SIDE_UM * scale, size_px=SIZE_PX)
        # Two JPEG decoders may differ by rounding
        np.testing.assert_allclose(swept.astype(int), expected.astype(int), atol=2)
        assert np.abs(swept.astype(int) - expected).mean() < 0.01


@pytest.mark.parametrize("kind", [RegionCells, None])
def test_regions_of_cells_are_those_of_the_slide(path: Path, kind: type[RegionCells] | None) -> None:
    slide = open_slide(path)
    cells = kind(slide) if kind else open_cells(slide)
    for level, (x, y, width, height) in product(range(3), [(0, 0, 150, 130), (63, 64, 65, 1), (70, 3, 80, 140)]):
        expected = slide.read_region(x, y, width, height, level=level).astype(int)
        found = cells.read_region(x, y, width, height, level=level).astype(int)
        np.testing.assert_allclose(found, expected, atol=2)
    small = slide.thumbnail(37).astype(int)
    np.testing.assert_allclose(slide.thumbnail(37, read=cells.read_region).astype(int), small, atol=1)


class Counted(Cells):
    """Counts how often each cell is decoded."""

    def __init__(self, inner: Cells) -> None:
        super().__init__(inner.slide)
        self.inner, self.seen, self._lock = inner, Counter(), Lock()

    def size(self, level: int) -> tuple[int, int]:
        return self.inner.size(level)

    def decode(self, level: int, column: int, row: int) -> np.ndarray:
        with self._lock:
            self.seen[level, column, row] += 1
        return self.inner.decode(level, column, row)


@pytest.mark.parametrize("stride", [25.0, 64.0, 150.0])
def test_no_block_is_decoded_twice_and_none_in_vain(path: Path, stride: float) -> None:
    cells = Counted(open_cells(open_slide(path)))
    where = centres(stride)
    sweep = make(cells, where)
    list(sweep.batches(8, threads=2))
    assert max(cells.seen.values()) == 1
    needed = set()
    for placement in sweep.placements:  # pixel by pixel
        width, height = cells.slide.level_sizes[placement.level]
        touched = np.zeros((height, width), dtype=bool)
        for x, y in placement.corners:
            touched[max(y, 0) : max(y + placement.side, 0), max(x, 0) : max(x + placement.side, 0)] = True
        needed |= {(placement.level, int(c) // 64, int(r) // 64) for r, c in np.argwhere(touched)}
    assert set(cells.seen) == needed


def test_no_more_is_held_than_the_front_and_never_beyond_the_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = centres(25.0)
    most = 0
    drop = sweep_module._Held.take

    def watch(self, *args):  # type: ignore[no-untyped-def]
        nonlocal most
        taken = drop(self, *args)
        most = max(most, self._bytes)
        return taken

    monkeypatch.setattr(sweep_module._Held, "take", watch)
    plain = [b.tiles[0] for b in make(open_cells(open_slide(path)), where, (1.0,)).batches(8)]
    assert most < 3 * 13 * 64 * 64 * 3  # three rows of blocks of ten
    monkeypatch.setattr(sweep_module, "HELD_BYTES", 64 * 64 * 3)
    most = 0
    bounded = [b.tiles[0] for b in make(open_cells(open_slide(path)), where, (1.0,)).batches(8)]
    assert most <= 64 * 64 * 3
    np.testing.assert_array_equal(np.concatenate(plain), np.concatenate(bounded))


def test_large_cells_are_decoded_one_by_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells decoded together are let go together: several large ones would hold more than the bound counts."""
    together: dict[int, list[int]] = {}
    decode = sweep_module._Held._decode
    for bound in (4 * 64 * 64 * 3, 64 * 64 * 3):
        seen = together.setdefault(bound, [])

        def watch(self, some, seen=seen):  # type: ignore[no-untyped-def]
            seen.append(len(some))
            return decode(self, some)

        monkeypatch.setattr(sweep_module, "_TOGETHER_BYTES", bound)
        monkeypatch.setattr(sweep_module._Held, "_decode", watch)
        list(make(open_cells(open_slide(path)), centres(25.0), (1.0,)).batches(64, threads=2))
    assert max(together[4 * 64 * 64 * 3]) == 4
    assert set(together[64 * 64 * 3]) == {1}


def test_going_on_in_the_middle_gives_the_same_tiles(path: Path) -> None:
    where = centres()
    sweep = make(open_cells(open_slide(path)), where)
    whole = np.concatenate([b.tiles[1] for b in sweep.batches(16)])
    rest = np.concatenate([b.tiles[1] for b in sweep.batches(16, start=48, stop=80)])
    np.testing.assert_array_equal(whole[48:80], rest)


def test_blocks_beyond_the_end_are_noticed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif")
    slide = open_slide(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5000)
    with pytest.raises(InputError, match=r"slide\.tif: the image is truncated"):
        open_cells(slide)
    assert quickest_read(slide) == slide.read_region, "what is left can still be looked at"
    assert quickest_read(open_slide(write(tmp_path / "whole.tif"))) != slide.read_region


def test_a_damaged_block_is_one_clear_line(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.dataoffsets[5]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 200)
    where = centres()
    with pytest.raises(InputError, match=r"slide\.tif: block 5 cannot be decoded"):
        list(make(open_cells(open_slide(path)), where).batches(8))


def test_blocks_never_written_are_white(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path, (t for t in [PIXELS[:64, :64], None]), shape=(64, 128, 3), dtype="uint8", tile=(64, 64), photometric="rgb"
    )
    cells = open_cells(open_slide(path))
    assert isinstance(cells, TiffCells)
    np.testing.assert_array_equal(cells.decode(0, 0, 0), PIXELS[:64, :64])
    assert (cells.decode(0, 1, 0) == 255).all()


def test_a_system_that_does_not_say_which_processors_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have no ``sched_getaffinity``: no slide could be predicted there."""
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert reading_threads() >= 1
