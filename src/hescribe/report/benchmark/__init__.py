"""The page of a benchmark, from its tables."""

from hescribe.report.benchmark.page import write_benchmark_page

__all__ = ["write_benchmark_page"]
