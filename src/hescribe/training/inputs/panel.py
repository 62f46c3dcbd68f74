"""Which genes are learned on and which are predicted; decided by training sections alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import HescribeWarning, InputError, list_some
from hescribe.metrics.gene_sets import gene_moments, variance_within
from hescribe.types import SparseExpression


def shared_genes(tables: Sequence[ad.AnnData]) -> list[str]:
    """Genes measured in every section, in the first one's order; control probes are no genes.

    Raises
    ------
    InputError
        The sections have no gene in common.
    """
    everywhere = set.intersection(*(set(t.var_names) for t in tables))
    genes = [g for g in own_genes(tables[0]) if g in everywhere]
    if not genes:
        raise InputError(
            "the training sections share no gene", fix="do some use symbols and others Ensembl ids, or another species?"
        )
    return genes


def own_genes(table: ad.AnnData) -> list[str]:
    """Genes of one section, without control probes."""
    names = table.var_names
    return list(names[~table.var[keys.CONTROL].to_numpy(dtype=bool)] if keys.CONTROL in table.var else names)


def choose_panel(
    spec: str,
    expression: SparseExpression,
    sections: npt.NDArray[np.intp],
    genes: pd.Index,
    supported: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """The embedding's panel as a mask over ``genes``.

    Parameters
    ----------
    spec
        ``hvg:N``: the union over sections of each one's N most variable genes (scanpy's "seurat" flavour, as in the
        published methods), or ``all`` where there are no more than N. ``all``: every supported gene. Otherwise a file
        with one gene a line.
    expression
        (n, g) log-normalised.
    sections
        (n,) section of each spot.
    genes
        (g,) symbols.
    supported
        (g,) genes seen often enough to be predicted.

    Raises
    ------
    InputError
        A malformed ``hvg:``, a file that does not exist, or one that shares no gene with the sections.
    """
    if spec == "all":
        return supported.copy()
    if spec.startswith("hvg:"):
        count = spec.removeprefix("hvg:")
        if not count.isdecimal() or int(count) < 1:
            raise InputError(f"{spec!r} is no gene panel", path="--genes", fix="for example hvg:1000")
        if int(count) >= len(genes):  # there is nothing to choose, and rare genes are no more welcome than elsewhere
            return supported.copy()
        return _variable_union(expression, sections, genes, int(count))
    return _from_file(Path(spec), genes)


def _variable_union(
    expression: SparseExpression, sections: npt.NDArray[np.intp], genes: pd.Index, count: int
) -> npt.NDArray[np.bool_]:
    import scanpy as sc

    chosen = np.zeros(len(genes), dtype=bool)
    for section in np.unique(sections):
        table = ad.AnnData(expression[sections == section], var=pd.DataFrame(index=genes))
        # The log base is only scanpy's bookkeeping; saying it avoids a warning
        table.uns["log1p"] = {"base": None}
        if not gene_moments(table.X).variance.any():  # a single spot, or nothing in any
            continue
        found = sc.pp.highly_variable_genes(table, n_top_genes=count, flavor="seurat", inplace=False)
        chosen |= found["highly_variable"].to_numpy(dtype=bool)
    return chosen


def _from_file(path: Path, genes: pd.Index) -> npt.NDArray[np.bool_]:
    if not path.is_file():
        raise InputError(f"{str(path)!r} is neither 'hvg:N', 'all' nor a file", path="--genes")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        wanted = {line for line in lines if line and not line.startswith("#")}
    except UnicodeDecodeError as error:
        raise InputError("not a text file with one gene a line", path=path) from error
    chosen = np.asarray(genes.isin(list(wanted)), dtype=bool)
    if not chosen.any():
        example = ", ".join(sorted(wanted)[:3]) or "nothing"
        raise InputError(
            f"none of its {len(wanted)} genes is measured in the training sections (it has {example}; "
            f"they have {', '.join(genes[:3])})",
            path=path,
            fix="one gene symbol a line, as in the sections",
        )
    if lacking := sorted(wanted - set(genes)):
        warnings.warn(
            f"{path}: {len(lacking)} of {len(wanted)} genes not measured in every training section, left out: {list_some(lacking)}",
            HescribeWarning,
            stacklevel=2,
        )
    return chosen


def gene_table(
    expression: SparseExpression, genes: Sequence[str], ensembl: pd.Series | None, section: npt.NDArray[np.intp]
) -> pd.DataFrame:
    """Training statistics of each gene: ``gene_ids``, ``mean``, ``variance`` (within sections), ``detected``.

    Parameters
    ----------
    expression
        (n, g) log-normalised.
    genes
        (g,) symbols.
    ensembl
        Ensembl ids by symbol, where they are known.
    section
        (n,) section of each spot.
    """
    matrix = sparse.csr_matrix(expression)
    mean = np.asarray(matrix.mean(axis=0), dtype=np.float64).ravel()
    table = pd.DataFrame(index=pd.Index(genes))
    table[keys.ENSEMBL] = ensembl.reindex(table.index).fillna("").astype(str) if ensembl is not None else ""
    table["mean"] = mean
    table["variance"] = variance_within(matrix, section)
    table["detected"] = np.diff(matrix.tocsc().indptr) / matrix.shape[0]
    return table
