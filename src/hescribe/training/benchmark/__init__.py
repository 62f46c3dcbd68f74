"""Methods, encoders and protocols compared on the same splits."""

from hescribe.training.benchmark.record import RECORD
from hescribe.training.benchmark.run import Benchmark, benchmark

__all__ = ["RECORD", "Benchmark", "benchmark"]
