"""Tables written by rows."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

from hescribe.io.rows import GrowingTable, RowFile, read_uns
from hescribe.io.store import write_anndata


def test_rows_are_a_plain_npy_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(10, 3)).astype("f")
    table = RowFile(tmp_path / "t.npy", (10, 3))
    table.write(4, values[4:])
    assert not np.load(tmp_path / "t.npy")[:4].any()
    again = RowFile(tmp_path / "t.npy", (10, 3))
    again.write(0, values[:4])
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), values)
    np.testing.assert_array_equal(again.read(3, 7), values[3:7])


def test_blocks_are_on_the_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = set()
    monkeypatch.setattr("os.fsync", lambda number: synced.add(Path(f"/proc/self/fd/{number}").readlink()))
    table = GrowingTable(tmp_path / "t.zarr", (10, 3), dtype="float32", rows=4)
    table.write(4, np.ones((4, 3), dtype="f"))
    table.write(8, np.zeros((2, 3), dtype="f"))  # which has no file
    table.sync(4, 10)
    written = {p.resolve() for p in (tmp_path / "t.zarr" / "X" / "c").rglob("*")}
    assert len(written) >= 2
    assert written <= synced


def test_a_gene_is_read_without_its_whole_block(tmp_path: Path) -> None:
    """Chunks were 4,096 genes wide, all decoded for one; narrower ones must not make more files."""
    values = np.random.default_rng(0).normal(size=(6, 5000)).astype("f")
    table = GrowingTable(tmp_path / "t.zarr", values.shape, dtype="float32", rows=4)
    for start in (0, 4):
        table.write(start, values[start : start + 4])
    array = zarr.open_array(tmp_path / "t.zarr" / "X", mode="r")
    assert array.chunks == (4, 512)
    assert len([p for p in (tmp_path / "t.zarr" / "X" / "c").rglob("*") if p.is_file()]) == 4
    np.testing.assert_array_equal(array[:], values)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_anndata_reads_a_table_that_grew(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=(10, 3)).astype("f")
    obs = pd.DataFrame({"novelty": np.arange(10.0)}, index=[f"tile_{i}" for i in range(10)])
    var = pd.DataFrame({"expected_pcc": [0.1, np.nan, 0.3]}, index=["A", "B", "C"])
    told = {"obs": obs, "var": var, "obsm": {"spatial": values[:, :2].astype(float)}, "uns": {"hescribe": {"mpp": 0.5}}}
    for start, stop in ((0, 4), (4, 8), (4, 8), (8, 10)):  # opened again each time, one block twice
        table = GrowingTable(tmp_path / "t.zarr", (10, 3), dtype=dtype, rows=4)
        table.write(start, values[start:stop])
    table.finish(**told)  # type: ignore[arg-type]
    table.finish(**told)  # type: ignore[arg-type]
    read = ad.read_zarr(tmp_path / "t.zarr")
    assert read.X.dtype == dtype
    np.testing.assert_array_equal(read.X, values.astype(dtype))
    pd.testing.assert_frame_equal(read.obs, obs)
    pd.testing.assert_frame_equal(read.var, var)
    assert read_uns(tmp_path / "t.zarr", "hescribe") == {"mpp": 0.5}
    assert read_uns(tmp_path / "t.zarr", "other") is None
    # As other predictions are laid out, but for the empty place of ``raw``
    whole = ad.AnnData(X=values, obs=obs, var=var, obsm=told["obsm"], uns=told["uns"])
    write_anndata(whole, tmp_path / "own.zarr")
    names = [{p.name for p in (tmp_path / n).iterdir()} for n in ("t.zarr", "own.zarr")]
    assert names[0] == names[1] - {"raw"}
