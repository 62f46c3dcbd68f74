"""A section's files → cells of the manifest, with what no reader takes as it lies unpacked or put together."""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hescribe.datasets.recipes.layouts import Parts
from hescribe.errors import InputError
from hescribe.io.store import write_atomically

_SPOT_UM, _PITCH_UM = 55.0, 100.0  #: Visium

#: cells of the manifest that are files
Cells = dict[str, Path]


def assemble(technology: str, section_id: str, parts: Parts, folder: Path) -> Cells:
    """Columns of the manifest → files, unpacked and put together below ``folder`` where the readers need it.

    Raises
    ------
    InputError
        A file is damaged or cut short.
    OutputError
        The folder cannot be written.
    """
    image = _unpacked(parts["image"], folder / "images")
    return _ASSEMBLERS[technology](section_id, parts, folder) | {"image": image}


def _as_it_lies(_: str, parts: Parts, __: Path) -> Cells:
    """The readers take tables gzipped, and h5ad as it is."""
    return {column: parts[column] for column in ("expression", "positions") if column in parts}


def _spaceranger(section_id: str, parts: Parts, folder: Path) -> Cells:
    """A folder as spaceranger writes it, of files that lie elsewhere under other names."""
    target = folder / "spaceranger" / section_id
    with write_atomically(target) as temporary:
        matrix, spatial = temporary / "filtered_feature_bc_matrix", temporary / "spatial"
        matrix.mkdir(parents=True)
        spatial.mkdir()
        for part, name in (("matrix", "matrix.mtx"), ("barcodes", "barcodes.tsv"), ("features", "features.tsv")):
            _copy(parts[part], matrix / name)
        positions = spatial / "tissue_positions_list.csv"
        _copy(parts["positions"], positions)
        if "scalefactors" in parts:
            _copy(parts["scalefactors"], spatial / "scalefactors_json.json")
        else:
            factors = {"spot_diameter_fullres": _spot_diameter(positions, parts["positions"])}
            (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    return {"expression": target}


_ASSEMBLERS: dict[str, Callable[[str, Parts, Path], Cells]] = {
    "hest": _as_it_lies,
    "st": _as_it_lies,
    "visium": _spaceranger,
}


def _unpacked(file: Path, folder: Path) -> Path:
    """The file itself, or, where it is gzipped, what is in it; unpacked once."""
    if file.suffix != ".gz":
        return file
    target = folder / file.stem
    if target.exists() and target.stat().st_mtime >= file.stat().st_mtime:
        return target
    with write_atomically(target) as temporary:
        _copy(file, temporary)
    return target


def _copy(source: Path, target: Path) -> None:
    """Copy a file, unzipped.

    Raises
    ------
    InputError
        It is cut short, or not gzipped though its name says so.
    """
    if source.suffix != ".gz":
        shutil.copyfile(source, target)
        return
    try:
        with gzip.open(source) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 22)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"does not unpack ({error})", path=source, fix="download it again") from error


def _spot_diameter(positions: Path, source: Path) -> float:
    """In full-resolution pixels, from the distance of neighbours: spots are 55 µm wide and 100 µm apart."""
    import pandas as pd
    from scipy.spatial import cKDTree

    try:
        places = pd.read_csv(positions, header=None)[[4, 5]].to_numpy(dtype=np.float64)
        apart = float(np.median(cKDTree(places).query(places, k=2)[0][:, 1]))
    except (ValueError, KeyError) as error:
        raise InputError(f"no table of spot positions ({error})", path=source) from error
    return _SPOT_UM / _PITCH_UM * apart
