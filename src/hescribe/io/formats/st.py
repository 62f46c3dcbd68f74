"""Legacy Spatial Transcriptomics: a table of counts, spots named ``<x>x<y>``, and a table of spots."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.formats.genes import tidy_genes
from hescribe.io.formats.tables import need_columns, read_delimited
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
    table = read_delimited(row.expression, index=True)
    spots = read_delimited(row.positions)
    need_columns(spots, ["x", "y", "pixel_x", "pixel_y"], row.positions)
    if "selected" in spots:
        spots = spots[spots["selected"].astype(float) == 1]
    spots = spots.set_index(
        spots["x"].round().astype(int).astype(str) + "x" + spots["y"].round().astype(int).astype(str)
    )
    table.index = table.index.astype(str)
    shared = match_spots(table.index, spots.index, row.expression, beside=row.positions)
    table, spots = table.loc[shared], spots.loc[shared]
    try:
        values = table.to_numpy(dtype=np.float32)
    except ValueError as error:
        raise InputError(f"counts are not all numbers ({error})", path=row.expression) from error
    matrix, var = tidy_genes(sparse.csr_matrix(values), list(table.columns))
    obs = pd.DataFrame(
        {keys.ARRAY_ROW: spots["y"].to_numpy(float), keys.ARRAY_COL: spots["x"].to_numpy(float)},
        index=shared.to_numpy(),
    )
    for axis, name in (("new_x", keys.ARRAY_COL), ("new_y", keys.ARRAY_ROW)):
        if axis in spots:  # refined on the image
            obs[name] = spots[axis].to_numpy(float)
    adata = ad.AnnData(matrix, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = spots[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    return adata
