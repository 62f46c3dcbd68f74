"""All technologies in one table; to add one, write its reader and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata as ad

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.formats.h5ad import read_h5ad, read_hest
from hescribe.io.formats.st import read_st
from hescribe.io.formats.tables import add_annotations, add_cell_types
from hescribe.io.formats.visium import is_binned, read_visium
from hescribe.io.formats.visium_hd import read_visium_hd
from hescribe.io.formats.xenium import EXPERIMENT, read_xenium
from hescribe.io.manifest import ManifestRow
from hescribe.io.pitch import Lattice, is_checkerboard, spot_pitch
from hescribe.io.schema import check_section
from hescribe.types import Microns, Mpp


@dataclass(frozen=True)
class Technology:
    """How a technology is read.

    Attributes
    ----------
    read
        Manifest row → AnnData with raw counts and positions.
    pitch_um
        Distance between neighbouring spots' centres, where the technology fixes it.
    lattice
        How its spots are printed, where it prints them.
    spot_um
        Diameter of a spot, where the technology fixes it and its files do not say.
    binned
        Its spots are square bins over all that was measured: the files say how many µm a pixel has (the reader puts
        it into ``scalefactors``), and bins may lie beyond the image.
    """

    read: Callable[[ManifestRow], ad.AnnData]
    pitch_um: Microns | None = None
    lattice: Lattice | None = None
    spot_um: Microns | None = None
    binned: bool = False


READERS: dict[str, Technology] = {
    "st": Technology(read_st, pitch_um=200.0, lattice="square", spot_um=100.0),
    "visium": Technology(read_visium, pitch_um=100.0, lattice="hexagonal"),
    "visium_hd": Technology(read_visium_hd, binned=True),
    "xenium": Technology(read_xenium, binned=True),
    "hest": Technology(read_hest),
    "h5ad": Technology(read_h5ad),
}


def technology_of(row: ManifestRow) -> str:
    """The row's technology, inferred from its files where it is not stated.

    Raises
    ------
    InputError
        Unknown, or not to be inferred.
    """
    known = ", ".join(READERS)
    if row.technology is not None:
        if row.technology not in READERS:
            raise InputError(
                f"section {row.section_id!r}: unknown technology {row.technology!r}", fix=f"one of {known}"
            )
        return row.technology
    path = row.expression
    if path is None:
        raise InputError(f"section {row.section_id!r} has no expression")
    if not path.exists():
        raise InputError("no such file or folder", path=path, fix=f"section {row.section_id!r} of the manifest")
    found = _infer(path)
    if found is None:
        raise InputError("the technology cannot be inferred", path=path, fix=f"fill the column 'technology': {known}")
    return found


def _infer(path: Path) -> str | None:
    if path.is_dir():
        if any((p / EXPERIMENT).is_file() for p in (path, path / "outs")):
            return "xenium"
        if is_binned(path):
            return "visium_hd"
        places = (path / "spatial", path / "outs" / "spatial")
        return "visium" if any(p.is_dir() for p in places) else None
    if path.suffix == ".h5ad":
        around = path.parent.parent
        hest = path.parent.name == "st" and ((around / "wsis").is_dir() or (around / "patches").is_dir())
        return "hest" if hest else "h5ad"
    name = path.name.removesuffix(".gz")
    return "st" if name.endswith((".tsv", ".txt", ".csv")) else None


def read_expression(row: ManifestRow) -> ad.AnnData:
    """Read, check and complete a section's expression.

    Raises
    ------
    InputError
        One line on what is wrong with which file.
    """
    technology = READERS[technology_of(row)]
    assert row.expression is not None  # noqa: S101 - technology_of has checked it
    if not row.expression.exists():
        raise InputError(
            "no such file or folder", path=row.expression, fix=f"section {row.section_id!r} of the manifest"
        )
    adata = technology.read(row)
    check_section(adata, row.expression, positions=row.image is not None)
    mpp = mpp_from_pitch(row, adata) if technology.spot_um is not None and row.image is not None else None
    if technology.spot_um is not None and mpp is not None:
        factors = {keys.SPOT_DIAMETER: technology.spot_um / mpp}
        adata.uns[keys.SPATIAL] = {row.section_id: {"images": {}, "scalefactors": factors}}
    adata.uns.setdefault(keys.SPATIAL, {row.section_id: {"images": {}, "scalefactors": {}}})
    if row.cell_types is not None:
        add_cell_types(adata, row.cell_types)
    if row.annotations is not None:
        add_annotations(adata, row.annotations)
    return adata


def mpp_from_pitch(row: ManifestRow, adata: ad.AnnData) -> Mpp | None:
    """µm per pixel from the spots' pitch, where the technology fixes it."""
    technology = READERS[technology_of(row)]
    if technology.pitch_um is None or (technology.lattice == "square" and is_checkerboard(adata)):
        return None
    pitch_px = spot_pitch(adata, technology.lattice)
    return technology.pitch_um / pitch_px if pitch_px is not None else None


def mpp_from_files(row: ManifestRow, adata: ad.AnnData) -> Mpp | None:
    """µm per pixel as the technology's own files say, where they do."""
    if not READERS[technology_of(row)].binned:
        return None
    return float(adata.uns[keys.SPATIAL][row.section_id]["scalefactors"][keys.MICRONS_PER_PIXEL])
