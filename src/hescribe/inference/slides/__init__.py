"""Whole slides: a grid of tiles over the tissue, predicted in bounded memory, to be resumed at any moment."""

from hescribe.inference.slides.plan import SlideOptions
from hescribe.inference.slides.run import SlidesFailed, predict_slide, predict_slides

__all__ = ["SlideOptions", "SlidesFailed", "predict_slide", "predict_slides"]
