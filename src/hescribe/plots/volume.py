"""Serial sections in space: neighbours on each other, the stack, and cuts through the volume between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anndata as ad
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Affine2D

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.expression import USUAL_SUM, name_unit
from hescribe.io.pitch import distance_between
from hescribe.plots.ground import name_length, round_length
from hescribe.plots.maps import Range, Values, colour_range, gene_values, unit_of
from hescribe.plots.style import CEILING, EXPRESSION_COLOURS, INK, MUTED, NOTHING, PREDICTED, styled
from hescribe.types import Microns

_SLANT, _FLAT = 0.38, 0.5  #: how a plane is seen from the side: sheared, and lower
_GAP = 0.54  #: between planes in the picture, of a plane's depth
_OF_PITCH = 0.62  #: a spot's diameter
_SMOOTH_SPOTS = 4000  #: more are drawn as squares
_DEPTH = 0.3  #: of the plane's width: how thick the volume is drawn, at least

Extent = tuple[float, float, float, float]  #: left, right, top, bottom, µm


class Grid(Protocol):
    """Expression on a regular grid, as `hescribe.tl.interpolate_volume` makes it."""

    @property
    def genes(self) -> list[str]:
        """Names along the first axis of ``values``."""
        ...

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """(genes, z, y, x), NaN outside the tissue."""
        ...

    @property
    def origin_um(self) -> tuple[Microns, Microns, Microns]:
        """(z, y, x) of the first voxel's centre."""
        ...

    @property
    def spacing_um(self) -> tuple[Microns, Microns, Microns]:
        """(z, y, x) between voxels."""
        ...


@dataclass(frozen=True, eq=False)
class Overlay:
    """Two neighbours before and after registration.

    Attributes
    ----------
    fixed, moving
        Their names.
    before, after
        Two pictures of one shape each (rows × columns, 0 on glass to 1): the fixed and the moving one.
    dice
        Of the masks, before and after.
    um
        µm per pixel, before and after.
    """

    fixed: str
    moving: str
    before: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    after: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
    dice: tuple[float, float]
    um: tuple[Microns, Microns]


@styled
def neighbour_overlay(overlays: Sequence[Overlay]) -> Figure:
    """Neighbours on each other, one blue and one orange, a row a pair: where both lie the picture is dark.

    Parameters
    ----------
    overlays
        Pairs.
    """
    if not overlays:
        raise InputError("no pair of sections to draw")
    figure = Figure(figsize=(6.6, 3.0 * len(overlays)), layout="constrained")
    panels = np.asarray(figure.subplots(len(overlays), 2, squeeze=False))
    for row, pair in zip(panels, overlays, strict=True):
        states = zip(
            row, ("as on their slides", "registered"), (pair.before, pair.after), pair.dice, pair.um, strict=True
        )
        for axes, state, (fixed, moving), dice, um in states:
            axes.imshow(_two_inks(fixed, moving), extent=(0, fixed.shape[1] * um, fixed.shape[0] * um, 0))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_title(f"{state}   Dice {dice:.2f}", fontweight="normal", fontsize=9, color=MUTED)
            _bar(axes, fixed.shape[1] * um, fixed.shape[0] * um)
        for i, (name, colour) in enumerate(((pair.fixed, PREDICTED), (pair.moving, CEILING))):
            row[0].annotate(name, (0, 1), (2, -11 * (i + 1)), xycoords="axes fraction", textcoords="offset points",
                            color=colour, fontweight="bold",
                            path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
    return figure


@styled
def stacked_sections(
    stack: ad.AnnData,
    gene: str,
    *,
    pictures: Mapping[str, tuple[npt.NDArray[np.uint8], Extent]] | None = None,
    percentiles: Range = (1.0, 99.0),
) -> Figure:
    """The sections above each other, seen from the side: the slides, and one gene on their spots.

    Parameters
    ----------
    stack
        With ``obsm["spatial_3d"]`` (µm) and ``obs["section_id"]``.
    gene
        Which.
    pictures
        Section → its registered picture (rows, columns, 4 uint8 RGBA) and where it lies in common coordinates.
    percentiles
        Of the values, between which the colours run.

    Raises
    ------
    InputError
        No such gene, or no positions in space.
    """
    if keys.SPATIAL_3D not in stack.obsm:
        raise InputError(
            f'no positions in obsm["{keys.SPATIAL_3D}"]', fix="make a stack with hescribe.tl.stack_sections"
        )
    values = gene_values(stack, gene)
    places = np.asarray(stack.obsm[keys.SPATIAL_3D], dtype=np.float64)
    names = stack.obs[keys.SECTION].astype(str).to_numpy()
    order = sorted(dict.fromkeys(names), key=lambda n: places[names == n, 2][0])
    shift = _gap(places)
    drawn = dict(pictures or {})
    figure = Figure(figsize=(8.4 if drawn else 5.0, 1.9 + 0.95 * len(order)), layout="constrained")
    panels = list(np.atleast_1d(np.asarray(figure.subplots(1, 2 if drawn else 1))))
    limits = colour_range(values, percentiles)
    spots = None
    for level, name in enumerate(order):
        own = names == name
        height = places[own, 2][0]
        for axes in panels:
            if name in drawn:
                _plane_picture(axes, *drawn[name], level * shift, pale=axes is panels[-1])
            _label(axes, places[own, :2], level * shift, f"{name}  {height:g} µm")
        spots = _plane_spots(panels[-1], places[own, :2], values[own], level * shift, many=len(values) > _SMOOTH_SPOTS)
        spots.set_clim(*limits)
    _frame(panels, places, len(order), shift)
    if drawn:
        panels[0].set_title("H&E", fontweight="normal", color=MUTED)
    panels[-1].set_title(gene)
    _colours(figure, spots, panels[-1], unit_of(stack))
    return figure


@styled
def orthogonal_cuts(
    volume: Grid,
    gene: str,
    *,
    at_um: tuple[Microns, Microns, Microns] | None = None,
    percentiles: Range = (1.0, 99.0),
    unit: str = name_unit(USUAL_SUM),
) -> Figure:
    """Three cuts through the volume at right angles; thin lines show where each cuts the others.

    Parameters
    ----------
    volume
        From `hescribe.tl.interpolate_volume`.
    gene
        Which.
    at_um
        (z, y, x) through which the cuts go; by default the middle of the tissue.
    percentiles
        Of the values, between which the colours run.
    unit
        Of the values.

    Raises
    ------
    InputError
        No such gene in the volume, or nothing but gaps.
    """
    if gene not in volume.genes:
        raise InputError(f"no gene {gene!r} in the volume (it has {', '.join(volume.genes)})")
    values = volume.values[volume.genes.index(gene)]
    inside = np.isfinite(values)
    if not inside.any():
        raise InputError("the volume has no tissue")
    k, j, i = _where(volume, inside, at_um)
    edges = [_edges(volume, values.shape, axis) for axis in range(3)]
    (z0, z1), (y0, y1), (x0, x1) = edges
    stretch = max(1.0, round(_DEPTH * (x1 - x0) / (z1 - z0)))
    depth = (z1 - z0) * stretch
    width, height = x1 - x0, y1 - y0
    scale = 5.0 / (max(width, height) + depth)
    figure = Figure(figsize=((width + 1.2 * depth) * scale + 0.9, (height + 1.2 * depth) * scale + 0.9))
    grid = figure.add_gridspec(
        2, 2, width_ratios=[width, depth], height_ratios=[height, depth],
        left=0.1, right=0.97, top=0.92, bottom=0.06, wspace=0.06, hspace=0.06,
    )  # fmt: skip
    limits = colour_range(values[inside], percentiles)
    colours = mpl.colormaps[EXPRESSION_COLOURS].with_extremes(bad="white")
    plane, side, front, corner = (figure.add_subplot(grid[c]) for c in ((0, 0), (0, 1), (1, 0), (1, 1)))
    shown: dict[str, Any] = {"cmap": colours, "vmin": limits[0], "vmax": limits[1], "interpolation": "nearest"}
    image = plane.imshow(values[k], extent=(x0, x1, y1, y0), aspect="auto", **shown)
    side.imshow(values[:, :, i].T, extent=(z0, z1, y1, y0), aspect="auto", **shown)
    front.imshow(values[:, j], extent=(x0, x1, z0, z1), origin="lower", aspect="auto", **shown)
    z, y, x = (o + s * n for o, s, n in zip(volume.origin_um, volume.spacing_um, (k, j, i), strict=True))
    for axes, across, down in ((plane, x, y), (side, z, y), (front, x, z)):
        axes.axvline(across, color=INK, linewidth=0.5, linestyle=(0, (4, 4)))
        axes.axhline(down, color=INK, linewidth=0.5, linestyle=(0, (4, 4)))
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(NOTHING)
    _bar(plane, x1 - x0, y1 - y0, left=x0, top=y0)
    plane.set(xticks=[], yticks=[])
    side.set(yticks=[])
    side.tick_params(labelsize=7.5)
    side.set_xlabel("z (µm)", fontsize=7.5, labelpad=1)
    front.set(xticks=[], ylabel="z (µm)")
    plane.set_title(f"{gene}   z = {z:g} µm")
    if stretch > 1:
        side.set_title(f"z drawn × {stretch:g}", fontweight="normal", fontsize=8, color=MUTED)
    corner.axis("off")
    bar = figure.colorbar(image, cax=corner.inset_axes((0.05, 0.3, 0.9, 0.1)), orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, width=0.5, labelsize=7.5)
    bar.set_label(unit, fontsize=7.5, color=MUTED)
    return figure


def _two_inks(fixed: npt.NDArray[np.float32], moving: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Printed over each other on white."""
    blue, orange = (1 - (1 - np.array(to_rgb(c))) * v[..., None] for c, v in ((PREDICTED, fixed), (CEILING, moving)))
    return np.asarray(np.clip(blue * orange, 0, 1))


def _seen(points: npt.NDArray[np.float64], lift: float) -> npt.NDArray[np.float64]:
    """(…, 2) common µm of a plane → (…, 2) in the picture, y down."""
    return np.stack([points[..., 0] - _SLANT * points[..., 1], _FLAT * points[..., 1] - lift], axis=-1)


def _gap(places: npt.NDArray[np.float64]) -> float:
    return float(_GAP * max(np.ptp(places[:, 1]), 0.5 * np.ptp(places[:, 0]), 1.0))


def _plane_picture(axes: Axes, picture: npt.NDArray[np.uint8], extent: Extent, lift: float, *, pale: bool) -> None:
    left, right, top, bottom = extent
    shown = picture.copy()
    if pale:
        grey = 255 - 0.38 * (255 - picture[..., :3].mean(axis=-1))
        shown[..., :3] = grey[..., None].astype(np.uint8)
    image = axes.imshow(shown, extent=(left, right, bottom, top), interpolation="bilinear", aspect="equal")
    seen = Affine2D(np.array([[1, -_SLANT, 0], [0, _FLAT, -lift], [0, 0, 1]]))
    image.set_transform(seen + axes.transData)


def _plane_spots(
    axes: Axes, points: npt.NDArray[np.float64], values: Values, lift: float, *, many: bool
) -> PolyCollection:
    angles = np.linspace(0, 2 * np.pi, 4 if many else 18, endpoint=False) + (np.pi / 4 if many else 0)
    ring = np.column_stack([np.cos(angles), np.sin(angles)]) * _OF_PITCH / 2 * distance_between(points)
    spots = PolyCollection(list(_seen(points[:, None] + ring, lift)), linewidths=0)
    spots.set_array(np.ma.masked_invalid(values))
    spots.set_cmap(mpl.colormaps[EXPRESSION_COLOURS].with_extremes(bad=NOTHING))
    spots.set_rasterized(many)
    axes.add_collection(spots, autolim=False)
    return spots


def _label(axes: Axes, points: npt.NDArray[np.float64], lift: float, text: str) -> None:
    seen = _seen(points, lift)
    axes.annotate(text, (seen[:, 0].max(), np.median(seen[:, 1])), (8, 0), textcoords="offset points", fontsize=8,
                  color=MUTED, va="center", annotation_clip=False)  # fmt: skip


def _frame(panels: Sequence[Axes], places: npt.NDArray[np.float64], levels: int, shift: float) -> None:
    corners = np.concatenate([_seen(places[:, :2], lift) for lift in (0.0, (levels - 1) * shift)])
    low, high = corners.min(axis=0), corners.max(axis=0)
    edge = 0.06 * (high - low).max()
    for axes in panels:
        axes.set(xlim=(low[0] - edge, high[0] + edge), ylim=(high[1] + edge, low[1] - edge), xticks=[], yticks=[])
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        length = round_length(float(np.ptp(places[:, 0])) / 4)
        axes.plot(
            [low[0], low[0] + length], [high[1] + 0.5 * edge] * 2, color=INK, linewidth=2.2, solid_capstyle="butt"
        )
        axes.annotate(name_length(length), (low[0] + length / 2, high[1] + 0.5 * edge), (0, -3), textcoords="offset points",
                      ha="center", va="top", fontsize=8, annotation_clip=False)  # fmt: skip


def _bar(axes: Axes, width: float, height: float, *, left: float = 0.0, top: float = 0.0) -> None:
    length = round_length(width / 5)
    x, y = left + 0.03 * width, top + 0.97 * height
    axes.plot([x, x + length], [y, y], color=INK, linewidth=2.2, solid_capstyle="butt")
    axes.annotate(name_length(length), (x + length / 2, y), (0, 4), textcoords="offset points", ha="center", fontsize=8)


def _colours(figure: Figure, drawn: Any, axes: Any, unit: str) -> None:
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, aspect=28, shrink=0.8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, width=0.5, labelsize=7.5)
    bar.set_label(unit, fontsize=7.5, color=MUTED)


def _where(
    volume: Grid, inside: npt.NDArray[np.bool_], at_um: tuple[Microns, Microns, Microns] | None
) -> tuple[int, int, int]:
    if at_um is None:
        middle = np.argwhere(inside).mean(axis=0)
    else:
        middle = (np.array(at_um) - volume.origin_um) / volume.spacing_um
    k, j, i = (int(np.clip(round(m), 0, n - 1)) for m, n in zip(middle, inside.shape, strict=True))
    return k, j, i


def _edges(volume: Grid, shape: tuple[int, ...], axis: int) -> tuple[float, float]:
    start, step = volume.origin_um[axis], volume.spacing_um[axis]
    return start - step / 2, start + step * (shape[axis] - 0.5)
