"""Figures of survival as clinicians draw them: Kaplan–Meier with numbers at risk, AUC over time, calibration, forest."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from lifelines import KaplanMeierFitter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hescribe.errors import InputError
from hescribe.plots.genes import need_columns
from hescribe.plots.style import CYCLE, INK, MUTED, add_grid, styled

_COLOURS = {"low": CYCLE[0], "high": CYCLE[1]}
_MOST_ROWS = 25  #: of a forest
ENOUGH_AT_RISK = 5  #: patients; where fewer are followed a curve says little, and is drawn no further


@styled
def kaplan_meier(
    time: npt.ArrayLike,
    event: npt.ArrayLike,
    group: npt.ArrayLike,
    *,
    unit: str = "months",
    p_value: float | None = None,
    hazard_ratio: tuple[float, float, float] | None = None,
    colours: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Kaplan–Meier curves of groups with 95 % intervals, marks where follow-up ended, and numbers at risk below.

    A curve is drawn while at least ``ENOUGH_AT_RISK`` of its patients are at risk.

    Parameters
    ----------
    time, event, group
        (n,) follow-up, whether it ended with the event, and the group.
    unit
        Of time.
    p_value
        Of the log-rank test, written into the figure.
    hazard_ratio
        Value and interval, of the second group over the first.
    colours
        Of groups; by default blue for ``low`` and orange for ``high``.
    title
        Above.

    Raises
    ------
    InputError
        There are no patients.
    """
    table = pd.DataFrame({"time": np.asarray(time, float), "event": np.asarray(event, bool), "group": group})
    if table.empty:
        raise InputError("there are no patients to draw")
    names = sorted(table["group"].unique(), key=lambda g: (list(_COLOURS).index(g) if g in _COLOURS else 9, str(g)))
    palette = {g: (colours or _COLOURS).get(g, CYCLE[k % len(CYCLE)]) for k, g in enumerate(names)}
    figure = Figure(figsize=(5.4, 4.0 + 0.2 * len(names)), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[10, 0.6 + 0.75 * len(names)])
    for name in names:
        part = table[table["group"] == name]
        _draw_curve(
            axes, part, label=f"{name}  ({len(part)} patients, {int(part['event'].sum())} events)", colour=palette[name]
        )
    axes.set(ylim=(0, 1.02), xlim=(0, None), ylabel="Free of the event")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(f"Time ({unit})")
    axes.tick_params(labelbottom=True)
    axes.legend(loc="lower left" if table.loc[table["event"], "time"].size < len(table) / 2 else "upper right")
    axes.set_title(title)
    if note := _note(p_value, hazard_ratio):
        axes.set_title(note, loc="right", fontsize=8.5, fontweight="normal", color=INK)
    add_grid(axes, "y")
    _draw_at_risk(below, table, names, palette)
    return figure


def _note(p_value: float | None, hazard_ratio: tuple[float, float, float] | None) -> str:
    parts = []
    if hazard_ratio is not None and np.isfinite(hazard_ratio).all():
        parts.append("HR {:.2f} ({:.2f}–{:.2f})".format(*hazard_ratio))
    if p_value is not None and np.isfinite(p_value):
        parts.append("log-rank p < 0.001" if p_value < 0.001 else f"log-rank p = {p_value:.3f}")
    return ", ".join(parts)


def _draw_curve(axes: Axes, part: pd.DataFrame, *, label: str, colour: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of groups without events
        fit = KaplanMeierFitter().fit(part["time"], part["event"])
    curve, band = fit.survival_function_.iloc[:, 0], fit.confidence_interval_survival_function_
    # Where hardly anybody is followed the band is as wide as the figure and says nothing
    followed = np.sort(part["time"].to_numpy())[::-1]
    last = followed[min(ENOUGH_AT_RISK, len(followed)) - 1]
    kept = curve.index <= last
    axes.step(curve.index[kept], curve[kept], where="post", color=colour, lw=1.8, label=label)
    axes.fill_between(
        band.index[kept], band.iloc[:, 0][kept], band.iloc[:, 1][kept], step="post", color=colour, alpha=0.15, lw=0
    )
    ended = part.loc[~part["event"] & (part["time"] <= last), "time"]
    if len(ended):
        height = np.asarray(fit.survival_function_at_times(ended))
        axes.plot(ended, height, "|", color=colour, markersize=4, markeredgewidth=0.6, alpha=0.6)


def _draw_at_risk(axes: Axes, table: pd.DataFrame, names: list[str], palette: Mapping[str, str]) -> None:
    first, last = axes.get_xlim()
    shown = [t for t in axes.get_xticks() if first <= t <= last]  # there are ticks beyond the axis, too
    for row, name in enumerate(names):
        times = table.loc[table["group"] == name, "time"].to_numpy()
        for tick in shown:
            axes.text(tick, -row, str(int((times >= tick).sum())), ha="center", va="center", fontsize=8, color=INK)
        axes.text(-0.055, -row, str(name), ha="right", va="center", fontsize=8, color=palette[name],
                  fontweight="bold", transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_ylim(-len(names) + 0.4, 0.9)
    axes.set_title("At risk", fontsize=8, fontweight="normal", color=MUTED, pad=0)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.spines[:].set_visible(False)


@styled
def auc_over_time(table: pd.DataFrame, *, unit: str = "months", horizon: float | None = None) -> Figure:
    """Time-dependent AUC of each model with its 95 % interval; 0.5 is chance.

    Parameters
    ----------
    table
        ``model``, ``time``, ``auc``, ``low``, ``high``.
    unit
        Of time.
    horizon
        Marked by a line.
    """
    _want(table, "model", "time", "auc", "low", "high")
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, part), colour in zip(table.groupby("model", sort=False), CYCLE, strict=False):
        axes.fill_between(part["time"], part["low"], part["high"], color=colour, alpha=0.12, lw=0)
        axes.plot(part["time"], part["auc"], color=colour, lw=1.8, label=str(name))
    axes.axhline(0.5, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    if horizon is not None:
        axes.axvline(horizon, color=MUTED, lw=0.8)
        axes.annotate(f"{horizon:g} {unit}", (horizon, 0), (3, 4), xycoords=("data", "axes fraction"),
                      textcoords="offset points", fontsize=8, color=MUTED)  # fmt: skip
    low = float(np.nanmin([0.4, table["low"].min() - 0.02]))
    axes.set(ylim=(max(low, 0), float(min(1.0, table["high"].max() + 0.02))), ylabel="AUC", xlabel=f"Time ({unit})")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)  # the curves fill the axes
    add_grid(axes, "y")
    return figure


@styled
def calibration(table: pd.DataFrame, *, when: str = "at the horizon") -> Figure:
    """Predicted against observed (Kaplan–Meier) probability of being free of the event, by fifths of the patients.

    Parameters
    ----------
    table
        ``model``, ``predicted``, ``observed``, ``low``, ``high``.
    when
        Said on the axes, such as ``"at 36 months"``.
    """
    _want(table, "model", "predicted", "observed", "low", "high")
    names = list(dict.fromkeys(table["model"]))
    figure = Figure(figsize=(0.6 + 2.6 * len(names), 3.1), layout="constrained")
    panels = np.atleast_1d(np.asarray(figure.subplots(1, len(names), sharex=True, sharey=True)))
    for axes, name, colour in zip(panels, names, CYCLE, strict=False):
        part = table[table["model"] == name]
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axes.vlines(part["predicted"], part["low"], part["high"], color=colour, lw=1.6, alpha=0.45)
        axes.plot(part["predicted"], part["observed"], "o-", color=colour, markersize=4.5, lw=0.8)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="Predicted")
        axes.set_title(str(name), fontsize=9)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        add_grid(axes, "both")
    panels[0].set_ylabel(f"Observed free of the event\n{when}")
    return figure


@styled
def hazard_ratios(table: pd.DataFrame, *, most: int = _MOST_ROWS) -> Figure:
    """Hazard ratios for a standard deviation of each feature, with intervals; the strongest first, on a log axis.

    Parameters
    ----------
    table
        ``feature``, ``coefficient``, ``low``, ``high`` (log hazard ratios) of one model.
    most
        Rows at most.

    Raises
    ------
    InputError
        Columns are missing, or nothing has an effect.
    """
    _want(table, "feature", "coefficient", "low", "high")
    kept = table[(table["coefficient"] != 0) & table["coefficient"].notna()]
    if kept.empty:
        raise InputError("no feature has an effect")
    kept = kept.loc[kept["coefficient"].abs().sort_values().index[-most:]]
    figure = Figure(figsize=(5.6, 0.9 + 0.26 * len(kept)), layout="constrained")
    axes = figure.subplots()
    height = np.arange(len(kept))
    colours = np.where(kept["coefficient"] > 0, _COLOURS["high"], _COLOURS["low"])
    axes.hlines(height, np.exp(kept["low"]), np.exp(kept["high"]), color=colours, lw=2, alpha=0.45)
    axes.scatter(np.exp(kept["coefficient"]), height, c=colours, s=26, zorder=3)
    axes.axvline(1.0, color=MUTED, lw=0.8)
    axes.set_xscale("log")
    axes.set_yticks(height, [str(f) for f in kept["feature"]])
    axes.set_xlabel("Hazard ratio for a standard deviation (protective  |  harmful)")
    _plain_log_ticks(axes, np.exp(kept[["low", "high", "coefficient"]].to_numpy(dtype=float)))
    axes.set_ylim(-0.6, len(kept) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    add_grid(axes, "x")
    return figure


def _plain_log_ticks(axes: Axes, values: npt.NDArray[np.float64]) -> None:
    known = np.array([0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0])
    low, high = float(np.nanmin(values)) * 0.97, float(np.nanmax(values)) * 1.03
    low, high = min(low, 0.9), max(high, 1.1)
    inside = known[(known >= low) & (known <= high)]
    # Near each other on a short axis the finer ones go
    step = max(1, len(inside) // 8)
    centre = int(np.flatnonzero(inside == 1.0)[0])
    ticks = inside[centre % step :: step]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks], minor=False)
    axes.xaxis.set_minor_locator(MaxNLocator(1))
    axes.tick_params(axis="x", which="minor", length=0, labelbottom=False)


def _want(table: pd.DataFrame, *columns: str) -> None:
    need_columns(table, columns)
    if table.empty:
        raise InputError("there is nothing to draw")
