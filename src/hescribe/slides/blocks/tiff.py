"""Blocks of a tiled TIFF, read and decoded without a slide library between."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hescribe.errors import InputError
from hescribe.slides.slide import Rgb, Slide, on_white

_SUFFIXES = {".tif", ".tiff", ".svs"}


class _File:
    """A file read at offsets by any number of threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._descriptor, count, offset)


@dataclass(frozen=True)
class TiffLevel:
    """One tiled page.

    Attributes
    ----------
    file
        Where its bytes are.
    size, block
        Width and height of the page and of its blocks.
    offsets, counts
        Of each block's bytes, row by row.
    decoder
        (bytes, index) → pixels; None for a block that was never written.
    """

    file: _File
    size: tuple[int, int]
    block: tuple[int, int]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    decoder: Callable[[bytes | None, int], Any]

    def decode(self, column: int, row: int) -> Rgb:
        """A block, without what of it lies beyond the page; white where nothing was scanned."""
        index = row * -(-self.size[0] // self.block[0]) + column
        width = min(self.block[0], self.size[0] - column * self.block[0])
        height = min(self.block[1], self.size[1] - row * self.block[1])
        count = self.counts[index]
        if not count:
            return np.full((height, width, 3), 255, dtype=np.uint8)
        try:
            data = self.file.read(self.offsets[index], count)
            if len(data) < count:
                raise ValueError("the file ends before the block does")
            pixels = on_white(self.decoder(data, index)[0][:height, :width])
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror or error})", path=self.file.path) from error
        except Exception as error:  # codecs raise their own kinds
            raise InputError(
                f"block {index} cannot be decoded ({' '.join(str(error).split())[:120]}); is it damaged or truncated?",
                path=self.file.path,
            ) from error
        if pixels.shape != (height, width, 3):
            raise InputError(f"block {index} has the wrong size; is it damaged?", path=self.file.path)
        return pixels


def tiff_levels(slide: Slide) -> list[TiffLevel]:
    """The page of each of the slide's levels, where all can be decoded directly to the right colours; else none."""
    if slide.path.suffix.lower() not in _SUFFIXES:
        return []
    import tifffile

    try:
        file = _File(slide.path)
        with tifffile.TiffFile(slide.path) as tiff:
            pages = [page for page in _all_pages(tiff) if _is_plain(page)]
            by_size = {(int(p.imagewidth), int(p.imagelength)): _describe(p, file) for p in reversed(pages)}
    except Exception:  # whatever tifffile stumbles over, the slide library has opened
        return []
    found = [level for level in (by_size.get(size) for size in slide.level_sizes) if level is not None]
    if len(found) < len(slide.level_sizes):
        return []
    _check_complete(found, slide.path)
    return found


def _check_complete(levels: list[TiffLevel], path: Path) -> None:
    """InputError where blocks are said to lie beyond the file's end: better now than in an hour."""
    ends = np.concatenate([np.add(level.offsets, level.counts, dtype=np.float64) for level in levels])
    beyond = ends > path.stat().st_size
    if beyond.any():
        raise InputError(
            f"the image is truncated ({beyond.sum()} of {len(ends)} blocks are missing)", path=path, fix="copy it again"
        )


def _all_pages(tiff: Any) -> list[Any]:
    pages = list(tiff.pages)
    return pages + [sub for page in pages if page.subifds for sub in page.pages]


def _is_plain(page: Any) -> bool:
    from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG

    if not page.is_tiled or page.dtype != np.uint8 or page.planarconfig != PLANARCONFIG.CONTIG:
        return False
    lossless = {COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE}
    known = page.compression in lossless or page.compression == COMPRESSION.JPEG
    coloured = page.photometric in {PHOTOMETRIC.RGB, PHOTOMETRIC.MINISBLACK} or (
        page.photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG
    )
    return bool(known and coloured and page.samplesperpixel in {1, 3} and page.imagedepth == 1)


def _describe(page: Any, file: _File) -> TiffLevel:
    tables = page.jpegtables
    decode = page.decode  # made once: tifffile builds it on first use

    def decoder(data: bytes | None, index: int) -> Any:
        pixels, _, _ = decode(data, index, jpegtables=tables) if tables is not None else decode(data, index)
        # (depth, height, width, samples) with the depth of one; grey has one sample
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels

    size, block = (int(page.imagewidth), int(page.imagelength)), (int(page.tilewidth), int(page.tilelength))
    offsets, counts = tuple(page.dataoffsets), tuple(page.databytecounts)
    needed = -(-size[0] // block[0]) * -(-size[1] // block[1])
    if min(len(offsets), len(counts)) < needed:
        raise InputError(f"{needed} blocks are needed but {len(offsets)} are listed", path=file.path)
    return TiffLevel(file, size, block, offsets, counts, decoder)
