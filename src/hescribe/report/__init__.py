"""One HTML file from predictions, measured sections and tables."""

from hescribe.report.build import build_report
from hescribe.report.contents import PlainScores, ScoreTables

__all__ = ["PlainScores", "ScoreTables", "build_report"]
