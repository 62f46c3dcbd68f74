"""Cells: which types stand where, how far apart, and how each one is doing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from hescribe.datasets.synthetic.block import (
    FAT,
    GRID_UM,
    LYMPHOID,
    NECROSIS,
    STROMA,
    TUMOUR,
    Tissue,
    sample,
)
from hescribe.datasets.synthetic.patients import Patient
from hescribe.types import Centres

CELL_TYPES = ("tumour", "fibroblast", "t_cell", "b_cell", "plasma", "macrophage", "endothelial", "adipocyte")
TUMOUR_CELL, FIBROBLAST, T_CELL, B_CELL, PLASMA, MACROPHAGE, ENDOTHELIAL, ADIPOCYTE = range(len(CELL_TYPES))

ADIPOCYTE_RADIUS_UM = 27.0
_RADIUS_UM = np.array([5.0, 4.2, 2.7, 2.95, 4.0, 4.8, 3.6, ADIPOCYTE_RADIUS_UM])  #: what a nucleus keeps free

#: candidates per mm²; packed tissues are offered more than fit
_DENSITY: dict[int, dict[int, float]] = {
    TUMOUR: {TUMOUR_CELL: 19000, T_CELL: 260, MACROPHAGE: 170, FIBROBLAST: 60, ENDOTHELIAL: 70},
    STROMA: {FIBROBLAST: 1250, T_CELL: 330, B_CELL: 40, PLASMA: 150, MACROPHAGE: 170, ENDOTHELIAL: 90},
    LYMPHOID: {T_CELL: 24000, B_CELL: 22000, PLASMA: 600, MACROPHAGE: 350, ENDOTHELIAL: 250, FIBROBLAST: 120},
    FAT: {FIBROBLAST: 900, MACROPHAGE: 500, ENDOTHELIAL: 900, T_CELL: 150},
    NECROSIS: {TUMOUR_CELL: 350, MACROPHAGE: 250, T_CELL: 120},
}
_SCATTERED_IMMUNE = {T_CELL, B_CELL, PLASMA, MACROPHAGE}


@dataclass(frozen=True)
class Cells:
    """The n cells of a section.

    Attributes
    ----------
    xy_um
        (n, 2) float64, centres of the nuclei.
    kind
        (n,) index into `CELL_TYPES`.
    program
        (n,) float32 in [0, 1]: proliferation and hypoxia of tumour cells, activation of fibroblasts; 0.5 for others.
    angle
        (n,) float32, radians, of the nucleus' long axis.
    """

    xy_um: Centres
    kind: npt.NDArray[np.int8]
    program: npt.NDArray[np.float32]
    angle: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.kind)

    def of(self, *kinds: int) -> Cells:
        """Only these types."""
        return self[np.isin(self.kind, kinds)]

    def __getitem__(self, chosen: npt.NDArray[np.generic]) -> Cells:
        return Cells(self.xy_um[chosen], self.kind[chosen], self.program[chosen], self.angle[chosen])


def place_cells(tissue: Tissue, patient: Patient, rng: np.random.Generator) -> Cells:
    """Cells of a section: adipocytes first, since their vacuoles push the others aside."""
    adipocytes = _adipocytes(tissue, rng)
    xy, kind = _candidates(tissue, patient, rng)
    lining_xy = _lining(tissue, rng)
    xy = np.concatenate([xy, lining_xy])
    kind = np.concatenate([kind, np.full(len(lining_xy), ENDOTHELIAL, dtype=np.int8)])
    free = _is_free(tissue, xy, kind, adipocytes)
    xy, kind = xy[free], kind[free]
    radius = _RADIUS_UM[kind]
    radius[kind == TUMOUR_CELL] = patient.subtype.spacing_um
    # Growing tumour is crowded
    crowded = 1.12 - 0.24 * sample(tissue.program, xy)
    radius = np.where(kind == TUMOUR_CELL, radius * crowded, radius)
    kept = keep_apart(xy, radius, rng)
    xy, kind = np.concatenate([xy[kept], adipocytes]), np.append(kind[kept], [ADIPOCYTE] * len(adipocytes))
    kind = kind.astype(np.int8)
    return Cells(xy, kind, _programs(tissue, xy, kind, rng), _angles(tissue, xy, kind, adipocytes, rng=rng))


def keep_apart(xy: Centres, radius: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A largest-possible choice of points of which no two are nearer than the sum of their radii.

    Points are taken in random order of precedence: each round keeps all that come before every rival left.
    """
    rank = rng.permutation(len(xy))
    pairs = (
        cKDTree(xy).query_pairs(2 * float(radius.max()), output_type="ndarray") if len(xy) else np.empty((0, 2), int)
    )
    near = np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 1]], axis=1) < radius[pairs].sum(axis=1)
    pairs = pairs[near]
    first = np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    second = pairs.sum(axis=1) - first
    undecided, kept = np.ones(len(xy), bool), np.zeros(len(xy), bool)
    while undecided.any():
        beaten = np.zeros(len(xy), bool)
        beaten[second] = True
        winners = undecided & ~beaten
        kept |= winners
        undecided &= ~winners
        undecided[second[winners[first]]] = False
        alive = undecided[first] & undecided[second]
        first, second = first[alive], second[alive]
    return kept


def _scatter(density: npt.NDArray[np.floating], rng: np.random.Generator) -> Centres:
    """Poisson points (n, 2) in µm from a density per mm² on the grid."""
    counts = rng.poisson(density * (GRID_UM / 1000) ** 2)
    rows, columns = np.nonzero(counts)
    repeats = counts[rows, columns]
    corner = np.repeat(np.column_stack([columns, rows]), repeats, axis=0)
    return np.asarray((corner + rng.random(corner.shape)) * GRID_UM, dtype=np.float64)


def _candidates(tissue: Tissue, patient: Patient, rng: np.random.Generator) -> tuple[Centres, npt.NDArray[np.int8]]:
    regions = tissue.regions()
    scattered = tissue.inflammation * patient.inflammation
    germinal = np.clip(0.5 + 1.6 * (tissue.lymphoid - 0.25), 0.12, 0.9)  # B cells gather in the middle
    spilled = np.exp(np.minimum(tissue.lymphoid, 0) / 0.16)
    points, kinds = [], []
    for kind in range(ADIPOCYTE):
        density = np.zeros(regions.shape)
        for region, wanted in _DENSITY.items():
            here = regions == region
            density[here] = wanted.get(kind, 0.0)
            if kind in _SCATTERED_IMMUNE and region in {TUMOUR, STROMA}:
                density[here] *= scattered[here]
        if kind in {T_CELL, B_CELL}:
            share = germinal if kind == B_CELL else 1 - germinal
            density = np.where(regions == LYMPHOID, 2 * share * density, density)
            density += np.where(regions == STROMA, 5000 * spilled * share, 0)
        points.append(_scatter(density, rng))
        kinds.append(np.full(len(points[-1]), kind, dtype=np.int8))
    return np.concatenate(points), np.concatenate(kinds)


def _adipocytes(tissue: Tissue, rng: np.random.Generator) -> Centres:
    inside = (tissue.fat > 0.04) & (tissue.regions() == FAT) & (tissue.outline > 0.012)
    xy = _scatter(np.where(inside, 6000.0, 0.0), rng)
    size = ADIPOCYTE_RADIUS_UM * rng.uniform(0.62, 1.12, len(xy))
    return xy[keep_apart(xy, size, rng)]


def _lining(tissue: Tissue, rng: np.random.Generator) -> Centres:
    """Endothelium along the lumens of vessels."""
    edge = (np.abs(tissue.vessel + 0.06) < 0.05) & (tissue.regions() == STROMA)
    return _scatter(np.where(edge, 14000.0, 0.0), rng)


def _is_free(tissue: Tissue, xy: Centres, kind: npt.NDArray[np.int8], adipocytes: Centres) -> npt.NDArray[np.bool_]:
    """Not in a lumen, a vacuole or off the tissue."""
    free = (sample(tissue.vessel, xy) < -0.01) & (sample(tissue.outline, xy) > 0.004)
    if not tissue.core_is_necrosis:
        free &= sample(tissue.core, xy) < -0.03
    if len(adipocytes):
        free &= rim_distance(xy, adipocytes) < 1.6
    free &= ~((kind == TUMOUR_CELL) & (sample(tissue.tumour, xy) < 0.04))
    return np.asarray(free)


def rim_distance(xy: Centres, adipocytes: Centres) -> npt.NDArray[np.float64]:
    """How deep in a vacuole each point lies, µm; negative outside.

    Vacuoles are the cells of a Voronoi diagram with rounded corners, at most a radius wide.
    """
    if not len(adipocytes):
        return np.full(len(xy), -np.inf)
    k = min(3, len(adipocytes))
    distance = cKDTree(adipocytes).query(xy, k=[*range(1, k + 1)])[0]
    nearest = distance[:, 0]
    wall = np.full(len(xy), np.inf)
    if k > 1:
        # A smooth minimum over the two nearest walls rounds the corners
        walls = np.minimum((distance[:, 1:] - nearest[:, None]) / 2, 60.0)
        wall = -3.0 * np.log(np.exp(-walls / 3.0).sum(axis=1))
    return np.asarray(np.minimum(wall, 1.3 * ADIPOCYTE_RADIUS_UM - nearest))


def _programs(
    tissue: Tissue, xy: Centres, kind: npt.NDArray[np.int8], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    program = np.full(len(xy), 0.5, dtype=np.float32)
    for which, field in ((TUMOUR_CELL, tissue.program), (FIBROBLAST, tissue.activation)):
        of = kind == which
        program[of] = np.clip(sample(field, xy[of]) + rng.normal(0, 0.1, of.sum()), 0, 1)
    return program


def _angles(
    tissue: Tissue, xy: Centres, kind: npt.NDArray[np.int8], adipocytes: Centres, *, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Spindles lie along the collagen, in fat along the vacuoles' rims; everything else as it comes."""
    angle = rng.uniform(0, np.pi, len(xy))
    spindle = np.isin(kind, (FIBROBLAST, ENDOTHELIAL))
    doubled = [sample(f(2 * tissue.direction).astype(np.float32), xy[spindle]) for f in (np.cos, np.sin)]
    angle[spindle] = 0.5 * np.arctan2(doubled[1], doubled[0]) + rng.normal(0, 0.16, spindle.sum())
    if len(adipocytes) > 1:
        spindles = np.flatnonzero(spindle)
        distance, nearest = cKDTree(adipocytes).query(xy[spindles], k=2)
        on_rim = distance[:, 0] < 1.4 * ADIPOCYTE_RADIUS_UM
        between = distance[:, 1] - distance[:, 0] < 8
        across = np.where(
            between[:, None], np.diff(adipocytes[nearest], axis=1)[:, 0], xy[spindles] - adipocytes[nearest[:, 0]]
        )
        angle[spindles[on_rim]] = (np.arctan2(across[:, 1], across[:, 0]) + np.pi / 2)[on_rim]
    return angle.astype(np.float32)
