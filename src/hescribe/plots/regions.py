"""Places of a section: regions in fixed colours, lymphoid structures with their outlines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import shapely
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke
from shapely.geometry.base import BaseGeometry

from hescribe import keys
from hescribe.errors import InputError
from hescribe.plots.ground import Ground, Shape, Thumbnail, draw_scale_bar, draw_slide, draw_spots, find_ground
from hescribe.plots.maps import _colour_bar, _panels, colour_range
from hescribe.plots.style import EXPRESSION_COLOURS, INK, MUTED, NOTHING, styled
from hescribe.types import Microns, Mpp

Polygons: TypeAlias = Mapping[int, BaseGeometry]
_CONTRAST = (10.0, 90.0)  #: percentiles between which a structure's score is coloured
#: the same tissue has the same colour on every slide; Okabe and Ito's palette and neighbours of it
REGION_COLOURS = {
    "tumour": "#d55e00",
    "stroma": "#0072b2",
    "immune": "#009e73",
    "fat": "#f0e442",
    "necrosis": "#3b3b3b",
    "gland": "#56b4e9",
    "unclear": NOTHING,
}
_OTHERS = ("#e69f00", "#6b5b95", "#8c564b", "#56b4e9", "#17becf", "#bcbd22", "#7f7f7f")


def region_colours(names: list[str]) -> dict[str, str]:
    """A colour for each name; known tissues have their own, others take what is left, in order."""
    others = iter(_OTHERS * (1 + len(names) // len(_OTHERS)))
    return {name: REGION_COLOURS.get(name) or next(others) for name in dict.fromkeys(names)}


@styled
def region_map(
    adata: ad.AnnData,
    *,
    column: str = keys.REGION,
    thumbnail: Thumbnail | None = None,
    mpp: Mpp | None = None,
    spot_um: Microns | None = None,
    shape: Shape | None = None,
    colours: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Spots coloured by the region they lie in, over the pale slide, with a legend and each region's share.

    Parameters
    ----------
    adata
        With the column in ``obs``, as ``hescribe.tl.regions`` writes it.
    column
        Of labels.
    colours
        Label → ``#rrggbb``; by default `region_colours`. Other parameters as of `gene_map`.

    Raises
    ------
    InputError
        No such column, or no positions.
    """
    if column not in adata.obs:
        raise InputError(f"no column {column!r} in obs", fix="make it with hescribe.tl.regions")
    labels = adata.obs[column].astype(str)
    share = labels.value_counts(normalize=True)
    palette = dict(colours or region_colours([str(name) for name in share.index]))
    ground = find_ground(adata, thumbnail=thumbnail, mpp=mpp, spot_um=spot_um, shape=shape)
    figure, (axes,) = _panels(ground, 1)
    draw_slide(axes, ground, pale=True)
    codes = pd.Categorical(labels, categories=list(share.index)).codes.astype(np.float64)
    name = f"hescribe-{'-'.join(palette[str(s)] for s in share.index)}"
    if name not in mpl.colormaps:
        mpl.colormaps.register(ListedColormap([palette[str(s)] for s in share.index]), name=name)
    draw_spots(axes, ground, codes, limits=(-0.5, len(share) - 0.5), colours=name)
    draw_scale_bar(axes, ground)
    handles = [Patch(color=palette[str(s)], label=f"{s}  {100 * part:.0f}%") for s, part in share.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK, fontsize=8)
    if title:
        axes.set_title(title)
    return figure


@styled
def tls_map(
    adata: ad.AnnData,
    polygons: Polygons,
    *,
    thumbnail: Thumbnail | None = None,
    mpp: Mpp | None = None,
    spot_um: Microns | None = None,
    shape: Shape | None = None,
    label: str = "smoothed score",
    title: str | None = None,
) -> Figure:
    """Lymphoid structures, numbered: on the slide in its own colours, and on the map of the smoothed score.

    Parameters
    ----------
    adata
        What `tl.tls` has been through: the score is ``obs["tls_score"]``; coloured from its 10th to its 90th
        percentile.
    polygons
        Number of a structure → its outline, full-resolution pixels, as `region_polygons` gives it; may be empty.
    thumbnail, mpp, spot_um, shape
        As of `gene_map`. Without a slide there is one panel.
    label, title
        What stands at the colour bar, and above.

    Raises
    ------
    InputError
        No structures were called, or no positions.
    """
    if keys.TLS_SCORE not in adata.obs:
        raise InputError(f"no column {keys.TLS_SCORE!r} in obs", fix="call hescribe.tl.tls first")
    ground = find_ground(adata, thumbnail=thumbnail, mpp=mpp, spot_um=spot_um, shape=shape)
    values = adata.obs[keys.TLS_SCORE].to_numpy(dtype=np.float64)
    figure, axes = _panels(ground, 1 if thumbnail is None else 2)
    if thumbnail is not None:
        draw_slide(axes[0], ground, pale=False)
        axes[0].set_title("H&E", fontweight="normal", color=MUTED, fontsize=9)
        axes[-1].set_title("Score", fontweight="normal", color=MUTED, fontsize=9)
    draw_slide(axes[-1], ground, pale=True)
    spots = draw_spots(
        axes[-1], ground, values, limits=colour_range(values, _CONTRAST), colours=EXPRESSION_COLOURS
    )  # fmt: skip
    for where in axes:
        draw_outlines(where, ground, polygons)
        draw_scale_bar(where, ground)
    _colour_bar(figure, spots, axes[-1], label)
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def draw_outlines(axes: Axes, ground: Ground, polygons: Polygons) -> None:
    """Outlines, dark with a white rim so that they are seen on any tissue, with their numbers beside them."""
    (left, _), (right, _) = ground.extent()
    for number, geometry in polygons.items():
        for width, colour in ((3.2, "white"), (1.5, INK)):
            axes.add_patch(PathPatch(_outline(geometry), fill=False, edgecolor=colour, linewidth=width, zorder=4))
        corners = np.concatenate([np.asarray(part.exterior.coords)[:, :2] for part in shapely.get_parts(geometry)])
        beside = corners[:, 0].max() + 0.1 * (right - left) < right
        upper = corners[np.argmax((1 if beside else -1) * corners[:, 0] - corners[:, 1])]
        text = axes.annotate(
            str(number), tuple(upper), (3 if beside else -3, 0), textcoords="offset points",
            ha="left" if beside else "right", va="center", fontsize=9, fontweight="bold", color=INK, zorder=7,
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _outline(geometry: BaseGeometry) -> Outline:
    rings = []
    for part in shapely.get_parts(geometry):
        rings += [np.asarray(ring.coords)[:, :2] for ring in (part.exterior, *part.interiors)]
    return Outline.make_compound_path(*(Outline(ring, closed=True) for ring in rings))
