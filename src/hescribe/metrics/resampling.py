"""Confidence from one section: its tissue cut into blocks, and the blocks drawn again and again.

Neighbouring spots are alike, so drawing single spots would pretend to more independent evidence than there is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hescribe.errors import InputError
from hescribe.metrics.gene_blocks import Block, Matrix, check_shapes, gene_blocks, is_constant
from hescribe.types import Centres, PerGene

Labels = npt.NDArray[np.intp]  #: (n,) block of each spot
_VANISHED = 1e-10  #: share of the section's variance below which a gene is constant within a resample


def spatial_blocks(centres: Centres, n_blocks: int) -> Labels:
    """Cut tissue into contiguous blocks of nearly equal numbers of spots.

    The spots are halved (or parted in the ratio that the number of blocks asks for) across their longest axis,
    and the parts again, until there are enough. The result depends on where spots are, not on their order.

    Parameters
    ----------
    centres
        (n, 2) positions, any unit.
    n_blocks
        Blocks wanted; with fewer spots than that, each is a block.

    Returns
    -------
    ndarray
        (n,) intp, 0 … blocks − 1.
    """
    centres = np.asarray(centres, dtype=np.float64)
    if centres.ndim != 2 or centres.shape[1] != 2 or not np.isfinite(centres).all():
        raise InputError(f"positions must be finite and of shape (spots, 2), found {centres.shape}")
    labels = np.zeros(len(centres), dtype=np.intp)
    parts = [(np.arange(len(centres)), max(1, min(int(n_blocks), len(centres))))]
    done = 0
    while parts:
        inside, wanted = parts.pop()
        if wanted == 1:
            labels[inside] = done
            done += 1
            continue
        ordered = inside[_along_longest_axis(centres[inside])]
        cut = round(len(inside) * (wanted // 2) / wanted)
        parts.append((ordered[cut:], wanted - wanted // 2))
        parts.append((ordered[:cut], wanted // 2))
    return labels


def _along_longest_axis(points: Centres) -> Labels:
    centred = points - points.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    # The sign of a singular vector is arbitrary; ties of the projection go by position
    axis = axis * (1.0 if axis[np.argmax(np.abs(axis))] >= 0 else -1.0)
    along = np.round(centred @ axis, 6)
    return np.lexsort((points[:, 1], points[:, 0], along))


def draw_blocks(n_blocks: int, n_resamples: int, *, seed: int) -> npt.NDArray[np.float64]:
    """How often each block is drawn in each bootstrap resample, (n_resamples, n_blocks); rows sum to n_blocks."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_resamples).astype(np.float64)


def resampled_pearson(
    predicted: Matrix, truth: Matrix, *, labels: Labels, draws: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Pearson correlation of each gene in each resample of blocks.

    A weighted correlation needs five sums only, and these add up over blocks: so each gene is read once,
    whatever the number of resamples.

    Parameters
    ----------
    predicted, truth
        (n, g).
    labels
        (n,) block of each spot.
    draws
        (r, blocks) how often each block is drawn.

    Returns
    -------
    ndarray
        (r, g). NaN where the gene is constant in the resample's truth, 0 where only the prediction is.
    """
    out = np.full((len(draws), check_shapes(predicted, truth)[1]), np.nan)
    member = (labels[:, None] == np.arange(draws.shape[1])).astype(np.float64)
    size = draws @ member.sum(axis=0)
    for where, (p, t) in gene_blocks(predicted, truth):
        out[:, where] = _weighted_pearson(p, t, draws=draws, member=member, size=size)
    return out


def _weighted_pearson(
    p: Block, t: Block, *, draws: npt.NDArray[np.float64], member: npt.NDArray[np.float64], size: PerGene
) -> npt.NDArray[np.float64]:
    # Centred on the section first, so that the sums of squares lose no digits
    x, y = p - p.mean(axis=0), t - t.mean(axis=0)
    mean_x, mean_y, xx, yy, xy = (
        (draws @ (member.T @ values)) / size[:, None] for values in (x, y, x * x, y * y, x * y)
    )  # fmt: skip
    var_x, var_y = xx - mean_x**2, yy - mean_y**2
    norm = np.sqrt(np.clip(var_x, 0, None) * np.clip(var_y, 0, None))
    flat_x = is_constant(p) | (var_x <= _VANISHED * x.var(axis=0))
    flat_y = is_constant(t) | (var_y <= _VANISHED * y.var(axis=0))
    out = np.divide(xy - mean_x * mean_y, norm, out=np.zeros_like(norm), where=~(flat_x | flat_y))
    out = np.clip(out, -1.0, 1.0)
    out[flat_y] = np.nan
    return out


def percentile_interval(values: npt.NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The middle ``level`` of bootstrap values, NaN left out; (NaN, NaN) where none is left."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
