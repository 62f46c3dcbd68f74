"""Chapters about genes, structure, fewer spots, cell types and cost."""

from __future__ import annotations

import pandas as pd

from hescribe import plots
from hescribe.plots.genes import SET_NAMES
from hescribe.report.benchmark.words import (
    CONTROLS,
    SHORT,
    chosen,
    headed,
    interval,
    keys_of,
    labelled,
    place,
    runs_of,
    short_encoders,
    three,
)
from hescribe.report.tools import Chapter, Plate

_FALLBACK = ("ridge-hest", "coordinate-knn")  #: controls where neither ridge nor knn was run
_STRUCTURE = {
    "gene_gene_pcc": "Gene–gene r",
    "gene_gene_rmse": "Gene–gene RMSE",
    "rvd": "RVD",
    "morans_pcc": "Moran's I, r",
    "morans_mae": "Moran's I, MAE",
}
_CURVE_TEXT = (
    "Each method was trained again on a share of the training spots, the same ones for all methods, drawn at random "
    "within each section; a smaller share is part of a larger one. Test sections are whole, and so are images: only the "
    "measured spots are fewer. Claims for small data are to be read off here, not off the headline."
)
_COST_TEXT = (
    "Means over the splits and seeds of the headline runs. Encoding: tiles through the encoder, near 0 where an earlier run had left "
    "the features on disk. Training and prediction do not include it. Peak memory: the largest resident set of the whole "
    "process that was seen during training, libraries and all that was loaded before included; what it was at the start "
    "stands beside it. Trainable: weights that gradient descent changes; model: all numbers kept, those of closed forms "
    "included; reference: training spots or prototypes that retrieval looks up."
)


_TIME = {
    "encoding_seconds": "Encoding (s)",
    "training_seconds": "Training (s)",
    "prediction_seconds": "Prediction (s)",
    "training_memory_mb": "Peak memory (MB)",
    "memory_before_mb": "… at the start (MB)",
    "training_gpu_mb": "Peak GPU (MB)",
}
_SIZES = {
    "training_spots": "Training spots",
    "trainable_parameters": "Trainable",
    "model_numbers": "Model",
    "encoder_parameters": "Encoder",
    "reference_spots": "Reference",
    "bundle_mb": "Bundle (MB)",
}


def genes(table: pd.DataFrame, methods: pd.DataFrame) -> Chapter | None:
    """Each gene under each method against the best control."""
    plates, left_out, short = [], [], short_encoders(table["encoder"])
    for told, part in runs_of(table):
        where = place(told, short)
        control = best_control(chosen(methods, {**told, "set": "all"}))
        # The mean's correlation is 0 for every gene
        rest = [m for m in dict.fromkeys(part["method"]) if m not in (control, "mean")]
        if control is None and rest:
            left_out.append(where)
        if control is None or not rest:
            continue
        wide = part.pivot_table(index="gene", columns="method", values="pcc", sort=False)
        wide["ceiling"] = part.groupby("gene", sort=False)["ceiling"].mean()
        caption = f"{where}. A dot a gene, {len(wide):,} in all; above the line the method is ahead of {control}; pale dots are genes with a high ceiling."
        figure = plots.genes_against_control(wide, control, methods=rest)
        alt = f"Correlation of every gene against that by {control}, {caption}"
        plates.append(Plate(figure, f"genes_{where}", alt, caption))
    if not plates and not left_out:
        return None
    text = [
        "Each gene's correlation, averaged over the test sections, against that by the control, the better of ridge and knn "
        "over all genes. All genes are in genes.csv."
    ]
    if left_out:
        text.append(f"Without a figure, since no control was run there: {'; '.join(left_out)}.")
    return Chapter("Genes", text, plates)


def best_control(methods: pd.DataFrame) -> str | None:
    """Of ridge and knn the one with the higher correlation; None where no control was run."""
    for names in (CONTROLS, _FALLBACK):
        there = methods[methods["method"].isin(names)]
        if len(there):
            return str(there.sort_values("pcc", ascending=False)["method"].iloc[0])
    return None


def structure(methods: pd.DataFrame) -> Chapter:
    """How genes go together, how much they vary, how patchy they are."""
    name = "hvg50"
    rows = methods[methods["set"] == name]
    plates = []
    for protocol, part in rows.groupby("protocol", sort=False):
        known = part.dropna(subset=["rvd"])
        if len(known):
            figure = plots.structure_comparison(labelled(known))
            caption = f"{protocol}, {SET_NAMES[name]}. The broken line is where nothing is lost."
            alt = f"Preservation of gene–gene correlations, variance and spatial pattern. {caption}"
            plates.append(Plate(figure, f"structure_{protocol}", alt, caption, vector=True))
    text = [
        "A map may correlate well and yet be flat. Gene–gene: correlation (r) and RMSE between the measured and the "
        "predicted correlations of every two genes. RVD: relative deviation of the genes' variances; 0 keeps them, 1 is a "
        "flat map, above 1 varies more than the measurement. Against noisy counts a good prediction is not at 0. Moran's I: "
        "whether the genes with spatial pattern are predicted to have one, correlation and mean absolute difference.",
    ]
    tables = []
    for each in ("hvg50", "heg50", "all"):
        part = methods[methods["set"] == each]
        if len(part):
            shown = part[["method", *keys_of(part), *_STRUCTURE]].rename(columns=_STRUCTURE)
            tables.append((SET_NAMES[each], headed(shown)))
    return Chapter("Structure", text, plates, tables, decimals=3)


def learning_curve(table: pd.DataFrame) -> Chapter | None:
    """Correlation over the number of training spots."""
    if table.empty:
        return None
    plates, short = [], short_encoders(table["encoder"])
    for (protocol, encoder), part in table.groupby(["protocol", "encoder"], sort=False):
        where = f"{protocol}, {short[str(encoder)]}"
        figure = plots.learning_curves(labelled(part))
        alt = f"Correlation over the number of training spots, {where}."
        caption = f"{where}. Numbers of spots are means over the splits, the axis is logarithmic."
        plates.append(Plate(figure, f"learning_curve_{where}", alt, caption, vector=True))
    rows = []
    for told, part in runs_of(table, "method", "share"):
        row = {c: told[c] for c in ("method", *keys_of(table), "share")}
        row |= {"training_spots": round(float(part["training_spots"].iloc[0]))}
        for name in ("heg50", "hvg50", "all"):
            own = part[part["set"] == name]
            if len(own):
                row[SHORT[name]] = interval(*(float(own.iloc[0][c]) for c in ("pcc", "pcc_low", "pcc_high")))
        rows.append(row)
    return Chapter("Learning curve", [_CURVE_TEXT], plates, [("PCC [95% interval]", headed(pd.DataFrame(rows)))])


def cell_types(table: pd.DataFrame) -> Chapter | None:
    """How well each cell type's share is told."""
    if table.empty:
        return None
    labels = ["method", *keys_of(table)]
    wide = table.pivot_table(index=labels, columns="cell_type", values="pcc", sort=False)
    wide.insert(0, "Mean", wide.mean(axis=1))
    text = (
        "Correlation of each cell type's predicted share with the measured one across the spots of a section, averaged over "
        "the sections where the type makes up at least 1%. Methods that do not retrieve say nothing of cell types."
    )
    return Chapter("Cell types", [text], tables=[("PCC by cell type", headed(wide.reset_index()))], decimals=3)


def cost(table: pd.DataFrame) -> Chapter:
    """Seconds, memory, parameters."""
    whole = table[table["share"] == 1].drop(columns="seed", errors="ignore")
    labels = ["method", *keys_of(whole)]
    tables = []
    for caption, names in (("Time and memory of a split", _TIME), ("Sizes", _SIZES)):
        means = whole.groupby(labels, sort=False)[[c for c in names if c in whole]].mean()
        known = means.dropna(axis=1, how="all")
        shown = known.apply(lambda column: column.map(_amount)).reset_index()
        tables.append((caption, headed(shown.rename(columns=names))))
    return Chapter("Cost", [_COST_TEXT], tables=tables)


def _amount(value: float) -> str:
    """Seconds, megabytes and counts as people read them."""
    if pd.isna(value):
        return "–"
    if value >= 1e6:
        return f"{value / 1e6:,.1f} M"
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.2g}"


def published(same: pd.DataFrame, other: pd.DataFrame) -> Chapter | None:
    """Figures of the literature, beside ours or apart from them."""
    if same.empty and other.empty:
        return None
    text = [
        "A published figure stands beside ours only where the protocol is the same: the same sections left out, the same "
        "genes, one correlation per gene and section. Where anything differs it stands in a table of its own that says what."
    ]
    tables = []
    if len(same):
        shown = same.assign(ours=[interval(*v) for v in same[["pcc", "pcc_low", "pcc_high"]].to_numpy(dtype=float)])
        shown["published_pcc"] = shown["published_pcc"].map(three)
        columns = ["method", *keys_of(same), "set", "published_pcc", "ours", "figure", "source"]
        shown = shown[columns].astype(object).where(shown[columns].notna(), "–")
        tables.append(("The same protocol", headed(shown).rename(columns={"ours": "Ours [95% interval]"})))
    if len(other):
        columns = ["method", "set", "published_pcc", "published_protocol", "differs", "figure", "source"]
        shown = other.assign(published_pcc=other["published_pcc"].map(three))[columns]
        tables.append(("Another protocol: not to be compared with ours", headed(shown)))
    return Chapter("Published figures", text, tables=tables)


def failed(table: pd.DataFrame) -> Chapter | None:
    """Runs that could not be made."""
    if table.empty:
        return None
    text = ["These runs stand in no other table. What they had finished is kept; the same command tries them again."]
    return Chapter("Failed runs", text, tables=[("", headed(table))])
