"""A slide's levels as cells that are aligned to the file's own blocks, so that no block need be decoded twice."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np

from hescribe.errors import InputError
from hescribe.slides.blocks.tiff import TiffLevel, tiff_levels
from hescribe.slides.slide import ReadRegion, Rgb, Slide


def reading_threads() -> int:
    """Threads that decode: as many as this process may use processors, or the system has where it does not say."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, usable)


def paste(region: Rgb, cell: Rgb, left: int, top: int) -> None:
    """Copy what of a cell lies inside a region, where the cell's corner lies there; the rest stays."""
    height, width = region.shape[:2]
    inside = cell[max(0, -top) : height - top, max(0, -left) : width - left]
    rows, columns = inside.shape[:2]
    region[max(0, top) : max(0, top) + rows, max(0, left) : max(0, left) + columns] = inside


class Cells(ABC):
    """The cells of a slide; any thread may decode any of them.

    Attributes
    ----------
    slide
        The slide.
    """

    def __init__(self, slide: Slide) -> None:
        self.slide = slide

    @abstractmethod
    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a cell, in the level's pixels; cells at the far edges may be smaller."""

    @abstractmethod
    def decode(self, level: int, column: int, row: int) -> Rgb:
        """One cell, no larger than what of it lies inside the level.

        Raises
        ------
        InputError
            The file is damaged there.
        """

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb:
        """Region that lies inside a level, its cells decoded by several threads; as ``Slide.read_region``."""
        cell_width, cell_height = self.size(level)
        out = np.empty((height, width, 3), dtype=np.uint8)

        def fill(place: tuple[int, int]) -> None:
            column, row = place
            paste(out, self.decode(level, column, row), column * cell_width - x, row * cell_height - y)

        places = product(
            range(x // cell_width, -(-(x + width) // cell_width)),
            range(y // cell_height, -(-(y + height) // cell_height)),
        )
        with ThreadPoolExecutor(reading_threads()) as pool:
            list(pool.map(fill, places))
        return out

    def count(self, level: int) -> tuple[int, int]:
        """Columns and rows of cells."""
        return tuple(  # type: ignore[return-value]
            math.ceil(total / side) for total, side in zip(self.slide.level_sizes[level], self.size(level), strict=True)
        )


class RegionCells(Cells):
    """Cells of any slide, through the library that opened it."""

    def size(self, level: int) -> tuple[int, int]:
        """As the base says."""
        return self.slide.block_size(level)

    def decode(self, level: int, column: int, row: int) -> Rgb:
        """As the base says."""
        width, height = self.size(level)
        x, y = column * width, row * height
        full_width, full_height = self.slide.level_sizes[level]
        return self.slide.read_region(x, y, min(width, full_width - x), min(height, full_height - y), level=level)


class TiffCells(Cells):
    """The blocks of a tiled TIFF, decoded directly.

    About four times as fast as regions of OpenSlide, which draws each block on a canvas with transparency that has to
    be taken apart again; the pixels are the same.
    """

    def __init__(self, slide: Slide, levels: list[TiffLevel]) -> None:
        super().__init__(slide)
        self._levels = levels

    def size(self, level: int) -> tuple[int, int]:
        """As the base says."""
        return self._levels[level].block

    def decode(self, level: int, column: int, row: int) -> Rgb:
        """As the base says."""
        return self._levels[level].decode(column, row)


def quickest_read(slide: Slide) -> ReadRegion:
    """The quickest way to a slide's pixels; where its file is cut short the library's, which has what is left."""
    try:
        return open_cells(slide).read_region
    except InputError:
        return slide.read_region


def small_picture(slide: Slide, max_px: int) -> tuple[Rgb, float]:
    """The whole slide, its longer side at most ``max_px``, and its downsampling."""
    image = slide.thumbnail(max_px, read=quickest_read(slide))
    return image, slide.width / image.shape[1]


def open_cells(slide: Slide) -> Cells:
    """The quickest cells that give this slide's pixels."""
    levels = tiff_levels(slide)
    return TiffCells(slide, levels) if levels else RegionCells(slide)
