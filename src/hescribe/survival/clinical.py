"""The clinical table: one row a patient, checked; covariates as numbers; TCGA's own tables read into it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hescribe.errors import HescribeWarning, InputError, list_some

TIME, EVENT, PATIENT, SLIDE = "time", "event", "patient_id", "slide_id"
LEAST_EVENTS = 10  #: fewer cannot carry even one coefficient
_MOST_LEVELS = 10  #: of a covariate in words; more is free text
_DAYS_A_MONTH = 30.4375
_TRUE, _FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
#: what TCGA's tables write for what is not known
_UNKNOWN = ["#N/A", "[Not Available]", "[Not Applicable]", "[Unknown]", "[Discrepancy]", "[Not Evaluated]", "NA", ""]
#: cBioPortal's names for endpoints: disease-free, overall, progression-free, disease-specific
_CBIOPORTAL = {"DFI": "DFS", "OS": "OS", "PFI": "PFS", "DSS": "DSS", "DFS": "DFS", "PFS": "PFS"}
_LEFT_OUT = "left out"  #: of a checked table's ``attrs``: patients who were told of already
ENDPOINTS = ("DFI", "PFI", "OS", "DSS")


def read_clinical(path: str | Path, *, covariates: Sequence[str] = ()) -> pd.DataFrame:
    """Follow-up of each patient from a CSV, TSV or Parquet table.

    Parameters
    ----------
    path
        Columns ``patient_id``, ``time`` (any unit, the same for all), ``event`` (1: happened, 0: censored) and the
        covariates.
    covariates
        Columns wanted besides.

    Returns
    -------
    DataFrame
        Indexed by patient; ``time`` float, ``event`` bool, and the covariates as they are.

    Raises
    ------
    InputError
        As `check_clinical`.
    """
    return check_clinical(_read_table(path), covariates=covariates, path=path)


def check_clinical(
    table: pd.DataFrame, *, covariates: Sequence[str] = (), path: str | Path | None = None
) -> pd.DataFrame:
    """Check a clinical table and index it by patient; rows without time or event are left out with a warning.

    Raises
    ------
    InputError
        Columns are missing, a patient stands there twice, times are no numbers or negative, events are neither 0
        nor 1, nobody or nearly nobody had the event.
    """
    given = table.reset_index() if table.index.name == PATIENT else table
    if missing := [c for c in (PATIENT, TIME, EVENT, *covariates) if c not in given]:
        raise InputError(f"column {missing[0]!r} is missing (found {list_some(given.columns)})", path=path)
    _check_patients(given[PATIENT], path)
    clinical = given.set_index(given[PATIENT].astype(str).str.strip())[[TIME, EVENT, *covariates]].copy()
    clinical.index.name = PATIENT
    clinical[TIME] = _times(clinical[TIME], path)
    clinical[EVENT] = _events(clinical[EVENT], path)
    known = clinical[TIME].notna() & clinical[EVENT].notna()
    _warn_left_out(int((~known).sum()), "without time or event")
    clinical.attrs[_LEFT_OUT] = tuple(clinical.index[~known])
    clinical = clinical[known]
    clinical[EVENT] = clinical[EVENT].astype(bool)
    check_events(clinical, path=path)
    return clinical


def _count(number: int) -> str:
    return f"{number} patient{'s' * (number != 1)}"


def _warn_left_out(number: int, what: str) -> None:
    if number:
        told = f"{_count(number)} {what} {'is' if number == 1 else 'are'} left out"
        warnings.warn(told, HescribeWarning, stacklevel=3)


def _check_patients(patients: pd.Series, path: str | Path | None) -> None:
    if patients.isna().any() or (patients.astype(str).str.strip() == "").any():
        raise InputError("a row has no patient_id", path=path)
    twice = patients[patients.astype(str).str.strip().duplicated()]
    if len(twice):
        raise InputError(
            f"patient {str(twice.iloc[0])!r} stands there twice",
            path=path,
            fix="one row a patient; say which slides are whose with --slides",
        )


def check_events(clinical: pd.DataFrame, *, path: str | Path | None = None) -> None:
    """Refuse follow-up from which nothing can be learned.

    Raises
    ------
    InputError
        All are censored, or fewer than 10 had the event.
    """
    events = int(clinical[EVENT].sum())
    if events == 0:
        raise InputError(f"all {len(clinical)} patients are censored: there is no outcome to learn from", path=path)
    if events < LEAST_EVENTS:
        raise InputError(
            f"only {events} of {len(clinical)} patients had the event; at least {LEAST_EVENTS} are needed", path=path
        )


def _times(column: pd.Series, path: str | Path | None) -> pd.Series:
    times = pd.to_numeric(column, errors="coerce")
    odd = times.isna() & column.notna()
    if odd.any():
        raise InputError(f"time {column[odd].iloc[0]!r} of patient {odd.idxmax()!r} is no number", path=path)
    if np.isinf(times).any():
        raise InputError(f"the time of patient {np.isinf(times).idxmax()!r} is infinite", path=path)
    if (times < 0).any():
        first = times[times < 0]
        raise InputError(f"negative time {first.iloc[0]:g} of patient {first.index[0]!r}", path=path)
    return times.astype(np.float64)


def _events(column: pd.Series, path: str | Path | None) -> pd.Series:
    words = column.map(lambda v: v if pd.isna(v) else str(v).strip().lower())
    events = words.map({**dict.fromkeys(_TRUE, 1.0), **dict.fromkeys(_FALSE, 0.0)})
    odd = events.isna() & words.notna()
    if odd.any():
        raise InputError(
            f"event {column[odd].iloc[0]!r} of patient {odd.idxmax()!r}", path=path, fix="1: happened, 0: censored"
        )
    return events


def encode_covariates(clinical: pd.DataFrame, covariates: Sequence[str]) -> pd.DataFrame:
    """Covariates as numbers: numbers as they are, words as one column for each level but the first.

    Nothing is learned from the outcome, nor from the values' distribution: means for what is missing are learned by
    the model, on training patients.

    Raises
    ------
    InputError
        A column has more than 10 different words.
    """
    columns: dict[str, pd.Series] = {}
    for name in covariates:
        values = clinical[name]
        numbers = pd.to_numeric(values, errors="coerce")
        if (numbers.notna() | values.isna()).all():
            columns[name] = numbers.astype(np.float64)
            continue
        words = values.map(lambda v: None if pd.isna(v) else str(v).strip())
        levels = sorted(words.dropna().unique())
        if len(levels) > _MOST_LEVELS:
            raise InputError(f"covariate {name!r} has {len(levels)} different words", fix="give numbers, or few groups")
        for level in levels[1:]:
            columns[f"{name} {level}"] = (words == level).astype(np.float64).where(words.notna())
    return pd.DataFrame(columns, index=clinical.index)


def count_missing(clinical: pd.DataFrame, covariates: Sequence[str]) -> dict[str, int]:
    """Covariate → patients without a value, of those that lack any."""
    return {name: n for name in covariates if (n := int(clinical[name].isna().sum()))}


def describe_missing(missing: Mapping[str, int]) -> str:
    """``"age: 1 patient without a value; the training patients' mean is taken"``."""
    columns = ", ".join(f"{name}: {_count(n)} without a value" for name, n in missing.items())
    return f"{columns}; the training patients' mean is taken"


def read_slide_patients(path: str | Path) -> dict[str, str]:
    """Which patient each slide is of, from a table with the columns ``slide_id`` and ``patient_id``.

    Raises
    ------
    InputError
        No such file, columns are missing, or a slide stands there twice.
    """
    table = _read_table(path)
    if missing := [c for c in (SLIDE, PATIENT) if c not in table]:
        raise InputError(f"column {missing[0]!r} is missing (found {list_some(table.columns)})", path=path)
    slides = table[SLIDE].astype(str).str.strip()
    if slides.duplicated().any():
        raise InputError(f"slide {slides[slides.duplicated()].iloc[0]!r} stands there twice", path=path)
    return dict(zip(slides, table[PATIENT].astype(str).str.strip(), strict=True))


def join_slides(
    clinical: pd.DataFrame, patients: Iterable[str], *, drop_missing: bool = False
) -> tuple[pd.DataFrame, set[str]]:
    """The patients with both follow-up and slides.

    Parameters
    ----------
    clinical
        Checked table.
    patients
        The patient of each slide.
    drop_missing
        Leave out patients without slides, with a warning, rather than refuse.

    Returns
    -------
    tuple
        The clinical table of those that are left, and the patients whose slides have no follow-up (with a warning).

    Raises
    ------
    InputError
        Patients have no slide, or too few events are left.
    """
    seen = set(patients)
    without = [p for p in clinical.index if p not in seen]
    if len(without) == len(clinical):
        raise InputError(
            f"no patient of the clinical table has a slide (slides are of {', '.join(sorted(seen)[:3])} …)",
            fix="say which slide is whose with --slides",
        )
    if without and not drop_missing:
        raise InputError(
            f"{_count(len(without))} {'has' if len(without) == 1 else 'have'} no slide, such as {without[0]!r}",
            fix="pass --drop-missing to leave them out",
        )
    strangers = seen - set(clinical.index)
    _warn_left_out(len(without), "without slides")
    _warn_left_out(len(strangers.difference(clinical.attrs.get(_LEFT_OUT, ()))), "with slides but no follow-up")
    kept = clinical.loc[[p for p in clinical.index if p in seen]]
    check_events(kept)
    return kept, strangers


def read_tcga(path: str | Path, *, endpoint: str = "DFI", cancers: Sequence[str] = ()) -> pd.DataFrame:
    """Follow-up from TCGA's tables: the Clinical Data Resource (Liu 2018), or cBioPortal's ``data_clinical_patient.txt``.

    Parameters
    ----------
    path
        The sheet ``TCGA-CDR`` saved as CSV or TSV, or cBioPortal's file.
    endpoint
        ``DFI`` (disease-free interval), ``PFI``, ``OS`` or ``DSS``.
    cancers
        Such as ``LUAD``; by default all. Only the Clinical Data Resource says which is which.

    Returns
    -------
    DataFrame
        As the clinical table: ``patient_id`` (``TCGA-XX-XXXX``), ``time`` in months, ``event``, ``age``, ``sex``,
        ``stage`` (1 to 4), ``cancer`` where known. Patients without the endpoint are not in it.

    Raises
    ------
    InputError
        No such file, an unknown endpoint, or a table that is neither.

    References
    ----------
    Liu et al., Cell 173:400 (2018).
    """
    table = _read_table(path, unknown=_UNKNOWN)
    table.columns = [str(c) for c in table.columns]
    if endpoint not in _CBIOPORTAL:
        raise InputError(f"unknown endpoint {endpoint!r}", fix=f"known: {', '.join(ENDPOINTS)}")
    if "bcr_patient_barcode" in table:
        clinical = _from_cdr(table, endpoint, path)
    elif "PATIENT_ID" in table:
        clinical = _from_cbioportal(table, endpoint, path)
    else:
        raise InputError("neither TCGA's Clinical Data Resource nor cBioPortal's table of patients", path=path)
    if cancers:
        found = sorted(clinical["cancer"].dropna().unique())
        if unknown := [c for c in cancers if c not in found]:
            raise InputError(f"no patient with {unknown[0]} (found {list_some(found)})", path=path)
        clinical = clinical[clinical["cancer"].isin(cancers)]
    clinical = clinical.dropna(subset=[TIME, EVENT]).drop_duplicates(PATIENT)
    return clinical.reset_index(drop=True)


def _from_cdr(table: pd.DataFrame, endpoint: str, path: str | Path) -> pd.DataFrame:
    if endpoint not in table or f"{endpoint}.time" not in table:
        raise InputError(f"columns {endpoint!r} and '{endpoint}.time' are missing", path=path)
    stage = table.get("ajcc_pathologic_tumor_stage", pd.Series(None, index=table.index, dtype=object))
    return pd.DataFrame(
        {
            PATIENT: table["bcr_patient_barcode"].str.slice(0, 12),
            TIME: pd.to_numeric(table[f"{endpoint}.time"], errors="coerce") / _DAYS_A_MONTH,
            EVENT: pd.to_numeric(table[endpoint], errors="coerce"),
            "age": _numbers(table, "age_at_initial_pathologic_diagnosis"),
            "sex": table.get("gender"),
            "stage": stage.map(stage_number),
            "cancer": table.get("type"),
        }
    )


def _from_cbioportal(table: pd.DataFrame, endpoint: str, path: str | Path) -> pd.DataFrame:
    name = _CBIOPORTAL[endpoint]
    if f"{name}_STATUS" not in table or f"{name}_MONTHS" not in table:
        raise InputError(f"columns '{name}_STATUS' and '{name}_MONTHS' are missing", path=path)
    stage = table.get("AJCC_PATHOLOGIC_TUMOR_STAGE", pd.Series(None, index=table.index, dtype=object))
    return pd.DataFrame(
        {
            PATIENT: table["PATIENT_ID"].str.slice(0, 12),
            TIME: pd.to_numeric(table[f"{name}_MONTHS"], errors="coerce"),
            EVENT: pd.to_numeric(table[f"{name}_STATUS"].astype(str).str.slice(0, 1), errors="coerce"),
            "age": _numbers(table, "AGE"),
            "sex": table.get("SEX"),
            "stage": stage.map(stage_number),
            "cancer": table.get("CANCER_TYPE_ACRONYM"),
        }
    )


def _numbers(table: pd.DataFrame, column: str) -> pd.Series:
    values = table[column] if column in table else pd.Series(np.nan, index=table.index)
    return pd.to_numeric(values, errors="coerce")


def stage_number(text: object) -> float:
    """``"Stage IIIA"`` → 3; NaN for anything else."""
    roman = str(text).upper().removeprefix("STAGE").strip().rstrip("ABC12")
    return {"I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0}.get(roman, float("nan"))


def tcga_patient(slide_id: str) -> str:
    """The patient of a TCGA slide: the first three parts of its barcode."""
    return "-".join(slide_id.split("-")[:3]) if slide_id.startswith("TCGA-") else slide_id


def _read_table(path: str | Path, *, unknown: Sequence[str] = ()) -> pd.DataFrame:
    file = Path(path)
    if not file.is_file():
        raise InputError("no such table", path=file)
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        separator = "\t" if file.suffix in {".tsv", ".txt"} else ","
        comment = "#" if file.name.startswith("data_clinical") else None
        return pd.read_csv(
            file,
            sep=separator,
            comment=comment,
            dtype={PATIENT: str, SLIDE: str},
            na_values=list(unknown),
            low_memory=False,
        )
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise InputError(f"cannot be read as a table: {error}", path=file) from error
