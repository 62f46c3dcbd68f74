"""A prediction on disk, read a gene at a time: the whole of ``X`` may be far larger than memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import zarr

from hescribe import keys
from hescribe.errors import InputError, list_some
from hescribe.io.rows import lost_blocks
from hescribe.types import Centres

_BLOCK = 32 * 2**20  #: bytes of X decoded between two pieces of a gene


@dataclass(frozen=True, eq=False)
class StoredPrediction:
    """A prediction of which everything but ``X`` has been read.

    Attributes
    ----------
    path
        The AnnData store.
    obs, var
        Tiles and genes, with what is known of their trust.
    obsm
        Of the tiles: places, and cell types where they are known.
    uns
        With the provenance.
    x
        Tiles × genes, on the disk.
    """

    path: Path
    obs: pd.DataFrame
    var: pd.DataFrame
    obsm: dict[str, Any]
    uns: dict[str, Any]
    x: zarr.Array

    @cached_property
    def centres(self) -> Centres:
        """(n, 2) full-resolution pixels."""
        return np.asarray(self.obsm[keys.SPATIAL], dtype=np.float64)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the numbers came from."""
        return self.uns[keys.PROVENANCE]

    def gene_pieces(self, gene: int) -> Iterator[npt.NDArray[np.float32]]:
        """A gene's column from its first tile to its last, in pieces, so that one can be shown how far it has come.

        Parameters
        ----------
        gene
            Its number in ``var``.
        """
        height, width = self.x.chunks
        step = height * max(1, _BLOCK // (height * width * self.x.dtype.itemsize))
        for start in range(0, self.x.shape[0], step):
            yield np.asarray(self.x[start : start + step, gene], dtype=np.float32)


def is_store(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def stores_in(folder: Path) -> list[Path]:
    """Stores in a folder, by name, but for those that are being written; none where it is no folder."""
    return sorted(path for path in folder.glob("*.zarr") if not path.name.startswith("."))


def store_of(path: Path) -> Path:
    """The store of a prediction: the path itself, or the table inside a SpatialData store."""
    inside = path / "tables" / keys.TILES_TABLE
    return inside if inside.is_dir() else path


def open_prediction(path: str | Path) -> StoredPrediction:
    """Open a prediction, or the one inside a SpatialData store.

    Raises
    ------
    InputError
        Not there, damaged, or not written by hescribe.
    """
    given = Path(path)
    if not given.exists():
        raise InputError("no such prediction", path=given, fix="make one with 'hescribe predict'")
    store = store_of(given)
    if not is_store(store):
        found = [path.name for path in stores_in(given)]
        fix = f"give one of its {len(found)}: {list_some(found)}" if found else "give a .zarr of 'predict'"
        raise InputError("a folder of predictions" if found else "no prediction", path=given, fix=fix)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = zarr.open_group(store, mode="r", use_consolidated=False)  # what is there, not what is listed
            read = {name: ad.io.read_elem(group[name]) for name in ("obs", "var", "obsm", "uns") if name in group}
            x = group.get("X")
    except Exception as error:  # zarr and anndata raise many kinds for damaged stores
        raise InputError(
            f"not a readable prediction ({type(error).__name__}: {error})", path=given, fix="give a .zarr of 'predict'"
        ) from error
    if keys.PROVENANCE not in read.get("uns", {}):
        raise InputError("not a prediction of hescribe", path=given, fix="give a .zarr that 'hescribe predict' wrote")
    if not isinstance(x, zarr.Array):
        raise InputError("X is missing or no plain table; is the prediction complete?", path=given)
    stored = StoredPrediction(store, read["obs"], read["var"], dict(read.get("obsm", {})), read["uns"], x)
    _check(stored)
    return stored


def _check(stored: StoredPrediction) -> None:
    n, genes = len(stored.obs), len(stored.var)
    if stored.x.shape != (n, genes) or not n or not genes:
        raise InputError(f"X is no table of {n:,} tiles × {genes:,} genes", path=stored.path)
    if lost := lost_blocks(stored.x):
        fix = "copy it again, or predict the slide again with --overwrite"
        raise InputError(f"{lost:,} of {stored.x.nchunks:,} blocks of X are missing", path=stored.path, fix=fix)
    if keys.SPATIAL not in stored.obsm or stored.centres.shape != (n, 2) or not np.isfinite(stored.centres).all():
        raise InputError(f'no position for each tile in obsm["{keys.SPATIAL}"]', path=stored.path)
