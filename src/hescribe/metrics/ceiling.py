"""The correlation that counting noise leaves attainable, per gene.

A count is a sample of the expression below it, so even a perfect predictor of expression does not reach a
correlation of 1 with what was measured. Dividing every count at random between two halves gives two
measurements of the same spots with independent noise (a Poisson count split by a fair coin is two independent
Poisson counts). What the halves share is signal, the rest is noise: their correlation *is* the reliability of
a measurement at half the depth. Full depth has to be extrapolated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from hescribe.errors import InputError
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.metrics.gene_blocks import Mask, Matrix, is_constant, per_gene
from hescribe.types import PerGene

Normalise = Callable[[sparse.csr_matrix], Matrix]  #: raw counts (n, g) → expression (n, g)
Extrapolation = Literal["measured", "spearman-brown"]

_BIN = 100  #: genes of like abundance that are judged together: one gene's own figures are largely chance
_TOO_NOISY = 0.01  #: mean correlation below which a bin cannot tell its exponent
_TINY = 1e-9


def ceiling_per_gene(
    counts: Matrix,
    normalise: Normalise,
    *,
    n_splits: int = 5,
    seed: int = 0,
    extrapolation: Extrapolation = "measured",
) -> PerGene:
    """Correlation with the measurement that a perfect predictor of each gene's expression would reach.

    ceiling = sqrt(ρ), with ρ the reliability of the full measurement (`reliability_per_gene`): the share of the
    gene's variance that is not counting noise. ρ itself is what *another measurement* of the same spots would
    reach; a predictor without noise of its own reaches its root. What the halves share includes what a
    spot's depth does to log1p of a sparse gene; that counts as attainable. 1: no noise; 0: a map of noise.

    Parameters
    ----------
    counts
        (n, g) raw counts of all genes of one section.
    normalise
        Counts → the scale of the evaluation, such as `hescribe.io.expression.log_normalise`.
    n_splits
        Random splits whose correlations are averaged.
    seed
        Of the splits.
    extrapolation
        How half depth is taken to full depth, see `reliability_per_gene`.

    Returns
    -------
    ndarray
        (g,) float64 in [0, 1]. NaN only where the gene is constant in the normalised counts. A split that leaves
        one half of a rare gene without any count counts as r = 0, and a mean r below 0, which is chance, as a ceiling
        of 0: "not distinguishable from noise". It is an estimate: single genes are off by 0.05 (frequent) to 0.13
        (rare) in sections of 200 spots, so a good predictor may pass the ceiling of one gene; read means over sets
        of genes, which simulations on real sections find within 0.02, at worst 0.06 too low (HEG-50).

    Raises
    ------
    InputError
        Counts that are negative or not whole, no splits, or an unknown extrapolation.

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson(np.linspace(1, 400, 200)[:, None] * np.ones((1, 2)))
    >>> bool((ceiling_per_gene(counts, lambda c: c.toarray()) > 0.99).all())
    True
    """
    return np.sqrt(reliability_per_gene(counts, normalise, n_splits=n_splits, seed=seed, extrapolation=extrapolation))


def reliability_per_gene(
    counts: Matrix,
    normalise: Normalise,
    *,
    n_splits: int = 5,
    seed: int = 0,
    extrapolation: Extrapolation = "measured",
) -> PerGene:
    """Share of each gene's variance that is not counting noise, (g,) in [0, 1].

    Each half is normalised by itself, the halves are correlated across spots, and the correlations of all splits
    are averaged to r. With κ = (1 − r) / r, the ratio of noise to signal, full depth is κ / 2^s:

    - ``"spearman-brown"``: s = 1, ρ = 2r / (1 + r). True where the full measurement is the sum of its halves. It is
      not after log1p of counts per 10,000: twice the depth gains less than it says, in shallow sections almost
      nothing. On counts simulated like a section of 650 counts per spot it states 0.64 where 0.50 is attainable.
    - ``"measured"``: s is what going from a quarter to half of the depth gained, s = log2(κ_¼ / κ_½), within
      [0, 1], common to about 100 genes of like abundance; on the same simulated counts 0.51. Genes too rare to tell
      take s = 1: their counts are 0 or 1, for which log1p is linear.

    Conventions as in `ceiling_per_gene`.

    References
    ----------
    Spearman, Br. J. Psychol. 3:271 (1910); Brown, ibid. 3:296 (1910). Count splitting: Neufeld et al.,
    Biostatistics 25:270 (2024). The measured exponent is ours.
    """
    if n_splits < 1:
        raise InputError(f"at least one split is needed, found {n_splits}", path="n_splits")
    if extrapolation not in ("measured", "spearman-brown"):
        raise InputError(f"unknown extrapolation {extrapolation!r}", fix="measured or spearman-brown")
    whole = _whole_counts(counts)
    rng = np.random.default_rng(seed)
    half = np.zeros(whole.shape[1])
    quarter = np.zeros(whole.shape[1])
    for _ in range(n_splits):
        first, second = binomial_halves(whole, rng)
        half += _shared(first, second, normalise) / n_splits
        if extrapolation == "measured":
            quarter += _shared(*binomial_halves(first, rng), normalise) / n_splits
    constant = per_gene(lambda block: is_constant(block).astype(np.float64), normalise(whole)) == 1.0
    exponent = np.ones(len(half))
    if extrapolation == "measured":
        for genes in _alike(np.asarray(whole.sum(axis=0)).ravel(), ~constant):
            exponent[genes] = _depth_exponent(quarter[genes], half[genes])
    noise = (1 / np.clip(half, _TINY, 1.0) - 1) / 2**exponent
    return np.where(constant, np.nan, np.where(half > 0, 1 / (1 + noise), 0.0))


def binomial_halves(counts: sparse.csr_matrix, rng: np.random.Generator) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Two (n, g) count matrices that sum to ``counts``, each count having gone to either by a fair coin."""
    halves = counts.copy(), counts.copy()
    halves[0].data = rng.binomial(counts.data, 0.5)
    halves[1].data = counts.data - halves[0].data
    for half in halves:
        half.eliminate_zeros()
    return halves


def _shared(first: sparse.csr_matrix, second: sparse.csr_matrix, normalise: Normalise) -> PerGene:
    return np.nan_to_num(pearson_per_gene(normalise(first), normalise(second)), nan=0.0)


def _alike(abundance: npt.NDArray[np.int64], wanted: Mask) -> list[npt.NDArray[np.intp]]:
    """Wanted genes in bins of like abundance."""
    order: npt.NDArray[np.intp] = np.argsort(abundance, kind="stable")
    order = order[wanted[order]]
    return np.array_split(order, len(order) // _BIN) if len(order) > _BIN else [order] * (len(order) > 0)


def _depth_exponent(quarter: PerGene, half: PerGene) -> float:
    """How fast noise falls with depth in one bin: 0 not at all, 1 as Spearman–Brown."""
    low, high = float(quarter.mean()), float(half.mean())
    if min(low, high) <= _TOO_NOISY or max(low, high) >= 1:
        return 1.0
    return float(np.clip(np.log2((1 / low - 1) / (1 / high - 1)), 0.0, 1.0))


def _whole_counts(counts: Matrix) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix(counts)
    whole = np.rint(matrix.data).astype(np.int64)
    if (whole < 0).any() or not np.array_equal(whole, matrix.data):
        raise InputError("the ceiling needs raw counts: whole numbers of at least 0", fix="give counts, not logarithms")
    return sparse.csr_matrix((whole, matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)
