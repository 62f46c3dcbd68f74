"""Maps show the data they were given, where they were given it."""

from __future__ import annotations

import sys

import anndata as ad
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PolyCollection

from hescribe import keys, plots
from hescribe.errors import InputError
from hescribe.io.pitch import is_square_grid
from hescribe.plots.ground import find_ground, round_length
from hescribe.plots.maps import colour_range

Pair = tuple[ad.AnnData, ad.AnnData]


def spots_of(axes: Axes) -> Collection:
    (found,) = [c for c in axes.collections if isinstance(c, EllipseCollection | PolyCollection)]
    return found


def test_a_gene_map_draws_each_spot_where_it_is_in_its_colour(pair: Pair, thumbnail: tuple[np.ndarray, float]) -> None:
    _, predicted = pair
    figure = plots.gene_map(predicted, "G3", thumbnail=thumbnail)
    axes = figure.axes[0]
    spots = spots_of(axes)
    np.testing.assert_array_equal(spots.get_offsets(), predicted.obsm[keys.SPATIAL])
    np.testing.assert_allclose(spots.get_array(), predicted[:, "G3"].X.ravel())
    np.testing.assert_allclose(spots.get_clim(), np.percentile(predicted[:, "G3"].X, (1, 99)), rtol=1e-6)
    assert spots.get_cmap().name == "viridis"
    bottom, top = axes.get_ylim()
    assert bottom > top, "y must point down, as pixels do"
    assert axes.get_aspect() == 1


def test_the_slide_lies_under_its_own_spots(pair: Pair, thumbnail: tuple[np.ndarray, float]) -> None:
    """The picture is cut to what is seen, and must stay in place: its extent is whole thumbnail pixels."""
    axes = plots.gene_map(pair[1], "G0", thumbnail=thumbnail).axes[0]
    left, right, bottom, top = axes.images[0].get_extent()
    low, high = pair[1].obsm[keys.SPATIAL].min(axis=0), pair[1].obsm[keys.SPATIAL].max(axis=0)
    assert left <= low[0]
    assert top <= low[1]
    assert right >= high[0]
    assert bottom >= high[1]
    assert [left % 10, right % 10, bottom % 10, top % 10] == [0, 0, 0, 0]
    shown = axes.images[0].get_array()
    assert shown.shape == ((bottom - top) / 10, (right - left) / 10)
    # Of one thumbnail pixel: grey, and paler than it was
    original = thumbnail[0][int(top) // 10, int(left) // 10].mean()
    assert abs((255 - shown[0, 0]) - 0.38 * (255 - original)) < 6


def test_spots_have_their_true_size(pair: Pair) -> None:
    ground = find_ground(pair[1], spot_um=50.0)
    assert (ground.diameter_px, ground.shape) == (100.0, "circle")
    assert find_ground(pair[1]).diameter_px == pytest.approx(0.55 * 190, rel=0.1)
    pair[1].uns[keys.SPATIAL] = {"A1": {"scalefactors": {"spot_diameter_fullres": 77.0}}}
    spots = spots_of(plots.gene_map(pair[1], "G0").axes[0])
    np.testing.assert_allclose(spots._widths * 2, 77.0)


def test_tiles_of_a_grid_are_squares_that_touch(pair: Pair) -> None:
    y, x = (a.ravel() for a in np.mgrid[0:8, 0:12])
    pair[1].obsm[keys.SPATIAL] = np.stack([x, y], axis=1) * 224.0
    ground = find_ground(pair[1])
    assert (ground.shape, ground.diameter_px) == ("square", 224.0)
    square = spots_of(plots.gene_map(pair[1], "G0").axes[0]).get_paths()[0].vertices
    np.testing.assert_allclose(np.ptp(square, axis=0), 224.0)
    for stated, shape in {224.0: "square", 100.0: "circle"}.items():  # bins that touch; spots of a square array
        pair[1].uns[keys.SPATIAL] = {"A1": {"scalefactors": {"spot_diameter_fullres": stated}}}
        ground = find_ground(pair[1])
        assert (ground.shape, ground.diameter_px) == (shape, stated)


def test_a_hexagonal_array_is_no_square_grid() -> None:
    y, x = (a.ravel().astype(float) for a in np.mgrid[0:10, 0:10])
    assert not is_square_grid(np.stack([x + 0.5 * (y % 2), y * np.sqrt(0.75)], axis=1) * 100)


def test_the_scale_bar_is_as_long_as_it_says(pair: Pair) -> None:
    axes = plots.gene_map(pair[1], "G0").axes[0]
    bar = axes.lines[-1]
    assert axes.texts[0].get_text() == "200 µm"
    assert np.ptp(bar.get_xdata()) * 0.5 == pytest.approx(200)
    del pair[1].uns[keys.PROVENANCE]
    assert not plots.gene_map(pair[1], "G0").axes[0].lines, "nobody said the scale"


@pytest.mark.parametrize(("length", "bar"), [(1, 1), (4.99, 2), (5, 5), (999, 500), (1000, 1000), (0.3, 0.2)])
def test_bars_have_round_lengths(length: float, bar: float) -> None:
    assert round_length(length) == pytest.approx(bar)


def test_both_panels_share_the_spots_and_have_their_own_colours(pair: Pair) -> None:
    measured, predicted = pair
    figure = plots.measured_and_predicted(measured[20:], predicted[:80], "G2")
    left, right = (spots_of(a) for a in figure.axes[:2])
    shared = measured.obs_names[20:80]
    np.testing.assert_array_equal(left.get_offsets(), measured[shared].obsm[keys.SPATIAL])
    np.testing.assert_array_equal(left.get_offsets(), right.get_offsets())
    for spots, table in ((left, measured), (right, predicted)):
        values = table[shared, "G2"].X.ravel()
        np.testing.assert_allclose(spots.get_array(), values)
        np.testing.assert_allclose(spots.get_clim(), np.percentile(values, (1, 99)), rtol=1e-5)
    r = np.corrcoef(left.get_array(), right.get_array())[0, 1]
    assert f"PCC {r:.2f}" in figure.get_suptitle()
    assert figure.get_suptitle().startswith("G2")


def test_spots_are_matched_by_name_not_by_order(pair: Pair) -> None:
    measured, predicted = pair
    shuffled = predicted[np.random.default_rng(1).permutation(96)]
    one = plots.measured_and_predicted(measured, predicted, "G2")
    other = plots.measured_and_predicted(measured, shuffled, "G2")
    np.testing.assert_array_equal(spots_of(one.axes[1]).get_array(), spots_of(other.axes[1]).get_array())
    np.testing.assert_array_equal(spots_of(one.axes[1]).get_offsets(), spots_of(other.axes[1]).get_offsets())


def test_a_common_scale_is_common(pair: Pair) -> None:
    figure = plots.measured_and_predicted(*pair, "G2", common_scale=True)
    left, right = (spots_of(a) for a in figure.axes[:2])
    assert left.get_clim() == right.get_clim()


@pytest.mark.parametrize(
    ("values", "limits"),
    [([], (0, 1)), ([3, 3, 3], (3, 4)), ([0] * 200 + [5], (0, 5)), ([np.nan, 1, 2], (1.01, 1.99))],
)
def test_colours_always_have_a_range(values: list[float], limits: tuple[float, float]) -> None:
    assert colour_range(values) == pytest.approx(limits)


def test_spots_without_a_value_are_drawn_but_not_coloured(pair: Pair) -> None:
    pair[1].obs.loc["s0", keys.NOVELTY] = np.nan
    spots = spots_of(plots.obs_map(pair[1], keys.NOVELTY, limits=(0, 100)).axes[0])
    assert spots.get_array().mask.sum() == 1
    assert spots.get_clim() == (0, 100)


def test_one_spot_can_be_drawn(pair: Pair) -> None:
    figure = plots.gene_map(pair[1][:1], "G0")
    figure.canvas.draw()


def test_wrong_input_is_named(pair: Pair) -> None:
    measured, predicted = pair
    with pytest.raises(InputError, match=r"no gene 'XYZ' among [\d,]+ \(the first is 'G0'\)"):
        plots.gene_map(predicted, "XYZ")
    with pytest.raises(InputError, match="no column 'age' in obs"):
        plots.obs_map(predicted, "age")
    with pytest.raises(InputError, match="share no spot"):
        plots.measured_and_predicted(measured[:5], predicted[5:], "G0")
    del predicted.obsm[keys.SPATIAL]
    with pytest.raises(InputError, match="no positions"):
        plots.gene_map(predicted, "G0")


def test_names_are_not_taken_for_formulas(pair: Pair, tmp_path) -> None:
    r"""A name such as ``$\frac$`` used to be able to stop the drawing."""
    pair[1].var_names = [r"$\frac$", *pair[1].var_names[1:]]
    path = plots.save_figure(plots.gene_map(pair[1], r"$\frac$"), tmp_path / "map.svg")
    assert r"$\frac$" in path.read_text()


def test_drawing_leaves_matplotlib_as_it_was(pair: Pair, tmp_path) -> None:
    before = dict(mpl.rcParams)
    pyplot_before = "matplotlib.pyplot" in sys.modules and sys.modules["matplotlib.pyplot"].get_fignums()
    figure = plots.gene_map(pair[1], "G0")
    first = plots.save_figure(figure, tmp_path / "a.svg").read_bytes()
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules and sys.modules["matplotlib.pyplot"].get_fignums()) == pyplot_before
    assert plots.save_figure(plots.gene_map(pair[1], "G0"), tmp_path / "b.svg").read_bytes() == first


def test_the_slide_is_drawn_in_its_own_colours(thumbnail: tuple[np.ndarray, float]) -> None:
    axes = plots.slide_map(thumbnail, mpp=0.5).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), thumbnail[0])
    assert axes.images[0].get_extent() == [0, 3600, 2700, 0]
    assert axes.get_ylim() == (2700, 0)
