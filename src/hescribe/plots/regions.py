"""Maps of labels: regions in fixed colours over the slide."""

from __future__ import annotations

from collections.abc import Mapping

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hescribe import keys
from hescribe.errors import InputError
from hescribe.plots.ground import Shape, Thumbnail, draw_scale_bar, draw_slide, draw_spots, find_ground
from hescribe.plots.maps import _panels
from hescribe.plots.style import INK, NOTHING, styled
from hescribe.types import Microns, Mpp

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
