"""Counts to the scale everything works on: log1p of counts per 10,000."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from hescribe.types import PerGene, SparseExpression

TargetSum = float | Literal["median"]


def log_normalise(counts: sparse.spmatrix, *, target_sum: TargetSum = 1e4) -> SparseExpression:
    """log1p of counts scaled to one library size per spot.

    Parameters
    ----------
    counts
        (n, g) raw counts of *all* genes of one section; subset genes afterwards, never before.
    target_sum
        Counts per spot after scaling; ``"median"`` takes the section's median library size,
        as the published methods do.

    Returns
    -------
    csr_matrix
        (n, g) float32. A spot without counts stays zero.
    """
    matrix = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
    library = np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
    target = float(np.median(library[library > 0])) if target_sum == "median" else float(target_sum)
    factor = np.divide(target, library, out=np.zeros_like(library), where=library > 0)
    matrix.data *= np.repeat(factor, np.diff(matrix.indptr)).astype(np.float32)
    np.log1p(matrix.data, out=matrix.data)
    return matrix


def detected_fraction(counts: sparse.spmatrix) -> PerGene:
    """Share of spots in which each gene has at least one count, (g,)."""
    matrix = sparse.csr_matrix(counts)
    return np.asarray((matrix > 0).mean(axis=0), dtype=np.float64).ravel()
