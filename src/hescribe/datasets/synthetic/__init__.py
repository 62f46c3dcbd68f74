"""Tissue that was never alive: H&E with measured expression whose truth is known."""

from hescribe.datasets.synthetic.counts import attainable_pcc
from hescribe.datasets.synthetic.make import make_synthetic

__all__ = ["attainable_pcc", "make_synthetic"]
