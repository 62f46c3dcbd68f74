"""Small runs of spaceranger and Xenium, in the layout and with the column types that the real ones have."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.io import mmwrite

Numbers = npt.NDArray[np.float64]


@dataclass
class Matrix:
    """Counts, barcodes × features."""

    counts: npt.NDArray[np.int32]
    barcodes: list[str]
    ids: list[str]
    names: list[str]
    kinds: list[str]


def write_h5(file: Path, matrix: Matrix) -> None:
    """Layout 3 of 10x, features × barcodes by column."""
    by_column = sparse.csc_matrix(matrix.counts.T)
    with h5py.File(file, "w") as h5:
        h5.attrs["filetype"], h5.attrs["version"], h5.attrs["software_version"] = "matrix", 2, "spaceranger-3.1.2"
        group = h5.create_group("matrix")
        group.create_dataset("data", data=by_column.data.astype(np.int32), compression="gzip")
        group.create_dataset("indices", data=by_column.indices.astype(np.int64), compression="gzip")
        group.create_dataset("indptr", data=by_column.indptr.astype(np.int64), compression="gzip")
        group["shape"] = np.array(by_column.shape, dtype=np.int32)
        group["barcodes"] = np.array(matrix.barcodes, dtype="S")
        columns = {"id": matrix.ids, "name": matrix.names, "feature_type": matrix.kinds}
        for name, values in {**columns, "genome": ["GRCh38"] * len(matrix.ids), "_all_tag_keys": ["genome"]}.items():
            group[f"features/{name}"] = np.array(values, dtype="S")


def write_mex(folder: Path, matrix: Matrix) -> None:
    """The folder of three zipped tables."""
    folder.mkdir(parents=True)
    mmwrite(folder / "matrix.mtx", sparse.coo_matrix(matrix.counts.T))
    plain = (folder / "matrix.mtx").read_bytes()
    (folder / "matrix.mtx").unlink()
    features = zip(matrix.ids, matrix.names, matrix.kinds, strict=True)
    tables = {
        "matrix.mtx.gz": plain,
        "barcodes.tsv.gz": "".join(f"{b}\n" for b in matrix.barcodes).encode(),
        "features.tsv.gz": "".join("\t".join(f) + "\n" for f in features).encode(),
    }
    for name, text in tables.items():
        with gzip.open(folder / name, "wb") as out:
            out.write(text)


def write_bins(folder: Path, positions: pd.DataFrame, matrix: Matrix, *, size_um: int, mpp: float) -> None:
    """One folder of ``binned_outputs``; positions with all bins of the array, as spaceranger writes them."""
    (folder / "spatial").mkdir(parents=True)
    write_h5(folder / "filtered_feature_bc_matrix.h5", matrix)
    whole = dict.fromkeys(("in_tissue", "array_row", "array_col"), np.int64)
    positions.astype(whole).to_parquet(folder / "spatial" / "tissue_positions.parquet", index=False)
    factors = {
        "spot_diameter_fullres": size_um / mpp,
        "bin_size_um": float(size_um),
        "microns_per_pixel": mpp,
        "regist_target_img_scalef": 0.25,
        "tissue_lowres_scalef": 0.025,
        "fiducial_diameter_fullres": 330 / mpp,
        "tissue_hires_scalef": 0.25,
    }
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))


def write_xenium(folder: Path, matrix: Matrix, cells: pd.DataFrame, *, ids: str, mex: bool = False) -> None:
    """An output folder; ``ids`` of cells are text, bytes or numbers, and numbers come in a CSV, as in the first version."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "major_version": 5,
        "minor_version": 0,
        "pixel_size": 0.2125,
        "num_cells": len(cells),
        "analysis_sw_version": "xenium-2.0.0.10",
        "images": {"morphology_filepath": "morphology.ome.tif"},
    }
    (folder / "experiment.xenium").write_text(json.dumps(facts))
    if mex:
        write_mex(folder / "cell_feature_matrix", matrix)
    else:
        write_h5(folder / "cell_feature_matrix.h5", matrix)
    if ids == "numbers":
        cells.assign(cell_id=cells["cell_id"].astype(int)).to_csv(folder / "cells.csv.gz", index=False)
    elif ids == "bytes":
        cells.assign(cell_id=[c.encode() for c in cells["cell_id"]]).to_parquet(folder / "cells.parquet", index=False)
    else:
        cells.to_parquet(folder / "cells.parquet", index=False)


def write_alignment(file: Path, rows: Sequence[Sequence[float]] | Numbers) -> Path:
    """A matrix as Xenium Explorer exports it."""
    file.write_text("".join(",".join(repr(float(v)) for v in row) + "\n" for row in rows))
    return file
