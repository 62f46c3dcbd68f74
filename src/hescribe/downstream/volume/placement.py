"""Where a section lies in common coordinates: an affine map, and on top of it, where wanted, a B-spline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hescribe.errors import InputError
from hescribe.io.store import write_atomically
from hescribe.types import Microns

Points = npt.NDArray[np.float64]  #: (n, 2) x, y in µm, y down
Affine = npt.NDArray[np.float64]  #: (2, 3): matrix and offset

FORMAT = 1  #: of the file of transforms
IDENTITY: Affine = np.eye(2, 3)
_STEPS, _CLOSE_UM = 60, 0.01  #: of the inversion of a spline


def apply(affine: Affine, points: Points) -> Points:
    """(n, 2) positions through an affine map."""
    return np.asarray(points @ affine[:, :2].T + affine[:, 2])


def invert(affine: Affine) -> Affine:
    """The map back."""
    matrix = np.linalg.inv(affine[:, :2])
    return np.column_stack([matrix, -matrix @ affine[:, 2]])


def compose(outer: Affine, inner: Affine) -> Affine:
    """First ``inner``, then ``outer``."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])


@dataclass(frozen=True, eq=False)
class Spline:
    """Cubic B-spline displacement on a regular grid of control points.

    Attributes
    ----------
    origin, spacing
        Position of the first control point and distance between them, (2,) µm, x first.
    coefficients
        (2, rows, columns): displacement in x and in y, µm.
    """

    origin: Points
    spacing: Points
    coefficients: npt.NDArray[np.float64]

    def displacement(self, points: Points) -> Points:
        """(n, 2) µm; none outside the control points' reach."""
        rows, columns = self.coefficients.shape[1:]
        at = (points - self.origin) / self.spacing
        first = np.floor(at).astype(np.intp) - 1
        inside = (first >= 0).all(axis=1) & (first[:, 0] + 3 < columns) & (first[:, 1] + 3 < rows)
        out = np.zeros_like(points)
        first, share = first[inside], (at - np.floor(at))[inside]
        weights = _cubic(share)
        total = np.zeros_like(share)
        for i in range(4):
            for j in range(4):
                weight = weights[:, 0, i] * weights[:, 1, j]
                total += weight[:, None] * self.coefficients[:, first[:, 1] + j, first[:, 0] + i].T
        out[inside] = total
        return out


def _cubic(share: Points) -> npt.NDArray[np.float64]:
    """Weights of the four control points around, (n, 2, 4), at a share of the way between the middle two."""
    t = share[..., None]
    return np.concatenate(
        [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6], axis=-1
    )


@dataclass(frozen=True, eq=False)
class Placement:
    """A section's place in common coordinates.

    A position p of the section (µm: full-resolution pixels times µm per pixel) lies at q with
    ``q + s(q) = A p + b``, s the spline's displacement; without spline q = A p + b.

    Attributes
    ----------
    name
        The section's id.
    affine
        (2, 3): A and b.
    spline
        Of the common coordinates, or None.
    """

    name: str
    affine: Affine
    spline: Spline | None = None

    @property
    def flipped(self) -> bool:
        """Whether the section lay face down."""
        return bool(np.linalg.det(self.affine[:, :2]) < 0)

    @property
    def angle(self) -> float:
        """Degrees by which the section is turned (after mirroring in x, if flipped), −180 to 180; on the picture, where y points down, clockwise is positive."""
        left, _, right = np.linalg.svd(self.affine[:, :2])
        turn = left @ right
        if self.flipped:
            turn = turn @ np.diag([-1.0, 1.0])
        return float(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))

    @property
    def scale(self) -> float:
        """By which areas grow, as a length."""
        return float(np.sqrt(abs(np.linalg.det(self.affine[:, :2]))))

    def to_common(self, points: npt.ArrayLike) -> Points:
        """(n, 2) µm on the section → (n, 2) µm in common coordinates."""
        goal = apply(self.affine, np.asarray(points, dtype=np.float64))
        if self.spline is None:
            return goal
        found = goal.copy()
        for _ in range(_STEPS):
            step = goal - found - self.spline.displacement(found)
            found += step
            if not len(step) or np.abs(step).max() < _CLOSE_UM:
                break
        return found

    def to_section(self, points: npt.ArrayLike) -> Points:
        """(n, 2) µm in common coordinates → (n, 2) µm on the section."""
        common = np.asarray(points, dtype=np.float64)
        if self.spline is not None:
            common = common + self.spline.displacement(common)
        return apply(invert(self.affine), common)


def save_placements(placements: Sequence[Placement], path: str | Path, *, about: dict[str, Any] | None = None) -> None:
    """Write placements as JSON.

    Parameters
    ----------
    placements
        One a section.
    path
        File.
    about
        More to be written beside them, such as the table of pairs.
    """
    sections = [_to_json(p) for p in placements]
    text = json.dumps(
        {"format": FORMAT, "unit": "µm", **(about or {}), "sections": sections}, indent=1, allow_nan=False
    )
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_placements(path: str | Path) -> list[Placement]:
    """Read what `save_placements` wrote.

    Raises
    ------
    InputError
        No such file, or not placements of this format.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(f"transforms of format {content['format']}, not {FORMAT}", path=path)
        return [_from_json(s) for s in content["sections"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"no readable transforms ({error})", path=path, fix="made by 'hescribe volume'") from error


def _to_json(placement: Placement) -> dict[str, Any]:
    spline = placement.spline
    return {
        "section": placement.name,
        "matrix": placement.affine[:, :2].tolist(),
        "offset_um": placement.affine[:, 2].tolist(),
        "flipped": placement.flipped,
        "angle": placement.angle,
        "spline": spline
        and {
            "origin_um": spline.origin.tolist(),
            "spacing_um": spline.spacing.tolist(),
            "coefficients_um": spline.coefficients.tolist(),
        },
    }


def _from_json(entry: dict[str, Any]) -> Placement:
    affine = np.column_stack([np.array(entry["matrix"], dtype=float), np.array(entry["offset_um"], dtype=float)])
    spline = entry.get("spline")
    if spline:
        parts = (np.array(spline[k], dtype=float) for k in ("origin_um", "spacing_um", "coefficients_um"))
        return Placement(entry["section"], affine, Spline(*parts))
    return Placement(entry["section"], affine)


def mean_distance(a: Points, b: Points) -> Microns:
    """Mean distance of matching positions."""
    return float(np.linalg.norm(a - b, axis=1).mean())
