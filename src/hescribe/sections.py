"""Section: one row of the manifest, with its counts and its image opened on first use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import anndata as ad

from hescribe.io.manifest import ManifestRow, read_manifest
from hescribe.predictor import TileSource
from hescribe.types import Microns, Mpp


@dataclass(frozen=True, eq=False)
class Section:
    """One tissue section; a slide has no expression, unpaired transcriptomics no image."""

    row: ManifestRow

    @property
    def section_id(self) -> str: ...

    @property
    def patient_id(self) -> str: ...

    @property
    def image(self) -> Path | None: ...

    @property
    def has_expression(self) -> bool: ...

    @cached_property
    def adata(self) -> ad.AnnData:
        """Raw counts, spots × genes, as DESIGN says; checked on reading."""
        ...

    @cached_property
    def pitch_um(self) -> Microns | None: ...

    @cached_property
    def mpp(self) -> Mpp: ...

    def tiles(self) -> TileSource:
        """Tiles centred on the spots, in the order of ``adata.obs_names``."""
        ...


def read_sections(manifest: str | Path) -> list[Section]:
    """Sections of a manifest, in its order; files are opened when first needed."""
    return [Section(row) for row in read_manifest(manifest)]
