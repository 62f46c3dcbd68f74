"""Figures of stacks and volumes."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from hescribe import plots
from hescribe.downstream.volume.interpolate import Volume
from hescribe.errors import InputError
from hescribe.plots.style import CEILING, PREDICTED


@pytest.fixture
def stack() -> ad.AnnData:
    x, y = (a.ravel() for a in np.meshgrid(np.arange(0, 500, 100.0), np.arange(0, 400, 100.0)))
    out = ad.AnnData(np.arange(60, dtype=np.float32)[:, None], obs=pd.DataFrame({"section_id": np.repeat(["low", "mid", "top"], 20)},
                     index=[str(i) for i in range(60)]), var=pd.DataFrame(index=["A$B$"]))  # fmt: skip
    out.obsm["spatial_3d"] = np.column_stack([np.tile(x, 3), np.tile(y, 3), np.repeat([0, 10, 20], 20)])
    return out


def test_higher_sections_are_drawn_higher(stack) -> None:
    picture = np.full((40, 50, 4), 200, np.uint8)
    figure = plots.stacked_sections(stack, "A$B$", pictures={"low": (picture, (0, 500, 0, 400))})
    left, right = figure.axes[:2]
    assert [t.get_text() for t in left.texts if "µm" in t.get_text()][:3] == ["low  0 µm", "mid  10 µm", "top  20 µm"]
    tops = [np.mean([p.vertices[:, 1].mean() for p in c.get_paths()]) for c in right.collections]
    assert tops[0] > tops[1] > tops[2]  # y points down
    assert [len(a.images) for a in (left, right)] == [1, 1]
    assert len(plots.stacked_sections(stack, "A$B$").axes) == 2  # one panel and its colour bar


def test_cuts_go_through_where_they_say() -> None:
    z, y, x = np.mgrid[0:3, 0:5, 0:7].astype(np.float32)
    values = np.stack([100 * z + 10 * y + x])
    values[0, :, 0, 0] = np.nan
    volume = Volume(["G"], values, (5.0, 0.0, 100.0), (10.0, 50.0, 50.0))
    plane, side, front = plots.orthogonal_cuts(volume, "G", at_um=(25, 150, 200)).axes[:3]
    np.testing.assert_array_equal(np.ma.filled(plane.images[0].get_array(), np.nan), values[0, 2])
    np.testing.assert_array_equal(np.ma.filled(side.images[0].get_array(), np.nan), values[0, :, :, 2].T)
    np.testing.assert_array_equal(np.ma.filled(front.images[0].get_array(), np.nan), values[0, :, 3])
    assert [line.get_xdata()[0] for line in plane.lines[:1]] == [200]
    assert plane.get_title(loc="left") == "G   z = 25 µm"
    with pytest.raises(InputError, match="no gene 'H' in the volume"):
        plots.orthogonal_cuts(volume, "H")
    with pytest.raises(InputError, match="no tissue"):
        plots.orthogonal_cuts(Volume(["G"], values * np.nan, (0, 0, 0), (1, 1, 1)), "G")


def test_overlap_is_dark() -> None:
    one, other = np.zeros((2, 30, 40), np.float32)
    one[:, :30], other[:, 20:] = 1, 1
    pair = plots.Overlay("A", "B", (one, other), (one, one), (0.3, 1.0), (10.0, 10.0))
    before, after = plots.neighbour_overlay([pair]).axes
    shown = before.images[0].get_array()
    np.testing.assert_allclose(shown[0, 0], to_rgb(PREDICTED))
    np.testing.assert_allclose(shown[0, 39], to_rgb(CEILING))
    assert shown[0, 25].sum() < min(shown[0, 0].sum(), shown[0, 39].sum())
    assert "Dice 1.00" in after.get_title(loc="left")


def test_refusals(stack) -> None:
    with pytest.raises(InputError, match="no gene 'X'"):
        plots.stacked_sections(stack, "X")
    del stack.obsm["spatial_3d"]
    with pytest.raises(InputError, match="spatial_3d"):
        plots.stacked_sections(stack, "A$B$")
    with pytest.raises(InputError, match="no pair"):
        plots.neighbour_overlay([])
