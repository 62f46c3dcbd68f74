"""Gene maps as images: spots on the grid they were printed on, and the structural similarity of two maps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from skimage.metrics import structural_similarity

from hescribe.errors import InputError
from hescribe.metrics.gene_blocks import Block, Matrix, is_constant, per_gene
from hescribe.types import Centres, PerGene

Pixels = npt.NDArray[np.intp]  #: (n, 2) row and column of each spot's pixel

_WINDOW = 7  #: side of the SSIM window in spots, scikit-image's default
_LARGEST = 4096  #: pixels a side, against one stray position making the raster huge


def array_pixels(array_row: npt.ArrayLike, array_col: npt.ArrayLike) -> Pixels:
    """Pixel of each spot from its array position, (n, 2).

    Visium counts columns in steps of two (row and column are both even or both odd); such a grid is closed up,
    every second row standing half a spot aside. Other grids are taken as they are.

    Raises
    ------
    InputError
        Positions are missing or not whole numbers.
    """
    grid = np.column_stack([np.asarray(array_row, dtype=np.float64), np.asarray(array_col, dtype=np.float64)])
    if not np.isfinite(grid).all() or not np.allclose(grid, np.rint(grid), atol=0.05):
        raise InputError("array positions must be whole numbers")
    pixels = np.rint(grid).astype(np.intp)
    if len(pixels) < 2:
        return np.zeros_like(pixels)
    parity = pixels.sum(axis=1) % 2
    if (parity == parity[0]).all():
        pixels[:, 1] //= 2
    return np.asarray(pixels - pixels.min(axis=0), dtype=np.intp)


def nearest_pixels(centres: Centres) -> Pixels:
    """Pixel of each spot on a square grid as wide as the median distance to the nearest spot, (n, 2)."""
    centres = np.asarray(centres, dtype=np.float64)
    if len(centres) < 2:
        return np.zeros((len(centres), 2), dtype=np.intp)
    pitch = float(np.median(cKDTree(centres).query(centres, k=2)[0][:, 1]))
    span = float(np.ptp(centres, axis=0).max())
    pitch = max(pitch, span / (_LARGEST - 1)) or 1.0
    return np.rint((centres - centres.min(axis=0))[:, ::-1] / pitch).astype(np.intp)


def ssim_per_gene(predicted: Matrix, truth: Matrix, pixels: Pixels) -> PerGene:
    """Structural similarity of each gene's predicted and measured map.

    Both maps are drawn on the raster; pixels without tissue take the gene's measured mean in both, and the local
    similarity is averaged over tissue pixels alone, so the size of the background does not matter. It is computed
    by scikit-image with a uniform window of 7 × 7 spots (the largest odd one that fits in smaller sections), on
    the scale of the data: the dynamic range is that of the gene's measured values, and the prediction is not
    rescaled, so a wrong level and a collapsed variance cost. 1: identical; 0: nothing alike; negative: inverted.

    Parameters
    ----------
    predicted, truth
        (n, g).
    pixels
        (n, 2) from `array_pixels` or `nearest_pixels`; spots that share a pixel are averaged.

    Returns
    -------
    ndarray
        (g,). NaN where the gene is constant in ``truth``, and for all genes where the raster is narrower than 3.

    References
    ----------
    Wang et al., IEEE Trans. Image Process. 13:600 (2004).
    """
    if not len(pixels):
        return np.full(truth.shape[1], np.nan)
    shape = tuple(int(side) + 1 for side in pixels.max(axis=0))
    window = min(_WINDOW, *(side - 1 + side % 2 for side in shape))
    if window < 3:
        return np.full(truth.shape[1], np.nan)
    flat = np.ravel_multi_index((pixels[:, 0], pixels[:, 1]), shape)
    return per_gene(lambda p, t: _ssim(p, t, flat=flat, shape=shape, window=window), predicted, truth)


def _ssim(p: Block, t: Block, *, flat: npt.NDArray[np.intp], shape: tuple[int, ...], window: int) -> PerGene:
    constant = is_constant(t)
    # Dividing by the range gives every gene the dynamic range 1
    scale = np.where(constant, 1.0, np.ptp(t, axis=0))
    images = [_draw(block / scale, t.mean(axis=0) / scale, flat=flat, shape=shape) for block in (p, t)]
    tissue = np.zeros(shape, dtype=bool)
    tissue.flat[flat] = True
    out = np.full(t.shape[1], np.nan)
    for gene in np.flatnonzero(~constant):
        pair = (image[gene] for image in images)
        local = structural_similarity(*pair, win_size=window, data_range=1.0, full=True)[1]
        out[gene] = local[tissue].mean()
    return out


def _draw(block: Block, background: PerGene, *, flat: npt.NDArray[np.intp], shape: tuple[int, ...]) -> Block:
    """(n, b) values → (b, rows, columns) images."""
    spots = np.bincount(flat, minlength=int(np.prod(shape)))
    total = np.zeros((len(spots), block.shape[1]))
    np.add.at(total, flat, block)
    image = np.where(spots[:, None] > 0, total / np.maximum(spots, 1)[:, None], background)
    return np.ascontiguousarray(image.T).reshape(-1, *shape)
