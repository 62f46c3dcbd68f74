"""Tables that are written by rows, a block at a time, so that they never have to be in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hescribe.io.store import quietly

if TYPE_CHECKING:
    import pandas as pd

_GAP = 16  #: rows that are rather read in vain than sought
_COLUMNS = 512  #: of a Zarr chunk, at most: what is decoded for one gene of a block
_CHUNKS = 8  #: side by side in one file, at most


class RowFile:
    """A two-dimensional float32 ``.npy`` file, written and read by rows.

    Not memory-mapped: mapped pages would count as this process's memory.

    Parameters
    ----------
    path
        The file; made, full of zeros, where it is not there.
    shape
        (n, d).
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self.shape = path, shape
        if not path.exists():
            temporary = path.with_name(f"{path.name}.partial")
            np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape).flush()
            os.replace(temporary, path)
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            self._begin = file.tell()

    def write(self, start: int, rows: npt.NDArray[np.float32]) -> None:
        """Rows from ``start`` on."""
        with self.path.open("r+b") as file:
            file.seek(self._begin + start * self._width)
            file.write(np.ascontiguousarray(rows, dtype=np.float32).data)

    def sync(self) -> None:
        """Have the disk hold what was written."""
        sync_path(self.path)

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows ``start`` to ``stop``."""
        with self.path.open("rb") as file:
            file.seek(self._begin + start * self._width)
            out = np.empty((stop - start, self.shape[1]), dtype=np.float32)
            file.readinto(out.data)
        return out

    def take(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Rows by index; those that lie close together are read at one go."""
        wanted, place = np.unique(rows, return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > _GAP) + 1)
        found = [self.read(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs if len(run)]
        return np.concatenate(found)[place.ravel()] if found else np.empty((0, self.shape[1]), dtype=np.float32)

    @property
    def _width(self) -> int:
        return 4 * self.shape[1]


class GrowingTable:
    """An AnnData Zarr store whose ``X`` is written by blocks of rows, and all else at the end.

    Parameters
    ----------
    path
        The store; made where it is not there.
    shape
        Of X.
    dtype
        Of X.
    rows
        Of a block; all writes but the last begin and end at multiples of it.
    """

    def __init__(self, path: Path, shape: tuple[int, int], *, dtype: str, rows: int) -> None:
        import zarr

        self.path = path
        with quietly():
            if (path / "X" / "zarr.json").exists():
                self._x = zarr.open_array(path / "X", mode="r+")
                return
            group = zarr.create_group(path, overwrite=True, zarr_format=3)
            facts: dict[str, Any] = {"encoding-type": "array", "encoding-version": "0.2.0"}
            # Narrow chunks for those who read a gene, and several to a file for the file system's sake
            chunks = (min(rows, shape[0]), min(_COLUMNS, shape[1]))
            shards = (chunks[0], chunks[1] * min(_CHUNKS, -(-shape[1] // chunks[1])))
            self._x = group.create_array(
                "X", shape=shape, chunks=chunks, shards=shards, dtype=dtype, attributes=facts,
                fill_value=np.nan,  # zeros would have no file, and a file that is lost would read as zeros
            )  # fmt: skip

    def write(self, start: int, rows: npt.NDArray[np.floating]) -> None:
        """Rows of X from ``start`` on."""
        self._x[start : start + len(rows)] = rows.astype(self._x.dtype, copy=False)

    def sync(self, start: int, stop: int) -> None:
        """Have the disk hold rows ``start`` to ``stop`` of X."""
        height = self._x.chunks[0]
        for block in range(start // height, -(-stop // height)):
            folder = self.path / "X" / "c" / str(block)
            for path in (*folder.glob("*"), folder, folder.parent):
                if path.exists():  # a store that was begun by an older version has no files of zeros
                    sync_path(path)

    def finish(
        self,
        *,
        obs: pd.DataFrame,
        var: pd.DataFrame,
        obsm: dict[str, npt.NDArray[np.float64]],
        uns: dict[str, Any],
    ) -> None:
        """Write everything else; after it, ``anndata.read_zarr`` reads the store. May be called again."""
        import anndata as ad
        import zarr

        for stray in self.path.rglob("*.partial"):  # of a process that was killed while it wrote
            stray.unlink()
        with quietly(), ad.settings.override(zarr_write_format=3):
            group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
            elements = {"obs": obs, "var": var, "obsm": obsm, "uns": uns}
            for name, value in {**elements, "varm": {}, "obsp": {}, "varp": {}, "layers": {}}.items():
                ad.io.write_elem(group, name, value)
            group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            zarr.consolidate_metadata(group.store)


def lost_blocks(x: object) -> int:
    """How many blocks of an ``X`` that was written by `GrowingTable` have no file any more; 0 for any other."""
    import zarr

    if not isinstance(x, zarr.Array) or not isinstance(x.fill_value, np.floating) or not np.isnan(x.fill_value):
        return 0
    return x.nchunks - x.nchunks_initialized


def sync_path(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_uns(path: Path, name: str) -> Any:
    """One element of ``uns`` of a store, without the rest of it; None where it is not there."""
    import anndata as ad
    import zarr

    with quietly():
        group = zarr.open_group(path, mode="r")
        return ad.io.read_elem(group[f"uns/{name}"]) if f"uns/{name}" in group else None
