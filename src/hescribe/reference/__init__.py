"""The training spots' embeddings and expression; exact search, imputation."""

from hescribe.reference.neighbours import Neighbours, search, weigh
from hescribe.reference.store import Reference

__all__ = ["Neighbours", "Reference", "search", "weigh"]
