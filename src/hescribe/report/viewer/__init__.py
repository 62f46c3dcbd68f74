"""A prediction in the browser: the slide, a gene over it, and how far each can be trusted."""

from hescribe.report.viewer.live import Viewer, view

__all__ = ["Viewer", "view"]
