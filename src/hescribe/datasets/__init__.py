"""Data sets: a table of downloads, recipes for published ones, and synthetic tissue whose truth is known."""

from hescribe.datasets.fetch import fetch
from hescribe.datasets.recipes import Recipe, list_recipes, prepare, published_figures
from hescribe.datasets.registry import Dataset, RemoteFile, list_datasets
from hescribe.datasets.synthetic import attainable_pcc, make_synthetic

__all__ = [
    "Dataset",
    "Recipe",
    "RemoteFile",
    "attainable_pcc",
    "fetch",
    "list_datasets",
    "list_recipes",
    "make_synthetic",
    "prepare",
    "published_figures",
]
