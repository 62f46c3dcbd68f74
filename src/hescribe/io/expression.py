"""Counts to the scale everything works on: log1p of counts per 10,000, or another scale where it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from scipy import sparse

from hescribe.errors import InputError
from hescribe.types import PerGene, SparseExpression

#: counts per spot after scaling; or each section's median library size; or the counts as they are
TargetSum = float | Literal["median", "counts"]

USUAL_SUM = 1e4  #: where nothing else is said


def log_normalise(counts: sparse.spmatrix, *, target_sum: TargetSum = USUAL_SUM) -> SparseExpression:
    """log1p of counts scaled to one library size per spot.

    Parameters
    ----------
    counts
        (n, g) raw counts of *all* genes of one section; subset genes afterwards, never before.
    target_sum
        Counts per spot after scaling; ``"median"`` takes the section's median library size, as the published methods
        do; ``"counts"`` leaves counts as they are, as HEST-Benchmark does.

    Returns
    -------
    csr_matrix
        (n, g) float32. A spot without counts stays zero.
    """
    matrix = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
    if target_sum != "counts":
        library = np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
        target = _resolved(library, target_sum)
        factor = np.divide(target, library, out=np.zeros_like(library), where=library > 0)
        matrix.data *= np.repeat(factor, np.diff(matrix.indptr)).astype(np.float32)
    np.log1p(matrix.data, out=matrix.data)
    return matrix


def resolve_sum(counts: sparse.spmatrix, target_sum: TargetSum) -> TargetSum:
    """No median: as a number, which is the same for parts of a section, or its counts thinned, as for all of it."""
    if target_sum == "counts":
        return target_sum
    return _resolved(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(), target_sum)


def _resolved(library: PerGene, target_sum: float | Literal["median"]) -> float:
    if target_sum != "median":
        return float(target_sum)
    filled = library[library > 0]
    return float(np.median(filled)) if len(filled) else USUAL_SUM


def name_unit(target_sum: TargetSum) -> str:
    """What expression on this scale is, in words.

    Examples
    --------
    >>> name_unit(1e4), name_unit("median"), name_unit("counts")
    ('log1p of counts per 10,000', 'log1p of counts per median library size', 'log1p of counts')
    """
    if target_sum == "counts":
        return "log1p of counts"
    if target_sum == "median":
        return "log1p of counts per median library size"
    return f"log1p of counts per {target_sum:{',.0f' if float(target_sum).is_integer() else ',g'}}"


def told_sum(provenance: Mapping[str, Any]) -> TargetSum:
    """The scale of a prediction, from its provenance; older ones do not say and have the usual one."""
    told = provenance.get("target_sum", USUAL_SUM)
    for name in ("median", "counts"):
        if str(told) == name:
            return name
    return float(told)


def common_sum(provenances: Iterable[Mapping[str, Any]]) -> TargetSum:
    """The one scale of several predictions, from their provenance; the usual one where there is none.

    Raises
    ------
    InputError
        They differ.
    """
    told = {told_sum(provenance) for provenance in provenances}
    if len(told) > 1:
        units = " and ".join(sorted(name_unit(t) for t in told))
        raise InputError(f"the predictions differ in scale ({units})", fix="predict all of them by one bundle")
    return told.pop() if told else USUAL_SUM
