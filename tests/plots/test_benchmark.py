from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hescribe import plots
from hescribe.errors import InputError


def test_every_gene_against_the_control() -> None:
    rng = np.random.default_rng(0)
    control = rng.uniform(-0.2, 0.6, 13_000)
    table = pd.DataFrame({"ridge": control, "ours": control + 0.1, "theirs": control - 0.1, "ceiling": 0.8})
    table.loc[:999, "ours"] = np.nan
    figure = plots.genes_against_control(table, "ridge")
    ours, theirs = figure.axes[:2]
    assert [a.get_title(loc="left") for a in (ours, theirs)] == ["ours", "theirs"]
    assert ours.texts[0].get_text() == "100% of 12,000 genes above"
    assert theirs.texts[0].get_text() == "0% of 13,000 genes above"
    points = ours.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 1] - points[:, 0], 0.1)
    assert figure.axes[2].get_ylabel() == "Ceiling of the gene"
    assert len(plots.genes_against_control(table, "ridge", methods=["ours"]).axes) == 2
    with pytest.raises(InputError, match="column knn is missing"):
        plots.genes_against_control(table, "knn")
    with pytest.raises(InputError, match="no method to compare"):
        plots.genes_against_control(table[["ridge"]], "ridge")


def test_structure_is_drawn_in_the_order_given() -> None:
    table = pd.DataFrame({"method": ["a", "b"], "gene_gene_pcc": [0.5, 0.2], "rvd": [0.4, 1.0], "morans_pcc": [0.3, 0]})
    figure = plots.structure_comparison(table)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert [line.get_xdata()[0] for line in (a.lines[0] for a in figure.axes)] == [1.0, 0.0, 1.0]
    assert list(figure.axes[1].lines[1].get_xdata()) == [0.4, 1.0]
    assert list(figure.axes[1].lines[1].get_ydata()) == [1, 0]
    with pytest.raises(InputError, match="rvd is missing"):
        plots.structure_comparison(table.drop(columns="rvd"))
    with pytest.raises(InputError, match="no method"):
        plots.structure_comparison(table.iloc[:0])


def test_learning_curves_rise_with_the_spots() -> None:
    rows = [
        {"method": m, "training_spots": n, "set": "all", "pcc": p, "pcc_low": p - 0.1, "pcc_high": p + 0.1}
        for m in ("ours", "ridge")
        for n, p in ((400, 0.3), (100, 0.1))
    ]
    figure = plots.learning_curves(pd.DataFrame(rows))
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert list(axes.lines[0].get_ydata()) == [0.1, 0.3]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [100, 400], rtol=0.03)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["100", "400"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ours", "ridge"]
    np.testing.assert_allclose(axes.collections[0].get_segments()[0][:, 1], [0.0, 0.2], atol=1e-9)
    with pytest.raises(InputError, match="column pcc is missing"):
        plots.learning_curves(pd.DataFrame(rows).drop(columns="pcc"))
    with pytest.raises(InputError, match="none of the sets"):
        plots.learning_curves(pd.DataFrame(rows), sets=("heg50",))
