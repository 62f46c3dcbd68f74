"""10x Visium: a folder that spaceranger wrote, versions 1 to 3."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.formats.tables import need_columns, need_numbers, read_delimited
from hescribe.io.formats.tenx import read_genes
from hescribe.io.manifest import ManifestRow

_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
BINNED = "binned_outputs"  #: folder of Visium HD's bins
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
    if is_binned(folder):
        raise InputError("bins of Visium HD, not spots of Visium", path=row.expression, fix="technology: visium_hd")
    return read_spaceranger(folder, row.section_id)


def read_spaceranger(folder: Path, section_id: str) -> ad.AnnData:
    """The spots or bins under tissue of the folder that holds ``filtered_feature_bc_matrix`` and ``spatial``.

    Raises
    ------
    InputError
        As for `read_visium`.
    """
    factors = read_scalefactors(folder / "spatial")
    positions, file = _read_positions(folder / "spatial")
    counts, var, shared = read_genes(folder, "filtered_feature_bc_matrix", positions.index, beside=file)
    positions = positions.loc[shared]
    obs = positions[["array_row", "array_col"]].set_axis([keys.ARRAY_ROW, keys.ARRAY_COL], axis=1)
    adata = ad.AnnData(counts, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=np.float64)
    adata.uns[keys.SPATIAL] = {section_id: {"images": {}, "scalefactors": factors}}
    return adata


def is_binned(folder: Path) -> bool:
    """Whether a folder of spaceranger, its ``outs`` or one of its bins is of Visium HD."""
    if any((f / BINNED).is_dir() for f in (folder, folder / "outs")) or any(folder.glob("square_*um")):
        return True
    try:
        return keys.BIN_UM in read_scalefactors(folder / "spatial")
    except InputError:
        return False


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
    # Of Visium HD's millions of bins, only those that are used are looked at further
    under = table[need_numbers(table, ["in_tissue"], file)[:, 0] == 1]
    if under.empty:
        raise InputError("no spot lies under tissue", path=file, fix="column in_tissue = 1 for spots under tissue")
    barcodes = pd.Index(under["barcode"].astype(str).to_numpy(), dtype=object)
    return pd.DataFrame(need_numbers(under, _COLUMNS[1:], file), columns=_COLUMNS[1:], index=barcodes), file


def read_scalefactors(folder: Path) -> dict[str, float]:
    """``scalefactors_json.json`` of the folder ``spatial``.

    Raises
    ------
    InputError
        Missing, or not JSON of numbers.
    """
    file = folder / "scalefactors_json.json"
    if not file.is_file():
        raise InputError("scalefactors_json.json is missing", path=folder)
    try:
        return {str(k): float(v) for k, v in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"not readable as JSON numbers ({error})", path=file) from error
