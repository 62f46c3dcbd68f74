"""Section: one row of the manifest, with its counts and its image opened on first use."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from hescribe import keys
from hescribe.errors import HescribeWarning, InputError
from hescribe.io.manifest import ManifestRow, read_manifest
from hescribe.io.pitch import spot_diameter
from hescribe.io.readers import READERS, mpp_from_files, mpp_from_pitch, read_expression, technology_of
from hescribe.io.schema import add_picture
from hescribe.slides.blocks.cells import small_picture
from hescribe.slides.reader import Slide, open_slide, resolve_mpp
from hescribe.slides.tiles import HEST_MPP, PatchTiles, SlideTiles, SomeTiles, patch_barcodes, patch_mpp
from hescribe.types import Mpp

_FEWEST_INSIDE = 0.5  #: share of the bins within the image, below which it must be another image


@dataclass(frozen=True, eq=False)
class Section:
    """One tissue section; a slide has no expression, unpaired transcriptomics no image.

    Attributes
    ----------
    row
        What the manifest says.
    """

    row: ManifestRow

    def __repr__(self) -> str:
        has = [name for name, there in (("image", self.image), ("expression", self.has_expression)) if there]
        return f"Section({self.section_id!r}, patient {self.patient_id!r}, {' and '.join(has)})"

    @property
    def section_id(self) -> str:
        """Unique in the manifest."""
        return self.row.section_id

    @property
    def patient_id(self) -> str:
        """The unit that must never be on both sides of a split."""
        return self.row.patient_id

    @property
    def image(self) -> Path | None:
        """The image file."""
        return self.row.image

    @property
    def has_expression(self) -> bool:
        """Whether expression was measured."""
        return self.row.expression is not None

    @cached_property
    def adata(self) -> ad.AnnData:
        """Raw counts, spots × genes, positions in ``obsm["spatial"]``; checked on reading.

        Raises
        ------
        InputError
            One line on what is wrong with which file.
        """
        if self.row.expression is None:
            raise InputError(f"section {self.section_id!r} has no expression", fix="fill the column 'expression'")
        adata = read_expression(self.row)
        if self._patches:
            kept = adata.obs_names.isin(patch_barcodes(self._patches))
            if not kept.any():
                raise InputError("no patch belongs to a spot of the section", path=self._patches)
            adata = adata[kept].copy()
        elif self.image is not None and self.image.exists() and READERS[technology_of(self.row)].binned:
            return self._within_image(adata)
        return adata

    def _within_image(self, adata: ad.AnnData) -> ad.AnnData:
        """Without the bins that the image does not show: what was measured and what was scanned differ at the edges."""
        x, y = np.asarray(adata.obsm[keys.SPATIAL]).T
        width, height = self.slide.width, self.slide.height
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        if inside.all():
            return adata
        told = f"{(~inside).sum()} of {adata.n_obs} bins lie outside the image of {width} × {height} px"
        if inside.mean() < _FEWEST_INSIDE:
            reach = f" (x from {x.min():.0f} to {x.max():.0f}, y from {y.min():.0f} to {y.max():.0f})"
            fix = "is this the section's full-resolution image, and the alignment, where there is one, its own?"
            raise InputError(told + reach, path=self.image, fix=fix)
        warnings.warn(f"{self.image}: {told}; they are left out", HescribeWarning, stacklevel=2)
        return adata[inside].copy()

    @property
    def cell_types(self) -> pd.DataFrame | None:
        """Proportions of cell types, spots of ``adata`` × types; NaN for spots the table lacks, None without table.

        Raises
        ------
        InputError
            As for ``adata``.
        """
        return self.adata.obsm.get(keys.CELL_TYPES)

    @cached_property
    def slide(self) -> Slide:
        """The open image."""
        if self.image is None:
            raise InputError(f"section {self.section_id!r} has no image", fix="fill the column 'image'")
        return open_slide(self.image)

    @property
    def _patches(self) -> Path | None:
        return self.image if self.image is not None and self.image.suffix == ".h5" else None

    @cached_property
    def mpp(self) -> Mpp:
        """µm per full-resolution pixel: from the image, the spots' files or pitch or the manifest, in this order of trust.

        Raises
        ------
        InputError
            None of them says.
        """
        path = self.image or self.row.expression
        assert path is not None  # noqa: S101 - the manifest refuses rows without both
        pitch = mpp_from_pitch(self.row, self.adata) if self.has_expression else None
        # HEST-1k cuts its tiles by the scale it has estimated, not by the one embedded in the image
        hest = self._patches or (self.has_expression and technology_of(self.row) == "hest")
        metadata, refused, tag = (self._hest_mpp() if hest else None), None, None
        if metadata is None and self.image and not self._patches:
            metadata, refused, tag = self.slide.mpp, self.slide.refused_mpp, self.slide.tag_mpp
        files = mpp_from_files(self.row, self.adata) if self.has_expression else None
        return resolve_mpp(
            metadata=metadata,
            files=files,
            pitch=pitch,
            manifest=self.row.mpp,
            tag=tag,
            refused=refused,
            path=path,
            fix="fill the manifest's column 'mpp'",
        )

    def _hest_mpp(self) -> Mpp | None:
        """What HEST-1k's metadata says: ``metadata/<id>.json`` beside the folders ``st``, ``wsis`` and ``patches``."""
        path = self.row.expression or self.image
        assert path is not None  # noqa: S101 - as above
        file = path.parent.parent / "metadata" / f"{path.stem}.json"
        try:
            facts = json.loads(file.read_text())
            return float(facts.get("pixel_size_um_estimated") or facts.get("pixel_size_um_embedded"))
        except (OSError, ValueError, TypeError):
            if self._patches is None:
                return None
            centres = np.asarray(self.adata.obsm[keys.SPATIAL], dtype=np.float64)
            # Patches are all at one scale, whatever the slide's; only distances between spots need the slide's own
            return patch_mpp(self._patches, list(self.adata.obs_names), centres) or HEST_MPP

    def tiles(self) -> SlideTiles | PatchTiles | SomeTiles:
        """Tiles centred on the spots, in the order of ``adata.obs_names``.

        Raises
        ------
        InputError
            No image, or spots outside it.
        """
        centres = np.asarray(self.adata.obsm[keys.SPATIAL], dtype=np.float64)
        if self._patches:
            names = list(self.adata.obs_names)
            return PatchTiles(self._patches, names, centres, mpp=self.mpp, slide_id=self.section_id)
        if self.image is None:
            raise InputError(f"section {self.section_id!r} has no image", fix="fill the column 'image'")
        tiles = SlideTiles(self.image, centres, mpp=self.mpp, slide_id=self.section_id)
        tiles.check_inside()
        return tiles

    def thumbnail(self, max_px: int = 1500) -> tuple[np.ndarray, float] | None:
        """The slide, small, and its downsampling; None where there is no slide to show."""
        if self.image is None or self._patches:
            return None
        return small_picture(self.slide, max_px)

    def with_image(self, max_px: int = 2000) -> ad.AnnData:
        """Counts and, small, the slide where scanpy and squidpy look for it: ``sc.pl.spatial(section.with_image())``.

        ``adata`` itself holds no image, so that nobody waits for one who only counts.

        Parameters
        ----------
        max_px
            Longer side of the image.

        Returns
        -------
        AnnData
            A copy, with ``uns["spatial"][section_id]`` complete. Where nobody says how large a spot is, it is taken
            for a little over half of the distance to the next, as on Visium, and for all of it on a square grid.
        """
        adata = self.adata.copy()
        adata.uns[keys.SPATIAL] = {self.section_id: self.library(max_px, name="hires")}
        return adata

    def library(self, max_px: int, *, name: Literal["hires", "lowres"]) -> dict[str, Any]:
        """What scanpy has in ``uns["spatial"][section_id]``, complete: see `with_image`."""
        said = self.adata.uns[keys.SPATIAL][self.section_id]
        library = {**said, "scalefactors": dict(said["scalefactors"])}
        if keys.SPOT_DIAMETER not in library["scalefactors"]:
            centres = np.asarray(self.adata.obsm[keys.SPATIAL], dtype=np.float64)
            library["scalefactors"][keys.SPOT_DIAMETER] = spot_diameter(centres)
        shown = self.thumbnail(max_px)
        if shown is not None:
            add_picture(library, *shown, name=name)
        return library

    def unread(self) -> Section:
        """The same section with nothing read yet, to be handed to another process."""
        return Section(self.row)


@dataclass(frozen=True, eq=False)
class SomeSpots(Section):
    """A section of which only some spots were measured, as far as anybody is told.

    The image stays whole, and so do µm per pixel, which are told by the distance of *all* spots.

    Attributes
    ----------
    whole
        The section.
    rows
        Which of its spots, in rising order.
    """

    whole: Section
    rows: npt.NDArray[np.intp]

    @cached_property
    def adata(self) -> ad.AnnData:
        """Raw counts of these spots."""
        return self.whole.adata[self.rows].copy()

    @cached_property
    def slide(self) -> Slide:
        """The open image."""
        return self.whole.slide

    @cached_property
    def mpp(self) -> Mpp:
        """µm per full-resolution pixel, of the whole section."""
        return self.whole.mpp

    def tiles(self) -> SomeTiles:
        """Tiles centred on these spots."""
        return SomeTiles(self.whole.tiles(), self.rows)

    def unread(self) -> Section:
        """The same spots of the same section with nothing read yet."""
        return SomeSpots(self.row, self.whole.unread(), self.rows)


def read_sections(manifest: str | Path) -> list[Section]:
    """Sections of a manifest, in its order; files are opened when first needed.

    Raises
    ------
    InputError
        The manifest is missing or malformed.

    Examples
    --------
    >>> sections = read_sections("sections.csv")  # doctest: +SKIP
    >>> sections[0].adata  # doctest: +SKIP
    """
    return [Section(row) for row in read_manifest(manifest)]
