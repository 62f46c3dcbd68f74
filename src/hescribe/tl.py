"""The tools under the short name that scanpy's users type: ``hescribe.tl``; each is imported when first used."""

from typing import TYPE_CHECKING

import lazy_loader

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

__getattr__, __dir__, _ = lazy_loader.attach(
    "hescribe",
    submod_attrs={
        "applications.volume": ["volume"],
        "downstream.gene_sets": ["marker_sets", "read_gene_sets", "score_gene_sets"],
        "downstream.regions": ["regions"],
        "downstream.tls.call": ["TLSSettings", "tls"],
        "downstream.tls.scores": ["tls_gene_sets", "tls_scores"],
        "downstream.volume.interpolate": ["interpolate_at", "interpolate_volume"],
        "downstream.volume.placement": ["load_placements", "save_placements"],
        "downstream.volume.planes": ["Picture"],
        "downstream.volume.register": ["register_pair", "register_sections"],
        "downstream.volume.stack": ["stack_sections"],
        "downstream.volume.write": ["to_spatialdata", "write_ome_zarr", "write_vti"],
        "survival.features": ["patient_features", "slide_features"],
        "survival.outcome": ["survival"],
    },
)

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
