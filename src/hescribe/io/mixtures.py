"""Counts to cell types: what share of a spot's transcripts each type of a single-cell reference accounts for."""

from __future__ import annotations

from typing import Any, TypeAlias

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.optimize import nnls

from hescribe import keys
from hescribe.errors import InputError

_GENES_PER_TYPE = 100
_OVERDISPERSION = 0.1  #: how far spots and reference differ in a gene beyond counting noise, as a squared share
_CP10K = 1e4

Counts: TypeAlias = npt.NDArray[Any] | sparse.spmatrix


def tidy_type(name: object) -> str:
    """A cell type's name as it can be stored: without outer blanks, and ``-`` for the slash Zarr has no place for."""
    return str(name).strip().replace("/", "-")


def cell_type_signatures(adata: ad.AnnData, column: str = keys.CELL_TYPE) -> pd.DataFrame:
    """Mean counts per 10,000 of each cell type of a single-cell reference.

    Parameters
    ----------
    adata
        Cells × genes, raw counts in ``X``.
    column
        Of ``obs``: the type of each cell; cells without one, or without counts, are left out.

    Returns
    -------
    DataFrame
        Types × genes, float64; each row sums to 10,000.

    Raises
    ------
    InputError
        No such column, or fewer than two types.
    """
    if column not in adata.obs:
        raise InputError(f"obs has no column {column!r}", fix="the type of each cell")
    counts = sparse.csr_matrix(adata.X, dtype=np.float64)
    library = np.asarray(counts.sum(axis=1)).ravel()
    labels = adata.obs[column].astype(object)
    known = labels.notna().to_numpy() & (library > 0)
    types, member = np.unique([tidy_type(label) for label in labels[known]], return_inverse=True)
    if len(types) < 2:
        raise InputError(f"{len(types)} cell types in obs[{column!r}]", fix="a mixture needs at least two")
    scaled = sparse.diags(_CP10K / library[known]) @ counts[known]
    sums = sparse.csr_matrix((np.ones(len(member)), (member, np.arange(len(member))))) @ scaled
    return pd.DataFrame(sums.toarray() / np.bincount(member)[:, None], index=list(types), columns=adata.var_names)


def estimate_mixtures(counts: Counts, signatures: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Share of each spot's counts that each cell type accounts for.

    A spot's expected counts are a sum over its cells, so in linear units (not in logarithms) it is a mixture of the
    types' profiles S: ``min ‖(y − xᵀ S) / σ‖``, x ≥ 0, then x scaled to sum 1. Of every type the genes that tell it
    best from the others are used, each divided by its spread σ, ``σ² = mean + 0.1 mean²``: counting noise, and what
    the two technologies make of the same gene.

    Shares are of transcripts: a type whose cells hold twice the RNA counts twice.

    Parameters
    ----------
    counts
        (n, g) raw counts; a factor per spot makes no difference.
    signatures
        (types, g) mean counts per 10,000 of each type, same genes.

    Returns
    -------
    ndarray
        (n, types) float64, rows sum to 1; NaN for a spot without counts in the genes used.

    Raises
    ------
    InputError
        Shapes do not fit, or there are fewer telling genes than types.

    Examples
    --------
    >>> estimate_mixtures(np.array([[3, 1, 4]]), np.array([[4, 0, 4], [0, 4, 4]])).round(2)
    array([[0.75, 0.25]])
    """
    profiles = np.asarray(signatures, dtype=np.float64)
    if profiles.ndim != 2 or counts.shape[1] != profiles.shape[1]:
        raise InputError(f"counts {counts.shape} and signatures {profiles.shape} are not of the same genes")
    spread = np.sqrt(profiles.mean(axis=0) + _OVERDISPERSION * profiles.mean(axis=0) ** 2)
    genes = _telling_genes(profiles, spread)
    if len(genes) < len(profiles):
        raise InputError(f"{len(genes)} genes tell {len(profiles)} cell types apart", fix="measure more of the genes")
    matrix = sparse.csr_matrix(counts, dtype=np.float64)[:, genes]
    # ‖y − Sᵀx‖ and ‖Qᵀy − Rx‖ differ by a constant: each spot is solved in as many dimensions as there are types
    rotation, triangle = np.linalg.qr((profiles[:, genes] / spread[genes]).T)
    targets = np.asarray(matrix @ (rotation / spread[genes][:, None]))
    library = np.asarray(matrix.sum(axis=1)).ravel()
    amounts = np.full((matrix.shape[0], len(profiles)), np.nan)
    for i in np.flatnonzero(library > 0):
        amounts[i] = nnls(triangle, targets[i] / library[i], maxiter=100 * len(profiles))[0]
    total = amounts.sum(axis=1, keepdims=True)
    return np.divide(amounts, total, out=np.full_like(amounts, np.nan), where=total > 0)


def estimate_cell_types(adata: ad.AnnData, signatures: pd.DataFrame) -> pd.DataFrame:
    """`estimate_mixtures` of a section's raw counts, on the genes it shares with the signatures: spots × types.

    Raises
    ------
    InputError
        Too few genes in common.
    """
    shared = signatures.columns.intersection(adata.var_names)
    if len(shared) < len(signatures):
        raise InputError(
            f"{len(shared)} genes in common with the single-cell reference",
            fix="do some use symbols and others Ensembl ids, or another species?",
        )
    counts = sparse.csc_matrix(adata.X)[:, adata.var_names.get_indexer(shared)]
    shares = estimate_mixtures(counts, signatures[shared].to_numpy())
    return pd.DataFrame(shares, index=adata.obs_names, columns=signatures.index)


def _telling_genes(profiles: npt.NDArray[np.float64], spread: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """For each type the genes whose profile exceeds the other types' mean by most, in units of their spread."""
    others = (profiles.sum(axis=0) - profiles) / max(len(profiles) - 1, 1)
    excess = np.divide(profiles - others, spread, out=np.zeros_like(profiles), where=spread > 0)
    best = np.argsort(-excess, axis=1, kind="stable")[:, :_GENES_PER_TYPE]
    telling = np.take_along_axis(excess, best, axis=1) > 0
    return np.unique(best[telling])
