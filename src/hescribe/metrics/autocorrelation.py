"""Moran's I: how much a gene's map is patches rather than salt and pepper."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from hescribe.errors import InputError
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.metrics.gene_blocks import Block, Matrix, is_constant, per_gene
from hescribe.types import Centres, PerGene

_TIE = 1.05  #: neighbours up to 5 % farther than the k-th count as equally far


def neighbour_weights(centres: Centres, *, k: int = 6) -> sparse.csr_matrix:
    """Row-standardised weights of each spot's neighbours, (n, n) csr; rows sum to 1, the diagonal is 0.

    Neighbours are the ``k`` nearest and all that are equally far as the k-th, so the choice does not hang on the
    order of the spots: on Visium's hexagonal grid the 6 around a spot, on a square grid the 8.

    Parameters
    ----------
    centres
        (n, 2) positions, any unit.
    k
        Nearest neighbours; at most n − 1 are used.
    """
    centres = np.asarray(centres, dtype=np.float64)
    n = len(centres)
    k = min(k, n - 1)
    if k < 1:
        return sparse.csr_matrix((n, n))
    tree = cKDTree(centres)
    farthest = tree.query(centres, k=[k + 1])[0][:, 0]
    found = tree.query_ball_point(centres, farthest * _TIE, return_sorted=True)
    rows = np.repeat(np.arange(n), [len(f) for f in found])
    columns = np.concatenate([np.asarray(f, dtype=np.intp) for f in found])
    other = rows != columns
    graph = sparse.csr_matrix((np.ones(int(other.sum())), (rows[other], columns[other])), shape=(n, n))
    return sparse.csr_matrix(sparse.diags(1.0 / np.asarray(graph.sum(axis=1)).ravel()) @ graph)


def morans_i_per_gene(expression: Matrix, weights: sparse.csr_matrix) -> PerGene:
    """Moran's I of each gene.

    I_g = (n / Σ_ij w_ij) Σ_ij w_ij z_ig z_jg / Σ_i z_ig², with z centred. Near 1: large smooth patches; near
    −1/(n − 1), about 0: no spatial pattern; negative: neighbours differ.

    Parameters
    ----------
    expression
        (n, g).
    weights
        (n, n), such as `neighbour_weights` gives.

    Returns
    -------
    ndarray
        (g,) float64; NaN for a gene that is constant, and for all where no spot has a neighbour.

    References
    ----------
    Moran, Biometrika 37:17 (1950).
    """
    n = expression.shape[0]
    if weights.shape != (n, n):
        raise InputError(f"weights of shape {weights.shape} do not fit {n} spots")
    total = float(weights.sum())
    if total <= 0:
        return np.full(expression.shape[1], np.nan)

    def formula(block: Block) -> PerGene:
        z = block - block.mean(axis=0)
        squares = np.einsum("ij,ij->j", z, z)
        shared = np.einsum("ij,ij->j", z, np.asarray(weights @ z))
        vary = ~is_constant(block)
        return np.divide(n / total * shared, squares, out=np.full(len(squares), np.nan), where=vary & (squares > 0))

    return per_gene(formula, expression)


def morans_agreement(predicted: PerGene, measured: PerGene) -> tuple[float, float]:
    """Whether the genes with pattern are predicted to have pattern: Pearson and mean absolute difference over genes.

    Parameters
    ----------
    predicted, measured
        (g,) Moran's I of both. Genes without a measured one are left out; a flat prediction has no pattern, so it
        counts as I = 0. Counting noise lowers the measured I, so a good predictor's is *higher*.

    Returns
    -------
    tuple of float
        Pearson (NaN with fewer than two genes) and mean absolute difference (NaN without genes).
    """
    known = np.isfinite(measured)
    if not known.any():
        return float("nan"), float("nan")
    pair = [np.nan_to_num(predicted[known], nan=0.0)[:, None], measured[known][:, None]]
    return float(pearson_per_gene(*pair)[0]), float(np.abs(pair[0] - pair[1]).mean())
