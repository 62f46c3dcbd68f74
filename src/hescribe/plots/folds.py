"""Figures about training and about methods against each other."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hescribe.errors import InputError, list_some
from hescribe.plots.genes import SET_NAMES, need_columns, sets_in
from hescribe.plots.style import CEILING, CYCLE, MUTED, add_grid, styled

_FINAL = "all sections"  #: the fold that became the bundle
_SPLITS = {"train": ("Training", CYCLE[0]), "validation": ("Held out", CYCLE[1])}


@styled
def training_curves(history: pd.DataFrame, *, metrics: tuple[str, ...] = ()) -> Figure:
    """Every recorded metric by epoch, training and held-out.

    Parameters
    ----------
    history
        Long: ``epoch``, ``split``, ``metric``, ``value`` and optionally ``fold``; or wide: ``epoch`` and columns named
        ``<split>_<metric>``. With several folds each is a thin line and their mean a thick one.
    metrics
        Which, in this order; by default all.

    Raises
    ------
    InputError
        Columns are missing, or there is nothing to draw.
    """
    table = _long(history)
    names = list(metrics) or list(dict.fromkeys(table["metric"]))
    if table.empty or not names:
        raise InputError("the history has no values", fix="methods fitted in one step have no training curves")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(0.6 + 3.1 * columns, 0.4 + 2.3 * rows), layout="constrained")
    axes = np.atleast_1d(np.asarray(figure.subplots(rows, columns))).ravel()
    for where, name in zip(axes, names, strict=False):
        _draw_curves(where, table[table["metric"] == name])
        where.set_title(name.replace("_", " "), fontsize=9)
    for empty in axes[len(names) :]:
        empty.set_visible(False)
    handles = {h.get_label(): h for a in axes for h in a.get_legend_handles_labels()[0]}
    axes[0].legend(handles=list(handles.values()))
    return figure


def _draw_curves(axes: Axes, rows: pd.DataFrame) -> None:
    for split, part in rows.groupby("split", sort=False):
        label, colour = _SPLITS.get(str(split), (str(split), MUTED))
        folds = list(part.groupby("fold", sort=False))
        for _, fold in folds if len(folds) > 1 else ():
            curve = fold.groupby("epoch")["value"].mean()
            axes.plot(curve.index, curve, color=colour, lw=0.7, alpha=0.35)
        mean = part.groupby("epoch")["value"].mean()
        marker = "o" if len(mean) < 3 else None
        axes.plot(mean.index, mean, color=colour, lw=1.8, marker=marker, markersize=4, label=label)
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_grid(axes, "y")


def _long(history: pd.DataFrame) -> pd.DataFrame:
    if "epoch" not in history:
        raise InputError(f"a history needs a column 'epoch' (found {list_some(history.columns)})")
    if {"split", "metric", "value"} <= set(history.columns):
        table = history.copy()
    else:
        names = [c for c in history.columns if str(c).split("_")[0] in _SPLITS and "_" in str(c)]
        kept = [c for c in ("epoch", "fold") if c in history]
        table = history.melt(id_vars=kept, value_vars=names, value_name="value")
        table[["split", "metric"]] = (
            table["variable"].str.split("_", n=1, expand=True).reindex(columns=[0, 1]).to_numpy()
        )
    if "fold" not in table:
        table["fold"] = _FINAL
    return table.dropna(subset=["value"])


@styled
def method_comparison(table: pd.DataFrame, *, sets: tuple[str, ...] = ("all", "hvg50", "heg50")) -> Figure:
    """Methods against each other: a point each, with its 95 % interval, one panel a gene set.

    Parameters
    ----------
    table
        A row for each method and set: ``method``, ``set``, ``pcc``, and where known ``pcc_low``, ``pcc_high`` and
        ``ceiling`` (drawn as a broken line: more is not attainable).
    sets
        Which, in this order; those not in the table are left out.

    Raises
    ------
    InputError
        Columns are missing, or none of the sets is there.
    """
    need_columns(table, ("method", "set", "pcc"))
    shown = sets_in(table, sets)
    first = table[table["set"] == shown[0]]
    methods = list(first.sort_values("pcc")["method"]) + sorted(set(table["method"]) - set(first["method"]))
    figure = Figure(figsize=(1.2 + 2.5 * len(shown), 0.9 + 0.32 * len(methods)), layout="constrained")
    axes = np.atleast_1d(np.asarray(figure.subplots(1, len(shown), sharex=True, sharey=True)))
    for where, name in zip(axes, shown, strict=True):
        rows = table[table["set"] == name].set_index("method").reindex(methods)
        _draw_methods(where, rows)
        where.set_title(SET_NAMES.get(name, name), fontsize=9)
    axes[0].set_yticks(range(len(methods)), methods)
    return figure


def _draw_methods(axes: Axes, rows: pd.DataFrame) -> None:
    value = rows["pcc"].to_numpy(dtype=np.float64)
    height = np.arange(len(rows))
    if {"pcc_low", "pcc_high"} <= set(rows.columns):
        axes.hlines(
            height, rows["pcc_low"].astype(float), rows["pcc_high"].astype(float), color=CYCLE[0], lw=2, alpha=0.45
        )
    axes.plot(value, height, "o", color=CYCLE[0], markersize=5)
    if "ceiling" in rows and rows["ceiling"].notna().any():
        ceiling = float(rows["ceiling"].astype(float).mean())
        axes.axvline(ceiling, color=CEILING, lw=1, ls=(0, (3, 2)))
        axes.annotate("ceiling", (ceiling, 0), (-3, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="right", fontsize=7.5, color=CEILING)  # fmt: skip
    axes.axvline(0, color=MUTED, lw=0.8)
    axes.set_xlabel("PCC (95% interval)")
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    add_grid(axes, "x")
