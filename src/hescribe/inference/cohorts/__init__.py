"""Cohorts: many slides on many workers, one slide a task; to be resumed at any moment."""

from hescribe.inference.cohorts.run import predict_cohort
from hescribe.inference.cohorts.state import CohortSummary, SlideState

__all__ = ["CohortSummary", "SlideState", "predict_cohort"]
