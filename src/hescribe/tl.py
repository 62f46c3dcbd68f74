"""The tools under the short name that scanpy's users type: ``hescribe.tl``; each is imported when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hescribe.applications.volume import volume
    from hescribe.downstream.gene_sets import marker_sets, read_gene_sets, score_gene_sets
    from hescribe.downstream.regions import regions
    from hescribe.downstream.tls.call import TLSSettings, tls
    from hescribe.downstream.tls.scores import tls_gene_sets, tls_scores
    from hescribe.downstream.volume.interpolate import interpolate_at, interpolate_volume
    from hescribe.downstream.volume.placement import load_placements, save_placements
    from hescribe.downstream.volume.planes import Picture
    from hescribe.downstream.volume.register import register_pair, register_sections
    from hescribe.downstream.volume.stack import stack_sections
    from hescribe.downstream.volume.write import to_spatialdata, write_ome_zarr, write_vti
    from hescribe.survival.features import patient_features, slide_features
    from hescribe.survival.outcome import survival

#: public name → the module it lives in
_HOMES = {
    "volume": "applications.volume",
    "marker_sets": "downstream.gene_sets",
    "read_gene_sets": "downstream.gene_sets",
    "score_gene_sets": "downstream.gene_sets",
    "regions": "downstream.regions",
    "TLSSettings": "downstream.tls.call",
    "tls": "downstream.tls.call",
    "tls_gene_sets": "downstream.tls.scores",
    "tls_scores": "downstream.tls.scores",
    "interpolate_at": "downstream.volume.interpolate",
    "interpolate_volume": "downstream.volume.interpolate",
    "load_placements": "downstream.volume.placement",
    "save_placements": "downstream.volume.placement",
    "Picture": "downstream.volume.planes",
    "register_pair": "downstream.volume.register",
    "register_sections": "downstream.volume.register",
    "stack_sections": "downstream.volume.stack",
    "to_spatialdata": "downstream.volume.write",
    "write_ome_zarr": "downstream.volume.write",
    "write_vti": "downstream.volume.write",
    "patient_features": "survival.features",
    "slide_features": "survival.features",
    "survival": "survival.outcome",
}


def __getattr__(name: str) -> Any:
    # Not by lazy_loader: it takes `survival`, the tool, and `survival`, the room of the package, for one another
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"hescribe.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Picture",
    "TLSSettings",
    "interpolate_at",
    "interpolate_volume",
    "load_placements",
    "marker_sets",
    "patient_features",
    "read_gene_sets",
    "regions",
    "register_pair",
    "register_sections",
    "save_placements",
    "score_gene_sets",
    "slide_features",
    "stack_sections",
    "survival",
    "tls",
    "tls_gene_sets",
    "tls_scores",
    "to_spatialdata",
    "volume",
    "write_ome_zarr",
    "write_vti",
]
