"""The tools under the short name that scanpy's users type: ``hescribe.tl``."""

from __future__ import annotations

from hescribe.applications.volume import build_volume as volume
from hescribe.downstream.volume.interpolate import interpolate_at, interpolate_volume
from hescribe.downstream.volume.placement import load_placements, save_placements
from hescribe.downstream.volume.planes import Picture
from hescribe.downstream.volume.register import register_pair, register_sections
from hescribe.downstream.volume.stack import stack_sections
from hescribe.downstream.volume.write import to_spatialdata, write_ome_zarr, write_vti

__all__ = [
    "Picture",
    "interpolate_at",
    "interpolate_volume",
    "load_placements",
    "register_pair",
    "register_sections",
    "save_placements",
    "stack_sections",
    "to_spatialdata",
    "volume",
    "write_ome_zarr",
    "write_vti",
]
