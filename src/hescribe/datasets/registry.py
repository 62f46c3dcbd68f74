"""Named data sets: where they are, under which terms, and how they unpack. To add one, write one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

Archive = Literal["zip", "tar"]


@dataclass(frozen=True)
class RemoteFile:
    """One file to download.

    Attributes
    ----------
    sha256
        None where it is not known to us: then it cannot be verified, and fetching says so.
    unpack
        None leaves the file as it is.
    """

    name: str
    url: str
    sha256: str | None = None
    unpack: Archive | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set that can be fetched, or made where it has no files.

    Attributes
    ----------
    size
        As far as known, for people.
    note
        What a user has to do beyond fetching.
    """

    name: str
    summary: str
    size: str
    licence: str
    citation: str
    files: tuple[RemoteFile, ...] = ()
    note: str = ""


_HER2ST = "Andersson et al., Nature Communications 12:6012 (2021)"
_LIVER = "GEO GSE240429; as used by Xie et al., NeurIPS 2023 (BLEEP)"
_SKIN = "Ji et al., Cell 182:497 (2020)"
_GEO = "https://www.ncbi.nlm.nih.gov/geo/download/"
_ENCRYPTED = "the zip files are encrypted; the password stands on the record's page (zenodo.org/records/4751624)"


def _zenodo(record: int, *names: str) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(n, f"https://zenodo.org/records/{record}/files/{n}?download=1") for n in names)


def _github(repository: str, commit: str) -> tuple[RemoteFile, ...]:
    name = f"{repository.split('/')[1]}.zip"
    return (RemoteFile(name, f"https://github.com/{repository}/archive/{commit}.zip", unpack="zip"),)


def _geo(accession: str) -> tuple[RemoteFile, ...]:
    """Everything of a series, in one archive."""
    return (RemoteFile(f"{accession}_RAW.tar", f"{_GEO}?acc={accession}&format=file", unpack="tar"),)


def _geo_files(*names: str) -> tuple[RemoteFile, ...]:
    """Single files of samples; a file's name begins with its sample's accession."""
    return tuple(RemoteFile(n, f"{_GEO}?acc={n.split('_')[0]}&format=file&file={quote(n)}") for n in names)


# fmt: off
_TABLE = (
    Dataset("synthetic", "3 patients × 2 Visium sections made here, truth known", "60 MB", "Apache-2.0", "hescribe"),
    Dataset("her2st", "HER2+ breast tumours, 8 patients, 36 ST sections", "unknown", "not stated", _HER2ST, _github("almaan/her2st", "85df7411b987a7dec3feff9718b869a7a82091ec")),
    Dataset("her2st-zenodo", "the same from Zenodo, encrypted archives", "0.6 GB", "CC-BY-4.0", _HER2ST, _zenodo(4751624, "count-matrices.zip", "images.zip", "spot-selections.zip", "meta.zip"), _ENCRYPTED),
    # The series' archive has the fourth image cut short: images come from the samples' own pages
    Dataset("human-liver", "human liver, 1 donor, 4 consecutive Visium sections", "6 GB", "not stated", _LIVER, (*_github("bowang-lab/BLEEP", "23959670c7407510c1716a173184bdcc18833a35"), *_geo_files("GSM7697868_GEX_C73_A1_Merged.tiff.gz", "GSM7697869_GEX_C73_B1_Merged.tiff.gz", "GSM7697870_GEX_C73_C1_Merged.tiff.gz", "GSM7697871_GEX_C73_D1_Merged.tiff.gz"))),
    Dataset("cscc", "cutaneous squamous cell carcinoma, 4 patients, 12 ST sections", "unknown", "not stated", _SKIN, _geo("GSE144240")),
)
# fmt: on

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _TABLE}


def list_datasets() -> list[Dataset]:
    """Every data set that can be fetched or made, in the table's order.

    Examples
    --------
    >>> [d.name for d in list_datasets()][0]
    'synthetic'
    """
    return list(DATASETS.values())
