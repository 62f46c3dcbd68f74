"""What of a spot's expression speaks for a lymphoid structure, in five ways."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from hescribe import keys
from hescribe.downstream.gene_sets import (
    MIN_PCC,
    Scoring,
    dense,
    log_expression,
    read_gene_sets,
    score_gene_sets,
    untrusted_genes,
)
from hescribe.errors import HescribeWarning, InputError, list_some
from hescribe.io.formats.tables import read_delimited

SCORES = {
    "signature": "mean of 22 genes of lymphoid structures",
    "ssgsea": "single-sample enrichment of the 22 genes",
    "chemokine": "mean of 12 chemokines",
    "bxt": "share of B cells × share of T cells, or of their markers",
    "model": "linear model with the coefficients of a file",
}
DEFAULT_SCORE = "signature"

Values: TypeAlias = npt.NDArray[np.float64]  #: (n,) one a spot
_GENES = Path(__file__).with_name("genes.csv")
_BLOCK = 1000  #: genes at once
_FEW = 0.5  #: share of a model's weight below which its score is another one
_INTERCEPT = "intercept"
_NAMED = 10  #: genes that a warning lists by name
_B_CELL = re.compile(r"(?:^|[^a-z])b[ _.-]*(?:cells?|lymphocytes?)(?:[^a-z]|$)|^b$", re.IGNORECASE)
_T_CELL = re.compile(r"(?:^|[^a-z])t[ _.-]*(?:cells?|lymphocytes?)(?:[^a-z]|$)|^t$", re.IGNORECASE)


def tls_gene_sets() -> dict[str, list[str]]:
    """Genes of the scores: ``signature`` (22), ``chemokine`` (12), ``B cells`` and ``T cells``; sources in the table."""
    return read_gene_sets(_GENES)


def tls_scores(
    adata: ad.AnnData,
    scores: Sequence[str] | None = None,
    *,
    coefficients: str | Path | Mapping[str, float] | None = None,
    cell_types: pd.DataFrame | None = None,
    min_pcc: float | None = MIN_PCC,
) -> pd.DataFrame:
    """Scores of every spot; higher speaks for a lymphoid structure. Each has its own unit.

    ``signature``, ``chemokine``
        Mean log expression (counts as log1p of counts per 10,000, a prediction on its own scale) over the genes that
        are there (CarHE's 22 genes; the 12 chemokines of Coppola and Messina).
    ``ssgsea``
        Single-sample enrichment of the 22 genes among all genes of the spot.
    ``bxt``
        Product of the spot's proportions of B cells and T cells; where none are known, of the means of their markers
        (Danaher). Zero unless both are there.
    ``model``
        The published linear model of Andersson et al. 2021, see `model_score`.

    Parameters
    ----------
    adata
        Measured (raw counts) or predicted.
    scores
        Names of those above; by default all, ``model`` where coefficients are given.
    coefficients
        File of the model (gene and coefficient in two columns), or gene → coefficient.
    cell_types
        Spots × types; by default ``obsm["cell_types"]`` where that has B and T cells.
    min_pcc
        Predicted genes of less expected correlation are named in a warning.

    Returns
    -------
    DataFrame
        Spots × scores, float64; NaN in ``bxt`` for spots that the table lacks.

    Raises
    ------
    InputError
        An unknown score, no gene of a score in the data, or a model without coefficients.
    """
    names = list(scores) if scores is not None else [s for s in SCORES if s != "model" or coefficients is not None]
    if unknown := [s for s in names if s not in SCORES]:
        raise InputError(f"no score {unknown[0]!r}", fix=f"one of {', '.join(SCORES)}")
    if "model" in names and coefficients is None:
        raise InputError("the score 'model' needs its coefficients", fix="--coefficients FILE")
    out = {}
    for name in names:
        if name == "model":
            out[name] = model_score(adata, read_coefficients(coefficients), min_pcc=min_pcc)
        elif name == "bxt":
            out[name] = b_and_t(adata, cell_types, min_pcc=min_pcc)
        else:
            out[name] = _set_score(adata, name, min_pcc)
    return pd.DataFrame(out, index=adata.obs_names)


def _set_score(adata: ad.AnnData, name: str, min_pcc: float | None) -> Values:
    genes = tls_gene_sets()["signature" if name == "ssgsea" else name]
    method: Scoring = "ssgsea" if name == "ssgsea" else "mean"
    scored = score_gene_sets(adata, {name: genes}, method=method, min_pcc=min_pcc)
    return scored[name].to_numpy(dtype=np.float64)


def b_and_t(adata: ad.AnnData, cell_types: pd.DataFrame | None = None, *, min_pcc: float | None = MIN_PCC) -> Values:
    """How far B cells and T cells share a spot: the product of their proportions, else of their markers' means, (n,).

    Raises
    ------
    InputError
        The given table has no B or no T cells, or none of the spots.
    """
    table = cell_types if cell_types is not None else adata.obsm.get(keys.CELL_TYPES)
    if table is not None:
        b, t = ([c for c in table.columns if pattern.search(str(c))] for pattern in (_B_CELL, _T_CELL))
        if b and t:
            shares = table.reindex(adata.obs_names)
            if shares.notna().to_numpy().any():
                product = shares[b].sum(axis=1, skipna=False) * shares[t].sum(axis=1, skipna=False)
                return product.to_numpy(dtype=np.float64)
        if cell_types is not None:
            lacks = "no spot of the section" if b and t else f"no {'T' if b else 'B'} cells"
            raise InputError(
                f"the table of cell types has {lacks} (found {list_some(table.columns)})",
                fix="name columns such as 'B cells' and 'T-cells'",
            )
    sets = {name: genes for name, genes in tls_gene_sets().items() if name in {"B cells", "T cells"}}
    means = score_gene_sets(adata, sets, method="mean", min_pcc=min_pcc)
    return (means["B cells"] * means["T cells"]).to_numpy(dtype=np.float64)


def read_coefficients(source: str | Path | Mapping[str, float] | None) -> pd.Series:
    """Coefficient of each gene, and of ``intercept``, from a table of two columns (``.csv``, else tabs; may be gzipped).

    Raises
    ------
    InputError
        No such file, not two columns, a gene twice, or a value that is no number.
    """
    if source is None or isinstance(source, Mapping):
        table, path = pd.Series(dict(source or {}), dtype=object), None
    else:
        path = Path(source)
        frame = read_delimited(path, index=True)
        if frame.shape[1] != 1:
            raise InputError(f"{frame.shape[1] + 1} columns where two are wanted: gene, coefficient", path=path)
        table = frame.iloc[:, 0]
    values = pd.to_numeric(table, errors="coerce")
    if not len(values) or not np.isfinite(values).all():
        wrong = f"{values.index[~np.isfinite(values)][0]!r} is no number" if len(values) else "there are none"
        raise InputError(f"coefficients: {wrong}", path=path)
    values.index = values.index.astype(str).str.strip()
    if values.index.has_duplicates:
        raise InputError(f"gene {values.index[values.index.duplicated()][0]!r} has two coefficients", path=path)
    return values.astype(np.float64)


def model_score(adata: ad.AnnData, coefficients: pd.Series, *, min_pcc: float | None = MIN_PCC) -> Values:
    """The linear model of lymphoid structures of Andersson et al. 2021.

        score_i = b₀ + Σ_g β_g f_ig / σ_g

    f is the gene's share of the spot's counts, and σ its standard deviation over the spots of *this* section (not
    of the sections that the model was fitted on, and without centring), as the authors' own program scores a new
    section. The model was fitted to 2 b t − const, b and t the proportions of B and T cells. The level therefore
    depends on the section; compare spots within one.

    A prediction knows no counts: f is exp(x) − 1, whose scale σ takes out, and σ that of the prediction, so that a
    gene which hardly varies there is scaled up to weigh as much as any other.

    Parameters
    ----------
    adata
        Measured or predicted.
    coefficients
        Of `read_coefficients`. Genes without variation, or not in the data, are left out.
    min_pcc
        Predicted genes of less expected correlation are left out, and counted in a warning.

    Raises
    ------
    InputError
        None of the model's genes is in the data.
    """
    weights = coefficients.drop(_INTERCEPT, errors="ignore")
    shared = _trusted(adata, weights.index[weights.index.isin(adata.var_names)], min_pcc)
    if not len(shared):
        raise InputError("none of the model's genes is in the data", fix="gene symbols are wanted")
    kept = float(weights[shared].abs().sum() / weights.abs().sum())
    if kept < _FEW:
        warnings.warn(
            f"the model's genes that can be used ({len(shared)} of {len(weights)}) carry {kept:.0%} of its weight",
            HescribeWarning,
            stacklevel=2,
        )
    expression = log_expression(adata)
    place = adata.var_names.get_indexer(shared)
    score = np.full(adata.n_obs, float(coefficients.get(_INTERCEPT, 0.0)))
    for start in range(0, len(place), _BLOCK):
        share = np.expm1(dense(expression, place[start : start + _BLOCK]))
        spread = share.std(axis=0)
        # float32 rounding of a gene that is the same everywhere is no variation
        varies = spread > 1e-6 * np.abs(share).max(axis=0, initial=0)
        beta = weights[shared[start : start + _BLOCK]].to_numpy()
        score += share[:, varies] @ (beta[varies] / spread[varies])
    return score


def _trusted(adata: ad.AnnData, genes: pd.Index, min_pcc: float | None) -> pd.Index:
    weak = untrusted_genes(adata, adata.var_names.get_indexer(genes), min_pcc)
    if weak:
        more = f" and {len(weak) - _NAMED:,} more" if len(weak) > _NAMED else ""
        warnings.warn(
            f"model: {len(weak):,} of {len(genes):,} genes are below the trust threshold (expected PCC < "
            f"{min_pcc:g}) and left out: {', '.join(weak[:_NAMED])}{more}",
            HescribeWarning,
            stacklevel=3,
        )
    return genes[~genes.isin(weak)]
