"""Methods, encoders and protocols compared on the same splits."""

from hescribe.training.benchmark.run import Benchmark, benchmark

__all__ = ["Benchmark", "benchmark"]
