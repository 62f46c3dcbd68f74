"""Two spots × genes matrices as blocks of genes, so that 20,000 genes never become float64 at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from hescribe.errors import InputError
from hescribe.types import PerGene

Matrix: TypeAlias = npt.NDArray[Any] | sparse.spmatrix | sparse.sparray  #: (n, g), dense or sparse
Block: TypeAlias = npt.NDArray[np.float64]  #: (n, b) dense columns of a matrix
Mask: TypeAlias = npt.NDArray[np.bool_]

#: A column whose range is within this share of its largest magnitude is constant. Expression is stored as
#: float32; a constant computed by different BLAS kernels for different rows spreads over a few units in the
#: last place (1.2e-7 each), and correlating that noise would give a random figure instead of 0.
ROUNDING = 16 * float(np.finfo(np.float32).eps)

_BLOCK_VALUES = 2_000_000  #: values of one block, 16 MB as float64


def gene_blocks(*matrices: Matrix) -> Iterator[tuple[slice, tuple[Block, ...]]]:
    """Yield columns of all matrices together as dense float64.

    Parameters
    ----------
    matrices
        (n, g) each, dense or sparse.

    Yields
    ------
    slice
        Which columns.
    tuple of ndarray
        (n, b) float64 for each matrix.

    Raises
    ------
    InputError
        If shapes differ, a matrix is not two-dimensional, or a value is not finite: a NaN would silently
        leave a gene out of a mean.
    """
    shape = check_shapes(*matrices)
    columns = [sparse.csc_matrix(m) if sparse.issparse(m) else np.asarray(m) for m in matrices]
    width = max(1, _BLOCK_VALUES // max(1, shape[0]))
    for start in range(0, shape[1], width):
        where = slice(start, min(start + width, shape[1]))
        yield where, tuple(_dense(m, where) for m in columns)


def per_gene(formula: Callable[..., PerGene], *matrices: Matrix) -> PerGene:
    """Value of ``formula(*blocks) -> (b,)`` for every gene, (g,) float64, block by block."""
    out = np.full(check_shapes(*matrices)[1], np.nan)
    for where, blocks in gene_blocks(*matrices):
        out[where] = formula(*blocks)
    return out


def check_shapes(*matrices: Matrix) -> tuple[int, int]:
    """The common shape (n, g) of the matrices; InputError if there is none."""
    shapes = {tuple(m.shape) for m in matrices}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        found = " and ".join(str(tuple(m.shape)) for m in matrices)
        raise InputError(f"expected matrices of one shape (spots, genes), found {found}")
    n, g = shapes.pop()
    return int(n), int(g)


def is_constant(block: Block) -> Mask:
    """Whether each column of (n, b) is constant up to float32 rounding (`ROUNDING`); no or one row is constant."""
    if len(block) < 2:
        return np.ones(block.shape[1], dtype=bool)
    low, high = block.min(axis=0), block.max(axis=0)
    return np.asarray(high - low <= ROUNDING * np.maximum(np.abs(low), np.abs(high)))


def columns_of(matrix: Matrix, columns: npt.NDArray[Any]) -> Matrix:
    """Chosen columns (indices or mask) of a dense or sparse matrix."""
    return sparse.csc_matrix(matrix)[:, columns] if sparse.issparse(matrix) else np.asarray(matrix)[:, columns]


def _dense(matrix: Any, where: slice) -> Block:
    part = matrix[:, where]
    block = np.asarray(part.toarray() if sparse.issparse(part) else part, dtype=np.float64)
    if not np.isfinite(block).all():
        gene = where.start + int(np.flatnonzero(~np.isfinite(block).all(axis=0))[0])
        raise InputError(f"gene number {gene} has values that are not finite", fix="expression must not contain NaN")
    return block
