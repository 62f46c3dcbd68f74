"""Gene sets: read from a table, matched to what the data call their genes, scored spot by spot."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse, stats

from hescribe import keys
from hescribe.errors import HescribeWarning, InputError, list_some
from hescribe.io.expression import log_normalise

MARKERS = Path(__file__).with_name("markers.csv")  #: ours; a copy of it, edited, is what ``read_gene_sets`` takes
ANY = "any"  #: tissue of the sets that hold everywhere
MIN_PCC = 0.1  #: expected correlation under which a gene's prediction says next to nothing

Scoring = Literal["mean", "zscore", "ssgsea", "ulm"]
_SSGSEA_WEIGHT = 0.25  #: exponent of the ranks, as published
_UNUSABLE = re.compile(r"""^\.|^$|[/\\:*?"<>|\x00-\x1f]""")  #: what a file's name cannot hold on one system or another
_NAMED = 10  #: genes that a warning lists by name
_ROWS = 2048  #: spots scored at once where all genes are ranked


def read_gene_sets(path: str | Path, *, tissue: str | None = None) -> dict[str, list[str]]:
    """Gene sets of a CSV table with the columns ``set`` and ``gene``, and optionally ``tissue``.

    Parameters
    ----------
    path
        The table; other columns, such as ``source``, are for people.
    tissue
        Takes the rows of this tissue, and of ``any`` the sets that it does not have itself. By default all rows.

    Returns
    -------
    dict
        Set → its genes, each once, in the order of the table.

    Raises
    ------
    InputError
        No such file, a column that is missing, a name that cannot name a file, or no set for this tissue.
    """
    try:
        table = pd.read_csv(path, dtype=str, comment="#").rename(columns=str.strip)
    except (OSError, ValueError) as error:
        raise InputError(f"not a readable table of gene sets ({error})", path=path) from error
    if missing := {"set", "gene"} - set(table.columns):
        raise InputError(
            f"no column {' and '.join(sorted(missing))} (found {list_some(table.columns)})",
            path=path,
            fix="columns: set, gene and, if you like, tissue, source",
        )
    table = table.dropna(subset=["set", "gene"])
    if tissue is not None and "tissue" in table:
        table = _of_tissue(table, tissue.strip().lower(), path)
    if table.empty:
        raise InputError("holds no gene set", path=path)
    table = table.assign(gene=table["gene"].str.strip(), set=table["set"].str.strip())
    if unusable := [name for name in table["set"].unique() if _UNUSABLE.search(name)]:
        raise InputError(
            f"a set cannot be called {unusable[0]!r}: columns and figures are named after it",
            path=path,
            fix='leave out / \\ : * ? " < > | and a dot at the beginning',
        )
    return {str(name): list(dict.fromkeys(part["gene"])) for name, part in table.groupby("set", sort=False)}


def _of_tissue(table: pd.DataFrame, tissue: str, path: str | Path) -> pd.DataFrame:
    tissues = table["tissue"].fillna(ANY).str.strip().str.lower()
    own = table[tissues == tissue]
    if own.empty:
        raise InputError(
            f"no gene set for {tissue!r} (there are {', '.join(sorted(set(tissues)))})", path=path, fix="see --tissue"
        )
    general = table[(tissues == ANY) & ~table["set"].isin(own["set"])]
    return pd.concat([own, general])


def marker_sets(tissue: str = ANY) -> dict[str, list[str]]:
    """Our markers of tumour, stroma, immune cells, fat, necrosis and more, for a tissue; sources in `MARKERS`."""
    return read_gene_sets(MARKERS, tissue=tissue)


def log_expression(adata: ad.AnnData) -> sparse.csr_matrix | npt.NDArray[np.float32]:
    """(n, g) log expression: a prediction's ``X`` as it is, on its own scale, and counts as log1p of counts per 10,000.

    Whole numbers without a sign of being a prediction are taken for counts.

    Raises
    ------
    InputError
        No spots, no genes, or values that are negative or not numbers.
    """
    if not adata.n_obs or not adata.n_vars:
        raise InputError(f"an empty table ({adata.n_obs} spots × {adata.n_vars} genes)")
    matrix = adata.X
    values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)
    least = -np.inf if keys.EXPECTED_PCC in adata.var else -1e-3
    wrong = ~(np.isfinite(values) & (values >= least))
    if wrong.any():
        column = matrix.tocoo().col[wrong][0] if sparse.issparse(matrix) else np.flatnonzero(wrong.any(axis=0))[0]
        raise InputError(
            "expression must be counts or log1p of counts, without negative or missing values "
            f"(see {str(adata.var_names[column])!r})"
        )
    if keys.EXPECTED_PCC in adata.var or not values.size or not np.array_equal(values, np.rint(values)):
        return sparse.csr_matrix(matrix) if sparse.issparse(matrix) else np.asarray(matrix, dtype=np.float32)
    return log_normalise(sparse.csr_matrix(matrix))


def match_genes(adata: ad.AnnData, genes: list[str]) -> npt.NDArray[np.intp]:
    """Columns of the genes that the data have, by name, Ensembl id, or name in another case where that is unambiguous."""
    names = pd.Index(adata.var_names.astype(str))
    index = {name: i for i, name in reversed(list(enumerate(names)))}
    if keys.ENSEMBL in adata.var:
        for i, ids in enumerate(adata.var[keys.ENSEMBL].astype(str)):
            index.setdefault(ids.split(".")[0], i)
    folded = names.str.upper()
    once = ~folded.duplicated(keep=False)
    loose = dict(zip(folded[once], np.flatnonzero(once), strict=True))
    found = (index.get(gene, index.get(gene.split(".")[0], loose.get(gene.upper()))) for gene in genes)
    return np.array(list(dict.fromkeys(int(i) for i in found if i is not None)), dtype=np.intp)


def present_sets(adata: ad.AnnData, sets: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The sets of which the data have a gene.

    Warns
    -----
    HescribeWarning
        Names those that are left out.

    Raises
    ------
    InputError
        None is left.
    """
    there = {name: list(genes) for name, genes in sets.items() if len(match_genes(adata, list(genes)))}
    if not there:
        raise InputError(
            f"the data have no gene of any set ({list_some(list(sets))}; the data's are {', '.join(adata.var_names[:3])}, …)",
            fix="give gene sets in the data's own names",
        )
    if missing := [name for name in sets if name not in there]:
        warnings.warn(f"the data have no gene of: {', '.join(missing)}", HescribeWarning, stacklevel=2)
    return there


def score_gene_sets(
    adata: ad.AnnData,
    sets: Mapping[str, list[str]],
    *,
    method: Scoring = "zscore",
    min_pcc: float | None = MIN_PCC,
) -> pd.DataFrame:
    """How active each gene set is in each spot.

    Parameters
    ----------
    adata
        Measured counts or a prediction, spots × genes.
    sets
        Set → genes. Those that the data lack are left out, and it is said.
    method
        ``mean``: of the log expression of the set's genes. ``zscore``: of each gene's expression in units of its own
        spread over the spots, so that no single gene rules. ``ssgsea``: single-sample enrichment by ranks (Barbie et
        al., Nature 2009), comparable between slides. ``ulm``: decoupler's univariate linear model.
    min_pcc
        Genes of a prediction that are expected to correlate less than this with the truth are named in a warning; None
        for no warning.

    Returns
    -------
    DataFrame
        Spots × sets, float64; larger is more active. A gene without spread adds 0 to a ``zscore``.

    Raises
    ------
    InputError
        The data have no gene of a set, none was given, or the method is unknown.
    """
    if method not in _SCORES and method not in _DECOUPLER:
        raise InputError(f"no way of scoring named {method!r}", fix=f"one of {', '.join([*_SCORES, *_DECOUPLER])}")
    if not sets:
        raise InputError("no gene set was given")
    for name, genes in sets.items():
        if isinstance(genes, str):
            raise InputError(f"the set {name!r} is a word, not a list of genes", fix=f"[{genes!r}]")
    columns = {name: match_genes(adata, list(genes)) for name, genes in sets.items()}
    for name, found in columns.items():
        if not len(found):
            first = ", ".join(list(sets[name])[:3]) + ", …" * (len(sets[name]) > 3)
            raise InputError(
                f"the data have no gene of the set {name!r} ({first}; the data's are {', '.join(adata.var_names[:3])}, …)",
                fix="give gene sets in the data's own names",
            )
    _warn(adata, sets, columns, min_pcc)
    expression = log_expression(adata)
    if method in _DECOUPLER:
        return _by_decoupler(adata, expression, columns, method)
    scores = _SCORES[method](expression, list(columns.values()))
    return pd.DataFrame(scores, index=adata.obs_names, columns=list(columns))


def untrusted_genes(adata: ad.AnnData, columns: npt.NDArray[np.intp], min_pcc: float | None) -> list[str]:
    """Names of the columns whose prediction is expected to correlate less than this; of measured data none."""
    if min_pcc is None or keys.EXPECTED_PCC not in adata.var:
        return []
    expected = adata.var[keys.EXPECTED_PCC].to_numpy(dtype=float)[columns]
    return [str(g) for g in adata.var_names[columns][expected < min_pcc]]


def _warn(
    adata: ad.AnnData,
    sets: Mapping[str, list[str]],
    columns: Mapping[str, npt.NDArray[np.intp]],
    min_pcc: float | None,
) -> None:
    for name, found in columns.items():
        total = len(set(sets[name]))
        if len(found) < total / 2:
            warnings.warn(f"{name}: the data have {len(found)} of {total} genes", HescribeWarning, stacklevel=3)
        if weak := untrusted_genes(adata, found, min_pcc):
            more = f" and {len(weak) - _NAMED} more" if len(weak) > _NAMED else ""
            warnings.warn(
                f"{name}: {len(weak)} of {len(found)} genes are below the trust threshold (expected PCC < "
                f"{min_pcc:g}): {', '.join(weak[:_NAMED])}{more}",
                HescribeWarning,
                stacklevel=3,
            )


Expression: TypeAlias = sparse.csr_matrix | npt.NDArray[np.float32]
Columns: TypeAlias = list[npt.NDArray[np.intp]]


def dense(expression: Expression, columns: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """(n, k) of some genes."""
    part = expression[:, columns]
    return np.asarray(part.toarray() if isinstance(part, sparse.csr_matrix) else part, dtype=np.float64)


def _mean(expression: Expression, columns: Columns) -> npt.NDArray[np.float64]:
    return np.stack([dense(expression, c).mean(axis=1) for c in columns], axis=1)


def _zscore(expression: Expression, columns: Columns) -> npt.NDArray[np.float64]:
    return np.stack([standardised(dense(expression, c)).mean(axis=1) for c in columns], axis=1)


def standardised(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, k) columns in units of their own spread; a constant column is 0."""
    spread = values.std(axis=0)
    constant = spread <= 1e-9 * np.maximum(np.abs(values).max(axis=0, initial=0.0), 1.0)
    return np.where(constant, 0.0, (values - values.mean(axis=0)) / np.where(constant, 1.0, spread))


def _ssgsea(expression: Expression, columns: Columns) -> npt.NDArray[np.float64]:
    genes = np.arange(expression.shape[1])
    out = np.empty((expression.shape[0], len(columns)))
    for start in range(0, len(out), _ROWS):
        ranks = stats.rankdata(dense(expression[start : start + _ROWS], genes), axis=1)
        for j, inside in enumerate(columns):
            out[start : start + len(ranks), j] = enrichment(ranks, inside)
    return out


def enrichment(ranks: npt.NDArray[np.float64], inside: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Single-sample enrichment of a set, (n,): the area between two running sums down the list of genes.

    Barbie et al., Nature 2009: with r_g the rank of gene g among N (N the most expressed), genes in falling order,
    ``Σ_i [ Σ_{g ∈ S, g ≤ i} r_g^¼ / Σ_{g ∈ S} r_g^¼ − Σ_{g ∉ S, g ≤ i} 1 / (N − |S|) ]``, divided by N. Genes of one
    rank, such as all that were not seen, share their places, so that the order of the columns plays no part.

    Parameters
    ----------
    ranks
        (n, N), ties averaged.
    inside
        Columns of the set.
    """
    n_genes = ranks.shape[1]
    within = ranks[:, inside]
    # A gene at place N + 1 − r of the falling list is part of r running sums: no list need be walked
    weight = within**_SSGSEA_WEIGHT
    hit = (weight * within).sum(axis=1) / weight.sum(axis=1)
    outside = ranks.sum(axis=1) - within.sum(axis=1)
    others = n_genes - len(inside)
    return np.asarray((hit - (outside / others if others else 0.0)) / n_genes)


_SCORES: dict[str, Callable[[Expression, Columns], npt.NDArray[np.float64]]] = {
    "mean": _mean,
    "zscore": _zscore,
    "ssgsea": _ssgsea,
}
_DECOUPLER = ("ulm",)


def _by_decoupler(
    adata: ad.AnnData, expression: Expression, columns: Mapping[str, npt.NDArray[np.intp]], method: str
) -> pd.DataFrame:
    import decoupler

    names = adata.var_names.astype(str)
    table = ad.AnnData(expression, obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=names))
    net = pd.DataFrame([(s, names[i], 1.0) for s, found in columns.items() for i in found])
    net.columns = pd.Index(["source", "target", "weight"])
    getattr(decoupler.mt, method)(table, net, tmin=1, verbose=False)
    return pd.DataFrame(table.obsm[f"score_{method}"]).reindex(columns=list(columns)).astype(float)
