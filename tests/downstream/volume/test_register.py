"""Registration against maps that were planted."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
import SimpleITK as sitk

from hescribe.downstream.volume.placement import Placement, Spline, apply, invert, load_placements, save_placements
from hescribe.downstream.volume.planes import Likeness, Picture, Plane, compare
from hescribe.downstream.volume.refine import refine, refine_spline, shrink, spline_from_itk
from hescribe.downstream.volume.register import Pair, Registration, register_pair, register_sections, settle
from hescribe.errors import HescribeWarning, InputError

from .conftest import GLASS, SPOT_UM, UM, block_points, cut, draw_tissue, error_um, place


@pytest.fixture(scope="session")
def found(pictures) -> Registration:
    with warnings.catch_warnings():
        warnings.simplefilter("error", HescribeWarning)
        return register_sections(pictures, model="affine")


def test_serial_sections_are_laid_onto_each_other(found, truths, block) -> None:
    points = block_points(block)
    reference = found.placements[1]
    assert found.reference == "S2"
    np.testing.assert_array_equal(reference.affine, np.eye(2, 3))
    for placement, truth in zip(found.placements, truths, strict=True):
        assert error_um(placement, reference, truth, truths[1], points) < 0.3 * SPOT_UM
    # The test can fail: unregistered they are far off
    assert error_um(Placement("S1", np.eye(2, 3)), reference, truths[0], truths[1], points) > 3 * SPOT_UM


def test_a_flip_is_found_and_said(found) -> None:
    assert found.pairs["flipped"].tolist() == [True, True]
    assert [p.flipped for p in found.placements] == [True, False, True]
    assert (found.pairs["lead"] > 0.1).all()


def test_quality_is_told(found) -> None:
    assert (found.pairs["dice_after"] > 0.95).all()
    assert (found.pairs["dice_before"] < found.pairs["dice_after"]).all()
    assert (found.pairs["correlation_after"] > 0.8).all()
    assert (found.pairs["closure_um"] < 20).all()


@pytest.mark.parametrize("angle", [45, pytest.param(275, marks=pytest.mark.slow)])
def test_any_angle(block, angle) -> None:
    truth = place(angle, shift=(100, 150))
    one, other = cut(block, place(0), "A", 0), cut(block, truth, "B", 1)
    placed = register_pair(one, other, model="rigid")
    assert not placed.flipped
    assert abs((placed.angle + angle + 180) % 360 - 180) < 1.5  # it is turned back
    assert error_um(placed, Placement("A", np.eye(2, 3)), truth, place(0), block_points(block)) < 0.3 * SPOT_UM


def test_the_same_pictures_give_the_same_numbers(pictures) -> None:
    planes = [cut(draw_tissue(), place(a), "A", 0).plane for a in (0, 4)]
    once, again = (refine(*planes, np.eye(2, 3), "rigid") for _ in range(2))
    np.testing.assert_array_equal(once, again)


@pytest.fixture(scope="module")
def bent(block) -> tuple[list[Picture], np.ndarray, np.ndarray]:
    """A wave of 72 µm that no affine map follows; a bent pixel at (u, y) shows the block's (u + bend(y), y)."""
    side = block.shape[0]
    y, x = np.mgrid[:side, :side].astype(np.float32)
    wave = cv2.remap(
        block, x + 6 * np.sin(2 * np.pi * y / 70).astype(np.float32), y, cv2.INTER_LINEAR, borderValue=GLASS
    )
    points = block_points(block)
    bend = 6 * UM * np.sin(2 * np.pi * (points[:, 1] / UM - 0.5) / 70)
    there = points - np.column_stack([bend, np.zeros_like(bend)])
    return [cut(block, place(0), "A", 0), cut(wave, place(0), "B", 1)], points, there


def test_a_spline_bends_back(bent) -> None:
    (fixed, moving), points, there = bent
    placed = Placement("B", np.eye(2, 3), refine_spline(fixed.plane, moving.plane, np.eye(2, 3)))
    np.testing.assert_allclose(placed.to_section(placed.to_common(there)), there, atol=0.1)
    before, after = (np.linalg.norm(p - points, axis=1).mean() for p in (there, placed.to_common(there)))
    assert before > 40
    assert after < 20


@pytest.mark.slow
def test_a_bent_section_is_bent_back(bent) -> None:
    pictures, points, there = bent
    placed = register_sections(pictures, model="bspline", reference="A").placements[1]
    spline, affine = (
        np.linalg.norm(p.to_common(there) - points, axis=1).mean() for p in (placed, Placement("B", placed.affine))
    )
    assert spline < min(20, 0.6 * affine)


def test_direction_of_a_refined_map(block) -> None:
    """SimpleITK maps fixed positions to moving ones; a wrong sign doubles the shift instead of finding it."""
    truth = np.column_stack([np.eye(2), [60.0, -36.0]])
    fixed, moving = cut(block, place(0), "A", 0).plane, cut(block, truth, "B", 0).plane
    np.testing.assert_allclose(refine(fixed, moving, np.eye(2, 3), "rigid")[:, 2], [60, -36], atol=6)


def test_places_are_settled_exactly_where_pairs_agree(block) -> None:
    """Also against a slow truth: contradicting pairs of one dimension share their error out."""
    plane = cut(block, place(0), "A", 0).plane
    good = Likeness(1.0, 1.0)
    maps = [place(0), place(30, shift=(5, 7)), place(-100, flip=True, shift=(300, 0))]
    pairs = [Pair(i, j, _between(maps[i], maps[j]), good) for i, j in ((0, 1), (1, 2), (0, 2))]
    found = settle([plane] * 3, pairs, 1, rigid=False)
    points = plane.points(50)
    for mine, truth in zip(found, maps, strict=True):
        np.testing.assert_allclose(apply(mine, apply(truth, points)), apply(maps[1], points), atol=1e-6)
    shifts = {(0, 1): 10.0, (1, 2): 10.0, (0, 2): 26.0}  # 6 µm too many
    pairs = [Pair(i, j, np.column_stack([np.eye(2), [s, 0]]), good) for (i, j), s in shifts.items()]
    found = settle([plane] * 3, pairs, 0, rigid=True)
    np.testing.assert_allclose([f[0, 2] for f in found], [0, -12, -24], atol=0.05)


def _between(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    back = invert(fixed)
    return np.column_stack([moving[:, :2] @ back[:, :2], moving[:, :2] @ back[:, 2] + moving[:, 2]])


def test_spline_as_simpleitk_has_it() -> None:
    image = sitk.Image([60, 50], sitk.sitkFloat32)
    theirs = sitk.BSplineTransformInitializer(image, [4, 3], 3)
    rng = np.random.default_rng(0)
    theirs.SetParameters(rng.normal(size=len(theirs.GetParameters())).tolist())
    mine = spline_from_itk(theirs, 12.0)
    points = rng.uniform(1, 48, (40, 2))
    moved = np.array([theirs.TransformPoint(p.tolist()) for p in points])
    np.testing.assert_allclose(points * 12 + mine.displacement(points * 12), moved * 12, atol=1e-6)
    np.testing.assert_array_equal(mine.displacement(np.array([[-9e3, 0.0], [9e3, 0.0]])), 0)


def test_placements_go_through_a_file_and_back(tmp_path) -> None:
    rng = np.random.default_rng(1)
    spline = Spline(np.array([-300.0, -300.0]), np.array([300.0, 300.0]), rng.normal(0, 20, (2, 9, 8)))
    given = [Placement("A", place(20, flip=True)), Placement("B", place(-70), spline)]
    save_placements(given, tmp_path / "t.json", about={"model": "bspline"})
    points = rng.uniform(300, 1200, (30, 2))
    for before, after in zip(given, load_placements(tmp_path / "t.json"), strict=True):
        assert after.name == before.name
        np.testing.assert_allclose(after.to_common(points), before.to_common(points), atol=1e-9)
        np.testing.assert_allclose(after.to_section(after.to_common(points)), points, atol=0.05)
    (tmp_path / "bad.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"bad\.json: no readable transforms"):
        load_placements(tmp_path / "bad.json")


@pytest.mark.parametrize(("angle", "flip"), [(0, False), (30, False), (-170, False), (30, True), (-90, True)])
def test_angle_and_face_of_a_placement(angle, flip) -> None:
    placement = Placement("A", place(angle, flip=flip))
    assert placement.flipped == flip
    assert placement.angle == pytest.approx(angle)
    assert placement.scale == pytest.approx(1)


def test_likeness_of_squares_by_hand() -> None:
    mask = np.zeros((20, 40), bool)
    mask[5:15, 5:15] = True
    plane = Plane(mask.astype(np.float32), mask, 1.0)
    half = compare(plane, plane, lambda p: p + np.array([5, 0]))
    assert half.dice == pytest.approx(0.5)
    assert compare(plane, plane, lambda p: p).dice == 1
    assert compare(plane, plane, lambda p: p + np.array([100, 0])).dice == 0


def test_strangers_are_warned_of(block) -> None:
    rng = np.random.default_rng(5)
    stranger = np.full_like(block, 238)
    stranger[60:75, 20:190] = np.array([150, 90, 170]) + rng.integers(-30, 30, (15, 170, 3))
    with pytest.warns(HescribeWarning, match="fit poorly"):
        register_sections([Picture("A", block, UM), Picture("B", stranger.astype(np.uint8), UM)], model="rigid")


def test_refusals(pictures) -> None:
    glass = Picture("G", np.full((100, 100, 3), 240, np.uint8), UM)
    for given, options, message in (
        (pictures[:1], {}, "1 section to register"),
        ([pictures[0]] * 2, {}, "one name"),
        (pictures, {"model": "magic"}, "unknown registration 'magic'"),
        (pictures, {"reference": "X"}, "no section 'X'"),
        ([pictures[0], glass], {}, "no tissue found on section 'G'"),
        ([pictures[0], Picture("H", np.zeros((9, 9), np.uint8), UM)], {}, "H: a picture of shape"),
    ):
        with pytest.raises(InputError, match=message):
            register_sections(given, **options)


def test_likeness_does_not_depend_on_the_pixels(block) -> None:
    plane = cut(block, place(0), "A", 0).plane
    coarse = shrink(plane, 2 * UM)
    assert coarse.um == pytest.approx(2 * UM)
    for fixed, moving in ((plane, coarse), (coarse, plane)):
        assert compare(fixed, moving, lambda p: p).dice == pytest.approx(1, abs=0.03)
