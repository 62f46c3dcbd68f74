"""Every gene under one method against the same gene under another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hescribe.errors import InputError
from hescribe.plots.genes import need_columns
from hescribe.plots.style import EXPRESSION_COLOURS, MUTED, add_grid, styled

_COLUMNS = 3


@styled
def genes_against_control(table: pd.DataFrame, control: str, *, methods: Sequence[str] = ()) -> Figure:
    """Each gene's correlation by a method (up) against that by a control (right): above the line the method is ahead.

    Colours tell the gene's ceiling: a pale point far from it had more to gain.

    Parameters
    ----------
    table
        A row a gene; a column of correlations for each method and the control, and ``ceiling`` where known.
    control
        Column of the control.
    methods
        A panel each; by default all other columns.

    Raises
    ------
    InputError
        A column is missing, or there is no method besides the control.
    """
    shown = list(methods) or [str(c) for c in table if c not in (control, "ceiling")]
    need_columns(table, (control, *shown))
    if not shown:
        raise InputError(f"there is no method to compare with {control!r}")
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.4 + 2.75 * columns, 0.5 + 2.75 * rows), layout="constrained")
    axes = np.atleast_1d(np.asarray(figure.subplots(rows, columns, sharex=True, sharey=True))).ravel()
    values = table[[control, *shown]]
    low = float(min(-0.1, np.nanmin(values.to_numpy(dtype=np.float64), initial=0)))
    high = float(np.nanmax(values.to_numpy(dtype=np.float64), initial=0.2))
    margin = 0.03 * (high - low)
    for i, (where, name) in enumerate(zip(axes, shown, strict=False)):
        where.tick_params(labelbottom=i + columns >= len(shown))  # also above an empty place
        _draw(where, table, control, name)
        where.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
        where.set_title(name, fontsize=9)
    for empty in axes[len(shown) :]:
        empty.set_visible(False)
    figure.supxlabel(f"PCC by {control}", fontsize=9)
    figure.supylabel("PCC by the method", fontsize=9)
    if "ceiling" in table and table["ceiling"].notna().any():
        bar = figure.colorbar(_ceilings(), ax=list(axes), fraction=0.04, pad=0.02, shrink=min(1.0, 1.6 / rows))
        bar.outline.set_visible(False)
        bar.set_label("Ceiling of the gene", color=MUTED)
    return figure


def _ceilings() -> ScalarMappable:
    return ScalarMappable(Normalize(0, 1), EXPRESSION_COLOURS)


def _draw(axes: Axes, table: pd.DataFrame, control: str, name: str) -> None:
    known = table[table[control].notna() & table[name].notna()]
    x, y = (known[c].to_numpy(dtype=np.float64) for c in (control, name))
    ceiling = known["ceiling"].to_numpy(dtype=np.float64) if "ceiling" in known else np.full(len(known), np.nan)
    # The noisy genes are the many: they go below
    order = np.argsort(np.nan_to_num(ceiling), kind="stable")
    colours = _ceilings().to_rgba(np.nan_to_num(ceiling[order]))
    size = 9.0 if len(known) < 1000 else 3.0
    axes.scatter(x[order], y[order], s=size, c=colours, alpha=0.6, linewidths=0, rasterized=True)
    axes.axline((0, 0), slope=1, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    if len(known):
        text = f"{np.mean(y > x):.0%} of {len(known):,} genes above"
        axes.annotate(text, (0, 1), (4, -4), xycoords="axes fraction", textcoords="offset points",
                      va="top", fontsize=8, color=MUTED)  # fmt: skip
    add_grid(axes, "both")
