from __future__ import annotations

import numpy as np
import pandas as pd

from hescribe.plots.survival import ENOUGH_AT_RISK, auc_over_time, kaplan_meier


def test_numbers_at_risk_stand_below_the_axis_alone() -> None:
    """Where the last curve ended before the last patient, numbers stood beside the figure, below no tick."""
    time = np.append(np.linspace(1, 60, 60), np.linspace(150, 200, ENOUGH_AT_RISK - 1))
    figure = kaplan_meier(time, np.arange(len(time)) % 2 == 0, np.where(np.arange(len(time)) % 3, "low", "high"))
    axes, below = figure.axes
    first, last = axes.get_xlim()
    places = {text.get_position()[0] for text in below.texts if text.get_text().isdigit()}
    assert places == {t for t in axes.get_xticks() if first <= t <= last}
    assert max(places) < 70


def test_the_legend_of_auc_over_time_lies_above_the_curves() -> None:
    """It lay over curves near 1."""
    times = np.linspace(1, 50, 10)
    table = pd.concat(
        pd.DataFrame({"model": name, "time": times, "auc": 0.95, "low": 0.9, "high": 1.0})
        for name in ("clinical", "image", "image + clinical")
    )
    figure = auc_over_time(table, horizon=20)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 1
    assert legend.get_window_extent().y1 <= figure.bbox.y1
