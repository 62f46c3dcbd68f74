"""Collagen: noise smeared along a field of directions."""

from __future__ import annotations

import cv2
import numpy as np

from hescribe.datasets.synthetic.block import Field


def fibre_texture(rng: np.random.Generator, direction: Field, *, width_px: float, length_px: float) -> Field:
    """Streaks along ``direction``, of mean 0 and variance 1.

    Line integral convolution in log2(length) steps: each averages the picture with itself one step, twice as long
    as the last, ahead and behind. Both ways at once, because a fibre's direction has no sign.

    Parameters
    ----------
    direction
        (n, n) angles, radians.
    width_px, length_px
        Of a streak.
    """
    side = direction.shape[0]
    noise = rng.standard_normal((side, side), dtype=np.float32)
    picture = cv2.GaussianBlur(noise, (0, 0), width_px / 2) if width_px > 1 else noise
    y, x = np.mgrid[:side, :side].astype(np.float32)
    along_x, along_y = np.cos(direction), np.sin(direction)
    step = np.float32(max(0.5, width_px / 4))
    while step < length_px / 2:
        ahead = cv2.remap(
            picture, x + step * along_x, y + step * along_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        behind = cv2.remap(
            picture, x - step * along_x, y - step * along_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        picture = (ahead + behind) * np.float32(0.5)
        step *= np.float32(2)
    mean, std = cv2.meanStdDev(picture)
    return (picture - np.float32(mean[0, 0])) / np.float32(std[0, 0])
