"""The tools under the short name that scanpy's users type: ``hescribe.tl``; each is imported when first used."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from hescribe.downstream.gene_sets import marker_sets, read_gene_sets, score_gene_sets
    from hescribe.downstream.regions import regions

__getattr__, __dir__, _ = lazy_loader.attach(
    "hescribe",
    submod_attrs={
        "downstream.gene_sets": ["marker_sets", "read_gene_sets", "score_gene_sets"],
        "downstream.regions": ["regions"],
    },
)

__all__ = ["marker_sets", "read_gene_sets", "regions", "score_gene_sets"]
