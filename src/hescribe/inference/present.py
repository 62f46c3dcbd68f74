"""Predictions, whatever was measured, and the slides, brought together for a report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from hescribe import keys
from hescribe.errors import InputError, LeakageError
from hescribe.evaluation.scores import SectionScores, score_section
from hescribe.evaluation.splits import patient_key
from hescribe.evaluation.tables import method_table
from hescribe.inference.bundle import Bundle
from hescribe.inference.evaluate import check_unseen
from hescribe.inference.predict import read_prediction
from hescribe.io.predictions.stored import is_store, stores_in
from hescribe.report import build_report
from hescribe.report.contents import check_genes
from hescribe.sections import Section
from hescribe.slides.blocks.cells import small_picture
from hescribe.slides.original import find_original
from hescribe.slides.slide import Rgb

log = logging.getLogger("hescribe")

_PICTURE_PX = 1500  #: longer side of a slide's picture, at most


def find_predictions(path: str | Path) -> list[Path]:
    """The prediction at a path, or all those in a folder.

    Raises
    ------
    InputError
        There is none.
    """
    folder = Path(path)
    if folder.is_file() and folder.suffix.lower() == ".h5ad":
        return [folder]
    if not folder.is_dir():
        raise InputError("no such prediction", path=folder, fix="make one with 'hescribe predict'")
    if is_store(folder):
        return [folder]
    found = stores_in(folder)
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
        The one that made the predictions: for its training curves and provenance, and to know whom it has seen.
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
        A measured section or, unallowed, its patient was part of the training, or nothing tells whether it was.
    InputError
        Another bundle made a prediction.
    """
    known = {s.section_id: s for s in sections}
    done = {s.section_id: s for s in scores or ()}
    given, tables = [], []
    for path in paths:
        prediction = read_prediction(path)
        section = known.get(str(prediction.uns[keys.PROVENANCE]["slide"]))
        _check_maker(prediction, bundle, path)
        measured = _measured(prediction, section)
        score = done.get(section.section_id) if section is not None else None
        if measured is not None and section is not None and score is None:
            _check_patient(prediction, section, bundle, allow_same_patient=allow_same_patient)
        given.append((prediction, measured, section, path))
        tables.append(score)
    check_genes(genes, [prediction for prediction, *_ in given])
    for i, (prediction, measured, *_) in enumerate(given):  # what takes long, after all that can be refused
        if tables[i] is None and measured is not None:
            tables[i] = _score(prediction, measured, genes, allow_same_patient=allow_same_patient, seed=seed)
    return build_report(
        [(p, measured, find_picture(p, section, path)) for p, measured, section, path in given],
        tables,
        bundle.history if bundle is not None else None,
        bundle.provenance if bundle is not None else {},
        output,
        genes=genes,
        summary=_overall([t for t in tables if t is not None]),
    )


def find_picture(prediction: ad.AnnData, section: Section | None, path: Path) -> tuple[Rgb, float] | None:
    """The slide of a prediction, small, and its downsampling.

    Parameters
    ----------
    prediction
        Which.
    section
        Its row in a manifest, where there is one.
    path
        Where it was read from.

    Returns
    -------
    tuple or None
        From the manifest's image; else from the file that was predicted, if it is still there; else what the
        prediction itself has kept, which is smaller; None where there is nothing.
    """
    if section is not None and section.image is not None:
        return section.thumbnail(_PICTURE_PX)
    centres = np.asarray(prediction.obsm[keys.SPATIAL], dtype=np.float64)
    try:
        slide = find_original(prediction.uns[keys.PROVENANCE], path, centres)
        if slide is not None:
            return small_picture(slide, _PICTURE_PX)
    except InputError as error:
        log.info(f"{path}: the slide is not shown as it is, but as the prediction keeps it ({error})")
    for library in prediction.uns.get(keys.SPATIAL, {}).values():
        if "lowres" in library.get("images", {}):
            return np.asarray(library["images"]["lowres"]), 1 / float(library["scalefactors"]["tissue_lowres_scalef"])
    return None


def _check_maker(prediction: ad.AnnData, bundle: Bundle | None, path: Path) -> None:
    if bundle is not None and prediction.uns[keys.PROVENANCE].get("bundle") != bundle.hash:
        raise InputError("another bundle made this prediction", path=path, fix="give that one, or leave --bundle out")


def _measured(prediction: ad.AnnData, section: Section | None) -> ad.AnnData | None:
    if section is None or not section.has_expression:
        return None
    if "plan" in prediction.uns[keys.PROVENANCE]:
        log.info(f"{section.section_id}: predicted on a grid over the slide, not at its spots, so it is not compared")
        return None
    return section.adata


def _check_patient(
    prediction: ad.AnnData, section: Section, bundle: Bundle | None, *, allow_same_patient: bool
) -> None:
    """What the manifest says counts: the prediction is told whose section it is, and whether he or she was seen.

    Raises
    ------
    LeakageError
        Seen and not allowed, or nobody can tell.
    """
    told, seen = prediction.uns[keys.PROVENANCE], True
    if bundle is not None:
        check_unseen(bundle, [section], allow_same_patient=allow_same_patient)
        seen = patient_key(section) in {patient_key(p) for p in bundle.training_sections.values()}
    elif patient_key(str(told.get("patient", ""))) == patient_key(section):
        return  # then its own word counts, see `check_provenance`
    elif not allow_same_patient:
        raise LeakageError(
            f"section {section.section_id!r} was predicted for patient {str(told.get('patient', ''))!r}, the manifest "
            f"says {section.patient_id!r}: whether the model has learned from this patient is not known",
            fix="give the bundle (--bundle), or pass --allow-same-patient and the result is labelled so",
        )
    told |= {"patient": section.patient_id, "patient_seen_in_training": seen}


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
