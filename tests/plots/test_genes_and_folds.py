"""Figures about all genes, training and methods show the tables they were given."""

from __future__ import annotations

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from hescribe import plots
from hescribe.errors import InputError
from hescribe.plots.genes import ward_order

Pair = tuple[ad.AnnData, ad.AnnData]


def test_heat_maps_show_the_highest_genes_in_one_order(pair: Pair) -> None:
    measured, predicted = pair
    figure = plots.gene_gene_correlation(measured, predicted, n_genes=50)
    left, right = figure.axes[:2]
    names = [t.get_text() for t in left.get_yticklabels()]
    assert set(names) == set(measured.to_df().mean().nlargest(50).index)
    for axes, table in ((left, measured), (right, predicted)):
        image = axes.images[0]
        np.testing.assert_allclose(image.get_array(), table.to_df()[names].corr(), atol=1e-5)
        assert image.get_clim() == (-1, 1)
        assert image.get_cmap().name == "viridis"
    # The two programs of the planted tissue stand apart: even genes first, or odd
    parity = [int(n[1:]) % 2 for n in names]
    assert sum(a != b for a, b in itertools.pairwise(parity)) == 1


def test_the_order_is_that_of_the_measurement(pair: Pair) -> None:
    measured, predicted = pair
    noise = predicted.copy()
    noise.X = np.random.default_rng(3).normal(size=noise.shape).astype(np.float32)
    ticks = [
        [t.get_text() for t in plots.gene_gene_correlation(measured, p).axes[0].get_yticklabels()]
        for p in (predicted, noise)
    ]
    assert ticks[0] == ticks[1]
    assert list(ward_order(np.eye(2))) == [0, 1]


def test_moments_are_those_of_the_genes(pair: Pair) -> None:
    measured, predicted = pair
    figure = plots.mean_and_variance(measured, predicted)
    for axes, moment in zip(figure.axes, ("mean", "var"), strict=True):
        expected = [getattr(np.asarray(t.X, dtype=np.float64), moment)(axis=0) for t in (measured, predicted)]
        np.testing.assert_allclose(axes.collections[0].get_offsets(), np.stack(expected, axis=1), rtol=1e-5)
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_a_constant_prediction_has_moments_too(pair: Pair) -> None:
    """Its variances have no logarithm: the page of such a prediction could not be drawn."""
    measured, predicted = pair
    flat = predicted.copy()
    flat.X = np.ones(flat.shape, dtype=np.float32)
    figure = plots.mean_and_variance(measured, flat)
    figure.canvas.draw()
    assert [len(axes.collections) for axes in figure.axes] == [1, 0]


def scores(n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    pcc = np.append(rng.uniform(-0.1, 0.6, n - 1), np.nan)
    table = pd.DataFrame({"pcc": pcc, "ceiling": np.clip(pcc + 0.3, 0, 1)}, index=[f"G{i}" for i in range(n)])
    table["hvg50"] = np.arange(n) < 50
    table["heg50"] = False
    return table


def test_distributions_hold_every_gene_and_mark_the_medians() -> None:
    table = scores()
    figure = plots.pcc_distribution(table)
    assert [a.get_title(loc="left") for a in figure.axes] == [
        "All genes · 400 genes",
        "HVG-50, most variable · 50 genes",
    ]
    medians = [line.get_xdata()[0] for line in figure.axes[0].lines]
    np.testing.assert_allclose(medians, [table["pcc"].median(), table["ceiling"].median()])
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["Prediction", "Ceiling"]
    filled = figure.axes[0].patches[0].get_xy()
    assert filled[:, 0].min() <= table["pcc"].min()
    assert filled[:, 0].max() >= 1


def test_without_measurement_the_expected_correlations_are_shown() -> None:
    table = scores().rename(columns={"pcc": "expected_pcc"}).drop(columns="ceiling")
    figure = plots.pcc_distribution(table)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["Expected"]
    with pytest.raises(InputError, match="no gene has a correlation"):
        plots.pcc_distribution(table.assign(expected_pcc=np.nan))
    with pytest.raises(InputError, match="no gene has a correlation"):
        plots.pcc_distribution(table.drop(columns="expected_pcc"))


def history() -> pd.DataFrame:
    rows = [
        {"epoch": e, "split": s, "metric": m, "value": 1 / (1 + e) + k, "fold": f}
        for e in range(5)
        for s in ("train", "validation")
        for m in ("loss", "contrastive")
        for k, f in enumerate(("A", "B"))
    ]
    return pd.DataFrame(rows)


def test_curves_are_means_over_folds_with_each_fold_behind() -> None:
    figure = plots.training_curves(history())
    assert [a.get_title(loc="left") for a in figure.axes] == ["loss", "contrastive"]
    lines = figure.axes[0].lines
    np.testing.assert_allclose(lines[0].get_ydata(), 1 / (1 + np.arange(5)))
    np.testing.assert_allclose(lines[2].get_ydata(), 1 / (1 + np.arange(5)) + 0.5)
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["Training", "Held out"]


def test_a_wide_history_is_understood() -> None:
    wide = pd.DataFrame({"epoch": [0, 1], "train_loss": [2.0, 1.0], "validation_loss": [3.0, 2.5]})
    figure = plots.training_curves(wide)
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[2.0, 1.0], [3.0, 2.5]]
    with pytest.raises(InputError, match="no values"):
        plots.training_curves(history().iloc[:0])
    with pytest.raises(InputError, match="column 'epoch'"):
        plots.training_curves(pd.DataFrame({"step": [1]}))


def test_methods_are_ranked_with_their_intervals() -> None:
    table = pd.DataFrame(
        [
            {"method": m, "set": s, "pcc": v, "pcc_low": v - 0.1, "pcc_high": v + 0.1, "ceiling": 0.7}
            for s in ("all", "hvg50")
            for m, v in (("ours", 0.4), ("mean", 0.0), ("ridge", 0.3))
        ]
    )
    figure = plots.method_comparison(table)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["mean", "ridge", "ours"]
    points = axes.lines[0]
    np.testing.assert_allclose(points.get_xdata(), [0.0, 0.3, 0.4])
    np.testing.assert_allclose(axes.collections[0].get_segments()[2], [[0.3, 2], [0.5, 2]])
    with pytest.raises(InputError, match="column pcc is missing"):
        plots.method_comparison(table.drop(columns="pcc"))
    with pytest.raises(InputError, match="none of the sets"):
        plots.method_comparison(table, sets=("marker",))
