"""Maps of a gene or a column of ``obs``, over the slide or plain; everything is in full-resolution pixels, y down."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hescribe import keys
from hescribe.errors import InputError, list_some
from hescribe.io.expression import name_unit, told_sum
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.plots.ground import Ground, Shape, Thumbnail, draw_scale_bar, draw_slide, draw_spots, find_ground
from hescribe.plots.style import EXPRESSION_COLOURS, INK, MUTED, signed, styled
from hescribe.types import Microns, Mpp

_PANEL, _SINGLE = 2.8, 4.2  #: inches, the longer side of a map beside another, and alone

Values = npt.NDArray[np.float64]  #: (n,) one a spot
Range = tuple[float, float]


def colour_range(values: npt.ArrayLike, percentiles: Range = (1.0, 99.0)) -> Range:
    """Lowest and highest value that get a colour of their own: percentiles, so that one odd spot costs nothing.

    Returns
    -------
    tuple of float
        Always of positive width; where the percentiles coincide (a gene in few spots) the extremes are taken.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(known, percentiles))
    if low == high:
        low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low, low + 1.0)


def gene_values(adata: ad.AnnData, gene: str) -> Values:
    """One gene's column of ``X``, (n,).

    Raises
    ------
    InputError
        There is no such gene.
    """
    if gene not in adata.var_names:
        raise InputError(
            f"no gene {gene!r} among {adata.n_vars:,} (the first is {list_some(map(repr, adata.var_names[:1]))})"
        )
    column = adata[:, gene].X
    return np.asarray(column.toarray() if hasattr(column, "toarray") else column, dtype=np.float64).ravel()


def unit_of(adata: ad.AnnData) -> str:
    """What ``X`` is, for a colour bar: as the provenance tells, else log1p of counts per 10,000."""
    return name_unit(told_sum(adata.uns.get(keys.PROVENANCE, {})))


@styled
def gene_map(
    adata: ad.AnnData,
    gene: str,
    *,
    thumbnail: Thumbnail | None = None,
    mpp: Mpp | None = None,
    spot_um: Microns | None = None,
    shape: Shape | None = None,
    percentiles: Range = (1.0, 99.0),
    title: str | None = None,
) -> Figure:
    """Map of one gene.

    Parameters
    ----------
    adata
        Spots or tiles × genes with ``obsm["spatial"]``; ``X`` is drawn as it is.
    gene
        Which.
    thumbnail
        The slide, small, and its downsampling, as ``Section.thumbnail()`` gives them; it is drawn pale.
    mpp
        µm per full-resolution pixel, for the scale bar; by default what the provenance says.
    spot_um
        Diameter of a spot or side of a tile. By default scanpy's scale factors, else from the pitch.
    shape
        ``"circle"`` or ``"square"``; by default squares where the positions are a square grid.
    percentiles
        Of the values, between which the colours run.
    title
        By default the gene's name.

    Raises
    ------
    InputError
        No such gene, or no positions.
    """
    values = gene_values(adata, gene)
    ground = find_ground(adata, thumbnail=thumbnail, mpp=mpp, spot_um=spot_um, shape=shape)
    limits = colour_range(values, percentiles)
    title, label = gene if title is None else title, unit_of(adata)
    return _one(ground, values, limits=limits, colours=EXPRESSION_COLOURS, label=label, title=title)


@styled
def obs_map(
    adata: ad.AnnData,
    column: str,
    *,
    thumbnail: Thumbnail | None = None,
    mpp: Mpp | None = None,
    spot_um: Microns | None = None,
    shape: Shape | None = None,
    limits: Range | None = None,
    colours: str = EXPRESSION_COLOURS,
    label: str = "",
    title: str | None = None,
) -> Figure:
    """Map of a numeric column of ``obs``, such as ``novelty``; parameters as of `gene_map`.

    Parameters
    ----------
    limits
        Values at the ends of the colours; by default the 1st and 99th percentile.
    colours, label
        Colour map, and what stands at the colour bar.
    """
    if column not in adata.obs:
        raise InputError(f"no column {column!r} in obs (found {list_some(adata.obs.columns)})")
    values = adata.obs[column].to_numpy(dtype=np.float64)
    ground = find_ground(adata, thumbnail=thumbnail, mpp=mpp, spot_um=spot_um, shape=shape)
    return _one(
        ground,
        values,
        limits=limits or colour_range(values),
        colours=colours,
        label=label,
        title=column if title is None else title,
    )


@styled
def measured_and_predicted(
    measured: ad.AnnData,
    predicted: ad.AnnData,
    gene: str,
    *,
    thumbnail: Thumbnail | None = None,
    mpp: Mpp | None = None,
    spot_um: Microns | None = None,
    shape: Shape | None = None,
    percentiles: Range = (1.0, 99.0),
    common_scale: bool = False,
    pcc: float | None = None,
) -> Figure:
    """A gene as measured and as predicted, side by side on the spots that both have.

    Parameters
    ----------
    measured, predicted
        Both on one scale, which the prediction's provenance states; spots are matched by name. Others as of `gene_map`.
    common_scale
        One colour scale for both. By default each has its own: a prediction leaves out the noise, varies less, and
        would look flat; then compare patterns, and read heights off the colour bars.
    pcc
        Correlation in the title; by default that of the spots drawn.

    Raises
    ------
    InputError
        No such gene, no positions, or no spot in common.
    """
    shared = measured.obs_names[measured.obs_names.isin(predicted.obs_names)]
    if not len(shared):
        raise InputError("measured and predicted share no spot")
    pair = [gene_values(table[shared], gene) for table in (measured, predicted)]
    if pcc is None:
        pcc = float(pearson_per_gene(pair[1][:, None], pair[0][:, None])[0])
    ground = find_ground(predicted[shared], thumbnail=thumbnail, mpp=mpp, spot_um=spot_um, shape=shape)
    ranges = [colour_range(np.concatenate(pair) if common_scale else values, percentiles) for values in pair]
    figure, axes = _panels(ground, 2)
    for where, name, values, limits in zip(axes, ("Measured", "Predicted"), pair, ranges, strict=True):
        draw_slide(where, ground, pale=True)
        spots = draw_spots(where, ground, values, limits=limits, colours=EXPRESSION_COLOURS)
        where.set_title(name, fontweight="normal", color=MUTED, fontsize=9)
        if not common_scale or name == "Predicted":
            _colour_bar(figure, spots, axes if common_scale else where, unit_of(predicted))
    draw_scale_bar(axes[0], ground)
    stated = f"PCC {signed(pcc)}" if np.isfinite(pcc) else "PCC not defined: constant in the measurement"
    figure.suptitle(f"{gene}   {stated}", x=0.01, ha="left")
    return figure


@styled
def slide_map(thumbnail: Thumbnail, *, mpp: Mpp | None = None, centres: npt.ArrayLike | None = None) -> Figure:
    """The slide itself in its own colours, with a scale bar.

    Parameters
    ----------
    thumbnail
        Image and downsampling.
    mpp
        µm per full-resolution pixel.
    centres
        (n, 2) positions to be marked by faint dots.
    """
    image, downsampling = thumbnail
    extent = np.array([[0.0, 0.0], [image.shape[1], image.shape[0]]]) * downsampling
    ground = Ground(centres=extent, diameter_px=0.0, shape="circle", mpp=mpp, thumbnail=thumbnail)
    figure, (axes,) = _panels(ground, 1)
    draw_slide(axes, ground, pale=False)
    if centres is not None:
        axes.plot(*np.asarray(centres, dtype=np.float64).T, ".", color=INK, markersize=1.5, alpha=0.5)
    draw_scale_bar(axes, ground)
    return figure


def _one(ground: Ground, values: Values, *, limits: Range, colours: str, label: str, title: str) -> Figure:
    figure, (axes,) = _panels(ground, 1)
    draw_slide(axes, ground, pale=True)
    spots = draw_spots(axes, ground, values, limits=limits, colours=colours)
    draw_scale_bar(axes, ground)
    _colour_bar(figure, spots, axes, label)
    if title:
        axes.set_title(title)
    return figure


def _panels(ground: Ground, n: int) -> tuple[Figure, list[Axes]]:
    """Axes for ``n`` maps, y down, all of the ground's extent and proportions."""
    (left, top), (right, bottom) = ground.extent()
    share = (right - left) / (bottom - top)
    side = _SINGLE if n == 1 else _PANEL
    width, height = (side, side / share) if share > 1 else (side * share, side)
    figure = Figure(figsize=(n * (width + 0.75), height + 0.75), layout="compressed")
    axes = list(np.atleast_1d(np.asarray(figure.subplots(1, n))))
    for each in axes:
        each.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
        each.spines[:].set_visible(False)
    return figure, axes


def _colour_bar(figure: Figure, spots: Collection, axes: Any, label: str) -> None:
    bar = figure.colorbar(spots, ax=axes, fraction=0.04, pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, width=0.5, labelsize=8.5)
    bar.locator = MaxNLocator(4)
    bar.set_label(label, fontsize=8.5, color=MUTED)
