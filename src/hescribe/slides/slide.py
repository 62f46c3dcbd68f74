"""What a slide is, whatever its format."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hescribe.types import PLAUSIBLE_MPP, Mpp

Rgb = npt.NDArray[np.uint8]  #: (height, width, 3)

_BLOCK = 512  #: pixels, where a format does not say how it is stored
_BAND = 32_000_000  #: pixels decoded at once for a thumbnail
_BLENDED = 1_000_000  #: pixels that are laid on white at once


class ReadRegion(Protocol):
    """``Slide.read_region``, or what gives the same pixels of regions inside a level."""

    def __call__(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb:
        """(height, width, 3), from the level's pixels."""
        ...


class Slide(ABC):
    """An image of tissue.

    Attributes
    ----------
    path
        Its file.
    width, height
        Full-resolution pixels.
    mpp
        µm per pixel by the file's own metadata; None where it does not say.
    refused_mpp
        What the metadata say that cannot be, if anything, to be told where nothing else is known.
    tag_mpp
        By the resolution tag of a JPEG or PNG: what an editor may have left there, believed where nothing else is known.
    downsamples
        Of the pyramid's levels; the first is 1.
    level_sizes
        Width and height of each level, in its own pixels.
    """

    path: Path
    width: int
    height: int
    mpp: Mpp | None
    refused_mpp: float | None = None
    tag_mpp: Mpp | None = None
    downsamples: tuple[float, ...]
    level_sizes: tuple[tuple[int, int], ...]

    @abstractmethod
    def _read(self, x: int, y: int, width: int, height: int, *, level: int) -> Rgb:
        """A region that lies inside the level."""

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb:
        """Region of a level, white where it leaves the image.

        Parameters
        ----------
        x, y
            Upper left corner, in the *level's* pixels.
        width, height
            Size, in the level's pixels.
        level
            0 is full resolution.

        Returns
        -------
        ndarray
            (height, width, 3) uint8 RGB.

        Raises
        ------
        InputError
            The file is damaged there.
        """
        level_width, level_height = self.level_sizes[level]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, level_width), min(y + height, level_height)
        out = np.full((height, width, 3), 255, dtype=np.uint8)
        if right > left and bottom > top:
            inside = self._read(left, top, right - left, bottom - top, level=level)
            out[top - y : bottom - y, left - x : right - x] = inside
        return out

    def block_size(self, level: int) -> tuple[int, int]:
        """Width and height of the pieces in which a level is best read, in its pixels."""
        width, height = self.level_sizes[level]
        return min(width, _BLOCK), min(height, _BLOCK)

    def thumbnail(self, max_px: int, *, read: ReadRegion | None = None) -> Rgb:
        """The whole slide, its longer side at most ``max_px``; never more than a band of a level is held.

        Parameters
        ----------
        max_px
            Pixels.
        read
            A quicker way to the same pixels than ``read_region``, where there is one.
        """
        wanted = max(self.width, self.height) / max_px
        level = [i for i, d in enumerate(self.downsamples) if d <= max(wanted, 1.0)][-1]
        width, height = self.level_sizes[level]
        # First by a whole number, in bands, so that a slide without small levels is not held whole
        factor = max(1, int(max(width, height) / max_px))
        read = read or self.read_region
        image = self._shrink(level, factor, read) if factor > 1 else read(0, 0, width, height, level=level)
        return _resized(image, (width, height), max_px)

    def _shrink(self, level: int, factor: int, read: ReadRegion) -> Rgb:
        """A level at a whole fraction of its size, averaged."""
        import cv2

        width, height = self.level_sizes[level]
        small_width = -(-width // factor)
        high = factor * max(1, _BAND // (width * factor))
        bands = []
        for top in range(0, height, high):
            rows = min(high, height - top)
            band = read(0, top, width, rows, level=level)
            # Made whole by repeating the last pixels, so that those at the edges stand for what they show
            right, below = small_width * factor - width, -rows % factor
            whole = cv2.copyMakeBorder(band, 0, below, 0, right, cv2.BORDER_REPLICATE) if right or below else band
            size = (small_width, whole.shape[0] // factor)
            bands.append(np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), dtype=np.uint8))
        return np.concatenate(bands)

    @cached_property
    def content_hash(self) -> str:
        """Hash of the bytes of the slide's files."""
        return hash_slide(self.path)


def shrunk(image: Rgb, max_px: int) -> Rgb:
    """A picture with its longer side at most ``max_px``."""
    return _resized(image, (image.shape[1], image.shape[0]), max_px)


def _resized(image: Rgb, size: tuple[int, int], max_px: int) -> Rgb:
    """A picture of something of this width and height, in whose proportions its longer side is at most ``max_px``."""
    import cv2

    shrink = min(1.0, max_px / max(size))
    width, height = (max(1, round(side * shrink)) for side in size)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def slide_files(path: Path) -> list[Path]:
    """The file of a slide and those beside it that hold its pixels, in formats that have such."""
    list_beside = _BESIDE.get(path.suffix.lower())
    beside = list_beside(path) if list_beside else ()
    return [path, *sorted(p for p in beside if p.is_file() and p != path)]


def _of_its_name(path: Path) -> Iterable[Path]:
    return (p for p in path.parent.iterdir() if p.name.startswith(path.stem))


_BESIDE: dict[str, Callable[[Path], Iterable[Path]]] = {
    ".mrxs": lambda path: path.with_suffix("").rglob("*"),
    ".dcm": lambda path: path.parent.glob("*.[dD][cC][mM]"),
    ".vms": _of_its_name,
    ".vmu": _of_its_name,
}
SEVERAL_FILES = frozenset(_BESIDE)  #: formats whose pixels lie in files beside the one named


def hash_slide(path: Path) -> str:
    """Hash of the bytes of all files of a slide."""
    files = slide_files(path)
    if len(files) == 1:
        return hash_file(path)
    told = "".join(f"{file.relative_to(path.parent)}\0{hash_file(file)}\0" for file in files)
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def hash_file(path: Path) -> str:
    """blake2b of a file's bytes; computed again only when the file has changed."""
    facts = path.stat()
    return _hash_file(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hash_file(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def plausible_mpp(mpp: float | None) -> Mpp | None:
    """The value, or None where it cannot be that of a microscope (0.05–10 µm per pixel)."""
    return float(mpp) if mpp and PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1] else None


def implausible_mpp(*said: float | None) -> float | None:
    """The first of the values that is a length, and yet cannot be that of a microscope's pixel."""
    return next((float(v) for v in said if v and 0 < v < math.inf and plausible_mpp(v) is None), None)


def on_white(image: npt.NDArray[np.uint8]) -> Rgb:
    """RGB of a grey, RGB or RGBA image; what is transparent becomes white, as on glass."""
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.shape[2] != 4:
        return image
    if image[:, :, 3].min(initial=255) == 255:
        return image[:, :, :3]
    out = np.empty((*image.shape[:2], 3), dtype=np.uint8)
    rows = max(1, _BLENDED // max(image.shape[1], 1))  # a few at a time: sums need four bytes a number
    for top in range(0, len(image), rows):
        colours, alpha = np.split(image[top : top + rows].astype(np.uint32), [3], axis=2)
        out[top : top + rows] = (colours * alpha + 255 * (255 - alpha) + 127) // 255
    return out
