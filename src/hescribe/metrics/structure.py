"""What a correlation per gene does not see: how genes go together, and how much they vary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hescribe.metrics.correlation import pearson_per_gene
from hescribe.metrics.gene_blocks import Matrix, gene_blocks, is_constant
from hescribe.types import PerGene


def gene_correlations(expression: Matrix) -> npt.NDArray[np.float64]:
    """Pearson correlation of every two genes across spots, (g, g) float64.

    A constant gene correlates 0 with every other. Memory grows with the square of the number of genes.
    """
    columns = [np.where(is_constant(block), 0.0, block - block.mean(axis=0)) for _, (block,) in gene_blocks(expression)]
    centred = np.concatenate(columns, axis=1)
    norm = np.sqrt(np.einsum("ij,ij->j", centred, centred))
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    return np.clip(unit.T @ unit, -1.0, 1.0)


def gene_gene_preservation(predicted: Matrix, truth: Matrix) -> tuple[float, float]:
    """How well the correlations between genes are kept: Pearson and RMSE between the two upper triangles.

    Pearson near 1: genes that go together in tissue go together in the prediction. RMSE: how far a correlation
    between two genes is off on average; predictions that average neighbours drive all of them towards ±1, which
    Pearson forgives and RMSE shows.

    Parameters
    ----------
    predicted, truth
        (n, g); genes constant in ``truth`` are left out. Meant for tens to some hundreds of genes.

    Returns
    -------
    tuple of float
        Pearson and RMSE. NaN with fewer than two genes that vary; Pearson NaN with fewer than three.
    """
    varies = np.concatenate([np.zeros(0, dtype=bool), *(~is_constant(t) for _, (t,) in gene_blocks(truth))])
    upper = np.triu_indices(int(varies.sum()), k=1)
    if not len(upper[0]):
        return float("nan"), float("nan")
    pairs = [gene_correlations(m)[np.ix_(varies, varies)][upper][:, None] for m in (predicted, truth)]
    return float(pearson_per_gene(*pairs)[0]), float(np.sqrt(np.mean(np.square(pairs[0] - pairs[1]))))


def relative_variance_deviation(variance_predicted: PerGene, variance_true: PerGene) -> float:
    """RVD: how far the genes' variances are from the measured ones.

    RVD = mean_g (σ̂²_g − σ²_g)² / (σ²_g)², over genes with σ²_g > 0. 0: variances are kept; 1: the prediction is
    flat (variance collapse); above 1: it varies more than the measurement. Against noisy counts a good predictor
    is *not* at 0, for it does not predict the noise.

    Parameters
    ----------
    variance_predicted, variance_true
        (g,) variances across spots.

    References
    ----------
    As Stem's public evaluation defines it.
    """
    measured = np.asarray(variance_true, dtype=np.float64)
    known = measured > 0
    if not known.any():
        return float("nan")
    return float(np.mean(np.square(np.asarray(variance_predicted)[known] / measured[known] - 1)))
