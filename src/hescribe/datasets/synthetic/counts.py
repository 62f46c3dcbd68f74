"""From cells to counts: a Visium grid over the section, the expected mean of every spot, and a draw from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.spatial import cKDTree

from hescribe.datasets.synthetic.block import BACKGROUND, GRID_UM, REGIONS, Tissue
from hescribe.datasets.synthetic.cells import ADIPOCYTE, ADIPOCYTE_RADIUS_UM, CELL_TYPES, Cells
from hescribe.datasets.synthetic.signatures import Signatures
from hescribe.io.expression import log_normalise
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.types import Centres, Microns, PerGene

PITCH_UM: Microns = 100.0  #: between neighbouring spots of Visium
SPOT_RADIUS_UM: Microns = 27.5
_AMBIENT = 0.10  #: share of a typical spot's counts that come from everywhere


@dataclass(frozen=True)
class Spots:
    """A Visium grid, m spots of which n lie under tissue.

    Attributes
    ----------
    xy_um
        (m, 2) centres.
    array
        (m, 2) integer row and column; neighbours in a row are two columns apart.
    barcodes
        (m,) as 10x writes them; a position has the same barcode on every slide.
    in_tissue
        (m,) bool.
    """

    xy_um: Centres
    array: npt.NDArray[np.int64]
    barcodes: npt.NDArray[np.str_]
    in_tissue: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """What is known of the n spots under tissue because it was planted.

    Attributes
    ----------
    expected
        (n, g) float64, mean of the counts.
    proportions
        (n, types), shares of cells; rows sum to 1.
    regions
        (n,) index into `REGIONS`.
    library
        (n,) factor of the spot on its depth, nothing the image can tell.
    """

    expected: npt.NDArray[np.float64]
    proportions: npt.NDArray[np.float64]
    regions: npt.NDArray[np.uint8]
    library: npt.NDArray[np.float64]


def lay_spots(tissue: Tissue) -> Spots:
    """The hexagonal grid, with the spots at least half under tissue marked."""
    step_x, step_y = PITCH_UM / 2, PITCH_UM * np.sqrt(3) / 2
    margin = 0.6 * PITCH_UM
    rows, columns = (int((tissue.side_um - 2 * margin) / step) + 1 for step in (step_y, step_x))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    array = np.column_stack([row.ravel(), column.ravel()])
    array = array[array.sum(axis=1) % 2 == 0]
    xy = margin + array[:, ::-1] * (step_x, step_y)
    covered = _beneath(tissue, xy)
    return Spots(xy, array, _barcodes(array), (covered != BACKGROUND).mean(axis=1) > 0.5)


def _barcodes(array: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    """A number of the position, written in bases: unique, and the same in every section."""
    code = (array[:, 0] * 4096 + array[:, 1] + 1) * 2_654_435_761 % 4**16
    digits = code[:, None] // 4 ** np.arange(16) % 4
    letters = np.array(list("ACGT"))[digits]
    return np.array(["".join(row) + "-1" for row in letters])


def _beneath(tissue: Tissue, xy: Centres) -> npt.NDArray[np.uint8]:
    """Regions at 37 points beneath each spot, (m, 37)."""
    offsets = np.mgrid[-3:4, -3:4].reshape(2, -1).T / 3.4
    offsets = offsets[np.linalg.norm(offsets, axis=1) <= 1] * SPOT_RADIUS_UM
    pixels = np.floor((xy[:, None] + offsets) / GRID_UM).astype(int).clip(0, len(tissue.outline) - 1)
    return np.asarray(tissue.regions()[pixels[..., 1], pixels[..., 0]])


def expect(
    tissue: Tissue, cells: Cells, spots: Spots, signatures: Signatures, rng: np.random.Generator, *, depth: float
) -> Truth:
    """Mean counts of every spot under tissue.

    μ = depth · section · library · (Σ over cells beneath of the mix of their signature's two ends + ambient), scaled
    so that the median spot of a plain section has ``depth`` counts.
    """
    xy = spots.xy_um[spots.in_tissue]
    weight = _weights(xy, cells)
    onehot = np.zeros((len(cells), len(CELL_TYPES)))
    onehot[np.arange(len(cells)), cells.kind] = 1
    share_high = onehot * cells.program[:, None]
    rna = (weight @ (onehot - share_high)) @ signatures.low + (weight @ share_high) @ signatures.high
    typical = rna.sum(axis=1).mean()
    rna += _AMBIENT * typical * rna.sum(axis=0) / rna.sum()  # so no spot is without any
    section = np.exp(rng.normal(0, 0.2)) * np.exp(rng.normal(0, 0.08, rna.shape[1]))  # depth, and capture per gene
    library = np.exp(rng.normal(0, 0.2, len(xy)))
    expected = depth / np.median(rna.sum(axis=1)) * rna * section * library[:, None]
    return Truth(expected, _proportions(weight @ onehot, xy, cells), _majority(tissue, xy), library)


def _weights(xy: Centres, cells: Cells) -> sparse.csr_matrix:
    """How much of each cell lies beneath each spot, (n, cells); an adipocyte is wider than its nucleus."""
    rows, columns, values = [], [], []
    wide = cells.kind == ADIPOCYTE
    tree = cKDTree(xy)
    for chosen, reach in ((~wide, SPOT_RADIUS_UM), (wide, SPOT_RADIUS_UM + ADIPOCYTE_RADIUS_UM)):
        if not chosen.any():
            continue
        found = cKDTree(cells.xy_um[chosen]).sparse_distance_matrix(tree, reach, output_type="ndarray")
        rows.append(found["j"])
        columns.append(np.flatnonzero(chosen)[found["i"]])
        values.append(np.ones(len(found)) if reach == SPOT_RADIUS_UM else 1 - found["v"] / reach)
    place = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_matrix((np.concatenate(values), place), shape=(len(xy), len(cells)))


def _proportions(counted: npt.NDArray[np.float64], xy: Centres, cells: Cells) -> npt.NDArray[np.float64]:
    empty = counted.sum(axis=1) == 0
    if empty.any():
        # No cell lies beneath: what is measured comes from the nearest
        nearest = cKDTree(cells.xy_um).query(xy[empty])[1]
        counted[np.flatnonzero(empty), cells.kind[nearest]] = 1
    return np.asarray(counted / counted.sum(axis=1, keepdims=True))


def _majority(tissue: Tissue, xy: Centres) -> npt.NDArray[np.uint8]:
    beneath = _beneath(tissue, xy)
    votes = np.stack([(beneath == region).sum(axis=1) for region in range(len(REGIONS))], axis=1)
    votes[:, BACKGROUND] = 0
    return votes.argmax(axis=1).astype(np.uint8)


def draw_counts(truth: Truth, rng: np.random.Generator) -> sparse.csr_matrix:
    """Counts around the expected mean, Poisson, (n, g) int32: what two sequencing runs would differ by."""
    return sparse.csr_matrix(rng.poisson(truth.expected).astype(np.int32))


def attainable_pcc(expected: npt.NDArray[np.float64], counts: sparse.spmatrix) -> PerGene:
    """Correlation with the measurement that a perfect predictor of the mean would reach, per gene.

    Pearson across spots of log1p of counts per 10,000 of the expected mean with that of the measured counts. What
    it lacks to 1 is counting noise, which no image holds.

    Parameters
    ----------
    expected
        (n, g) mean counts, as planted.
    counts
        (n, g) measured counts of all genes of the same spots.

    Returns
    -------
    ndarray
        (g,) float64; NaN where a gene is constant in the counts.
    """
    return pearson_per_gene(log_normalise(sparse.csr_matrix(expected)), log_normalise(counts))
