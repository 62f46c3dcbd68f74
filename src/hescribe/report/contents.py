"""What a report is about: each slide's prediction, what was measured there, and a row a gene."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.expression import log_normalise, told_sum
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.metrics.gene_sets import detected_genes, gene_moments, top_genes
from hescribe.plots import Thumbnail
from hescribe.types import Centres

EACH = 2  #: genes shown as best, as median and as worst
SETS = ("heg50", "hvg50", "panel", "detected10", "marker", "heg50_train", "hvg50_train", "all")


class ScoreTables(Protocol):
    """Scores of one section, as ``evaluation`` makes them."""

    @property
    def per_gene(self) -> pd.DataFrame:
        """A row a gene: ``pcc``, ``ceiling``, ``mean``, and more, and a flag for each gene set."""
        ...

    @property
    def summary(self) -> pd.DataFrame | Mapping[str, Mapping[str, float]]:
        """A row a gene set: ``pcc``, ``pcc_low``, ``pcc_high``, ``ceiling``, ``n_genes`` and more."""
        ...


@dataclass(frozen=True, eq=False)
class PlainScores:
    """Scores of one section from plain tables: `ScoreTables` for those who have no ``SectionScores``."""

    per_gene: pd.DataFrame
    summary: pd.DataFrame | Mapping[str, Mapping[str, float]]


Given: TypeAlias = tuple[ad.AnnData, ad.AnnData | None, Thumbnail | npt.NDArray[np.uint8] | None]


@dataclass(frozen=True, eq=False)
class Content:
    """One slide of the report.

    Attributes
    ----------
    name
        Section or slide id.
    predicted
        The prediction.
    measured
        The shared spots and genes on the prediction's scale; None where nothing was measured.
    thumbnail
        The slide and its downsampling.
    per_gene
        A row a predicted gene that can be said something about.
    summary
        A row a gene set; empty where nothing was measured.
    """

    name: str
    predicted: ad.AnnData
    measured: ad.AnnData | None
    thumbnail: Thumbnail | None
    per_gene: pd.DataFrame
    summary: pd.DataFrame

    @property
    def told(self) -> dict[str, Any]:
        """The prediction's provenance."""
        return dict(self.predicted.uns.get(keys.PROVENANCE, {}))

    @property
    def mpp(self) -> float | None:
        """µm per pixel, where the provenance says."""
        value = self.told.get("mpp")
        return float(value) if value is not None else None


def read_contents(given: Sequence[Given], scores: Sequence[ScoreTables | None] | None) -> list[Content]:
    """Bring together what was handed to the report.

    Raises
    ------
    InputError
        Nothing to report, as many scores as predictions are not there, or a prediction without positions.
    """
    if not given:
        raise InputError("there is no prediction to report")
    tables: Sequence[ScoreTables | None] = scores if scores is not None else [None] * len(given)
    if len(tables) != len(given):
        raise InputError(f"{len(given)} predictions but {len(tables)} tables of scores", fix="give one each, or None")
    return [_content(i, *one, scores=table) for i, (one, table) in enumerate(zip(given, tables, strict=True))]


def _content(
    number: int,
    predicted: ad.AnnData,
    counts: ad.AnnData | None,
    thumbnail: Thumbnail | npt.NDArray[np.uint8] | None,
    *,
    scores: ScoreTables | None,
) -> Content:
    if keys.SPATIAL not in predicted.obsm:
        raise InputError(f'prediction {number + 1} has no positions in obsm["{keys.SPATIAL}"]')
    name = str(predicted.uns.get(keys.PROVENANCE, {}).get("slide") or number + 1)
    measured = _measured(predicted, counts) if counts is not None else None
    if scores is not None:
        per_gene, summary = scores.per_gene, _table(scores.summary)
    elif measured is not None:
        per_gene, summary = _own_scores(predicted, measured)
    else:
        per_gene, summary = pd.DataFrame(index=predicted.var_names), pd.DataFrame()
    placed = _placed(thumbnail, np.asarray(predicted.obsm[keys.SPATIAL], dtype=np.float64))
    return Content(name, predicted, measured, placed, _with_var(per_gene, predicted), summary)


def _measured(predicted: ad.AnnData, counts: ad.AnnData) -> ad.AnnData:
    """Shared spots and genes, normalised as the prediction, with all genes of the section; logarithms stay."""
    matrix = sparse.csr_matrix(counts.X)
    target_sum = told_sum(predicted.uns.get(keys.PROVENANCE, {}))
    values = matrix if _is_normalised(matrix) else log_normalise(matrix, target_sum=target_sum)
    spots = counts.obs_names.isin(predicted.obs_names)
    genes = counts.var_names.isin(predicted.var_names)
    if not spots.any() or not genes.any():
        raise InputError(f"prediction and measurement share {spots.sum()} spots and {genes.sum()} genes")
    chosen = values[np.flatnonzero(spots)][:, np.flatnonzero(genes)]
    out = ad.AnnData(chosen, obs=counts.obs.loc[spots, []], var=counts.var.loc[genes, []])
    out.obsm[keys.SPATIAL] = np.asarray(counts.obsm[keys.SPATIAL])[spots]
    return out


def _is_normalised(matrix: sparse.csr_matrix) -> bool:
    return bool((matrix.data != np.round(matrix.data)).any())


def _placed(thumbnail: Thumbnail | npt.NDArray[np.uint8] | None, centres: Centres) -> Thumbnail | None:
    """A bare image can only be the slide at full resolution; anything else would put the spots in wrong places."""
    if thumbnail is None or isinstance(thumbnail, tuple):
        return thumbnail
    width, height = thumbnail.shape[1], thumbnail.shape[0]
    if (centres > (width, height)).any():
        raise InputError(
            f"spots lie outside the thumbnail of {width} × {height} px", fix="give a pair: thumbnail and downsampling"
        )
    return thumbnail, 1.0


def _table(summary: pd.DataFrame | Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    if isinstance(summary, pd.DataFrame):
        return summary
    return pd.DataFrame.from_dict(dict(summary), orient="index")


def _own_scores(predicted: ad.AnnData, measured: ad.AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Correlations without intervals and ceilings, where nobody has scored the section."""
    truth = sparse.csr_matrix(measured.X)
    pcc = pearson_per_gene(predicted[measured.obs_names, measured.var_names].X, truth)
    moments, genes = gene_moments(truth), list(measured.var_names)
    flags = {
        "heg50": top_genes(moments.mean, genes),
        "hvg50": top_genes(moments.variance, genes),
        "detected10": detected_genes(moments.detected),
    }
    columns = {"pcc": pcc, "mean": moments.mean, "variance": moments.variance, "detected": moments.detected}
    table = pd.DataFrame({**columns, **flags}, index=measured.var_names)
    masks = {**flags, "all": np.ones(len(table), dtype=bool)}
    rows = {n: {"pcc": table["pcc"][m].mean(), "n_genes": int(table["pcc"][m].notna().sum())} for n, m in masks.items()}
    return table, pd.DataFrame.from_dict(rows, orient="index")


def _with_var(per_gene: pd.DataFrame, predicted: ad.AnnData) -> pd.DataFrame:
    """Add what the prediction itself states of a gene."""
    table = per_gene.copy()
    for column in (keys.EXPECTED_PCC, keys.INTERVAL):
        if column in predicted.var and (column not in table or table[column].isna().all()):
            table[column] = predicted.var[column].reindex(table.index).astype(np.float64)
    if keys.IN_PANEL in predicted.var and "panel" not in table:
        table["panel"] = predicted.var[keys.IN_PANEL].reindex(table.index, fill_value=False).astype(bool)
    return table


def check_genes(genes: Collection[str], predictions: Sequence[ad.AnnData]) -> None:
    """Refuse a gene that no prediction has.

    Raises
    ------
    InputError
        Names the genes.
    """
    unknown = [g for g in genes if not any(g in p.var_names for p in predictions)]
    if unknown:
        raise InputError(f"not predicted: {', '.join(unknown)}", fix="gene names are as in the prediction's var_names")


def choose_genes(content: Content, named: Collection[str]) -> dict[str, list[str]]:
    """Genes to be shown: heading → names.

    Best, median and worst are by correlation, among genes detected in at least 10 % of the spots: the correlation
    of a rarer one hangs on a few counts. Without measurement those of highest expected correlation are shown.
    """
    table = content.per_gene
    chosen: dict[str, list[str]] = {}
    if content.measured is not None and "pcc" in table:
        table = table[table.index.isin(content.measured.var_names)]
        common = table[table["detected10"].astype(bool)] if "detected10" in table else table
        common = common if common["pcc"].notna().sum() >= 3 * EACH else table
        ranked = list(common["pcc"].dropna().sort_values(ascending=False, kind="stable").index)
        middle = max(0, len(ranked) // 2 - EACH // 2)
        chosen["Best predicted"] = ranked[:EACH]
        chosen["Typical (median)"] = ranked[middle : middle + EACH]
        chosen["Worst predicted"] = ranked[-EACH:]
    elif keys.EXPECTED_PCC in table and table[keys.EXPECTED_PCC].notna().any():
        ranked = list(table[keys.EXPECTED_PCC].dropna().sort_values(ascending=False, kind="stable").index)
        chosen["Highest expected correlation"] = ranked[: 2 * EACH]
    else:
        mean = np.asarray(content.predicted.X.mean(axis=0)).ravel()
        ranked = list(content.predicted.var_names[np.argsort(-mean, kind="stable")])
        chosen["Highest predicted expression"] = ranked[: 2 * EACH]
    asked = [g for g in dict.fromkeys(named) if g in content.predicted.var_names]
    # A gene asked for may well be among the best: then it is shown in both places
    return ({"Chosen genes": asked} if asked else {}) | _once(chosen)


def _once(chosen: dict[str, list[str]]) -> dict[str, list[str]]:
    """Each gene under its first heading only: with few genes the best are also the median."""
    seen: set[str] = set()
    out = {}
    for heading, genes in chosen.items():
        fresh = [g for g in genes if g not in seen]
        seen.update(fresh)
        if fresh:
            out[heading] = fresh
    return out
