"""Predictions, whatever was measured, and the slides, brought together for a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import pandas as pd

from hescribe import keys
from hescribe.errors import InputError
from hescribe.evaluation.scores import SectionScores, score_section
from hescribe.evaluation.tables import method_table
from hescribe.inference.bundle import Bundle
from hescribe.inference.predict import read_prediction
from hescribe.report import build_report
from hescribe.sections import Section


def find_predictions(path: str | Path) -> list[Path]:
    """The prediction at a path, or all those in a folder.

    Raises
    ------
    InputError
        There is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError("no such prediction", path=folder, fix="make one with 'hescribe predict'")
    if (folder / "zarr.json").is_file() or (folder / ".zgroup").is_file():
        return [folder]
    found = sorted(p for p in folder.glob("*.zarr") if not p.name.startswith("."))
    if not found:
        raise InputError("no prediction (.zarr) in this folder", path=folder, fix="make one with 'hescribe predict'")
    return found


def report_predictions(
    paths: Sequence[Path],
    output: str | Path,
    *,
    sections: Sequence[Section] = (),
    bundle: Bundle | None = None,
    scores: Sequence[SectionScores] | None = None,
    genes: Sequence[str] = (),
    allow_same_patient: bool = False,
    seed: int = 0,
) -> Path:
    """Write the HTML report of predictions.

    Parameters
    ----------
    paths
        Predictions on disk.
    output
        Folder of the report.
    sections
        Gives slides and, where measured, the truth, by section id.
    bundle
        For its training curves and provenance.
    scores
        Where they are known already; otherwise measured sections are scored.
    genes
        Genes of special interest.
    allow_same_patient
        Score sections of patients the bundle has learned from; labelled so.
    seed
        Of count splits and bootstrap.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    LeakageError
        A measured section or patient was part of the training.
    """
    known = {s.section_id: s for s in sections}
    done = {s.section_id: s for s in scores or ()}
    given, tables = [], []
    for path in paths:
        prediction = read_prediction(path)
        section = known.get(str(prediction.uns[keys.PROVENANCE]["slide"]))
        measured = section.adata if section is not None and section.has_expression else None
        given.append((prediction, measured, section.thumbnail() if section is not None else None))
        score = done.get(section.section_id) if section is not None else None
        if score is None and measured is not None:
            score = _score(prediction, measured, genes, allow_same_patient=allow_same_patient, seed=seed)
        tables.append(score)
    return build_report(
        given,
        tables,
        bundle.history if bundle is not None else None,
        bundle.provenance if bundle is not None else {},
        output,
        genes=genes,
        summary=_overall([t for t in tables if t is not None]),
    )


def _overall(scores: Sequence[SectionScores]) -> pd.DataFrame | None:
    """Means over sections with their common interval, where all are of one method."""
    if len({s.method for s in scores}) != 1:
        return None
    return method_table(scores).set_index("set")


def _score(
    prediction: ad.AnnData, measured: ad.AnnData, genes: Sequence[str], *, allow_same_patient: bool, seed: int
) -> SectionScores:
    return score_section(
        prediction,
        measured,
        training_stats=prediction.var,
        markers=genes,
        allow_same_patient=allow_same_patient,
        seed=seed,
    )
