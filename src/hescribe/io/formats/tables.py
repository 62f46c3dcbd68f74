"""Small tables beside the counts: spot positions, cell types, annotations."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from hescribe import keys
from hescribe.errors import HescribeWarning, InputError, list_some
from hescribe.io.mixtures import tidy_type

_SUM_TOLERANCE = 0.02  #: further from sum 1 a row of proportions is worth a warning


def read_delimited(path: Path, *, index: bool = False, header: bool = True, n_rows: int | None = None) -> pd.DataFrame:
    """A CSV, TSV (gzipped or not) or Parquet file.

    Parameters
    ----------
    path
        The file; tabs separate its columns unless its name ends in ``.csv`` or ``.csv.gz``.
    index
        The first column names the rows.
    header
        The first row names the columns; otherwise they are numbered.
    n_rows
        Read no more than these.

    Raises
    ------
    InputError
        Missing or unreadable.
    """
    if not path.is_file():
        raise InputError("no such file", path=path, fix="check the manifest")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            if not isinstance(table.index, pd.RangeIndex):  # what pandas wrote from a table whose rows have names
                return table if index else table.reset_index()
            return table.set_index(table.columns[0]) if index else table
        separator = "," if path.name.removesuffix(".gz").endswith(".csv") else "\t"
        # Without a header all is text; a gene may be called NA
        return pd.read_csv(
            path,
            sep=separator,
            index_col=0 if index else None,
            header=0 if header else None,
            nrows=n_rows,
            dtype=None if header else str,
            keep_default_na=header,
        )
    except (ValueError, OSError, EOFError, zlib.error) as error:  # pandas' own parser errors are ValueErrors
        raise InputError(f"not a readable table ({error})", path=path) from error


def need_columns(table: pd.DataFrame, columns: list[str], path: Path) -> None:
    """InputError where a column is missing."""
    missing = [c for c in columns if c not in table]
    if missing:
        raise InputError(
            f"column {', '.join(map(repr, missing))} is missing (found {list_some(table.columns)})", path=path
        )


def need_numbers(table: pd.DataFrame, columns: list[str], path: Path) -> npt.NDArray[np.float64]:
    """Columns as numbers, (rows, columns).

    Raises
    ------
    InputError
        A value is missing or no finite number; says which.
    """
    numbers = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isfinite(numbers)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        value = table[columns].iloc[row, column]
        value = value.item() if isinstance(value, np.generic) else value
        raise InputError(f"column {columns[column]!r} holds {value!r}, not a number ({bad.sum()} such)", path=path)
    return numbers


def array_names(x: npt.ArrayLike, y: npt.ArrayLike) -> pd.Index:
    """Spot ids ``<x>x<y>`` of legacy ST from array positions, which may have been refined."""
    columns, rows = np.rint(np.asarray(x)).astype(int), np.rint(np.asarray(y)).astype(int)
    return pd.Index([f"{column}x{row}" for column, row in zip(columns, rows, strict=True)], dtype=object)


def add_cell_types(adata: ad.AnnData, path: Path) -> None:
    """Proportions per spot → ``obsm["cell_types"]``, rows of sum 1; NaN for spots of which the table knows nothing.

    Rows that are far from sum 1 (counts of cells, percentages) are scaled to it with a warning; rows that are empty or
    all zero count as unknown.

    Raises
    ------
    InputError
        The table shares no spot with the section, has a spot twice, or holds something else than proportions.
    """
    table = read_delimited(path, index=True)
    table.index = table.index.astype(str)
    if table.index.has_duplicates:
        raise InputError(f"spot id {table.index[table.index.duplicated()][0]!r} stands there twice", path=path)
    shared = table.index[table.index.isin(adata.obs_names)]
    if not len(shared):
        raise InputError("no spot of this table is in the section's counts", path=path, fix="first column: spot ids")
    table = table.loc[shared].dropna(how="all")
    table.columns = pd.Index(_type_names(table, path))
    numbers = need_numbers(table, list(table.columns), path)
    if (numbers < 0).any():
        row, column = np.argwhere(numbers < 0)[0]
        raise InputError(
            f"the proportion of {table.columns[column]!r} in spot {table.index[row]!r} is negative "
            f"({numbers[row, column]:g})",
            path=path,
        )
    total = numbers.sum(axis=1, keepdims=True)
    far = int((np.abs(total - 1) > _SUM_TOLERANCE).sum())
    if far:
        warnings.warn(
            f"{path}: {far} of {len(total)} rows are far from sum 1 and were scaled to it",
            HescribeWarning,
            stacklevel=2,
        )
    proportions = np.divide(numbers, total, out=np.full_like(numbers, np.nan), where=total > 0)
    known = pd.DataFrame(proportions, index=table.index, columns=table.columns)
    adata.obsm[keys.CELL_TYPES] = known.reindex(adata.obs_names)


def _type_names(table: pd.DataFrame, path: Path) -> list[str]:
    names = [tidy_type(c) for c in table.columns]
    if not names:
        raise InputError(
            "no column of proportions", path=path, fix="spot ids in the first column, then a column a type"
        )
    if double := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"cell type {double[0]!r} stands there twice", path=path)
    return names


def add_annotations(adata: ad.AnnData, path: Path) -> None:
    """Label per spot → ``obs["annotation"]``, empty for spots the table does not have.

    The table has a column ``label`` (or ``annotation``, or just two columns) and either spot ids as first column, or
    array positions ``x`` and ``y``, which may have been refined and hence are rounded. Rows without are left out.

    Raises
    ------
    InputError
        No such column, or no spot in common.
    """
    table = read_delimited(path)
    column = _label_column(table, path)
    table = table.dropna(subset=[column])
    names = pd.Index(table[table.columns[0]].astype(str))
    if not names.isin(adata.obs_names).any() and {"x", "y"} <= set(table.columns):
        place = table[["x", "y"]].apply(pd.to_numeric, errors="coerce")
        table = table[np.isfinite(place).all(axis=1)]
        names = array_names(*place.loc[table.index].to_numpy().T)
    labels = pd.Series(table[column].astype(str).to_numpy(), index=names)
    labels = labels[~labels.index.duplicated()].reindex(adata.obs_names)
    if labels.isna().all():
        raise InputError("no spot of this table is in the section's counts", path=path, fix="spot ids, or columns x, y")
    adata.obs[keys.ANNOTATION] = pd.Categorical(labels)


def _label_column(table: pd.DataFrame, path: Path) -> str:
    for name in ("label", keys.ANNOTATION):
        if name in table:
            return name
    if table.shape[1] == 2:
        return str(table.columns[1])
    need_columns(table, ["label"], path)
    raise AssertionError("unreachable: the column is missing")
