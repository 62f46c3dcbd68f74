"""Where on a slide there is tissue, without learned weights.

Stained tissue is coloured, glass is not. A small picture of the slide is made (16 µm a pixel), the colour of the glass
taken as white, and the saturation split by Otsu's threshold, held within bounds so that neither the noise of an empty
slide passes for tissue nor the pale half of a full one for glass. Haematoxylin and eosin both take green out of the
light at least as much as red and blue; what does not (blue, green and black ink, the black of what was never scanned) is
no tissue. Fat is glass between threads of tissue: gaps are closed, and what tissue encloses is filled.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from hescribe.errors import InputError
from hescribe.slides.slide import ReadRegion, Rgb, Slide
from hescribe.types import Centres, Level0Px, Microns, Mpp

Mask = npt.NDArray[np.bool_]

MASK_UM = 16.0  #: side of the mask's pixels
SMALLEST_MM2 = 0.02  #: of a piece of tissue; smaller ones are dust
_SATURATION = (15, 45)  #: bounds on the threshold, of 255
_DARK = 40  #: brightness, of 255, below which a pixel is black ink or was never scanned
_INK = 230  #: saturation, of 255, that only ink has at this scale
_GLASS = 200  #: the least brightness, of 255, of a pixel that may be glass
_RED, _FAINT = 1.2, 0.05  #: density of red over that of green, and what is added, that the bluest haematoxylin has
_CLOSED_UM, _OPENED_UM = 192.0, 32.0  #: gaps that are closed, a few fat cells wide, and threads that are cut
_FILLED_MM2 = 0.5  #: of a hole in tissue that is filled


@dataclass(frozen=True)
class Tissue:
    """A mask over a slide.

    Attributes
    ----------
    mask
        (rows, columns), true where there is tissue.
    pixel
        Width and height of its pixels, in full-resolution pixels.
    picture
        (rows, columns, 3) what the mask was found on.
    """

    mask: Mask
    pixel: tuple[Level0Px, Level0Px]
    picture: Rgb

    def covers(self, centres: Centres) -> Mask:
        """(n, 2) full-resolution positions → (n,) whether there is tissue."""
        column, row = np.floor(centres / self.pixel).astype(np.intp).T
        inside = (column >= 0) & (row >= 0) & (row < self.mask.shape[0]) & (column < self.mask.shape[1])
        found = np.zeros(len(centres), dtype=bool)
        found[inside] = self.mask[row[inside], column[inside]]
        return found


def find_tissue(slide: Slide, *, mpp: Mpp, mask_um: Microns = MASK_UM, read: ReadRegion | None = None) -> Tissue:
    """The tissue of a slide.

    Parameters
    ----------
    slide
        The slide.
    mpp
        µm per pixel.
    mask_um
        Side of the mask's pixels, at least.
    read
        A quicker way to the slide's pixels, where there is one.

    Raises
    ------
    InputError
        There is none.
    """
    small = slide.thumbnail(max(1, round(max(slide.width, slide.height) * mpp / mask_um)), read=read)
    pixel = (slide.width / small.shape[1], slide.height / small.shape[0])
    mask = mask_tissue(small, pixel_um=pixel[0] * mpp)
    if not mask.any():
        raise InputError("no tissue found", path=slide.path, fix="is it a slide stained with haematoxylin and eosin?")
    return Tissue(mask, pixel, small)


def mask_tissue(image: Rgb, *, pixel_um: Microns) -> Mask:
    """(rows, columns, 3) small picture of a slide → (rows, columns) where there is tissue."""
    balanced = _white_glass(image)
    green, blue = (balanced[:, :, i].astype(np.int16) for i in (1, 2))
    # By density, which is in proportion to the dye: dense haematoxylin has the ratio of pale one
    density = -np.log(np.maximum(balanced[:, :, :2], 1) / 255.0)
    no_blue_ink = density[:, :, 0] <= _RED * density[:, :, 1] + _FAINT
    brightest, darkest = balanced.max(axis=2), balanced.min(axis=2)
    saturation = (255.0 * (brightest - darkest) / np.maximum(brightest, 1)).astype(np.uint8)
    saturation = np.asarray(cv2.medianBlur(saturation, 3))
    possible = (brightest > _DARK) & no_blue_ink & (blue >= green - 8) & (saturation < _INK)
    if not possible.any():
        return np.zeros(image.shape[:2], dtype=bool)
    threshold, _ = cv2.threshold(saturation[possible], 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    mask = possible & (saturation > np.clip(threshold, *_SATURATION))
    return _clean(mask, pixel_um)


def _white_glass(image: Rgb) -> Rgb:
    """Every channel scaled so that the glass, where any is seen, is white."""
    bright = image.min(axis=2) >= _GLASS
    if bright.mean() < 0.01:
        return image
    glass = np.median(image[bright], axis=0)
    return np.minimum(image * (255.0 / glass), 255).astype(np.uint8)


def _clean(mask: Mask, pixel_um: Microns) -> Mask:
    cleaned = mask.astype(np.uint8)
    for operation, reach_um in ((cv2.MORPH_CLOSE, _CLOSED_UM), (cv2.MORPH_OPEN, _OPENED_UM)):
        radius = int(reach_um / 2 / pixel_um)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        # Beyond the picture's edge the tissue may go on
        padded = cv2.copyMakeBorder(cleaned, radius, radius, radius, radius, cv2.BORDER_REPLICATE)
        padded = cv2.morphologyEx(padded, operation, disc)
        inner = np.asarray(padded, dtype=np.uint8)
        cleaned = inner[radius : radius + mask.shape[0], radius : radius + mask.shape[1]]
    count, labels, facts, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(cleaned), connectivity=8)
    large = facts[:, cv2.CC_STAT_AREA] * pixel_um**2 >= SMALLEST_MM2 * 1e6
    large[0] = False  # the background
    return _filled(np.asarray(large[labels]), pixel_um) if count > 1 else np.zeros_like(mask)


def _filled(mask: Mask, pixel_um: Microns) -> Mask:
    """With the holes that tissue encloses, but for large ones and for what goes on beyond the picture."""
    _, labels, facts, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    hole = facts[:, cv2.CC_STAT_AREA] * pixel_um**2 <= _FILLED_MM2 * 1e6
    hole[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = False
    return mask | np.asarray(hole[labels])
