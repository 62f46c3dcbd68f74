"""Figures about all genes at once: how well each is predicted, how much it varies, how genes go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from hescribe.errors import InputError, list_some
from hescribe.metrics.gene_blocks import Matrix
from hescribe.metrics.gene_sets import gene_moments, top_genes
from hescribe.metrics.structure import gene_correlations, gene_gene_preservation
from hescribe.plots.style import CEILING, INK, MUTED, PREDICTED, plain_numbers, signed, styled

#: flag of a per-gene table → what a reader is told
SET_NAMES = {
    "all": "All genes",
    "panel": "Training panel",
    "detected10": "Detected in ≥ 10% of spots",
    "hvg50": "HVG-50, most variable",
    "heg50": "HEG-50, highest expressed",
    "hvg50_train": "HVG-50 of training sections",
    "heg50_train": "HEG-50 of training sections",
    "marker": "Named markers",
}
_KINDS = {"pcc": ("Prediction", PREDICTED), "expected_pcc": ("Expected", PREDICTED), "ceiling": ("Ceiling", CEILING)}
_BIN = 0.04


def need_columns(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Refuse a table that lacks a column; says which, and which there are."""
    if missing := [c for c in names if c not in table]:
        raise InputError(f"column {', '.join(missing)} is missing (found {list_some(table.columns)})")


def sets_in(table: pd.DataFrame, sets: Sequence[str]) -> list[str]:
    """Those of some gene sets that a long table has, in the order given; refuses a table that has none."""
    shown = [s for s in sets if (table["set"] == s).any()]
    if not shown:
        raise InputError(f"none of the sets {', '.join(sets)} is in the table")
    return shown


@styled
def pcc_distribution(
    per_gene: pd.DataFrame, *, sets: tuple[str, ...] = ("all", "detected10", "hvg50", "heg50")
) -> Figure:
    """How the genes' correlations are distributed, with the distribution of their ceilings beside it.

    Parameters
    ----------
    per_gene
        A row a gene: ``pcc`` (or, before anything was measured, ``expected_pcc``), ``ceiling`` where known, and a
        flag for each set.
    sets
        A row of the figure each; those that the table does not have, or that are empty, are left out.

    Raises
    ------
    InputError
        No gene has a correlation.
    """
    value = "pcc" if "pcc" in per_gene else "expected_pcc"
    if value not in per_gene or not per_gene[value].notna().any():
        raise InputError("no gene has a correlation", fix="give a table with a column 'pcc' or 'expected_pcc'")
    shown = [
        s for s in sets if s == "all" or (s in per_gene and per_gene.loc[per_gene[s].astype(bool), value].notna().any())
    ]
    columns = [c for c in (value, "ceiling") if c in per_gene and per_gene[c].notna().any()]
    low = min(-0.2, float(np.floor(per_gene[columns].min().min() / _BIN) * _BIN))
    bins = [float(b) for b in np.arange(low, 1 + _BIN, _BIN)]
    figure = Figure(figsize=(6.4, 0.7 + 1.15 * len(shown)), layout="constrained")
    axes = np.atleast_1d(np.asarray(figure.subplots(len(shown), 1, sharex=True)))
    for where, name in zip(axes, shown, strict=True):
        rows = per_gene if name == "all" else per_gene[per_gene[name].astype(bool)]
        _draw_distribution(where, rows[columns], bins, SET_NAMES.get(name, name))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, handlelength=1.4)
    axes[-1].set(xlabel="Correlation across spots (PCC)", xlim=(low, 1.0))
    return figure


def _draw_distribution(axes: Axes, columns: pd.DataFrame, bins: list[float], name: str) -> None:
    for column in columns:
        values = columns[column].dropna().to_numpy(dtype=np.float64)
        if not len(values):
            continue
        label, colour = _KINDS[str(column)]
        share = np.full(len(values), 1 / len(values))
        filled = column != "ceiling"
        style: Literal["stepfilled", "step"] = "stepfilled" if filled else "step"
        axes.hist(
            values, bins, weights=share, histtype=style, color=colour, alpha=0.45 if filled else 1, lw=1.3, label=label
        )
        median = float(np.median(values))
        axes.axvline(median, color=colour, lw=1.2, ls="-" if filled else (0, (3, 2)))
        axes.annotate(
            signed(median), (median, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
            va="top", fontsize=8, color=colour,
        )  # fmt: skip
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title(f"{name} · {len(columns):,} genes", fontsize=9)
    axes.margins(y=0.25)


@styled
def mean_and_variance(measured: ad.AnnData, predicted: ad.AnnData) -> Figure:
    """Each gene's mean and variance across the shared spots, predicted against measured.

    On the line both are equal. Variances below it are the rule: a prediction leaves out the noise of counting. Far
    below is variance collapse, a map that hardly varies.
    """
    spots, genes = _shared(measured, predicted)
    moments = [gene_moments(_matrix(table, spots, genes)) for table in (measured, predicted)]
    figure = Figure(figsize=(6.8, 3.3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("mean", "variance"), strict=True):
        x, y = (getattr(m, name) for m in moments)
        known = (x > 0) & (y > 0)
        axes.set_title(f"{name.capitalize()} of each gene", fontsize=9)
        if not known.any():  # a constant prediction; logarithms have no place for it
            axes.set(xticks=[], yticks=[])
            axes.annotate("0 for every gene", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
            continue
        axes.scatter(x[known], y[known], s=4, color=PREDICTED, alpha=0.3, linewidths=0, rasterized=True)
        axes.set(xscale="log", yscale="log", xlabel=f"Measured {name}", ylabel=f"Predicted {name}")
        for axis in (axes.xaxis, axes.yaxis):
            plain_numbers(axis)
        ends = (min(x[known].min(), np.percentile(y[known], 0.5)), max(x[known].max(), y[known].max()))
        axes.plot(ends, ends, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    return figure


def ward_order(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Order of rows in which similar ones stand together: the leaves of Ward's clustering."""
    if len(matrix) < 3:
        return np.arange(len(matrix))
    return leaves_list(linkage(matrix, method="ward", optimal_ordering=True)).astype(np.intp)


@styled
def gene_gene_correlation(measured: ad.AnnData, predicted: ad.AnnData, *, n_genes: int = 50) -> Figure:
    """Which genes go together, measured and predicted, in one order.

    Parameters
    ----------
    measured, predicted
        On one scale; shared spots and genes are used.
    n_genes
        Genes of highest measured mean. Their order is that of Ward's clustering of the measured matrix.
    """
    spots, genes = _shared(measured, predicted)
    mean = gene_moments(_matrix(measured, spots, genes)).mean
    chosen = genes[top_genes(mean, list(genes), n_genes)]
    if len(chosen) < 2:
        raise InputError("fewer than two genes were measured")
    truth, guess = (_matrix(table, spots, chosen) for table in (measured, predicted))
    correlations = [gene_correlations(m) for m in (truth, guess)]
    order = ward_order(correlations[0])
    figure = Figure(figsize=(9.0, 4.7), layout="compressed")
    axes = figure.subplots(1, 2)
    for where, name, matrix in zip(axes, ("Measured", "Predicted"), correlations, strict=True):
        image = where.imshow(matrix[np.ix_(order, order)], cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
        where.set_title(name)
        where.set(xticks=[], yticks=[])
        where.spines[:].set_visible(False)
    axes[0].set_yticks(range(len(order)), list(chosen[order]), fontsize=min(8.0, 270 / len(order)))
    axes[0].tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.outline.set_visible(False)
    bar.set_label("Correlation of two genes across spots", color=MUTED)
    kept = gene_gene_preservation(guess, truth)[0]
    if np.isfinite(kept):
        axes[1].set_xlabel(f"Agreement of the two matrices: r = {kept:.2f}", color=INK)
    return figure


def _shared(measured: ad.AnnData, predicted: ad.AnnData) -> tuple[pd.Index, pd.Index]:
    spots = measured.obs_names[measured.obs_names.isin(predicted.obs_names)]
    genes = measured.var_names[measured.var_names.isin(predicted.var_names)]
    if not len(spots) or not len(genes):
        raise InputError(f"measured and predicted share {len(spots)} spots and {len(genes)} genes")
    return spots, genes


def _matrix(table: ad.AnnData, spots: pd.Index, genes: pd.Index) -> Matrix:
    """As it is stored: all genes as float64 would be gigabytes."""
    values: Matrix = table[spots, genes].X
    return values
