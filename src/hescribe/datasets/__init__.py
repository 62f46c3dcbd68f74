"""Data sets: a table of downloads, and synthetic tissue whose truth is known."""

from hescribe.datasets.fetch import fetch
from hescribe.datasets.registry import Dataset, RemoteFile, list_datasets
from hescribe.datasets.synthetic import attainable_pcc, make_synthetic

__all__ = ["Dataset", "RemoteFile", "attainable_pcc", "fetch", "list_datasets", "make_synthetic"]
