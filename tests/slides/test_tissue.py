"""Tissue on drawn slides whose outline is known, and the grid over it."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from hescribe.errors import InputError
from hescribe.slides.grid import lay_grid, reading_order, stride_px
from hescribe.slides.reader import open_slide
from hescribe.slides.tissue import Tissue, _white_glass, find_tissue, mask_tissue

UM = 16.0
HER2ST = Path(os.environ.get("HESCRIBE_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "her2st"
EOSIN, HAEMATOXYLIN = (228, 160, 190), (120, 80, 150)


def draw(glass: tuple[int, int, int] = (243, 241, 244), noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """A slide with a disc of tissue, pale and dark, and where the disc is."""
    rng = np.random.default_rng(0)
    image = np.full((400, 600, 3), glass, dtype=np.float64)
    y, x = np.mgrid[:400, :600]
    truth = (x - 300) ** 2 + (y - 200) ** 2 < 120**2
    image[truth] = EOSIN
    image[truth & (rng.random((400, 600)) < 0.4)] = HAEMATOXYLIN
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8), truth


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("glass", [(243, 241, 244), (255, 255, 255), (238, 228, 216)], ids=["grey", "white", "warm"])
def test_the_disc_is_found(glass: tuple[int, int, int]) -> None:
    image, truth = draw(glass)
    assert overlap(mask_tissue(image, pixel_um=UM), truth) > 0.95


INKS = {
    "black": (10, 10, 12),
    "blue": (30, 60, 170),
    "green": (30, 140, 60),
    "yellow": (230, 200, 60),
    "red": (220, 10, 30),
}


@pytest.mark.parametrize("ink", INKS.values(), ids=INKS)
def test_ink_and_black_borders_are_no_tissue(ink: tuple[int, int, int]) -> None:
    image, truth = draw()
    image[:, :40] = ink
    cv2.line(image, (60, 20), (580, 20), ink, 9)
    assert overlap(mask_tissue(image, pixel_um=UM), truth) > 0.95


def test_dust_is_left_out_and_holes_are_kept() -> None:
    image, truth = draw()
    image[20:24, 20:24] = EOSIN  # 64 µm wide
    hole = np.zeros(truth.shape, dtype=np.uint8)
    cv2.circle(hole, (300, 200), 40, 1, -1)
    image[hole == 1] = (243, 241, 244)
    found = mask_tissue(image, pixel_um=UM)
    assert not found[:40, :40].any()
    assert overlap(found, truth & (hole == 0)) > 0.93


@pytest.mark.parametrize("glass", [(243, 241, 244), (220, 207, 224)], ids=["grey", "tinted"])
def test_dense_nuclei_bluer_than_they_are_dark_are_tissue(glass: tuple[int, int, int]) -> None:
    image, truth = draw(glass)
    dense = truth & (np.arange(600) > 300)
    image[dense] = (74, 72, 128)  # lymphocytes in a section of a breast, shoulder to shoulder
    assert mask_tissue(image, pixel_um=UM)[dense].mean() > 0.98


def test_fat_is_tissue() -> None:
    image, truth = draw()
    y, x = np.mgrid[:400, :600]
    fat = truth & (x > 300)
    image[fat & (x % 9 > 1) & (y % 9 > 1)] = (243, 241, 244)  # cells of 112 µm between threads
    assert overlap(mask_tissue(image, pixel_um=UM), truth) > 0.93


@pytest.mark.shared
@pytest.mark.skipif(not HER2ST.is_dir(), reason="needs the HER2ST data (set HESCRIBE_SHARED)")
@pytest.mark.parametrize("section", ["B4", "C2", "C3", "C4", "C5"])
def test_measured_spots_lie_on_tissue(section: str) -> None:
    (image,) = HER2ST.glob(f"ST-imgs/*/{section}/*.jpg")
    spots = pd.read_csv(HER2ST / "ST-spotfiles" / f"{section}_selection.tsv", sep="\t")
    if "selected" in spots:
        spots = spots[spots["selected"] == 1]
    centres = spots[["pixel_x", "pixel_y"]].to_numpy(dtype=float)
    pitch = np.median(cKDTree(centres).query(centres, 2)[0][:, 1])
    found = find_tissue(open_slide(image), mpp=200.0 / pitch)
    assert found.covers(centres).mean() > 0.9
    assert found.mask.mean() < 0.3, "and not the glass as well"


def test_a_slide_full_of_tissue_is_tissue() -> None:
    rng = np.random.default_rng(1)
    image = np.where(rng.random((200, 200, 1)) < 0.5, EOSIN, HAEMATOXYLIN).astype(np.uint8)
    assert mask_tissue(image, pixel_um=UM).mean() > 0.99


def test_what_tissue_encloses_is_filled_and_what_goes_on_beyond_the_edge_is_not() -> None:
    rng = np.random.default_rng(1)
    image = np.where(rng.random((300, 300, 1)) < 0.5, EOSIN, HAEMATOXYLIN).astype(np.uint8)
    ends, middle = (slice(0, 30), slice(270, 300)), slice(135, 165)  # 0.23 mm²
    bays = [(middle, end) for end in ends] + [(end, middle) for end in ends]
    for hole in [*bays, (middle, middle)]:
        image[hole] = 255
    image[:8, 50:58] = 255  # a gap that is closed, although it lies at the edge
    found = mask_tissue(image, pixel_um=UM)
    assert found[middle, middle].all()
    assert found[:8, 50:58].all()
    assert [found[bay].mean() < 0.3 for bay in bays] == [True] * 4


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_glass_becomes_white_in_every_channel_however_little_there_is(share: float) -> None:
    image = np.full((100, 100, 3), EOSIN, np.uint8)
    image[: round(share * 100)] = (238, 228, 210)
    balanced = _white_glass(image)
    assert (balanced[: round(share * 100)] >= 254).all()
    np.testing.assert_allclose(balanced[-1, -1], np.array(EOSIN) * 255 / [238, 228, 210], atol=1)
    np.testing.assert_array_equal(_white_glass(image[-9:]), image[-9:])  # none is seen


@pytest.mark.parametrize("mpp", [4.0, 8.0])
def test_pieces_are_measured_in_square_millimetres(mpp: float, tmp_path: Path) -> None:
    """One of 0.04 mm² is tissue, one of 0.01 mm² dust, whatever a pixel is; the mask spans the slide."""
    side = round(2403 / mpp)
    image = np.full((side, 2 * side + 3, 3), 255, np.uint8)
    for left_um, wide_um in ((480, 200), (1600, 100)):
        left, wide = round(left_um / mpp), round(wide_um / mpp)
        image[left : left + wide, left : left + wide] = HAEMATOXYLIN
    Image.fromarray(image).save(tmp_path / "pieces.png")
    found = find_tissue(open_slide(tmp_path / "pieces.png"), mpp=mpp)
    assert found.covers(np.array([[580, 580], [1650, 1650.0]]) / mpp).tolist() == [True, False]
    assert found.mask.sum() * np.prod(found.pixel) * mpp**2 == pytest.approx(0.04e6, rel=0.2)
    np.testing.assert_allclose(np.multiply(found.pixel, found.mask.shape[::-1]), image.shape[1::-1])


@pytest.mark.parametrize("value", [0, 30, 128, 250, 255])
def test_nothing_on_an_empty_slide(value: int, tmp_path: Path) -> None:
    noisy = np.clip(value + np.random.default_rng(2).normal(0, 2, (300, 300, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(tmp_path / "empty.png")
    with pytest.raises(InputError, match=r"empty\.png: no tissue found"):
        find_tissue(open_slide(tmp_path / "empty.png"), mpp=8.0)


def test_the_grid_by_hand() -> None:
    tissue = Tissue(np.array([[True, False], [True, True]]), (100.0, 100.0), np.zeros((2, 2, 3), np.uint8))
    centres = lay_grid(tissue, mpp=0.5, stride_um=25.0, width=200, height=200)
    # Stride 50 px: centres at 25, 75, 125, 175; the upper right quarter is bare
    expected = [(x, y) for y in (25, 75, 125, 175) for x in (25, 75, 125, 175) if not (x > 100 and y < 100)]
    np.testing.assert_array_equal(centres, expected)
    wide = Tissue(np.ones((1, 2), bool), (100.0, 100.0), np.zeros((1, 2, 3), np.uint8))
    right = lay_grid(wide, mpp=0.5, stride_um=25.0, width=200, height=100)
    np.testing.assert_array_equal(right, [(x, y) for y in (25, 75) for x in (25, 75, 125, 175)])
    with pytest.raises(InputError, match="too fine"):
        lay_grid(tissue, mpp=0.5, stride_um=7.9, width=200, height=200)


def test_a_stride_is_the_nearest_number_of_whole_pixels() -> None:
    # 15.9, 222.7, 224 and 0.8 pixels
    assert [stride_px(8.0, 0.503), stride_px(112.0, 0.503), stride_px(112.0, 0.5), stride_px(8.0, 10.0)] == [
        16, 223, 224, 1,
    ]  # fmt: skip


def test_a_position_is_in_the_pixel_it_lies_in() -> None:
    """Two rows of three pixels, 100 wide and 50 high."""
    tissue = Tissue(np.array([[1, 0, 1], [0, 1, 0]], bool), (100.0, 50.0), np.zeros((2, 3, 3), np.uint8))
    x, y = np.meshgrid([-1.0, 0.0, 99.0, 100.0, 199.0, 299.0, 300.0], [-1.0, 49.0, 50.0, 99.0, 100.0])
    found = tissue.covers(np.column_stack([x.ravel(), y.ravel()])).reshape(x.shape).astype(int).tolist()
    upper, lower, outside = [0, 1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 0, 0], [0] * 7
    assert found == [outside, upper, lower, lower, outside]


def test_reading_order_goes_block_by_block() -> None:
    centres = np.array([(x, y) for y in (10, 30, 50, 70) for x in (10, 30, 50, 70)], dtype=float)
    ordered = reading_order(centres, (40.0, 40.0))
    blocks = [tuple(b) for b in (ordered // 40).astype(int).tolist()]
    assert blocks == [(0, 0)] * 4 + [(1, 0)] * 4 + [(0, 1)] * 4 + [(1, 1)] * 4
    assert {tuple(c) for c in ordered} == {tuple(c) for c in centres}


def test_a_slide_without_small_levels_gives_the_same_mask(tmp_path: Path) -> None:
    image, truth = draw()
    Image.fromarray(cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)).save(tmp_path / "s.png")
    found = find_tissue(open_slide(tmp_path / "s.png"), mpp=4.0)
    assert found.mask.shape == truth.shape
    assert overlap(found.mask, truth) > 0.95
    assert (
        found.covers(np.array([[1200.0, 800.0], [10.0, 10.0], [-5.0, 800.0], [1e6, 1e6]])).tolist()
        == [True] + [False] * 3
    )
