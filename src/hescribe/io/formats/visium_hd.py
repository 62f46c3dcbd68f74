"""10x Visium HD: square bins that spaceranger 3 and later wrote, one folder a size."""

from __future__ import annotations

from pathlib import Path

import anndata as ad

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.formats.visium import BINNED, read_scalefactors, read_spaceranger
from hescribe.io.manifest import ManifestRow
from hescribe.io.pitch import spot_pitch

#: Where a whole run is given. A bin of 8 µm holds a few hundred counts and one of 2 µm a handful, a quarter and a
#: sixty-fourth of this one's; and tiles are many times wider, so four times as many bins see nearly the same image.
DEFAULT_BIN = "square_016um"
_DISAGREEMENT = 0.1  #: of positions and scalefactors, beyond which they cannot be of one image


def read_visium_hd(row: ManifestRow) -> ad.AnnData:
    """Bins under tissue of one folder of ``binned_outputs``, or of the one of 16 µm where the run is given.

    Counts and positions as for Visium; µm per pixel and the side of a bin from ``scalefactors_json.json``.

    Raises
    ------
    InputError
        Something is missing or malformed, or positions and scalefactors contradict each other.
    """
    assert row.expression is not None  # noqa: S101 - readers are called for rows with expression
    folder = _find_bins(row.expression)
    _check_scalefactors(folder)
    adata = read_spaceranger(folder, row.section_id)
    factors = adata.uns[keys.SPATIAL][row.section_id]["scalefactors"]
    pitch_px = spot_pitch(adata, "square") if adata.n_obs > 1 else None
    expected = factors[keys.BIN_UM] / factors[keys.MICRONS_PER_PIXEL]
    factors.setdefault(keys.SPOT_DIAMETER, expected)
    if pitch_px is not None and abs(pitch_px / expected - 1) > _DISAGREEMENT:
        raise InputError(
            f"bins are {pitch_px:.3g} px apart, but {expected:.3g} by scalefactors_json.json",
            path=folder / "spatial",
            fix="are both files of the same run?",
        )
    return adata


def _find_bins(path: Path) -> Path:
    """The folder of one size of bins."""
    if not path.is_dir():
        raise InputError(
            "not a folder of spaceranger", path=path, fix=f"give 'outs', or one of the folders in {BINNED}"
        )
    runs = (path / "outs" / BINNED, path / BINNED, path)
    binned = next((f for f in runs if f.is_dir() and any(f.glob("square_*um"))), None)
    if binned is None:
        return path
    if (binned / DEFAULT_BIN).is_dir():
        return binned / DEFAULT_BIN
    there = ", ".join(sorted(f.name for f in binned.glob("square_*um")))
    raise InputError(
        f"{DEFAULT_BIN} is not here (found {there})", path=binned, fix="give the folder of the bins to use"
    )


def _check_scalefactors(folder: Path) -> None:
    factors = read_scalefactors(folder / "spatial")
    for name in (keys.BIN_UM, keys.MICRONS_PER_PIXEL):
        if not factors.get(name, 0) > 0:
            raise InputError(
                f"{name!r} is {factors.get(name, 'missing')}, not a positive number",
                path=folder / "spatial" / "scalefactors_json.json",
                fix="give the 'outs' of spaceranger 3 or later, or one of the folders in its binned_outputs",
            )
