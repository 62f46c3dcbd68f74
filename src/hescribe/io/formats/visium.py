"""10x Visium: a folder that spaceranger wrote, versions 1 to 3."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.formats.genes import tidy_genes
from hescribe.io.formats.tables import need_columns, need_numbers, read_delimited
from hescribe.io.manifest import ManifestRow
from hescribe.io.schema import match_spots

_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")


def read_visium(row: ManifestRow) -> ad.AnnData:
    """Spots under tissue of a spaceranger output folder (or of its ``outs``).

    Counts from ``filtered_feature_bc_matrix.h5`` or the folder of that name, positions from
    ``tissue_positions.csv`` or ``.parquet`` (with header) or ``tissue_positions_list.csv`` (without).

    Raises
    ------
    InputError
        Something is missing or malformed, or counts and positions share no barcode.
    """
    assert row.expression is not None  # noqa: S101 - readers are called for rows with expression
    folder = row.expression / "outs" if (row.expression / "outs").is_dir() else row.expression
    if not folder.is_dir():
        raise InputError(
            "not a folder of spaceranger", path=row.expression, fix="give the folder itself, or its 'outs'"
        )
    matrix, barcodes, features, source = _read_counts(folder)
    positions, file = _read_positions(folder / "spatial")
    shared = match_spots(barcodes, positions.index, source, beside=file)
    genes = (features["feature_type"] == "Gene Expression").to_numpy()
    rows = barcodes.get_indexer(shared)
    kept = features[genes]
    counts, var = tidy_genes(matrix[rows][:, genes], list(kept["name"]), list(kept["id"]))
    positions = positions.loc[shared]
    obs = positions[["array_row", "array_col"]].set_axis([keys.ARRAY_ROW, keys.ARRAY_COL], axis=1)
    adata = ad.AnnData(counts, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=np.float64)
    adata.uns[keys.SPATIAL] = {row.section_id: {"images": {}, "scalefactors": _read_scalefactors(folder / "spatial")}}
    return adata


def _read_counts(folder: Path) -> tuple[sparse.csr_matrix, pd.Index, pd.DataFrame, Path]:
    """(spots × features, barcodes, features with id, name and feature_type, the file)."""
    file, directory = folder / "filtered_feature_bc_matrix.h5", folder / "filtered_feature_bc_matrix"
    if file.is_file():
        return *_read_h5(file), file
    if directory.is_dir():
        return *_read_mtx(directory), directory
    raise InputError("neither filtered_feature_bc_matrix.h5 nor the folder of that name is here", path=folder)


def _read_h5(file: Path) -> tuple[sparse.csr_matrix, pd.Index, pd.DataFrame]:
    import h5py

    try:
        with h5py.File(file) as h5:
            group = h5["matrix"]
            shape = tuple(group["shape"][:])
            parts = (group["data"][:], group["indices"][:], group["indptr"][:])
            barcodes = group["barcodes"].asstr()[:]
            features = {name: group["features"][name].asstr()[:] for name in ("id", "name", "feature_type")}
        # Stored features × barcodes by column, which is barcodes × features by row
        return sparse.csr_matrix(parts, shape=shape[::-1]), pd.Index(barcodes), pd.DataFrame(features)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"not a readable 10x matrix ({error})", path=file) from error


def _read_mtx(folder: Path) -> tuple[sparse.csr_matrix, pd.Index, pd.DataFrame]:
    from scipy.io import mmread

    try:
        matrix = sparse.csr_matrix(mmread(_either(folder, "matrix.mtx")).T)
        barcodes = pd.read_csv(_either(folder, "barcodes.tsv"), header=None, sep="\t")[0]
        features = pd.read_csv(_either(folder, "features.tsv", "genes.tsv"), header=None, sep="\t")
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise InputError(f"not a readable 10x matrix folder ({error})", path=folder) from error
    if matrix.shape != (len(barcodes), len(features)):
        raise InputError(
            f"a matrix of {matrix.shape[0]} barcodes × {matrix.shape[1]} features, but {len(barcodes)} barcodes and "
            f"{len(features)} features are named",
            path=folder,
        )
    # The oldest files have no third column: all are genes
    kind = features[2] if 2 in features else pd.Series("Gene Expression", index=features.index)
    return matrix, pd.Index(barcodes), pd.DataFrame({"id": features[0], "name": features[1], "feature_type": kind})


def _either(folder: Path, *names: str) -> Path:
    for name in names:
        for file in (folder / f"{name}.gz", folder / name):
            if file.is_file():
                return file
    raise InputError(f"{names[0]} (or .gz) is missing", path=folder)


def _read_positions(folder: Path) -> tuple[pd.DataFrame, Path]:
    file = next((folder / n for n in _POSITIONS if (folder / n).is_file()), None)
    if file is None:
        raise InputError(f"none of {', '.join(_POSITIONS)} is here", path=folder)
    table = read_delimited(file, header=file.name != "tissue_positions_list.csv")
    if 0 in table.columns:
        if table.shape[1] != len(_COLUMNS):
            raise InputError(f"{table.shape[1]} columns instead of {len(_COLUMNS)}", path=file)
        table.columns = pd.Index(_COLUMNS)
        if table["barcode"].iloc[0] == "barcode":  # some pipelines add a header to the file without one
            table = table.iloc[1:]
    need_columns(table, _COLUMNS, file)
    barcodes = pd.Index(table["barcode"].astype(str))
    places = pd.DataFrame(need_numbers(table, _COLUMNS[1:], file), columns=_COLUMNS[1:], index=barcodes)
    under = places[places["in_tissue"] == 1]
    if under.empty:
        raise InputError("no spot lies under tissue", path=file, fix="column in_tissue = 1 for spots under tissue")
    return under, file


def _read_scalefactors(folder: Path) -> dict[str, float]:
    file = folder / "scalefactors_json.json"
    if not file.is_file():
        raise InputError("scalefactors_json.json is missing", path=folder)
    try:
        return {str(k): float(v) for k, v in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"not readable as JSON numbers ({error})", path=file) from error
