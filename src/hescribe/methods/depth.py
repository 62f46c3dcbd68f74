"""What a section would look like sequenced less deeply: expected expression under binomial thinning."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from hescribe.types import SparseExpression

_TAIL = 1e-6  #: probability left out on each side
_ROWS = 1024  #: spots at once


def at_depth(expression: SparseExpression, section: npt.NDArray[np.intp], counts: float) -> sparse.csr_matrix:
    """Expression as it would be expected with at most so many counts a spot.

    ``log1p(s x / N)`` is not linear, and the less so the fewer counts N there are: where a count is worth 15 of s = 10⁴,
    a gene is either there or not. A section deeper than ``counts`` in the median is thinned to that: of the x counts of
    a gene each is kept with probability f, N falls to f N, and the expectation of the new value is taken over the
    binomial distribution of what is kept. A count of nought stays nought, so the result is as sparse.

    Parameters
    ----------
    expression
        (n, g) log1p of counts scaled to any total. Counts are had back from it: a spot's smallest value is one count.
    section
        (n,) section of each spot.
    counts
        Median counts a spot that deeper sections are thinned to.

    Returns
    -------
    csr_matrix
        (n, g) float64.
    """
    matrix = sparse.csr_matrix(expression, dtype=np.float64, copy=True)
    matrix.eliminate_zeros()
    one = _value_of_a_count(matrix)
    found = np.isfinite(one)
    # What a spot's genes were scaled to, whatever that is; of a whole transcriptome nearly all of s
    total = np.asarray(matrix.expm1().sum(axis=1)).ravel()
    share = np.ones(len(one))
    for name in np.unique(section[found]):
        inside = found & (section == name)
        share[section == name] = min(1.0, counts / np.median(total[inside] / one[inside]))
    for start in range(0, len(one), _ROWS):
        rows = slice(start, min(start + _ROWS, len(one)))
        values = slice(matrix.indptr[rows.start], matrix.indptr[rows.stop])
        each = np.repeat(np.arange(rows.start, rows.stop), np.diff(matrix.indptr[rows.start : rows.stop + 1]))
        matrix.data[values] = _thinned(matrix.data[values], one[each], total[each], share=share[each])
    return matrix


def _value_of_a_count(matrix: sparse.csr_matrix) -> npt.NDArray[np.float64]:
    """(n,) what one count is after scaling, before the logarithm; infinite for a spot without any."""
    one = np.full(matrix.shape[0], np.inf)
    filled = np.flatnonzero(np.diff(matrix.indptr))
    if len(filled):
        one[filled] = np.expm1(np.minimum.reduceat(matrix.data, matrix.indptr[filled]))
    return one


def _thinned(
    values: npt.NDArray[np.float64],
    one: npt.NDArray[np.float64],
    total: npt.NDArray[np.float64],
    *,
    share: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    out = values.copy()
    counts = np.rint(np.expm1(values) / one).astype(np.int64)
    worth = np.minimum(one / share, total)  # of a count that is kept; not less than one count is left in all
    for f in np.unique(share[share < 1]):
        of_share = np.flatnonzero(share == f)
        of_share = of_share[np.argsort(counts[of_share], kind="stable")]
        distinct, first = np.unique(counts[of_share], return_index=True)
        for count, these in zip(distinct, np.split(of_share, first[1:]), strict=True):
            low, high = stats.binom.ppf([_TAIL, 1 - _TAIL], count, f)
            kept = np.arange(low, high + 1)
            out[these] = np.log1p(np.outer(worth[these], kept)) @ stats.binom.pmf(kept, count, f)
    return out
