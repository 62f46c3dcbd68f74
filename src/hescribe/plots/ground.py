"""What a map is drawn on: positions, the true size of a spot, the slide behind, the scale bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import anndata as ad
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.patheffects import withStroke
from PIL import Image

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.pitch import distance_between, is_square_grid, spot_diameter
from hescribe.plots.style import INK, NOTHING
from hescribe.slides.grid import stride_px
from hescribe.types import Centres, Level0Px, Microns, Mpp

Shape: TypeAlias = Literal["circle", "square"]
Thumbnail: TypeAlias = tuple[npt.NDArray[np.uint8], float]  #: (h, w, 3) RGB, and full-resolution pixels per pixel of it

_TOUCHING = 0.9  #: of the distance between squares, from which they are no spots but bins
_VECTOR_LIMIT = 3000  #: more spots are an image inside the SVG, which would else be tens of MB
_PALE_PX = 700  #: a pale slide needs no detail
_MARGIN = 0.03  #: around the spots, of the longer side


@dataclass(frozen=True, eq=False)
class Ground:
    """Where the spots are and what lies beneath; lengths in full-resolution pixels.

    Attributes
    ----------
    centres
        (n, 2) x, y.
    diameter_px
        Diameter of a spot, or side of a square.
    shape
        Spots are circles, tiles of a grid squares.
    mpp
        µm per pixel; None where nobody says, and then there is no scale bar.
    thumbnail
        The slide and its downsampling.
    """

    centres: Centres
    diameter_px: Level0Px
    shape: Shape
    mpp: Mpp | None
    thumbnail: Thumbnail | None

    def extent(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Corners (left, top), (right, bottom) around all spots."""
        low, high = self.centres.min(axis=0), self.centres.max(axis=0)
        side = max(float((high - low).max()), self.diameter_px, 1.0)
        edge = self.diameter_px / 2 + (_MARGIN * side if self.diameter_px else 0.0)
        low, high = low - edge, high + edge
        # One row of spots would make a map of no height
        thin = np.maximum(0.2 * side - (high - low), 0) / 2
        return tuple(map(float, low - thin)), tuple(map(float, high + thin))  # type: ignore[return-value]


def find_ground(
    adata: ad.AnnData,
    *,
    thumbnail: Thumbnail | None = None,
    mpp: Mpp | None = None,
    spot_um: Microns | None = None,
    shape: Shape | None = None,
) -> Ground:
    """Positions from ``obsm["spatial"]``; scale and size of a spot from what is given, said, or measured.

    Raises
    ------
    InputError
        No positions, or ``spot_um`` without any µm per pixel.
    """
    if keys.SPATIAL not in adata.obsm or not adata.n_obs:
        raise InputError(f'no positions in obsm["{keys.SPATIAL}"]', fix="a map needs pixel centres x, y of the spots")
    centres = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)[:, :2]
    told = adata.uns.get(keys.PROVENANCE, {})
    if mpp is None:
        mpp = told_number(told.get("mpp"))
    diameter, stride_um = _stated_diameter(adata, spot_um, mpp), told_number(told.get("stride_um"))
    if shape is None and spot_um is None and stride_um and mpp:  # a slide's tiles fill their grid
        return Ground(centres, float(stride_px(stride_um, mpp)), "square", mpp, thumbnail)
    if diameter is None:
        diameter = distance_between(centres) if shape == "square" else spot_diameter(centres)
    if shape is None:
        touching = diameter >= _TOUCHING * distance_between(centres)
        shape = "square" if touching and is_square_grid(centres) else "circle"
    return Ground(centres, diameter, shape, mpp, thumbnail)


def draw_slide(axes: Axes, ground: Ground, *, pale: bool) -> None:
    """The slide within the axes' limits; pale and grey, so that the colours of spots on it are read right."""
    if ground.thumbnail is None:
        return
    image, downsampling = ground.thumbnail
    limits = axes.get_xlim(), axes.get_ylim()
    # Only what is seen: an SVG would else carry the whole slide
    size = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor(np.array([min(limits[0]), min(limits[1])]) / downsampling), 0, size).astype(int)
    high = np.clip(np.ceil(np.array([max(limits[0]), max(limits[1])]) / downsampling), 0, size).astype(int)
    seen = image[low[1] : high[1], low[0] : high[0], :3]
    if not seen.size:
        return
    (left, top), (right, bottom) = low * downsampling, high * downsampling
    shown = _paled(seen) if pale else seen
    axes.imshow(
        shown, cmap="gray", vmin=0, vmax=255, extent=(left, right, bottom, top), zorder=0, interpolation="antialiased"
    )
    axes.set(xlim=limits[0], ylim=limits[1])


def _paled(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    small = Image.fromarray(image)
    small.thumbnail((_PALE_PX, _PALE_PX))
    return (255 - 0.38 * (255 - np.asarray(small.convert("L"), dtype=np.float64))).astype(np.uint8)


def draw_spots(
    axes: Axes, ground: Ground, values: npt.NDArray[np.float64], *, limits: tuple[float, float], colours: str
) -> Collection:
    """Spots at true size, coloured by value; those without a value are grey."""
    spots = _circles(axes, ground) if ground.shape == "circle" else _squares(ground)
    spots.set_array(np.ma.masked_invalid(values))
    spots.set_cmap(mpl.colormaps[colours].with_extremes(bad=NOTHING))
    spots.set_clim(*limits)
    spots.set_rasterized(len(values) > _VECTOR_LIMIT)
    axes.add_collection(spots, autolim=False)
    return spots


def draw_scale_bar(axes: Axes, ground: Ground) -> None:
    """A bar of a round number of µm in the lower left corner; none where the scale is not known."""
    if not ground.mpp:
        return
    (left, _), (right, bottom) = ground.extent()
    length_um = round_length((right - left) * ground.mpp / 4)
    x, y = left + 0.03 * (right - left), bottom - 0.03 * (right - left)
    end = x + length_um / ground.mpp
    for width, colour in ((4.5, "white"), (2.2, INK)):  # a white rim keeps it legible over tissue
        axes.plot([x, end], [y, y], color=colour, linewidth=width, solid_capstyle="butt", zorder=5)
    text, middle = name_length(length_um), ((x + end) / 2, y)
    label = axes.annotate(text, middle, (0, 4), textcoords="offset points", ha="center", fontsize=8, zorder=6)
    label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def round_length(length: float) -> float:
    """The largest of 1, 2, 5 × 10ⁿ not above ``length``."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(m * power for m in (1, 2, 5) if m * power <= length * (1 + 1e-9)))


def name_length(um: Microns) -> str:
    """``50 µm``, ``2 mm``."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def told_number(value: object) -> float | None:
    """A fact of the provenance, where it is a number above zero."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def _stated_diameter(adata: ad.AnnData, spot_um: Microns | None, mpp: Mpp | None) -> Level0Px | None:
    if spot_um is not None:
        if not mpp:
            raise InputError("spot_um needs µm per pixel", fix="give mpp=")
        return spot_um / mpp
    for library in adata.uns.get(keys.SPATIAL, {}).values():
        if diameter := library.get("scalefactors", {}).get(keys.SPOT_DIAMETER):
            return float(diameter)
    return None


def _circles(axes: Axes, ground: Ground) -> Collection:
    size = np.full(len(ground.centres), ground.diameter_px)
    return EllipseCollection(
        size,
        size,
        np.zeros_like(size),
        units="xy",
        offsets=ground.centres,
        offset_transform=axes.transData,
        linewidths=0,
    )


def _squares(ground: Ground) -> Collection:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * ground.diameter_px / 2
    # Without its own edge a square leaves a hairline to its neighbour
    return PolyCollection(list(ground.centres[:, None] + corners), linewidths=0.2, edgecolors="face")
