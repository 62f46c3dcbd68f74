"""Legacy Spatial Transcriptomics: a table of counts, spots named ``<x>x<y>``, and a table of spots."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.formats.genes import tidy_genes
from hescribe.io.formats.tables import array_names, need_columns, need_numbers, read_delimited
from hescribe.io.manifest import ManifestRow
from hescribe.io.schema import match_spots


def read_st(row: ManifestRow) -> ad.AnnData:
    """Counts (rows: spots, columns: genes) and spot file of a section.

    The spot file has ``x, y`` (array), ``pixel_x, pixel_y`` (full resolution) and optionally ``selected``; spots in one
    file and not in the other, and spots that are not selected, are left out.

    Raises
    ------
    InputError
        A file is missing or malformed, or the two share no spot.
    """
    assert row.expression is not None  # noqa: S101 - readers are called for rows with expression
    if row.positions is None:
        raise InputError(
            "legacy ST needs a spot file", path=row.expression, fix="fill the manifest's column 'positions'"
        )
    names, symbols, values = _read_counts(row.expression)
    spots = _read_spots(row.positions)
    shared = match_spots(names, spots.index, row.expression, beside=row.positions)
    matrix, var = tidy_genes(sparse.csr_matrix(values[names.get_indexer(shared)]), symbols)
    spots = spots.loc[shared]
    # The printed position, not the refined one: whole numbers, as in the spot ids
    places = np.rint(spots[["y", "x"]].to_numpy())
    obs = pd.DataFrame(places, columns=[keys.ARRAY_ROW, keys.ARRAY_COL], index=shared)
    adata = ad.AnnData(matrix, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = spots[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    return adata


def _read_counts(path: Path) -> tuple[pd.Index, list[str], npt.NDArray[np.float32]]:
    """(spot ids, genes as they stand in the header, spots × genes)."""
    # The header is read as a row of its own: pandas renames columns of the same name, which are to be summed
    table = read_delimited(path, index=True)
    header = read_delimited(path, header=False, n_rows=1).iloc[0]
    symbols = [str(s) for s in header.iloc[1 if len(header) > table.shape[1] else 0 :]]
    try:
        values = table.to_numpy(dtype=np.float32)
    except ValueError as error:
        raise InputError(f"counts are not all numbers ({error})", path=path) from error
    if not np.isfinite(values).all():
        raise InputError("some counts are missing", path=path, fix="is the file truncated? Write zeros as 0")
    return pd.Index(table.index.astype(str)), symbols, values


def _read_spots(path: Path) -> pd.DataFrame:
    """Selected spots by id, all columns numbers."""
    table = read_delimited(path)
    columns = ["x", "y", "pixel_x", "pixel_y"]
    need_columns(table, columns, path)
    if "selected" in table:
        table = table[need_numbers(table, ["selected"], path)[:, 0] == 1]
        if table.empty:
            raise InputError("no spot is selected", path=path, fix="selected = 1 for spots under tissue")
    numbers = pd.DataFrame(need_numbers(table, columns, path), columns=columns)
    return numbers.set_index(array_names(numbers["x"], numbers["y"]))
