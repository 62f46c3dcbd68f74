"""The sets of genes over which correlations are averaged, as masks (g,)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hescribe.metrics.gene_blocks import Mask, Matrix, check_shapes, gene_blocks
from hescribe.types import PerGene

TOP = 50  #: genes in HEG-50 and HVG-50
MIN_DETECTED = 0.1  #: share of spots for the set "detected in at least 10 %"


@dataclass(frozen=True, eq=False)
class GeneMoments:
    """What a matrix says about each gene, (g,) float64 each.

    Attributes
    ----------
    mean, variance
        Across spots, in units of the matrix; the variance divides by n.
    detected
        Share of spots with a value above 0.
    """

    mean: PerGene
    variance: PerGene
    detected: PerGene


def gene_moments(matrix: Matrix) -> GeneMoments:
    """Mean, variance and detected share of every gene of (n, g); NaN without spots."""
    n, g = check_shapes(matrix)
    out = np.full((3, g), np.nan)
    if n:
        for where, (block,) in gene_blocks(matrix):
            out[:, where] = block.mean(axis=0), block.var(axis=0), (block > 0).mean(axis=0)
    return GeneMoments(*out)


def variance_within(matrix: Matrix, section: npt.NDArray[np.intp]) -> PerGene:
    """Variance of every gene within the sections of (n, g) spots, averaged over sections: (g,).

    Over spots of several sections at once it would be largest for the genes in which patients or depths of sequencing
    differ.
    """
    return np.mean([gene_moments(matrix[section == i]).variance for i in np.unique(section)], axis=0)


def top_genes(value: PerGene, genes: Sequence[str], n: int = TOP) -> Mask:
    """The ``n`` genes of largest ``value``, (g,) bool.

    With the mean this is HEG-50, with the variance HVG-50: of the test section's truth, as BLEEP and its
    successors choose them, or of training sections. Genes that are 0 or NaN are never chosen, so there may be
    fewer. Ties go by name, so the set does not depend on the order of the genes.
    """
    value = np.asarray(value, dtype=np.float64)
    # np.lexsort sorts by its last key first
    order = np.lexsort((np.asarray(genes, dtype=str), -np.nan_to_num(value, nan=0.0)))
    chosen = np.zeros(len(value), dtype=bool)
    chosen[[i for i in order[:n] if value[i] > 0]] = True
    return chosen


def detected_genes(detected: PerGene, minimum: float = MIN_DETECTED) -> Mask:
    """Genes detected in at least the share ``minimum`` of the spots, (g,) bool."""
    # 0.1 of 10 spots must not fail for want of a digit
    return np.nan_to_num(np.asarray(detected, dtype=np.float64), nan=0.0) >= minimum - 1e-12


def named_genes(genes: Sequence[str], names: Iterable[str]) -> Mask:
    """Genes that stand in ``names`` (markers, a panel), (g,) bool; names that are not there are passed over."""
    wanted = set(names)
    return np.fromiter((gene in wanted for gene in genes), dtype=bool, count=len(genes))
