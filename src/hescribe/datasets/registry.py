"""Named data sets: where they are, under which terms, and how they unpack. To add one, write one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
_ENCRYPTED = "the zip files are encrypted; the password stands on the record's page (zenodo.org/records/4751624)"


def _zenodo(record: int, *names: str) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(n, f"https://zenodo.org/records/{record}/files/{n}?download=1") for n in names)


def _github(repository: str, commit: str) -> tuple[RemoteFile, ...]:
    name = f"{repository.split('/')[1]}.zip"
    return (RemoteFile(name, f"https://github.com/{repository}/archive/{commit}.zip", unpack="zip"),)


def _geo(accession: str) -> tuple[RemoteFile, ...]:
    url = f"https://www.ncbi.nlm.nih.gov/geo/download/?acc={accession}&format=file"
    return (RemoteFile(f"{accession}_RAW.tar", url, unpack="tar"),)


# fmt: off
_TABLE = (
    Dataset("synthetic", "3 patients × 2 Visium sections made here, truth known", "60 MB", "Apache-2.0", "hescribe"),
    Dataset("her2st", "HER2+ breast tumours, 8 patients, 36 ST sections", "unknown", "not stated", _HER2ST, _github("almaan/her2st", "85df7411b987a7dec3feff9718b869a7a82091ec")),
    Dataset("her2st-zenodo", "the same from Zenodo, encrypted archives", "0.6 GB", "CC-BY-4.0", _HER2ST, _zenodo(4751624, "count-matrices.zip", "images.zip", "spot-selections.zip", "meta.zip"), _ENCRYPTED),
    Dataset("human-liver", "human liver, 1 donor, 4 consecutive Visium sections", "unknown", "not stated", _LIVER, _geo("GSE240429")),
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
