"""How well prediction and measurement agree: correlation and error, per gene across spots and per spot.

Everywhere ``predicted`` and ``truth`` are (n spots, g genes) of *one* section on one scale (log1p of counts
per 10,000), dense or sparse. Spots of several sections must not be stacked: differences between sections
would count as skill.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from hescribe.metrics.gene_blocks import Block, Matrix, is_constant, per_gene
from hescribe.types import PerGene


def pearson_per_gene(predicted: Matrix, truth: Matrix) -> PerGene:
    """Pearson correlation of each gene across the spots of a section.

    r_g = Σ_i (p_ig − p̄_g)(t_ig − t̄_g) / sqrt(Σ_i (p_ig − p̄_g)² Σ_i (t_ig − t̄_g)²). +1: the map is right up
    to a positive scale and shift; 0: nothing of it; negative: turned upside down.

    Parameters
    ----------
    predicted, truth
        (n, g).

    Returns
    -------
    ndarray
        (g,) float64 in [−1, 1]. NaN where the gene is constant in ``truth`` (nothing to predict; leave it
        out of means), 0 where only the prediction is constant (it says nothing). Constant means up to
        float32 rounding, see `hescribe.metrics.gene_blocks.ROUNDING`.

    Raises
    ------
    InputError
        Shapes differ or values are not finite.

    Examples
    --------
    >>> pearson_per_gene(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 1.0], [4.0, 0.0], [6.0, 2.0]]))
    array([1., 0.])
    """
    return per_gene(_pearson, predicted, truth)


def spearman_per_gene(predicted: Matrix, truth: Matrix) -> PerGene:
    """Spearman correlation of each gene across spots: Pearson of the ranks, ties at their mean rank.

    Conventions for constants and the sign as in `pearson_per_gene`; (g,) float64.
    """
    return per_gene(_spearman, predicted, truth)


def rmse_per_gene(predicted: Matrix, truth: Matrix) -> PerGene:
    """Root of the mean squared error of each gene, (g,), in units of the matrices; 0 is perfect."""
    return per_gene(lambda p, t: np.sqrt(_mean(np.square(p - t))), predicted, truth)


def mae_per_gene(predicted: Matrix, truth: Matrix) -> PerGene:
    """Mean absolute error of each gene, (g,), in units of the matrices; 0 is perfect."""
    return per_gene(lambda p, t: _mean(np.abs(p - t)), predicted, truth)


def pearson_per_spot(predicted: Matrix, truth: Matrix) -> npt.NDArray[np.float64]:
    """Pearson correlation of each spot across genes, (n,) float64.

    Read with care: genes differ in mean far more than spots do, so the training mean alone scores high here.
    A spot constant in ``truth`` (no counts) is NaN, one with a constant prediction 0.
    """
    return pearson_per_gene(predicted.T, truth.T)


def _pearson(predicted: Block, truth: Block) -> PerGene:
    out = _cosine(_centred(predicted), _centred(truth))
    out[is_constant(predicted)] = 0.0
    out[is_constant(truth)] = np.nan
    return out


def _spearman(predicted: Block, truth: Block) -> PerGene:
    out = _cosine(*(_centred(_ranks(block)) for block in (predicted, truth)))
    # Constancy is judged on the values: ranks would blow rounding noise up to full size
    out[is_constant(predicted)] = 0.0
    out[is_constant(truth)] = np.nan
    return out


def _ranks(block: Block) -> Block:
    return np.asarray(rankdata(block, axis=0), dtype=np.float64) if block.size else block


def _centred(block: Block) -> Block:
    """Columns with mean 0 and largest magnitude 1, so that squares neither overflow nor vanish."""
    if not len(block):
        return block
    centred = block - block.mean(axis=0)
    # Once more: subtracting a large mean leaves a remainder of rounding
    centred -= centred.mean(axis=0)
    largest = np.abs(centred).max(axis=0)
    return np.asarray(np.divide(centred, largest, out=centred, where=largest > 0))


def _cosine(a: Block, b: Block) -> PerGene:
    product = np.einsum("ij,ij->j", a, b)
    norm = np.sqrt(np.einsum("ij,ij->j", a, a) * np.einsum("ij,ij->j", b, b))
    return np.clip(np.divide(product, norm, out=np.zeros_like(product), where=norm > 0), -1.0, 1.0)


def _mean(block: Block) -> PerGene:
    return block.mean(axis=0) if len(block) else np.full(block.shape[1], np.nan)
