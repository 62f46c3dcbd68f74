"""Small tables beside the counts: spot positions, cell types, annotations."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from hescribe import keys
from hescribe.errors import InputError


def read_delimited(path: Path, *, index: bool = False, header: bool = True) -> pd.DataFrame:
    """A CSV, TSV (gzipped or not) or Parquet file.

    Raises
    ------
    InputError
        Missing or unreadable.
    """
    if not path.is_file():
        raise InputError("no such file", path=path, fix="check the manifest")
    suffixes = [s for s in path.suffixes if s != ".gz"]
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            return table.set_index(table.columns[0]) if index else table
        separator = "," if suffixes and suffixes[-1] == ".csv" else "\t"
        return pd.read_csv(path, sep=separator, index_col=0 if index else None, header=0 if header else None)
    except (ValueError, OSError, EOFError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"not a readable table ({error})", path=path) from error


def need_columns(table: pd.DataFrame, columns: list[str], path: Path) -> None:
    """InputError where a column is missing."""
    missing = [c for c in columns if c not in table]
    if missing:
        raise InputError(
            f"column {', '.join(map(repr, missing))} is missing (found {', '.join(map(str, table.columns))})", path=path
        )


def add_cell_types(adata: ad.AnnData, path: Path) -> None:
    """Proportions per spot → ``obsm["cell_types"]``, NaN for spots the table does not have."""
    table = read_delimited(path, index=True)
    table.index = table.index.astype(str)
    shared = table.index.intersection(adata.obs_names)
    if not len(shared):
        raise InputError("no spot of this table is in the section's counts", path=path, fix="first column: spot ids")
    adata.obsm[keys.CELL_TYPES] = table[~table.index.duplicated()].reindex(adata.obs_names).astype(np.float64)


def add_annotations(adata: ad.AnnData, path: Path) -> None:
    """Label per spot → ``obs["annotation"]``.

    The table has a column ``label`` and either spot ids as first column, or array positions ``x`` and ``y``
    (as numbers that may have been refined, hence are rounded).
    """
    table = read_delimited(path)
    need_columns(table, ["label"], path)
    table = table.dropna(subset=["label"])
    first = table[table.columns[0]].astype(str)
    if not first.isin(adata.obs_names).any() and {"x", "y"} <= set(table.columns):
        table = table.dropna(subset=["x", "y"])
        first = table["x"].round().astype(int).astype(str) + "x" + table["y"].round().astype(int).astype(str)
    labels = pd.Series(table["label"].astype(str).to_numpy(), index=first.to_numpy())
    labels = labels[~labels.index.duplicated()].reindex(adata.obs_names)
    if labels.isna().all():
        raise InputError("no spot of this table is in the section's counts", path=path, fix="spot ids, or columns x, y")
    adata.obs[keys.ANNOTATION] = pd.Categorical(labels)
