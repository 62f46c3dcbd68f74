"""Expression on a regular grid through the stack, from the spots of its sections.

Within a section's plane a value is the mean of the spots around, weighted by a Gaussian of their distance; between two
sections it is the straight line between what their planes say there. Tissue between two sections is where the mean of
their signed distances to the tissue's edge is positive, so that an outline moves steadily from one to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from hescribe import keys
from hescribe.downstream.volume.placement import Placement, Points
from hescribe.downstream.volume.planes import Plane
from hescribe.errors import InputError
from hescribe.types import Microns

GRID_UM: Microns = 50.0
_REACH = 3.0  #: standard deviations within which a spot counts
_SIGMA_OF_PITCH = 0.5  #: standard deviation, of the distance between neighbouring spots
_AROUND_SPOT = 0.75  #: of the same distance: so near to a spot there is tissue, whatever the mask says
_LARGEST = 400_000_000  #: values of a volume: 1.6 GB
_MOST_PLANES = 400

Values = npt.NDArray[np.float64]  #: (n, genes)
Covers = Callable[[Points], npt.NDArray[np.bool_]]  #: common coordinates, (n, 2) µm → whether there is tissue


@dataclass(frozen=True, eq=False)
class Volume:
    """Expression on a regular grid.

    Attributes
    ----------
    genes
        Names along the first axis of ``values``.
    values
        (genes, z, y, x) float32, on the scale of the stack; NaN outside the tissue.
    origin_um, spacing_um
        (z, y, x): centre of the first voxel, and distances between voxels.
    """

    genes: list[str]
    values: npt.NDArray[np.float32]
    origin_um: tuple[Microns, Microns, Microns]
    spacing_um: tuple[Microns, Microns, Microns]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(z, y, x), true in tissue."""
        return np.asarray(np.isfinite(self.values[0]))

    def axis(self, name: str) -> Values:
        """Positions along ``"z"``, ``"y"`` or ``"x"`` in µm."""
        i = "zyx".index(name)
        steps = np.arange(self.values.shape[1 + i], dtype=np.float64)
        return np.asarray(self.origin_um[i] + self.spacing_um[i] * steps)


@dataclass(frozen=True, eq=False)
class _Slab:
    """One section's part of the stack."""

    z: Microns
    points: Points
    values: Values


def interpolate_volume(
    stack: ad.AnnData,
    genes: Sequence[str],
    *,
    tissue: Mapping[str, Covers] | None = None,
    grid_um: Microns = GRID_UM,
    grid_z_um: Microns | None = None,
    sigma_um: Microns | None = None,
) -> Volume:
    """A few genes on a regular grid.

    Parameters
    ----------
    stack
        From `stack_sections`: three sections or more.
    genes
        Which; one value a gene and voxel is held, so not all of a transcriptome.
    tissue
        Section → function that says where in common coordinates it has tissue (`tissue_of`); otherwise there is
        tissue around spots.
    grid_um, grid_z_um
        Distances between voxels in the plane and across; across by default half the smallest distance of sections.
    sigma_um
        Standard deviation of the Gaussian; by default half the distance of neighbouring spots.

    Raises
    ------
    InputError
        Fewer than three sections, an unknown gene, a grid that is not positive or would not fit in memory.
    """
    slabs = read_slabs(stack, genes)
    if len(slabs) < 3:
        raise InputError(f"{len(slabs)} sections do not make a volume", fix="at least three are needed")
    check_lengths(grid_um=grid_um, grid_z_um=grid_z_um, sigma_um=sigma_um)
    pitch = spot_pitch_um(stack)
    sigma = sigma_um or _SIGMA_OF_PITCH * pitch
    z = np.array([s.z for s in slabs.values()])
    planes = _heights(z, grid_z_um)
    x, y = _plane_axes(np.concatenate([s.points for s in slabs.values()]), pitch, grid_um)
    if len(genes) * len(planes) * len(y) * len(x) > _LARGEST:
        raise InputError(
            f"{len(genes)} genes on {len(planes)} × {len(y)} × {len(x)} voxels do not fit",
            fix="fewer genes, or a larger --grid-um",
        )
    nodes = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    shape = (len(y), len(x))
    known = [_in_plane(s, nodes, sigma).T.reshape(len(genes), *shape).astype(np.float32) for s in slabs.values()]
    distances = [
        _signed_distance(_covered(s, nodes, (tissue or {}).get(n), pitch).reshape(shape)) for n, s in slabs.items()
    ]
    values = np.full((len(genes), len(planes), *shape), np.nan, dtype=np.float32)
    for i, height in enumerate(planes):
        below, above, share = between(z, float(height))
        inside = (1 - share) * distances[below] + share * distances[above] > 0
        values[:, i] = np.where(inside, blend(known[below], known[above], share), np.nan)
    steps = (float(planes[1] - planes[0]), float(grid_um), float(grid_um))
    return Volume(list(genes), values, (float(planes[0]), float(y[0]), float(x[0])), steps)


def interpolate_at(
    stack: ad.AnnData, positions: npt.ArrayLike, genes: Sequence[str], *, sigma_um: Microns | None = None
) -> Values:
    """Expression at positions in space from the sections above and below.

    Parameters
    ----------
    stack
        One section or more; beyond the outermost one its own plane counts.
    positions
        (n, 3) x, y, z in µm.
    genes, sigma_um
        As of `interpolate_volume`.

    Returns
    -------
    ndarray
        (n, genes); NaN where neither section has a spot within three standard deviations.
    """
    slabs = list(read_slabs(stack, genes).values())
    check_lengths(sigma_um=sigma_um)
    sigma = sigma_um or _SIGMA_OF_PITCH * spot_pitch_um(stack)
    places = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    z = np.array([s.z for s in slabs])
    out = np.full((len(places), len(genes)), np.nan)
    for height in np.unique(places[:, 2]):
        here = places[:, 2] == height
        below, above, share = between(z, float(height))
        low, high = (_in_plane(slabs[i], places[here, :2], sigma) for i in (below, above))
        out[here] = blend(low, high, share)
    return out


def tissue_of(plane: Plane, placement: Placement) -> Covers:
    """Where in common coordinates a registered section has tissue."""

    def covers(common: Points) -> npt.NDArray[np.bool_]:
        return plane.sample(placement.to_section(common)[:, None])[1][:, 0]

    return covers


def between(z: Values, height: float) -> tuple[int, int, float]:
    """Indices of the sections below and above a height, and the share of the way from one to the other."""
    above = int(np.clip(np.searchsorted(z, height), 1, max(len(z) - 1, 1)))
    if len(z) == 1:
        return 0, 0, 0.0
    share = (height - z[above - 1]) / (z[above] - z[above - 1])
    return above - 1, above, float(np.clip(share, 0, 1))


def blend(low: npt.NDArray[np.floating], high: npt.NDArray[np.floating], share: float) -> npt.NDArray[np.floating]:
    """``(1 − share) low + share high``; where one of them is NaN the other alone, if it counts at all."""
    if share <= 0:
        return low
    if share >= 1:
        return high
    mixed = (1 - share) * low + share * high
    return np.where(np.isnan(low), high, np.where(np.isnan(high), low, mixed))


def spot_pitch_um(stack: ad.AnnData) -> Microns:
    """Median distance of a spot to its nearest neighbour in the same section, µm.

    Raises
    ------
    InputError
        No section has two spots.
    """
    steps = []
    places = np.asarray(stack.obsm[keys.SPATIAL_3D])
    for name in stack.obs[keys.SECTION].unique():
        own = places[(stack.obs[keys.SECTION] == name).to_numpy(), :2]
        if len(own) > 1:
            steps.append(cKDTree(own).query(own, k=[2])[0][:, 0])
    if not steps:
        raise InputError("no section has two spots")
    return float(np.median(np.concatenate(steps))) or 1.0


def read_slabs(stack: ad.AnnData, genes: Sequence[str]) -> dict[str, _Slab]:
    """Section → its spots, from the lowest to the highest.

    Raises
    ------
    InputError
        Not a stack, or an unknown gene.
    """
    if keys.SPATIAL_3D not in stack.obsm or keys.SECTION not in stack.obs:
        raise InputError(f'no positions in obsm["{keys.SPATIAL_3D}"]', fix="make a stack with stack_sections")
    if not len(genes):
        raise InputError("no gene is named")
    if unknown := [g for g in genes if g not in stack.var_names]:
        raise InputError(f"no gene {unknown[0]!r} among the {stack.n_vars} that all sections share")
    places = np.asarray(stack.obsm[keys.SPATIAL_3D], dtype=np.float64)
    matrix = stack[:, list(genes)].X
    values = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=np.float64)
    names = stack.obs[keys.SECTION].astype(str).to_numpy()
    slabs = {}
    for name in dict.fromkeys(names):
        own = names == name
        slabs[name] = _Slab(float(places[own, 2][0]), places[own, :2], values[own])
    return dict(sorted(slabs.items(), key=lambda item: item[1].z))


def check_lengths(**lengths: Microns | None) -> None:
    """Refuse lengths that are given and not positive (`InputError`)."""
    for name, value in lengths.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value:g}", fix="a positive number of µm")


def _in_plane(slab: _Slab, nodes: Points, sigma: Microns) -> Values:
    """(nodes, genes): Gaussian mean of the spots within reach, NaN where there is none."""
    pairs = (
        cKDTree(nodes).sparse_distance_matrix(cKDTree(slab.points), _REACH * sigma, output_type="coo_matrix").tocoo()
    )
    weights = sparse.csr_matrix((np.exp(-0.5 * (pairs.data / sigma) ** 2), (pairs.row, pairs.col)), shape=pairs.shape)
    total = np.asarray(weights.sum(axis=1)).ravel()
    out = np.full((len(nodes), slab.values.shape[1]), np.nan)
    seen = total > 0
    out[seen] = (weights[seen] @ slab.values) / total[seen, None]
    return out


def _covered(slab: _Slab, nodes: Points, tissue: Covers | None, pitch: Microns) -> npt.NDArray[np.bool_]:
    near = cKDTree(slab.points).query(nodes, distance_upper_bound=_AROUND_SPOT * pitch)[0] < np.inf
    return near | tissue(nodes) if tissue is not None else near


def _signed_distance(mask: npt.NDArray[np.bool_]) -> Values:
    """Distance to the edge in voxels, positive inside."""
    inside = np.asarray(distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    if not mask.any():
        return np.full(mask.shape, -float(max(mask.shape)))
    return np.where(mask, inside, 1 - np.asarray(distance_transform_edt(~mask))) - 0.5


def _heights(z: Values, step: Microns | None) -> Values:
    """From the lowest to the highest section; the step is made to fit."""
    span = float(z[-1] - z[0])
    wanted = span / (step or float(np.diff(z).min()) / 2)
    count = int(np.clip(round(wanted), 1, _MOST_PLANES))
    return np.linspace(z[0], z[-1], count + 1)


def _plane_axes(points: Points, pitch: Microns, step: Microns) -> tuple[Values, Values]:
    low, high = points.min(axis=0) - pitch, points.max(axis=0) + pitch
    count = np.ceil((high - low) / step).astype(int) + 1
    return low[0] + step * np.arange(count[0]), low[1] + step * np.arange(count[1])
