"""What of a section's picture is compared with another's: how much haematoxylin lies where, within its tissue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hescribe.downstream.volume.placement import Points
from hescribe.errors import InputError
from hescribe.slides.slide import Rgb
from hescribe.slides.tissue import Mask, mask_tissue
from hescribe.types import Microns

Field = npt.NDArray[np.float32]  #: (rows, columns)

_SMOOTH_UM = 24.0  #: nuclei differ between sections; their density does not
_BRIDGED_UM = 120.0  #: gaps in tissue that are closed, and spurs that are cut
_SMALLEST = 0.05  #: of the largest piece's area; smaller pieces do not take part
_FLOOR = 0.35  #: what tissue without haematoxylin weighs, so that the outline takes part


@dataclass(frozen=True, eq=False)
class Picture:
    """A section's thumbnail.

    Attributes
    ----------
    name
        The section's id.
    image
        (rows, columns, 3) uint8 RGB of the whole slide.
    um
        µm per pixel of it. A position (x, y) in µm lies at pixel ``(x / um, y / um)`` counted from the corner.
    """

    name: str
    image: Rgb
    um: Microns

    @cached_property
    def plane(self) -> Plane:
        """What is registered.

        Raises
        ------
        InputError
            No tissue is seen.
        """
        return Plane.of(self)


@dataclass(frozen=True, eq=False)
class Plane:
    """Haematoxylin within the tissue.

    Attributes
    ----------
    density
        (rows, columns) float32: 0 on glass, from 0.35 (none) to 1 (dark nuclei) in tissue.
    mask
        (rows, columns), true in tissue, its small holes filled.
    um
        µm per pixel.
    """

    density: Field
    mask: Mask
    um: Microns

    @classmethod
    def of(cls, picture: Picture) -> Plane:
        """Of a thumbnail."""
        if picture.image.ndim != 3 or picture.image.shape[2] != 3 or picture.image.dtype != np.uint8:
            raise InputError(f"a picture of shape {picture.image.shape} and {picture.image.dtype}", path=picture.name,
                             fix="rows × columns × 3, uint8")  # fmt: skip
        tissue = mask_tissue(picture.image, pixel_um=picture.um)
        if not tissue.any():
            raise InputError(f"no tissue found on section {picture.name!r}", fix="is it stained with H&E?")
        absorbed = _red_absorbed(picture, tissue)
        mask = _solid(absorbed, tissue, picture.um)
        low, high = np.quantile(absorbed[mask], (0.02, 0.98))
        share = np.clip((absorbed - low) / max(float(high - low), 1e-6), 0, 1)
        return cls(np.where(mask, _FLOOR + (1 - _FLOOR) * share, 0).astype(np.float32), mask, picture.um)

    @cached_property
    def centroid(self) -> Points:
        """Of the tissue, (2,) µm."""
        rows, columns = np.nonzero(self.mask)
        return np.array([columns.mean() + 0.5, rows.mean() + 0.5]) * self.um

    @cached_property
    def box(self) -> tuple[Points, Points]:
        """Corners of the tissue's bounding box, (2,) µm each."""
        rows, columns = np.nonzero(self.mask)
        low = np.array([columns.min(), rows.min()], dtype=np.float64)
        return low * self.um, np.array([columns.max() + 1.0, rows.max() + 1.0]) * self.um

    def points(self, most: int = 400) -> Points:
        """Some positions in tissue, (n, 2) µm, evenly taken."""
        rows, columns = np.nonzero(self.mask)
        chosen = np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))
        return np.column_stack([columns[chosen] + 0.5, rows[chosen] + 0.5]) * self.um

    def sample(self, where: Points) -> tuple[Field, Mask]:
        """Density and tissue at positions (…, 2) µm; nothing outside the picture."""
        pixels = (where / self.um - 0.5).astype(np.float32)
        density = cv2.remap(self.density, pixels[..., 0], pixels[..., 1], cv2.INTER_LINEAR, borderValue=0)
        mask = cv2.remap(self.mask.astype(np.uint8), pixels[..., 0], pixels[..., 1], cv2.INTER_NEAREST, borderValue=0)
        return np.asarray(density, dtype=np.float32), np.asarray(mask, dtype=bool)


def raster(low: Points, high: Points, um: Microns) -> Points:
    """Centres of pixels over a box, (rows, columns, 2) µm."""
    columns, rows = np.maximum(np.ceil((high - low) / um), 1).astype(int)
    x, y = np.meshgrid((np.arange(columns) + 0.5) * um + low[0], (np.arange(rows) + 0.5) * um + low[1])
    return np.stack([x, y], axis=-1)


def warp(plane: Plane, to_section: Callable[[Points], Points], where: Points) -> Plane:
    """The plane as seen at positions (rows, columns, 2) of a raster in other coordinates."""
    density, mask = plane.sample(to_section(where.reshape(-1, 2)).reshape(where.shape))
    um = float(where[0, 1, 0] - where[0, 0, 0]) if where.shape[1] > 1 else plane.um
    return Plane(np.where(mask, density, 0).astype(np.float32), mask, um)


@dataclass(frozen=True)
class Likeness:
    """How well two sections lie on each other.

    Attributes
    ----------
    dice
        Of the tissue masks, 2 |A ∩ B| / (|A| + |B|), from 0 to 1.
    correlation
        Pearson correlation of haematoxylin where both have tissue; 0 where they hardly overlap.
    """

    dice: float
    correlation: float

    @property
    def score(self) -> float:
        """Their sum; larger is better, 2 the best."""
        return self.dice + self.correlation


def compare(fixed: Plane, moving: Plane, to_moving: Callable[[Points], Points]) -> Likeness:
    """Likeness of two planes, given where in the moving one a position of the fixed one lies."""
    margin = 0.15 * (fixed.box[1] - fixed.box[0])
    where = raster(fixed.box[0] - margin, fixed.box[1] + margin, max(fixed.um, moving.um))
    density, mask = fixed.sample(where)
    moved, covered = moving.sample(to_moving(where.reshape(-1, 2)).reshape(where.shape))
    both = mask & covered
    # Areas are the planes' own: what of the moving tissue lies outside the box counts as missed
    areas = fixed.mask.sum() * fixed.um**2 + moving.mask.sum() * moving.um**2
    dice = 2 * both.sum() * max(fixed.um, moving.um) ** 2 / areas
    return Likeness(float(min(dice, 1.0)), _correlation(density[both], moved[both], 0.05 * mask.sum()))


def _correlation(a: Field, b: Field, least: float) -> float:
    if len(a) < max(least, 20) or a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _red_absorbed(picture: Picture, tissue: Mask) -> Field:
    """Optical density in red, where haematoxylin absorbs and eosin hardly does; glass is about 0."""
    red = cv2.GaussianBlur(picture.image[:, :, 0].astype(np.float32) + 1, (0, 0), max(_SMOOTH_UM / picture.um, 0.5))
    glass = np.median(red[~tissue]) if (~tissue).any() else red.max()
    return np.clip(np.log10(glass / np.asarray(red)), 0, None).astype(np.float32)


def _solid(absorbed: Field, tissue: Mask, um: Microns) -> Mask:
    """Tissue without its small holes, and without the pink of eosin that has run out over the glass."""
    scaled = np.clip(absorbed / max(float(np.quantile(absorbed[tissue], 0.95)), 1e-6), 0, 1)
    level, _ = cv2.threshold((scaled * 255).astype(np.uint8), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    seen = (scaled > level / 255) | (tissue & (scaled > 0.35 * level / 255))
    radius = max(1, int(_BRIDGED_UM / 2 / um))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    padded = np.pad(seen.astype(np.uint8), radius)
    closed = np.asarray(cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc))[radius:-radius, radius:-radius]
    opened = np.asarray(cv2.morphologyEx(closed, cv2.MORPH_OPEN, disc))
    labels, count = ndimage.label(ndimage.binary_fill_holes(opened))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    coloured = np.bincount(labels.ravel(), weights=tissue.ravel(), minlength=count + 1) / np.maximum(areas, 1)
    areas[0] = 0
    # The shadow of the slide's frame is dark but not stained
    kept = (areas > _SMALLEST * areas.max()) & (coloured > 0.3)
    kept[0] = False
    return np.asarray(kept[labels]) if kept.any() else tissue
