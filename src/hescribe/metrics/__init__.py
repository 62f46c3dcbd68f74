"""Formulas on arrays: agreement of prediction and measurement, gene sets, structure of maps, ceilings."""

from hescribe.metrics.autocorrelation import morans_agreement, morans_i_per_gene, neighbour_weights
from hescribe.metrics.ceiling import ceiling_per_gene, reliability_per_gene
from hescribe.metrics.correlation import (
    mae_per_gene,
    pearson_per_gene,
    pearson_per_spot,
    rmse_per_gene,
    spearman_per_gene,
)
from hescribe.metrics.gene_sets import detected_genes, gene_moments, named_genes, top_genes
from hescribe.metrics.maps import array_pixels, nearest_pixels, ssim_per_gene
from hescribe.metrics.structure import gene_correlations, gene_gene_preservation, relative_variance_deviation

__all__ = [
    "array_pixels",
    "ceiling_per_gene",
    "detected_genes",
    "gene_correlations",
    "gene_gene_preservation",
    "gene_moments",
    "mae_per_gene",
    "morans_agreement",
    "morans_i_per_gene",
    "named_genes",
    "nearest_pixels",
    "neighbour_weights",
    "pearson_per_gene",
    "pearson_per_spot",
    "relative_variance_deviation",
    "reliability_per_gene",
    "rmse_per_gene",
    "spearman_per_gene",
    "ssim_per_gene",
    "top_genes",
]
