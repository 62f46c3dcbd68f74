"""Gene tables: duplicate symbols summed, Ensembl ids kept, mitochondrial genes and control probes flagged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.types import SparseExpression

#: how instruments name what is no gene
_CONTROL = (
    r"^(?:Neg(?:Control|Prb|Probe|ative|\d|[-_ ])|NEG_|BLANK[_-]|Blank[-_]|antisense_|DEPRECATED_|Unassigned|"
    r"Intergenic_|ERCC-|SystemControl|FalseCode|Custom_Neg)"
)
#: human and other species' gene ids, with or without version
_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}")


def tidy_genes(
    counts: sparse.spmatrix, symbols: Sequence[str], ensembl: Sequence[str] | None = None
) -> tuple[SparseExpression, pd.DataFrame]:
    """Counts with one column a symbol, and their ``var`` table.

    Parameters
    ----------
    counts
        (n, g) counts.
    symbols
        (g,) names; equal ones are summed into the first one's place. An empty one is replaced by its Ensembl id.
    ensembl
        (g,) Ensembl ids; those of summed columns are joined by ``;``.

    Returns
    -------
    csr_matrix
        (n, unique symbols) float32.
    DataFrame
        ``gene_ids``, ``mitochondrial``, ``control``.
    """
    ids = [_text(e) for e in ensembl] if ensembl is not None else None
    names = pd.Index([_text(s) for s in symbols], dtype=object)
    if ids is None:
        ids = [n if _ENSEMBL.match(n) else "" for n in names]
    names = pd.Index([n or i for n, i in zip(names, ids, strict=True)], dtype=object)
    codes, unique = pd.factorize(names)
    matrix = sparse.csr_matrix(counts, dtype=np.float32)
    joined = np.array(ids, dtype=object)
    if len(unique) < len(names):
        to_unique = sparse.csr_matrix((np.ones(len(codes), np.float32), (np.arange(len(codes)), codes)))
        matrix = sparse.csr_matrix(matrix @ to_unique)
        joined = pd.Series(ids).groupby(codes).agg(_join).to_numpy()
    var = pd.DataFrame({keys.ENSEMBL: joined}, index=pd.Index(unique, dtype=object))
    var[keys.MITOCHONDRIAL] = var.index.str.match(r"^(?:MT|mt|Mt)-")
    var[keys.CONTROL] = var.index.str.match(_CONTROL)
    return matrix, var


def _text(name: Any) -> str:
    return "" if pd.isna(name) else str(name).strip()


def _join(ids: pd.Series) -> str:
    """Different ids, in their order; an empty one adds nothing."""
    return ";".join(dict.fromkeys(i for i in ids if i))
