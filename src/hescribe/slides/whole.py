"""Whole-slide formats, through wsidata."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from hescribe.errors import InputError
from hescribe.slides.slide import Rgb, Slide, implausible_mpp, on_white, plausible_mpp

_READERS = {"openslide": "OpenSlide", "tiffslide": "TiffSlide"}


class WholeSlide(Slide):
    """Any format that OpenSlide or TiffSlide opens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: Any = _open_wsi(path)
        properties = self._reader.properties
        self.height, self.width = (int(v) for v in properties.shape)
        self.downsamples = tuple(float(d) for d in properties.level_downsample)
        self.level_sizes = tuple((int(w), int(h)) for h, w in properties.level_shape)
        self.mpp = plausible_mpp(properties.mpp)
        self.refused_mpp = implausible_mpp(properties.mpp)

    def block_size(self, level: int) -> tuple[int, int]:
        """The file's own tiles, where the library tells."""
        facts = getattr(self._reader.reader, "properties", {})
        try:
            width, height = (int(facts[f"openslide.level[{level}].tile-{side}"]) for side in ("width", "height"))
        except (KeyError, ValueError, TypeError):
            return super().block_size(level)
        return (width, height) if min(width, height) >= 64 and max(width, height) <= 4096 else super().block_size(level)

    def _read(self, x: int, y: int, width: int, height: int, *, level: int) -> Rgb:
        # Both libraries want the corner in full-resolution pixels. Rounded up, since TiffSlide rounds down after
        # dividing by the downsampling, and would otherwise begin one pixel early.
        scale = self.downsamples[level]
        corner = (math.ceil(x * scale - 1e-6), math.ceil(y * scale - 1e-6))
        try:
            region = np.asarray(self._reader.reader.read_region(corner, level, (width, height)))
        except Exception as error:  # each library raises its own kinds
            raise InputError(
                f"cannot be read at ({x}, {y}) ({error}); is it damaged or truncated?", path=self.path
            ) from error
        # Not through wsidata's get_region: it drops the transparency, which leaves black where nothing was scanned
        return on_white(region)


def _open_wsi(path: Path) -> Any:
    from wsidata import open_wsi

    reasons = []
    for reader, name in _READERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return open_wsi(path, store=None, reader=reader).reader  # type: ignore[arg-type] # None: no store is made
        except Exception as error:  # each library raises its own kinds
            reasons.append(f"{name}: {' '.join(str(error).split())[:120] or type(error).__name__}")
    raise InputError(f"no reader opens this image ({'; '.join(reasons)})", path=path)
