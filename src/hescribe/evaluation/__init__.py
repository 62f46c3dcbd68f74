"""Splits that refuse leaks, cross-validation over a given fit function, scores and tables with intervals."""

from hescribe.evaluation.alignment import training_stats
from hescribe.evaluation.cell_types import score_cell_types
from hescribe.evaluation.crossval import HeldOut, cross_validate, predict_at_spots
from hescribe.evaluation.scores import SectionScores, score_section
from hescribe.evaluation.seeds import mean_over_seeds
from hescribe.evaluation.splits import (
    PROTOCOLS,
    Split,
    check_no_leakage,
    explicit_split,
    inner_splits,
    leave_one_patient_out,
    leave_one_section_out,
    select_sections,
)
from hescribe.evaluation.tables import compare_methods, gene_table, markdown, method_table, section_table, write_table

__all__ = [
    "PROTOCOLS",
    "HeldOut",
    "SectionScores",
    "Split",
    "check_no_leakage",
    "compare_methods",
    "cross_validate",
    "explicit_split",
    "gene_table",
    "inner_splits",
    "leave_one_patient_out",
    "leave_one_section_out",
    "markdown",
    "mean_over_seeds",
    "method_table",
    "predict_at_spots",
    "score_cell_types",
    "score_section",
    "section_table",
    "select_sections",
    "training_stats",
    "write_table",
]
