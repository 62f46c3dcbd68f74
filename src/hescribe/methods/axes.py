"""Directions in which transcriptomes of one section differ, learned with those that have no image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from hescribe.methods.base import Unpaired
from hescribe.types import SparseExpression

Array = npt.NDArray[np.float64]

_NEARLY_ALL = 0.9  #: share of the genes that a source must have measured to shape the axes
_DENSE = 64  #: rows or genes up to which the SVD is a dense one; an iteration wants far more rows than axes


class Centred:
    """A sparse matrix less the mean of each row's section, which is never made dense.

    Parameters
    ----------
    matrix
        (n, g).
    section
        (n,) of each row.

    Attributes
    ----------
    matrix
        (n, g) CSR float64, as given.
    section
        (n,) row of ``means`` that each was centred by.
    means
        (sections, g).
    scale
        What it is multiplied with.
    """

    def __init__(self, matrix: SparseExpression, section: npt.NDArray[np.intp]) -> None:
        self.matrix = sparse.csr_matrix(matrix, dtype=np.float64)
        _, self.section = np.unique(section, return_inverse=True)
        rows = len(self.section)
        self._member = sparse.csr_matrix((np.ones(rows), (np.arange(rows), self.section)))
        means = sparse.diags(1.0 / np.bincount(self.section)) @ self._member.T @ self.matrix
        self.means: Array = np.asarray(means.todense())
        self.scale = 1.0

    def squares(self) -> float:
        """Sum of squares."""
        sizes = np.bincount(self.section)
        return self.scale**2 * float((self.matrix.data**2).sum() - (sizes * (self.means**2).sum(axis=1)).sum())

    def times(self, x: Array) -> Array:
        """With (g,) or (g, k)."""
        return np.asarray(self.scale * (self.matrix @ x - self._member @ (self.means @ x)))

    def transposed_times(self, y: Array) -> Array:
        """With (n,) or (n, k)."""
        return np.asarray(self.scale * (self.matrix.T @ y - self.means.T @ (self._member.T @ y)))


def beside(spots: Centred, unpaired: Unpaired | None) -> list[Centred]:
    """The spots, and the transcriptomes without image that shape the axes with them.

    Sources without image together weigh no more than the paired spots, however many transcriptomes they have and
    however widely single cells scatter. One that lacks many genes has no say: its directions would be those of the
    others, cut off.
    """
    whole = np.zeros(0, bool) if unpaired is None else unpaired.measured.mean(axis=1) >= _NEARLY_ALL
    if unpaired is None or not whole.any():
        return [spots]
    rows = whole[unpaired.source]
    others = Centred(unpaired.expression[rows], unpaired.source[rows])
    others.scale = float(np.sqrt(min(1.0, spots.squares() / max(others.squares(), 1e-12))))
    return [spots, others]


def leading_axes(parts: Sequence[Centred], count: int) -> Array:
    """(k ≤ count, g) orthonormal directions of largest spread, one at least; zeros where nothing varies."""
    ends = np.cumsum([len(part.section) for part in parts])
    operator = LinearOperator(
        (int(ends[-1]), parts[0].matrix.shape[1]),
        matvec=lambda x: np.concatenate([part.times(x.ravel()) for part in parts]),
        rmatvec=lambda y: np.sum(
            [p.transposed_times(v) for p, v in zip(parts, np.split(y.ravel(), ends[:-1]), strict=True)], axis=0
        ),
        dtype=np.float64,
    )
    smaller = min(operator.shape)
    # A fixed start makes it repeatable; not all ones, which centring has made orthogonal to everything
    start = np.random.default_rng(0).standard_normal(smaller)
    image = operator.rmatvec(start) if operator.shape[0] == smaller else operator.matvec(start)
    squares = sum(float((part.matrix.data**2).sum()) for part in parts)
    if float(image @ image) <= 1e-20 * max(squares, 1e-300):
        return np.zeros((1, operator.shape[1]))
    if smaller <= _DENSE:
        _, singular, axes = np.linalg.svd(operator @ np.eye(operator.shape[1]), full_matrices=False)
    else:
        _, singular, axes = svds(operator, k=min(count, smaller - 1), v0=start, random_state=0)
    axes = axes[np.argsort(-singular)[: max(1, min(count, smaller - 1))]]
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    return np.asarray(axes * signs[:, None], dtype=np.float64)
