"""The tools under the short name that scanpy's users type: ``hescribe.tl``; each is imported when first used."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from hescribe.downstream.gene_sets import marker_sets, read_gene_sets, score_gene_sets
    from hescribe.downstream.regions import regions
    from hescribe.downstream.tls.call import TLSSettings, tls
    from hescribe.downstream.tls.scores import tls_gene_sets, tls_scores
    from hescribe.survival.features import patient_features, slide_features
    from hescribe.survival.outcome import survival

__getattr__, __dir__, _ = lazy_loader.attach(
    "hescribe",
    submod_attrs={
        "downstream.gene_sets": ["marker_sets", "read_gene_sets", "score_gene_sets"],
        "downstream.regions": ["regions"],
        "downstream.tls.call": ["TLSSettings", "tls"],
        "downstream.tls.scores": ["tls_gene_sets", "tls_scores"],
        "survival.features": ["patient_features", "slide_features"],
        "survival.outcome": ["survival"],
    },
)

__all__ = [
    "TLSSettings",
    "marker_sets",
    "patient_features",
    "read_gene_sets",
    "regions",
    "score_gene_sets",
    "slide_features",
    "survival",
    "tls",
    "tls_gene_sets",
    "tls_scores",
]
