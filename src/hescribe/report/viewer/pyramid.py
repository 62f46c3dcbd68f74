"""A slide as square pictures at halved sizes, made when they are asked for."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from functools import cached_property
from threading import BoundedSemaphore, Lock

import numpy as np

from hescribe.errors import InputError
from hescribe.slides.blocks.cells import quickest_read
from hescribe.slides.slide import Rgb, Slide

PICTURE_PX = 512  #: side of a picture
_OVERVIEW_PX = 4096  #: longer side of the small slide that the coarsest pictures are cut from
_FAR = 8  #: pixels of a level to a pixel of a picture, beyond which the small slide is used instead
_KEPT_BYTES = 128 * 2**20  #: of finished pictures
_QUALITY = 85  #: of JPEG


class Pyramid:
    """Pictures of a slide: level 0 is full resolution, each further one half the size of the one before.

    Parameters
    ----------
    slide
        The open slide; any of its own levels may be missing.
    """

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self._read = quickest_read(slide)
        longer = max(slide.width, slide.height)
        self.levels = 1 + max(0, math.ceil(math.log2(longer / PICTURE_PX)))
        self._kept: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock, self._drawing = Lock(), Lock()
        # Each decodes up to a few hundred MB where a slide has no small levels
        self._working = BoundedSemaphore(max(2, min(4, os.cpu_count() or 1)))

    def picture(self, level: int, column: int, row: int) -> bytes | None:
        """A picture as JPEG, smaller at the slide's far edges; None where the slide has none.

        Raises
        ------
        InputError
            The slide is damaged there.
        """
        if not self._is_inside(level, column, row):
            return None
        key = (level, column, row)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._working:
            made = _jpeg(self._draw(level, column, row))
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made)
            while self._bytes > _KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made

    def _is_inside(self, level: int, column: int, row: int) -> bool:
        if not 0 <= level < self.levels or column < 0 or row < 0:
            return False
        side = PICTURE_PX * 2**level
        return column * side < self.slide.width and row * side < self.slide.height

    def _draw(self, level: int, column: int, row: int) -> Rgb:
        import cv2

        scale, side = 2**level, PICTURE_PX * 2**level
        left, top = column * side, row * side
        right, bottom = min(left + side, self.slide.width), min(top + side, self.slide.height)
        size = (math.ceil((right - left) / scale), math.ceil((bottom - top) / scale))
        fitting = [i for i, d in enumerate(self.slide.downsamples) if d <= scale * 1.01][-1]
        if scale > _FAR * self.slide.downsamples[fitting] and scale >= self._overview_scale:
            height, width = self._overview.shape[:2]
            xs = _between(left, right, self.slide.width / width, width)
            ys = _between(top, bottom, self.slide.height / height, height)
            region = self._overview[slice(*ys), slice(*xs)]
        else:
            down, (width, height) = self.slide.downsamples[fitting], self.slide.level_sizes[fitting]
            xs, ys = _between(left, right, down, width), _between(top, bottom, down, height)
            region = self._read(xs[0], ys[0], xs[1] - xs[0], ys[1] - ys[0], level=fitting)
        if region.shape[:2] == size[::-1]:
            return region
        return np.asarray(cv2.resize(region, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    @property
    def _overview_scale(self) -> float:
        return max(self.slide.width, self.slide.height) / _OVERVIEW_PX

    @property
    def _overview(self) -> Rgb:
        with self._drawing:  # else several pictures would each read the whole slide
            return self._small_slide

    @cached_property
    def _small_slide(self) -> Rgb:
        return self.slide.thumbnail(_OVERVIEW_PX, read=self._read)


def _between(low: float, high: float, scale: float, end: int) -> tuple[int, int]:
    """Full-resolution pixels → pixels of a smaller image, at least one, none beyond its end."""
    first = min(round(low / scale), end - 1)
    return first, min(max(first + 1, round(high / scale)), end)


def _jpeg(image: Rgb) -> bytes:
    import cv2

    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise InputError("a picture of the slide could not be written as JPEG")
    return data.tobytes()
