"""The page of ``hescribe survival``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hescribe.plots.maps import obs_map
from hescribe.plots.style import EXPRESSION_COLOURS
from hescribe.plots.survival import ENOUGH_AT_RISK, auc_over_time, calibration, hazard_ratios, kaplan_meier
from hescribe.report.tools import Chapter, Plate, write_tool_page
from hescribe.survival.clinical import describe_missing
from hescribe.survival.judge import C_INDEX, HAZARD, IBS, IBS_NONE, LOGRANK, MEAN_AUC, RATIO, SLOPE, auc_name
from hescribe.survival.outcome import BOTH, IMAGE, SurvivalResult
from hescribe.version import __version__

_DIVERGING = "RdBu_r"
_FEATURES = (
    "mean and spread: of a score over the tiles; moran: how far a score gathers in places; fraction: share of the tiles "
    "in a region; next: how often two regions adjoin, over what chance gives; tls: lymphoid structures. Chosen: share of "
    "the resamples in which the feature was kept."
)
_MOST_GENES = 20  #: of the page's table; all are in genes.csv


def write_page(
    folder: Path,
    result: SurvivalResult,
    *,
    unit: str,
    genes: pd.DataFrame,
    doubtful: Sequence[str],
    maps: Sequence[tuple[str, ad.AnnData]],
) -> Path:
    """Write ``index.html`` and its figures into a folder.

    Parameters
    ----------
    folder
        An existing folder.
    result
        What was found.
    unit
        Of time.
    genes
        Effects of genes.
    doubtful
        Genes in scores that cannot be trusted.
    maps
        Title and slide with ``obs["contribution"]``.
    """
    main = BOTH if BOTH in result.held_out else IMAGE
    chapters = [
        _risk_groups(result, main, unit),
        _discrimination(result, unit),
        _calibration(result, unit),
        *_attributions(result, main, genes, maps),
    ]
    return write_tool_page(
        folder,
        chapters,
        title="Outcome from slides",
        lead=_lead(result),
        cautions=_cautions(result, main, doubtful),
        cards=_cards(result, main, unit),
        provenance={
            "version": __version__,
            "horizon": f"{result.horizon:g} {unit}",
            "models": ", ".join(result.held_out),
        },
    )


def _lead(result: SurvivalResult) -> str:
    risks = result.risks
    return (
        f"{len(risks)} patients, {int(risks['event'].sum())} with the event. Every risk on this page was given by a "
        f"model that had not seen the patient ({risks['fold'].nunique()}-fold cross-validation by patient, the penalty "
        "chosen inside)."
    )


def _value(result: SurvivalResult, model: str, metric: str) -> tuple[float, float, float]:
    row = result.scores[(result.scores["model"] == model) & (result.scores["metric"] == metric)].iloc[0]
    return float(row["value"]), float(row["low"]), float(row["high"])


def _cards(result: SurvivalResult, main: str, unit: str) -> dict[str, str]:
    def shown(metric: str) -> str:
        return "{:.2f} (95% interval {:.2f}–{:.2f})".format(*_value(result, main, metric))

    metric = auc_name(result.horizon)
    return {
        f"AUC at {result.horizon:.3g} {unit}, {main}": shown(metric),
        "C-index": shown(C_INDEX),
        "Hazard ratio, high against low risk": shown(HAZARD) if np.isfinite(_value(result, main, HAZARD)[0]) else "–",
    }


def _cautions(result: SurvivalResult, main: str, doubtful: Sequence[str]) -> list[str]:
    out = []
    events = int(result.risks["event"].sum())
    if events < 100:
        out.append(f"Only {events} events: the intervals are wide, and so is the choice of features.")
    if _value(result, main, auc_name(result.horizon))[1] <= 0.5:
        out.append("The interval of the AUC contains 0.5: no better than chance has not been excluded.")
    if result.missing:
        out.append(f"{describe_missing(result.missing)}.")
    if doubtful:
        out.append(f"Scores use genes whose predictions are mostly noise: {', '.join(doubtful)}.")
    out.append("Associations, not causes; and not a medical device.")
    return out


def _risk_groups(result: SurvivalResult, main: str, unit: str) -> Chapter:
    risks = result.risks
    figure = kaplan_meier(
        risks["time"],
        risks["event"],
        risks[f"group {main}"],
        unit=unit,
        p_value=_value(result, main, LOGRANK)[0],
        hazard_ratio=_value(result, main, HAZARD),
        title=f"{main[0].upper()}{main[1:]}",
    )
    text = (
        "Patients are called high risk where the risk lies above the median of the patients the model was fitted on. "
        "The log-rank test and the intervals are widened for what cross-validation's folds have in common.",
    )
    plate = Plate(
        figure,
        "kaplan_meier",
        "Kaplan–Meier curves of the low and high risk group",
        caption=f"Each curve is drawn while at least {ENOUGH_AT_RISK} of its patients are at risk. HR: hazard ratio, high "
        "against low risk, with its 95% interval.",
        vector=True,
    )
    return Chapter("Risk groups", text=text, plates=[plate])


def _discrimination(result: SurvivalResult, unit: str) -> Chapter:
    rows = result.scores[result.scores["metric"].isin([C_INDEX, auc_name(result.horizon), MEAN_AUC, IBS, IBS_NONE])]
    plate = Plate(
        auc_over_time(result.auc, unit=unit, horizon=result.horizon),
        "auc",
        "AUC over time for each model, with 95 % intervals",
        vector=True,
    )
    tables = [("Scores with 95 % intervals", rows.reset_index(drop=True))]
    if len(result.differences):
        tables.append(("Differences on the same resamples of patients", result.differences))
    text = (
        "AUC at a time: the chance that a patient with the event by then had the higher risk than one free of it; 0.5 is chance. "
        "C-index: the same of any two patients, by who had the event first. Brier score: squared error of the predicted "
        "probabilities, the smaller the better; Kaplan–Meier's gives everybody the same.",
    )
    return Chapter("Discrimination", text=text, plates=[plate], tables=tables, decimals=3)


def _calibration(result: SurvivalResult, unit: str) -> Chapter:
    figure = calibration(result.calibration, when=f"at {result.horizon:.3g} {unit}")
    rows = result.scores[result.scores["metric"].isin([SLOPE, RATIO])].reset_index(drop=True)
    text = (
        "Points on the diagonal: as many stay free of the event as were predicted. A slope below 1: risks too extreme.",
    )
    plate = Plate(figure, "calibration", "Predicted against observed probabilities by fifths", vector=True)
    return Chapter("Calibration", text=text, plates=[plate], tables=[("Calibration", rows)], decimals=3)


def _attributions(
    result: SurvivalResult, main: str, genes: pd.DataFrame, maps: Sequence[tuple[str, ad.AnnData]]
) -> list[Chapter]:
    out = []
    table = result.coefficients[result.coefficients["model"] == main]
    if (table["coefficient"] != 0).any():
        plate = Plate(
            hazard_ratios(table), "hazard_ratios", "Hazard ratios of the features with intervals", vector=True
        )
        kept = table[table["coefficient"] != 0].drop(columns="model")
        strongest = kept.loc[kept["coefficient"].abs().sort_values(ascending=False).index]
        text = (
            "Fitted on all patients; intervals by fitting again on resampled patients at the same penalty.",
            _FEATURES,
        )
        out.append(Chapter("What raises and lowers the risk", text=text, plates=[plate],
                           tables=[("Log hazard ratios for a standard deviation", strongest)], decimals=3))  # fmt: skip
    if len(genes) and genes["effect"].any():
        meant = "Log hazard for one more unit of log expression in all tiles, through the mean scores."
        out.append(
            Chapter(
                "Genes",
                text=(meant,),
                tables=[("Strongest genes", genes[genes["effect"] != 0].head(_MOST_GENES))],
                decimals=3,
            )
        )
    linear = (table["coefficient"] != 0).any()
    label = "adds to the log hazard" if linear else "attention (1: as the mean tile)"
    plates = [
        Plate(
            _tile_map(adata, title, label, diverging=bool(linear)),
            f"tiles_{k}",
            f"Map of what each tile says, {title}",
            colours=_DIVERGING if linear else EXPRESSION_COLOURS,
        )
        for k, (title, adata) in enumerate(maps)
        if np.ptp(adata.obs["contribution"]) > 0
    ]
    if plates:
        out.append(Chapter("Tiles", text=("Where on the slide the risk comes from.",), plates=plates))
    return out


def _tile_map(adata: ad.AnnData, title: str, label: str, *, diverging: bool) -> Figure:
    values = adata.obs["contribution"]
    far = float(np.quantile(np.abs(values), 0.99)) or 1.0
    if diverging:
        return obs_map(adata, "contribution", limits=(-far, far), colours=_DIVERGING, label=label, title=title)
    return obs_map(adata, "contribution", label=label, title=title)
