"""Distance between neighbouring spots, and what it says about µm per pixel."""

from __future__ import annotations

from typing import Literal

import anndata as ad
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from hescribe import keys
from hescribe.errors import InputError
from hescribe.types import Centres, Level0Px

Lattice = Literal["square", "hexagonal"]

_FEWEST_FOR_PARITY = 10  #: by chance, ten spots of a full square array are all of one colour once in 500 arrays
_FEWEST_FOR_FIT = 6
_STRETCH = 1.3  #: of one direction, beyond which spots are printed otherwise (a square grid taken for Visium's: 1.7)
_SPOT_OF_PITCH = 0.55  #: Visium: spots of 55 µm every 100 µm; legacy ST: 100 every 200


def spot_pitch(adata: ad.AnnData, lattice: Lattice | None) -> Level0Px | None:
    """Distance between neighbouring spots' centres, in full-resolution pixels; None where it cannot be told.

    Where the lattice is known and the spots have array positions, these are mapped to pixels by least squares over
    all spots: that does not mind missing spots, rounding, rotation or mirroring. Spots far from their place are left
    out of a second fit. Where the fit stretches the lattice, they were printed otherwise, and it is None. Where there
    is nothing to fit, it is the median distance to the nearest neighbour.

    Parameters
    ----------
    adata
        A section.
    lattice
        How the technology prints its spots, None where that is not known.
    """
    centres = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)
    if len(centres) < 2:
        return None
    grid = _array_positions(adata)
    if lattice is None or grid is None or len(centres) < _FEWEST_FOR_FIT:
        return _nearest(centres) or None
    places = _in_pitches(grid, lattice)
    if np.linalg.matrix_rank(places - places.mean(axis=0), tol=1e-6) < 2:
        return _nearest(centres) or None
    return _fitted_pitch(places, centres)


def is_checkerboard(adata: ad.AnnData) -> bool:
    """Whether only every second place of a square array holds a spot, as on the denser ST arrays.

    Their pitch is not that of the 1,000-spot array, so it must not be taken for it.
    """
    grid = _array_positions(adata)
    return grid is not None and _is_every_second(grid)


def _array_positions(adata: ad.AnnData) -> npt.NDArray[np.float64] | None:
    """(n, 2) column and row."""
    if keys.ARRAY_ROW not in adata.obs or keys.ARRAY_COL not in adata.obs:
        return None
    grid = adata.obs[[keys.ARRAY_COL, keys.ARRAY_ROW]].to_numpy(dtype=np.float64)
    return grid if np.isfinite(grid).all() else None


def _in_pitches(grid: npt.NDArray[np.float64], lattice: Lattice) -> npt.NDArray[np.float64]:
    """Array positions with the distance of neighbours as unit."""
    if lattice == "hexagonal":
        # Visium: the neighbour in a row is two columns away, rows are √3/2 of the pitch apart
        return grid * [0.5, np.sqrt(3) / 2]
    return grid / np.sqrt(2) if _is_every_second(grid) else grid


def _is_every_second(grid: npt.NDArray[np.float64]) -> bool:
    """Whether all array positions are of one colour of a checkerboard."""
    parity = np.rint(grid).sum(axis=1) % 2
    return len(grid) >= _FEWEST_FOR_PARITY and bool((parity == parity[0]).all())


def _fitted_pitch(places: npt.NDArray[np.float64], centres: Centres) -> Level0Px | None:
    design = np.column_stack([places, np.ones(len(places))])
    kept = np.ones(len(places), dtype=bool)
    for _ in range(2):
        fit = np.linalg.lstsq(design[kept], centres[kept], rcond=None)[0]
        widest, narrowest = np.linalg.svd(fit[:2], compute_uv=False)
        if widest > _STRETCH * narrowest:
            return None
        pitch = float(np.sqrt(abs(np.linalg.det(fit[:2]))))
        residual = np.linalg.norm(centres - design @ fit, axis=1)
        kept = residual <= max(5 * float(np.median(residual)), 0.1 * pitch)
    return pitch if pitch > 0 else None


def check_apart(centres: Centres) -> None:
    """Refuse spots at one place: of several sections joined, neighbours would be sought among strangers.

    Raises
    ------
    InputError
        Two spots or more lie at one place.
    """
    if twice := len(centres) - len(np.unique(centres, axis=0)):
        raise InputError(
            f"{twice:,} of {len(centres):,} spots lie where another does; are these several sections?",
            fix="give each section by itself",
        )


def distance_between(centres: Centres) -> Level0Px:
    """Median distance to the nearest other spot; 1 for a single spot."""
    if len(centres) < 2:
        return 1.0
    return _nearest(centres) or 1.0


def _nearest(centres: Centres) -> Level0Px:
    return float(np.median(cKDTree(centres).query(centres, k=[2])[0]))


def is_square_grid(centres: Centres) -> bool:
    """Whether nearest neighbours stand straight beside or below: tiles of a grid, not spots of an array."""
    if len(centres) < 9:
        return False
    distance, index = cKDTree(centres).query(centres, k=range(2, 6))
    step = np.abs(centres[index] - centres[:, None])
    pitch = float(np.median(distance[:, 0])) or 1.0
    near, straight = distance < 1.2 * pitch, step.min(axis=2) < 0.01 * pitch
    return bool(near.any()) and float(straight[near].mean()) > 0.9


def spot_diameter(centres: Centres) -> Level0Px:
    """How large a spot is, where nobody says: squares that touch on a square grid, else as on Visium."""
    return distance_between(centres) * (1.0 if is_square_grid(centres) else _SPOT_OF_PITCH)
