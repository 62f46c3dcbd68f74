"""What a tool is given: predictions, or measured sections of a manifest, with their slides where they are at hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import anndata as ad
from tqdm.auto import tqdm

from hescribe import keys
from hescribe.errors import HescribeWarning, InputError
from hescribe.inference.predict import read_prediction
from hescribe.inference.present import find_picture, find_predictions
from hescribe.plots.ground import Thumbnail
from hescribe.sections import Section, read_sections
from hescribe.types import Mpp

Item = TypeVar("Item")


@dataclass(frozen=True)
class Given:
    """One table of expression.

    Attributes
    ----------
    name
        Section id, or the prediction's file without ending.
    adata
        Spots × genes.
    section
        Its row in the manifest, where there is one.
    path
        The prediction, or the manifest.
    """

    name: str
    adata: ad.AnnData
    section: Section | None
    path: Path

    @property
    def predicted(self) -> bool:
        """Whether expression was predicted, not measured."""
        return keys.EXPECTED_PCC in self.adata.var

    @property
    def mpp(self) -> Mpp:
        """µm per full-resolution pixel; NaN where nothing says."""
        told = self.adata.uns[keys.PROVENANCE].get("mpp")
        return float(told) if told is not None else float("nan")

    @cached_property
    def thumbnail(self) -> Thumbnail | None:
        """The slide, small; None where it is not at hand."""
        return find_picture(self.adata, self.section, self.path)


def is_manifest(path: Path) -> bool:
    """Whether a path is a manifest of sections rather than a prediction or a folder of them."""
    return path.suffix.lower() in {".csv", ".tsv", ".txt", ".parquet"} or (path / "sections.csv").is_file()


def read_given(path: str | Path, *, sections: str | Path | None = None) -> Iterator[Given]:
    """Tables of a prediction, of a folder of predictions, or of the measured sections of a manifest, one by one.

    Parameters
    ----------
    path
        Which.
    sections
        Manifest that gives the slides of predictions, by section id.

    Raises
    ------
    InputError
        Nothing there, or no section of the manifest was measured.
    """
    where = Path(path)
    if is_manifest(where):
        measured = [s for s in read_sections(where) if s.has_expression]
        if not measured:
            raise InputError("no section has expression", path=where)
        for section in _shown(measured):
            yield Given(section.section_id, _with_mpp(section), section, where)
        return
    known: dict[str, Section] = {s.section_id: s for s in read_sections(sections)} if sections else {}
    for prediction in _shown(find_predictions(where)):
        adata = read_prediction(prediction)
        slide = str(adata.uns[keys.PROVENANCE].get("slide", prediction.stem))
        yield Given(prediction.stem, adata, known.get(slide) or known.get(prediction.stem), prediction)


def left_out(failed: Mapping[str, InputError], *, of: int) -> list[str]:
    """Sections of which nothing could be made, for the page: name and reason; told to the caller as well.

    Parameters
    ----------
    failed
        Name → why.
    of
        How many sections there were.

    Raises
    ------
    InputError
        All failed; the first one's reason.
    """
    told = [f"{name}: {error}" for name, error in failed.items()]
    if told and len(failed) == of:
        raise InputError(told[0]) from next(iter(failed.values()))
    told = [f"{text}; left out" for text in told]
    for text in told:
        warnings.warn(text, HescribeWarning, stacklevel=3)
    return told


def _shown(items: Sequence[Item]) -> Iterable[Item]:
    """With a bar that shows how far a tool has come."""
    return tqdm(items, desc="sections", unit="section", disable=None)


def _with_mpp(section: Section) -> ad.AnnData:
    """Measured counts that state µm per pixel, where it is known, as a prediction does."""
    adata = section.adata.copy()
    told: dict[str, Any] = dict(adata.uns.get(keys.PROVENANCE, {}))
    with suppress(InputError):  # a tool that needs it says so itself
        told["mpp"] = float(section.mpp)
    adata.uns[keys.PROVENANCE] = told
    return adata
