"""Everything that is measured of one section's prediction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from hescribe import keys
from hescribe.evaluation.alignment import Aligned, align, check_provenance
from hescribe.evaluation.cell_types import describe_cell_types, score_cell_types
from hescribe.io.expression import log_normalise
from hescribe.metrics.autocorrelation import morans_agreement, morans_i_per_gene, neighbour_weights
from hescribe.metrics.ceiling import ceiling_per_gene
from hescribe.metrics.correlation import (
    mae_per_gene,
    pearson_per_gene,
    pearson_per_spot,
    rmse_per_gene,
    spearman_per_gene,
)
from hescribe.metrics.gene_blocks import Mask, gene_blocks
from hescribe.metrics.gene_sets import detected_genes, gene_moments, named_genes, top_genes
from hescribe.metrics.maps import ssim_per_gene
from hescribe.metrics.resampling import draw_blocks, percentile_interval, resampled_pearson, spatial_blocks
from hescribe.metrics.structure import gene_gene_preservation, relative_variance_deviation

N_BLOCKS = 16  #: blocks of tissue for the intervals within a section
MAX_PAIRED_GENES = 1000  #: of a larger set, gene–gene correlations are of the genes that vary most

#: gene sets in the order of the tables; all but the first are flags of ``per_gene``
SETS = ("all", "panel", "detected10", "heg50", "hvg50", "heg50_train", "hvg50_train", "marker")


@dataclass(frozen=True, eq=False)
class SectionScores:
    """Scores of one section's prediction.

    Attributes
    ----------
    section_id, patient_id, method
        What was predicted, and by what.
    same_patient
        The model learned from other sections of this patient.
    per_gene
        A row a gene: ``pcc``, ``spearman``, ``rmse``, ``mae``, ``ceiling``, ``mean``, ``variance``,
        ``variance_predicted``, ``detected``, ``morans_i``, ``morans_i_predicted``, ``ssim`` (of the genes in named
        sets), ``coverage`` and ``expected_pcc`` where the prediction states them, and a flag for each set.
    summary
        A row a set, columns as `summarise_set` gives them.
    resamples
        Set → (r,) mean correlation in each bootstrap resample of blocks of tissue. The same section and seed draw
        the same blocks, so two methods can be compared pair by pair.
    n_spots, n_unmatched
        Spots scored, and measured spots without a prediction.
    cell_types
        As `score_cell_types` gives them; None where they were not predicted or not measured.
    """

    section_id: str
    patient_id: str
    method: str
    same_patient: bool
    per_gene: pd.DataFrame
    summary: pd.DataFrame
    resamples: Mapping[str, npt.NDArray[np.float64]] = field(repr=False)
    n_spots: int
    n_unmatched: int
    cell_types: pd.DataFrame | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name, for JSON; what is not known is None."""
        sets = {
            str(name): {
                str(k): None if pd.isna(v) else (int(v) if k == "n_genes" else float(v)) for k, v in row.items()
            }
            for name, row in self.summary.iterrows()
        }
        return {
            "section_id": self.section_id,
            "patient_id": self.patient_id,
            "method": self.method,
            "same_patient": self.same_patient,
            "n_spots": self.n_spots,
            "n_unmatched": self.n_unmatched,
            "sets": sets,
            "cell_types": None if self.cell_types is None else describe_cell_types(self.cell_types),
        }


def score_section(
    predicted: ad.AnnData,
    section_counts: ad.AnnData,
    *,
    method: str = "",
    genes: Collection[str] | None = None,
    panel: Iterable[str] | None = None,
    training_stats: pd.DataFrame | None = None,
    markers: Iterable[str] = (),
    allow_same_patient: bool = False,
    n_splits: int = 5,
    n_resamples: int = 200,
    seed: int = 0,
) -> SectionScores:
    """Score one section's prediction against its measured counts.

    Spots are matched by name; genes that were predicted but not measured, or the reverse, are left out. All gene
    sets are chosen among the genes that remain, so give ``genes`` to compare methods that predict different ones.

    Parameters
    ----------
    predicted
        Spots × genes, log1p of counts per 10,000, or on the scale that its provenance states: counts are brought to it.
    section_counts
        Raw counts of the section, *all* its genes, positions in ``obsm["spatial"]``.
    method
        Label; by default from the prediction's provenance, as those of section and patient are.
    genes
        Score only these.
    panel
        Genes the method learned on; by default ``var["in_panel"]`` of the prediction.
    training_stats
        Index gene, columns ``mean`` and ``variance`` on training sections, for the sets chosen there.
    markers
        Genes of special interest.
    allow_same_patient
        Accept a model that has seen the patient (never one that has seen the section), and label the scores.
    n_splits
        Count splits for the ceiling.
    n_resamples
        Bootstrap resamples of blocks of tissue.
    seed
        Of splits and resamples.

    Raises
    ------
    LeakageError
        The prediction's provenance says that its model has seen this section, or unallowed this patient.
    InputError
        No shared spots or genes, names that are not unique, values that are not finite, no raw counts.
    """
    check_provenance(predicted, allow_same_patient=allow_same_patient)
    told = predicted.uns.get(keys.PROVENANCE, {})
    data = align(predicted, section_counts, genes=genes)
    table = _agreement(data, n_splits=n_splits, seed=seed)
    var = predicted.var.loc[list(data.genes)]
    if panel is None and keys.IN_PANEL in var:
        panel = var.index[var[keys.IN_PANEL].to_numpy(dtype=bool)]
    for name, mask in _sets(data, table, panel=panel, training_stats=training_stats, markers=markers).items():
        table[name] = mask
    table["ssim"] = _ssim(data, table)
    table[keys.EXPECTED_PCC] = var[keys.EXPECTED_PCC].to_numpy(np.float64) if keys.EXPECTED_PCC in var else np.nan
    table["coverage"] = _coverage(predicted, data)
    masks = {name: set_mask(table, name) for name in SETS}
    resamples = _resamples(data, masks, n_resamples=n_resamples, seed=seed)
    summary = pd.DataFrame({n: summarise_set(data, table, mask, resamples[n]) for n, mask in masks.items()}).T
    return SectionScores(
        section_id=_label(told, "slide", section_counts, keys.SECTION),
        patient_id=_label(told, "patient", section_counts, keys.PATIENT),
        method=method or str(told.get("method", "")),
        same_patient=allow_same_patient and bool(told.get("patient_seen_in_training", True)),
        per_gene=table,
        summary=summary.rename_axis("set"),
        resamples=resamples,
        n_spots=len(data.spots),
        n_unmatched=data.n_unmatched,
        cell_types=score_cell_types(predicted, section_counts),
    )


def _label(told: Mapping[str, Any], name: str, section: ad.AnnData, column: str) -> str:
    """From the provenance of the prediction, or from the section's spots."""
    return str(told[name]) if name in told else str(section.obs[column].iloc[0]) if column in section.obs else ""


def set_mask(per_gene: pd.DataFrame, name: str) -> Mask:
    """Genes of one of `SETS`, (g,) bool."""
    return np.ones(len(per_gene), dtype=bool) if name == "all" else per_gene[name].to_numpy(dtype=bool)


def summarise_set(
    data: Aligned, table: pd.DataFrame, mask: Mask, resamples: npt.NDArray[np.float64]
) -> dict[str, float]:
    """What is known of one set of genes; NaN where nothing is.

    ``n_genes``; means over genes of ``pcc`` (with ``pcc_low``, ``pcc_high``: 95 % percentile bootstrap over blocks
    of tissue), ``spearman``, ``rmse``, ``mae``, ``ceiling``, ``ssim``, ``coverage`` (share of spots within the stated
    90 % interval); ``share_of_ceiling``, the mean correlation by the mean ceiling; ``spotwise_pcc``, the mean over
    spots of the correlation across these genes (the training mean alone scores high there); ``gene_gene_pcc``, ``gene_gene_rmse``; ``rvd``; ``morans_pcc``,
    ``morans_mae``; ``expected_pcc_spearman``, the rank correlation of the stated with the reached correlations.
    """
    chosen = table[mask]
    means = {c: chosen[c].mean() for c in ("pcc", "spearman", "rmse", "mae", "ceiling", "ssim", "coverage")}
    if (chosen["ssim"].isna() & chosen["pcc"].notna()).any():
        means["ssim"] = np.nan  # known of some genes only: no mean of this set
    low, high = percentile_interval(resamples)
    paired = np.flatnonzero(mask)
    if len(paired) > MAX_PAIRED_GENES:
        paired = np.flatnonzero(mask & top_genes(np.where(mask, table["variance"], 0), data.genes, MAX_PAIRED_GENES))
    gene_gene = gene_gene_preservation(data.predicted[:, paired], data.truth[:, paired])
    moran = morans_agreement(chosen["morans_i_predicted"].to_numpy(), chosen["morans_i"].to_numpy())
    expected = chosen[["expected_pcc", "pcc"]].dropna().to_numpy()
    return {
        "n_genes": int(chosen["pcc"].notna().sum()),
        "pcc": means.pop("pcc"),
        "pcc_low": low,
        "pcc_high": high,
        **means,
        "share_of_ceiling": chosen["pcc"].mean() / chosen["ceiling"].mean() if chosen["ceiling"].sum() > 0 else np.nan,
        "spotwise_pcc": _nanmean(pearson_per_spot(data.predicted[:, mask], data.truth[:, mask])),
        "gene_gene_pcc": gene_gene[0],
        "gene_gene_rmse": gene_gene[1],
        "rvd": relative_variance_deviation(chosen["variance_predicted"].to_numpy(), chosen["variance"].to_numpy()),
        "morans_pcc": moran[0],
        "morans_mae": moran[1],
        "expected_pcc_spearman": float(spearman_per_gene(expected[:, :1], expected[:, 1:])[0]),
    }


def _agreement(data: Aligned, *, n_splits: int, seed: int) -> pd.DataFrame:
    measured, predicted = gene_moments(data.truth), gene_moments(data.predicted)
    weights = neighbour_weights(data.centres)
    # One number for halves of the counts too: their own median would be half of it
    normalise = partial(log_normalise, target_sum=data.target_sum)
    columns = {
        "pcc": pearson_per_gene(data.predicted, data.truth),
        "spearman": spearman_per_gene(data.predicted, data.truth),
        "rmse": rmse_per_gene(data.predicted, data.truth),
        "mae": mae_per_gene(data.predicted, data.truth),
        "ceiling": ceiling_per_gene(data.counts, normalise, n_splits=n_splits, seed=seed)[data.columns],
        "mean": measured.mean,
        "variance": measured.variance,
        "variance_predicted": predicted.variance,
        "detected": measured.detected,
        "morans_i": morans_i_per_gene(data.truth, weights),
        "morans_i_predicted": morans_i_per_gene(data.predicted, weights),
    }
    return pd.DataFrame(columns, index=pd.Index(data.genes, name="gene"))


def _sets(
    data: Aligned,
    table: pd.DataFrame,
    *,
    panel: Iterable[str] | None,
    training_stats: pd.DataFrame | None,
    markers: Iterable[str],
) -> dict[str, Mask]:
    nothing = pd.DataFrame({"mean": [], "variance": []}, dtype=np.float64)
    known = (nothing if training_stats is None else training_stats).reindex(data.genes)
    return {
        "heg50": top_genes(table["mean"].to_numpy(), data.genes),
        "hvg50": top_genes(table["variance"].to_numpy(), data.genes),
        "heg50_train": top_genes(known["mean"].to_numpy(np.float64), data.genes),
        "hvg50_train": top_genes(known["variance"].to_numpy(np.float64), data.genes),
        "detected10": detected_genes(table["detected"].to_numpy()),
        "marker": named_genes(data.genes, markers),
        "panel": named_genes(data.genes, panel if panel is not None else ()),
    }


def _ssim(data: Aligned, table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Of the genes in named sets: a map takes a third of a millisecond or more, 20,000 of them too long."""
    wanted = np.any([set_mask(table, name) for name in SETS if name not in ("all", "detected10")], axis=0)
    out = np.full(len(table), np.nan)
    out[wanted] = ssim_per_gene(data.predicted[:, wanted], data.truth[:, wanted], data.pixels)
    return out


def _coverage(predicted: ad.AnnData, data: Aligned) -> npt.NDArray[np.float64]:
    """Share of spots whose measured value lies within the stated interval, (g,); NaN where none is stated."""
    out = np.full(len(data.genes), np.nan)
    if keys.INTERVAL not in predicted.var or keys.INTERVAL_SCALE not in predicted.obs:
        return out
    width = predicted.var.loc[list(data.genes), keys.INTERVAL].to_numpy(dtype=np.float64)
    scale = predicted.obs.loc[list(data.spots), keys.INTERVAL_SCALE].to_numpy(dtype=np.float64)
    known = np.isfinite(scale)
    if not known.any():
        return out
    for where, (stated, measured) in gene_blocks(data.predicted[known], data.truth[known]):
        inside = np.abs(stated - measured) <= width[where] * scale[known, None]
        out[where] = np.where(np.isfinite(width[where]), inside.mean(axis=0), np.nan)
    return out


def _resamples(
    data: Aligned, masks: Mapping[str, Mask], *, n_resamples: int, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Set → (r,) mean correlation over its genes in each resample; a column a gene is dropped as soon as used."""
    labels = spatial_blocks(data.centres, N_BLOCKS)
    draws = draw_blocks(int(labels.max()) + 1, n_resamples, seed=seed)
    pcc = resampled_pearson(data.predicted, data.truth, labels=labels, draws=draws).astype(np.float32)
    known = np.isfinite(pcc)
    pcc[~known] = 0
    out = {}
    for name, mask in masks.items():
        total, count = pcc[:, mask].sum(axis=1, dtype=np.float64), known[:, mask].sum(axis=1)
        out[name] = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return out


def _nanmean(values: npt.NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
