"""Using a trained method: predictors, bundle, predictions."""

from hescribe.inference.bundle import Bundle, load_bundle
from hescribe.inference.predict import predict, predict_sections, read_prediction

__all__ = ["Bundle", "load_bundle", "predict", "predict_sections", "read_prediction"]
