"""The manifest: one row a section, paths relative to the manifest itself."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hescribe.errors import HescribeWarning, InputError, list_some
from hescribe.types import POSSIBLE_MPP, Microns, Mpp

REQUIRED = ("section_id", "patient_id", "image", "expression")
OPTIONAL = ("technology", "positions", "mpp", "cell_types", "annotations", "z")
_SEPARATED = "columns are separated by commas, in .tsv by tabs"
_PATHS = ("image", "expression", "positions", "cell_types", "annotations")


@dataclass(frozen=True)
class ManifestRow:
    """What the manifest says of one section; fields as the columns, paths made absolute.

    A row without ``image`` is unpaired transcriptomics, one without ``expression`` a slide.
    """

    section_id: str
    patient_id: str
    image: Path | None
    expression: Path | None
    technology: str | None = None
    positions: Path | None = None
    mpp: Mpp | None = None
    cell_types: Path | None = None
    annotations: Path | None = None
    z: Microns | None = None


def read_manifest(path: str | Path) -> list[ManifestRow]:
    """Rows of a manifest (``.csv``, ``.tsv`` or ``.parquet``), or of ``sections.csv`` in a folder.

    Raises
    ------
    InputError
        The file is missing or unreadable, a column is missing, an id is empty, double or no file name, or a
        value is not what its column holds; names file, row and column.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "sections.csv"
    table = _read_table(file)
    missing = [c for c in REQUIRED if c not in table]
    if len(table.columns) == 1 and any(mark in table.columns[0] for mark in ";|\t,"):
        raise InputError(f"a single column, {list_some(table.columns)!r}", path=file, fix=_SEPARATED)
    if missing:
        raise InputError(
            f"column {', '.join(map(repr, missing))} is missing (found {list_some(table.columns)})",
            path=file,
            fix=f"needed are {', '.join(REQUIRED)}; cells may be empty",
        )
    unknown = [str(c) for c in table if c not in REQUIRED + OPTIONAL]
    if unknown:
        warnings.warn(f"{file}: column {', '.join(unknown)} is not known and not used", HescribeWarning, stacklevel=2)
    if table.empty:
        raise InputError("the manifest has no rows", path=file)
    rows = [_row(file, i + 2, values) for i, values in zip(table.index, table.to_dict("records"), strict=True)]
    ids = [r.section_id for r in rows]
    if double := sorted({i for i in ids if ids.count(i) > 1}):
        raise InputError(f"section_id {', '.join(map(repr, double))} stands in several rows", path=file)
    return rows


def _read_table(file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise InputError("no such manifest", path=file, fix="a CSV with " + ", ".join(REQUIRED))
    try:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file)
            table = table.reset_index() if any(table.index.names) else table
            table = table.convert_dtypes()  # ids that are numbers stand there as 1.0 where one is missing
        else:
            separator = "\t" if file.suffix in {".tsv", ".txt"} else ","
            table = pd.read_csv(
                file,
                sep=separator,
                dtype="string",
                skipinitialspace=True,
                skip_blank_lines=False,  # or the rows below them would be counted wrong
                keep_default_na=False,  # a section may be called NA
                na_values=[""],
            )
        table = table.rename(columns=lambda name: str(name).strip()).astype("string")
    except (ValueError, OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"not a readable table ({error})", path=file, fix="CSV in UTF-8, or Parquet") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what stands first for names of the rows
        told = f"the first line names {len(table.columns)} columns, the rows have more cells"
        raise InputError(told, path=file, fix="name every column")
    return table.dropna(how="all")


def _row(file: Path, line: int, values: dict[Any, Any]) -> ManifestRow:
    cells = {str(k): _text(v) for k, v in values.items()}
    for name in ("section_id", "patient_id"):
        if not cells[name]:
            raise InputError(f"row {line}: {name} is empty", path=file)
    section = cells["section_id"]
    if Path(section).name != section or section.startswith("."):
        raise InputError(
            f"row {line}: section_id {section!r} cannot be a file name", path=file, fix="use letters, digits, - and _"
        )
    if not cells["image"] and not cells["expression"]:
        raise InputError(f"row {line} ({section}): neither image nor expression is given", path=file)
    paths = {c: _path(file, cells.get(c, "")) for c in _PATHS}
    return ManifestRow(
        section_id=section,
        patient_id=cells["patient_id"],
        technology=cells.get("technology", "").lower() or None,
        mpp=_number(file, line, "mpp", cells.get("mpp", "")),
        z=_number(file, line, "z", cells.get("z", "")),
        **paths,
    )


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value).strip()


def _path(manifest: Path, text: str) -> Path | None:
    # Not resolved: a link in a manifest keeps the name the user knows
    return (manifest.parent.absolute() / Path(text).expanduser()) if text else None


def _number(file: Path, line: int, column: str, text: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    low, high = POSSIBLE_MPP
    if not math.isfinite(number) or (column == "mpp" and not low <= number <= high):
        what = f"µm per pixel, {low:g} to {high:g}" if column == "mpp" else "a number"
        raise InputError(f"row {line}: {column} is {text!r}, not {what}", path=file)
    return number
