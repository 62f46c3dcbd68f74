"""Serial sections into one coordinate system.

Neighbours are laid onto each other from any angle and either face; then every section and the one after next, starting
from what the neighbours say. All these pairs together are one linear least-squares problem for the sections' places,
so that an error of one pair is shared out instead of being handed on to the end of the stack, and what remains (the
closure) says how far the pairs contradict each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm.auto import tqdm

from hescribe.downstream.volume.placement import IDENTITY, Affine, Placement, apply, compose, invert, mean_distance
from hescribe.downstream.volume.planes import Likeness, Picture, Plane, compare, raster, warp
from hescribe.downstream.volume.refine import Linear, refine, refine_spline, shrink
from hescribe.downstream.volume.search import find_candidates
from hescribe.errors import HescribeWarning, InputError
from hescribe.types import Microns

Model = Literal["rigid", "affine", "bspline"]

_COARSE_ACROSS = 128  #: pixels across the tissue while candidates are compared
_STRETCH = (0.8, 1.25)  #: of an affine map; a section is not stretched further by cutting
_FLIP_PRIOR = 0.03  #: by which a flip must be better: sections are seldom laid face down
_POOR_DICE, _POOR_CORRELATION = 0.75, 0.15
_AMBIGUOUS = 0.05


@dataclass(frozen=True, eq=False)
class Pair:
    """One section laid onto another.

    Attributes
    ----------
    fixed, moving
        Indices of the sections.
    to_moving
        (2, 3) from the fixed section's µm to the moving one's.
    likeness
        With this map.
    lead
        By how much the score exceeds that of the best placement with the other face up; NaN where it was not tried.
    """

    fixed: int
    moving: int
    to_moving: Affine
    likeness: Likeness
    lead: float = np.nan


@dataclass(frozen=True, eq=False)
class Registration:
    """Sections in common coordinates: those of the reference section.

    Attributes
    ----------
    placements
        One a section, in the order given.
    pairs
        A row for each pair of neighbours: ``fixed``, ``moving``, ``angle`` (degrees), ``flipped``, ``dice_before``
        and ``dice_after`` (tissue masks as they lie on their slides, and registered), ``correlation_before`` and
        ``correlation_after`` (of haematoxylin), ``closure_um`` (by how much the pair's own map differs from the
        places that were settled on), ``lead`` (of this face over the other).
    reference
        Name of the section whose coordinates these are.
    """

    placements: list[Placement]
    pairs: pd.DataFrame
    reference: str


def register_pair(fixed: Picture, moving: Picture, *, model: Model = "affine") -> Placement:
    """Where ``moving`` lies on ``fixed``: a placement into the fixed section's µm.

    Raises
    ------
    InputError
        No tissue on one of them.
    """
    return register_sections([fixed, moving], model=model, reference=fixed.name).placements[1]


def register_sections(
    pictures: Sequence[Picture], *, model: Model = "affine", reference: str | None = None
) -> Registration:
    """Lay serial sections onto each other.

    Parameters
    ----------
    pictures
        Two or more thumbnails, from the lowest section to the highest; 8–16 µm a pixel are enough.
    model
        ``"rigid"``; ``"affine"``, which starts from it; ``"bspline"``, which adds a smooth bending to that.
    reference
        The section that stays where it is; by default the middle one.

    Returns
    -------
    Registration
        Placements and the quality of every pair.

    Raises
    ------
    InputError
        Fewer than two sections, two of one name, an unknown model or reference, a section without tissue.

    Examples
    --------
    >>> found = register_sections([Picture("A", a, um=12.0), Picture("B", b, um=12.0)])  # doctest: +SKIP
    >>> found.placements[0].to_common(spots_um)  # doctest: +SKIP
    """
    names = [p.name for p in pictures]
    if len(names) < 2:
        raise InputError(f"{len(names)} section to register", fix="at least two are needed")
    if len(set(names)) < len(names):
        raise InputError(f"two sections have one name (of {', '.join(names)})")
    check_model(model)
    if reference is not None and reference not in names:
        raise InputError(f"no section {reference!r} to be the reference", fix=f"one of {', '.join(names)}")
    middle = (len(names) - 1) // 2 if reference is None else names.index(reference)
    planes = [p.plane for p in pictures]
    kind: Linear = "rigid" if model == "rigid" else "affine"
    steps = tqdm(range(len(planes) - 1), desc="register", unit="pair", disable=None, leave=False)
    near = [lay_onto(planes[i], planes[i + 1], kind, indices=(i, i + 1)) for i in steps]
    far = [_skip(planes, *two, kind=kind) for two in pairwise(near)]
    places = settle(planes, [*near, *far], middle, rigid=kind == "rigid")
    placements = [Placement(n, a) for n, a in zip(names, places, strict=True)]
    if model == "bspline":
        placements = _bend(planes, placements, middle)
    table = _table(planes, placements, near)
    _warn(table)
    return Registration(placements, table, names[middle])


def check_model(model: str) -> Model:
    """Refuse unknown registrations (`InputError`)."""
    if model not in get_args(Model):
        raise InputError(f"unknown registration {model!r}", fix=f"one of {', '.join(get_args(Model))}")
    return cast(Model, model)


def lay_onto(fixed: Plane, moving: Plane, kind: Linear, *, indices: tuple[int, int] = (0, 1)) -> Pair:
    """One section onto another, from any angle and either face."""
    reach = max(float((p.box[1] - p.box[0]).max()) for p in (fixed, moving))
    small = [shrink(p, reach / _COARSE_ACROSS) for p in (fixed, moving)]
    best: dict[bool, tuple[float, Affine]] = {}
    for candidate in find_candidates(fixed, moving):
        turned = refine(small[0], small[1], candidate.to_moving, "rigid", coarse=True)
        score = _likeness(small[0], small[1], turned).score
        if candidate.flipped not in best or score > best[candidate.flipped][0]:
            best[candidate.flipped] = score, turned
    lead = best[True][0] - best[False][0]
    flipped = lead > _FLIP_PRIOR
    pair = _refined(fixed, moving, best[flipped][1], kind)
    return replace(pair, fixed=indices[0], moving=indices[1], lead=lead if flipped else -lead)


def settle(planes: Sequence[Plane], pairs: Sequence[Pair], reference: int, *, rigid: bool) -> list[Affine]:
    """The sections' places that contradict the pairs least, (2, 3) from section to common µm each.

    For places A and a pair's map T, A_fixed p = A_moving T p should hold for every p in the tissue: linear in A, and
    solved by least squares, pairs weighted by their likeness. The reference's place is the identity.
    """
    free = [i for i in range(len(planes)) if i != reference]
    column = {section: 3 * i for i, section in enumerate(free)}
    rows, goals = [], []
    for pair in pairs:
        points = planes[pair.fixed].points()
        weight = max(pair.likeness.score, 0.05) ** 2 / 2e3
        block, goal = np.zeros((len(points), 3 * len(free))), np.zeros((len(points), 2))
        for section, where, sign in ((pair.fixed, points, 1.0), (pair.moving, apply(pair.to_moving, points), -1.0)):
            if section == reference:
                goal -= sign * where
            else:
                block[:, column[section] : column[section] + 3] = sign * np.column_stack(
                    [where, np.full(len(where), 1e3)]
                )
        rows.append(weight * block)
        goals.append(weight * goal)
    solution = np.linalg.lstsq(np.concatenate(rows), np.concatenate(goals), rcond=None)[0]
    out: list[Affine] = [IDENTITY] * len(planes)
    for section, first in column.items():
        # The constant's column is 1000, so that all columns are of one size
        affine = solution[first : first + 3].T * np.array([1, 1, 1e3])
        out[section] = nearest_rigid(affine, planes[section].centroid) if rigid else affine
    return out


def nearest_rigid(affine: Affine, about: npt.NDArray[np.float64]) -> Affine:
    """The turn (and flip) closest to an affine map, which moves the position ``about`` to the same place."""
    left, _, right = np.linalg.svd(affine[:, :2])
    turn = left @ right
    return np.column_stack([turn, apply(affine, about[None])[0] - turn @ about])


def _refined(fixed: Plane, moving: Plane, start: Affine, kind: Linear) -> Pair:
    """Rigid, and affine where that is plausible and better."""
    rigid = refine(fixed, moving, start, "rigid")
    chosen = max((start, rigid), key=lambda a: _likeness(fixed, moving, a).score)
    pair = Pair(0, 1, chosen, _likeness(fixed, moving, chosen))
    if kind == "rigid":
        return pair
    affine = refine(fixed, moving, chosen, "affine")
    likeness = _likeness(fixed, moving, affine)
    stretch = np.linalg.svd(affine[:, :2], compute_uv=False)
    plausible = _STRETCH[0] < stretch.min() and stretch.max() < _STRETCH[1]
    return Pair(0, 1, affine, likeness) if plausible and likeness.score > pair.likeness.score else pair


def _skip(planes: Sequence[Plane], first: Pair, second: Pair, *, kind: Linear) -> Pair:
    """A section onto the one before the previous."""
    start = compose(second.to_moving, first.to_moving)
    pair = _refined(planes[first.fixed], planes[second.moving], start, kind)
    return replace(pair, fixed=first.fixed, moving=second.moving)


def _bend(planes: Sequence[Plane], placements: Sequence[Placement], reference: int) -> list[Placement]:
    """From the reference outwards, each section bent onto its inner neighbour as that lies by now."""
    out = list(placements)
    order = [*range(reference + 1, len(planes)), *range(reference - 1, -1, -1)]
    for i in order:
        inner = i - 1 if i > reference else i + 1
        where = _common_raster(planes[inner], out[inner])
        fixed = warp(planes[inner], out[inner].to_section, where)
        low = where[0, 0] - planes[inner].um / 2
        start = compose(invert(out[i].affine), np.column_stack([np.eye(2), low]))
        spline = refine_spline(fixed, planes[i], start)
        if spline is None:
            _say(f"section {out[i].name!r} would have to be folded onto its neighbour; it stays affine")
            continue
        bent = replace(out[i], spline=replace(spline, origin=spline.origin + low))
        before, after = (_between(planes, out[inner], p, (inner, i)).score for p in (out[i], bent))
        if after > before:
            out[i] = bent
    return out


def _common_raster(plane: Plane, placement: Placement) -> npt.NDArray[np.float64]:
    low, high = plane.box
    corners = placement.to_common([[x, y] for x in (low[0], high[0]) for y in (low[1], high[1])])
    margin = 0.1 * np.ptp(corners, axis=0)
    return raster(corners.min(axis=0) - margin, corners.max(axis=0) + margin, plane.um)


def _between(planes: Sequence[Plane], one: Placement, other: Placement, indices: tuple[int, int]) -> Likeness:
    """Likeness of two placed sections."""
    return compare(planes[indices[0]], planes[indices[1]], lambda p: other.to_section(one.to_common(p)))


def _likeness(fixed: Plane, moving: Plane, to_moving: Affine) -> Likeness:
    return compare(fixed, moving, lambda p: apply(to_moving, p))


def _table(planes: Sequence[Plane], placements: Sequence[Placement], near: Sequence[Pair]) -> pd.DataFrame:
    rows = []
    for pair in near:
        one, other = placements[pair.fixed], placements[pair.moving]
        before = _likeness(planes[pair.fixed], planes[pair.moving], IDENTITY)
        after = _between(planes, one, other, (pair.fixed, pair.moving))
        own = Placement("", invert(pair.to_moving))
        points = planes[pair.fixed].points()
        rows.append({
            "fixed": one.name, "moving": other.name, "angle": own.angle, "flipped": own.flipped,
            "dice_before": before.dice, "dice_after": after.dice,
            "correlation_before": before.correlation, "correlation_after": after.correlation,
            "closure_um": _closure(pair, one, other, points), "lead": pair.lead,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _closure(pair: Pair, one: Placement, other: Placement, points: npt.NDArray[np.float64]) -> Microns:
    settled = apply(invert(other.affine), apply(one.affine, points))
    return mean_distance(settled, apply(pair.to_moving, points))


def is_poor(row: Mapping[Any, Any]) -> bool:
    """Whether a pair of neighbours (a row of ``pairs``) should not be believed."""
    return bool(row["dice_after"] < _POOR_DICE or row["correlation_after"] < _POOR_CORRELATION)


def _warn(table: pd.DataFrame) -> None:
    for row in table.to_dict("records"):
        names = f"sections {row['fixed']!r} and {row['moving']!r}"
        if is_poor(row):
            fit = f"Dice {row['dice_after']:.2f}, correlation {row['correlation_after']:.2f}"
            _say(f"{names} fit poorly ({fit}); look at them")
        elif row["lead"] < _AMBIGUOUS:
            _say(f"{names} fit nearly as well with one of them flipped (difference {row['lead']:.2f}); look at them")


def _say(text: str) -> None:
    warnings.warn(text, HescribeWarning, stacklevel=3)
