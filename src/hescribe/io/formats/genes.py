"""Gene tables: duplicate symbols summed, Ensembl ids kept, mitochondrial genes and control probes flagged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.types import SparseExpression

#: how instruments name what is no gene
_CONTROL = (
    r"^(?:NegControl|NegPrb|Neg\d|NEG_|BLANK[_-]|Blank[-_]|antisense_|DEPRECATED_|UnassignedCodeword|Unassigned|"
    r"Intergenic_|ERCC-|SystemControl|FalseCode|Custom_Neg)"
)


def tidy_genes(
    counts: sparse.spmatrix, symbols: Sequence[str], ensembl: Sequence[str] | None = None
) -> tuple[SparseExpression, pd.DataFrame]:
    """Counts with one column a symbol, and their ``var`` table.

    Parameters
    ----------
    counts
        (n, g) counts.
    symbols
        (g,) names; equal ones are summed into the first one's place.
    ensembl
        (g,) Ensembl ids; those of summed columns are joined by ``;``.

    Returns
    -------
    csr_matrix
        (n, unique symbols) float32.
    DataFrame
        ``gene_ids``, ``mitochondrial``, ``control``.
    """
    names = pd.Index([str(s).strip() for s in symbols])
    codes, unique = pd.factorize(names)
    matrix = sparse.csr_matrix(counts, dtype=np.float32)
    if len(unique) < len(names):
        to_unique = sparse.csr_matrix((np.ones(len(codes), np.float32), (np.arange(len(codes)), codes)))
        matrix = sparse.csr_matrix(matrix @ to_unique)
    var = pd.DataFrame(index=pd.Index(unique, dtype=object))
    ids = pd.Series([str(e) for e in ensembl]) if ensembl is not None else pd.Series(_ensembl_like(names))
    var[keys.ENSEMBL] = ids.groupby(codes).agg(lambda group: ";".join(dict.fromkeys(g for g in group if g))).to_numpy()
    var[keys.MITOCHONDRIAL] = var.index.str.match(r"^(?:MT|mt|Mt)-")
    var[keys.CONTROL] = var.index.str.match(_CONTROL)
    return matrix, var


def _ensembl_like(names: pd.Index) -> list[str]:
    """A file may name genes by Ensembl id alone."""
    return [n if n.startswith("ENS") and any(c.isdigit() for c in n) else "" for n in names]
