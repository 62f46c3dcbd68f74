"""Predictions on disk: read a gene at a time, and put into a SpatialData store."""

from hescribe.io.predictions.spatial_store import export_spatialdata
from hescribe.io.predictions.stored import StoredPrediction, open_prediction

__all__ = ["StoredPrediction", "export_spatialdata", "open_prediction"]
