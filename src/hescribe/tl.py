"""The tools under the short name that scanpy's users type: ``hescribe.tl``."""

from __future__ import annotations

from hescribe.downstream.tls.call import TLSSettings, tls
from hescribe.downstream.tls.scores import tls_gene_sets, tls_scores

__all__ = ["TLSSettings", "tls", "tls_gene_sets", "tls_scores"]
