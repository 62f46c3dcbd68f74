"""Runs of a benchmark against each other, beyond the correlation at the full number of spots."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from hescribe.errors import InputError
from hescribe.plots.genes import SET_NAMES, need_columns, sets_in
from hescribe.plots.style import CEILING, CYCLE, MUTED, add_grid, styled

#: figure → title, value where nothing is lost
_STRUCTURE = {
    "gene_gene_pcc": ("Gene–gene correlations kept", 1.0),
    "rvd": ("Relative variance deviation", 0.0),
    "morans_pcc": ("Moran's I agreement", 1.0),
}


@styled
def structure_comparison(table: pd.DataFrame) -> Figure:
    """What a correlation per gene does not see: how genes go together, how much they vary, how patchy they are.

    Parameters
    ----------
    table
        A row a method, of one gene set: ``method``, ``gene_gene_pcc``, ``rvd``, ``morans_pcc``; drawn in this order,
        the first on top. A broken line marks the value where nothing is lost.

    Raises
    ------
    InputError
        A column is missing, or there is no method.
    """
    need_columns(table, ("method", *_STRUCTURE))
    if table.empty:
        raise InputError("there is no method to draw")
    figure = Figure(figsize=(9.4, 0.9 + 0.3 * len(table)), layout="constrained")
    height = np.arange(len(table))[::-1]
    for i, (axes, (name, (title, best))) in enumerate(
        zip(figure.subplots(1, 3, sharey=True), _STRUCTURE.items(), strict=True)
    ):
        axes.axvline(best, color=CEILING, lw=1, ls=(0, (3, 2)))
        axes.plot(table[name].to_numpy(dtype=np.float64), height, "o", color=CYCLE[0], markersize=5)
        axes.set_title(title, fontsize=9)
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        add_grid(axes, "x")
        if i == 0:
            axes.set_yticks(height, list(table["method"]))
    return figure


@styled
def learning_curves(table: pd.DataFrame, *, sets: tuple[str, ...] = ("heg50", "hvg50", "all")) -> Figure:
    """Correlation over the number of training spots, a line a method with 95 % intervals, a panel a gene set.

    Parameters
    ----------
    table
        A row for each method, number of spots and set: ``method``, ``training_spots``, ``set``, ``pcc``, ``pcc_low``,
        ``pcc_high``.
    sets
        Which, in this order; those not in the table are left out.

    Raises
    ------
    InputError
        Columns are missing, or none of the sets is there.
    """
    need_columns(table, ("method", "training_spots", "set", "pcc", "pcc_low", "pcc_high"))
    shown = sets_in(table, sets)
    figure = Figure(figsize=(0.8 + 3.0 * len(shown), 3.4), layout="constrained")
    axes = np.atleast_1d(np.asarray(figure.subplots(1, len(shown), sharey=True)))
    for where, name in zip(axes, shown, strict=True):
        _draw_curves(where, table[table["set"] == name])
        where.set_title(SET_NAMES.get(name, name), fontsize=9)
    axes[0].set_ylabel("PCC (95% interval)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def _draw_curves(axes: Axes, rows: pd.DataFrame) -> None:
    methods = list(dict.fromkeys(rows["method"]))
    for i, method in enumerate(methods):
        line = rows[rows["method"] == method].sort_values("training_spots")
        # Side by side, so that intervals do not hide one another
        x = line["training_spots"].to_numpy(dtype=np.float64) * 1.025 ** (i - (len(methods) - 1) / 2)
        colour, style = CYCLE[i % len(CYCLE)], "-" if i < len(CYCLE) else "--"
        y, low, high = (line[c].to_numpy(dtype=np.float64) for c in ("pcc", "pcc_low", "pcc_high"))
        axes.vlines(x, low, high, color=colour, lw=1.4, alpha=0.5)
        axes.plot(x, y, style, marker="o", color=colour, lw=1.6, markersize=4, label=method)
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xscale("log")
    ticks = sorted({round(float(v)) for v in rows["training_spots"]})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.set_xlabel("Training spots")
    add_grid(axes, "y")
