"""From dye to pixels: Beer–Lambert, the microscope's blur and uneven lamp, the camera's noise."""

from __future__ import annotations

import cv2
import numpy as np

from hescribe.datasets.synthetic.block import Field
from hescribe.datasets.synthetic.patients import Stain
from hescribe.types import Mpp, TileArray

_BAND = 1024  #: rows at a time, to keep memory flat
_SPARE = 128


def photograph(haematoxylin: Field, eosin: Field, stain: Stain, rng: np.random.Generator, *, mpp: Mpp) -> TileArray:
    """The picture of a stained section, (rows, columns, 3) uint8 RGB.

    I = I₀ · exp(−(h·H + e·E)), with h and e the amounts of dye and H, E their optical densities.
    """
    blur = rng.uniform(0.28, 0.42) / mpp
    tilt = rng.normal(0, 0.012, 2).astype(np.float32)
    sigma = rng.uniform(1.4, 2.4)
    rows, columns = haematoxylin.shape
    grain = _grain(rng, columns, sigma)
    dyes = np.array([stain.haematoxylin, stain.eosin], dtype=np.float32).T * np.asarray(stain.strength, np.float32)
    out = np.empty((rows, columns, 3), dtype=np.uint8)
    for top in range(0, rows, _BAND):
        here = slice(top, min(top + _BAND, rows))
        amounts = cv2.merge([haematoxylin[here], eosin[here]])
        light: Field = np.asarray(cv2.exp(cv2.transform(amounts, -dyes)), dtype=np.float32)
        lamp = 1 + tilt[0] * np.linspace(-1, 1, columns, dtype=np.float32)[None]
        lamp = lamp + (tilt[1] * (np.arange(here.start, here.stop, dtype=np.float32) / rows * 2 - 1))[:, None]
        light *= lamp[..., None] * np.asarray(stain.glass, np.float32)
        x, y = rng.integers(0, _SPARE, 2)
        light += grain[y : y + len(light), x : x + columns]
        out[here] = cv2.convertScaleAbs(np.maximum(light, 0, out=light))
    # The seams between bands do not show: the blur runs over the whole picture
    return np.asarray(cv2.GaussianBlur(out, (0, 0), blur), dtype=np.uint8)


def _grain(rng: np.random.Generator, columns: int, sigma: float) -> Field:
    """Camera noise for one band and some spare, (rows, columns, 3); each band takes another part of it."""
    sheet = rng.standard_normal((_BAND + _SPARE, 1024, 3), dtype=np.float32) * np.float32(sigma)
    return np.tile(sheet, (1, -(-(columns + _SPARE) // 1024), 1))
