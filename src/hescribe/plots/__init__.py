"""Figures from AnnData and tables, public as ``hescribe.pl``; each function returns a matplotlib ``Figure``."""

from hescribe.plots.benchmark.genes import genes_against_control
from hescribe.plots.benchmark.runs import learning_curves, structure_comparison
from hescribe.plots.folds import method_comparison, training_curves
from hescribe.plots.genes import gene_gene_correlation, mean_and_variance, pcc_distribution
from hescribe.plots.ground import Thumbnail
from hescribe.plots.maps import gene_map, measured_and_predicted, obs_map, slide_map
from hescribe.plots.regions import region_map, tls_map
from hescribe.plots.style import save_figure
from hescribe.plots.survival import auc_over_time, calibration, hazard_ratios, kaplan_meier
from hescribe.plots.volume import Overlay, neighbour_overlay, orthogonal_cuts, stacked_sections

__all__ = [
    "Overlay",
    "Thumbnail",
    "auc_over_time",
    "calibration",
    "gene_gene_correlation",
    "gene_map",
    "genes_against_control",
    "hazard_ratios",
    "kaplan_meier",
    "learning_curves",
    "mean_and_variance",
    "measured_and_predicted",
    "method_comparison",
    "neighbour_overlay",
    "obs_map",
    "orthogonal_cuts",
    "pcc_distribution",
    "region_map",
    "save_figure",
    "slide_map",
    "stacked_sections",
    "structure_comparison",
    "tls_map",
    "training_curves",
]
