"""A bundle judged on sections it has not seen."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from hescribe.errors import HescribeWarning, InputError, LeakageError, OutputError
from hescribe.evaluation.scores import SectionScores, score_section
from hescribe.evaluation.splits import is_paired, patient_key
from hescribe.evaluation.tables import gene_table, method_table, section_table, write_table
from hescribe.inference.bundle import Bundle, load_bundle
from hescribe.inference.predict import predict
from hescribe.io.expression import name_unit
from hescribe.io.store import check_place, plain_row, write_atomically
from hescribe.sections import Section
from hescribe.version import __version__

_TABLES = (".csv", ".md", ".genes.csv")  #: beside a report: per section, means, per gene


def evaluate(
    bundle: Bundle | str | Path,
    sections: Section | Sequence[Section],
    *,
    genes: Collection[str] | None = None,
    markers: Iterable[str] = (),
    allow_same_patient: bool = False,
    device: str = "auto",
    seed: int = 0,
) -> list[SectionScores]:
    """Predict paired sections and score the predictions.

    Parameters
    ----------
    bundle
        A trained method, or its folder.
    sections
        One section or several with image and expression; others are left out.
    genes
        Score only these.
    markers
        Genes of special interest.
    allow_same_patient
        Accept sections of patients the bundle has learned from; the scores are labelled so. A section it has
        learned from itself is never accepted.
    device
        Torch device; auto takes the accelerator there is.
    seed
        Of count splits and bootstrap.

    Raises
    ------
    LeakageError
        The bundle has seen a section or, unallowed, a patient. Nothing has been predicted then.
    InputError
        No section has both image and expression.
    """
    bundle, sections = load_bundle(bundle), [sections] if isinstance(sections, Section) else sections
    paired = [s for s in sections if is_paired(s)]
    if not paired:
        raise InputError("no section has both an image and expression to compare with")
    check_unseen(bundle, paired, allow_same_patient=allow_same_patient)
    markers = list(markers)
    if unknown := [m for m in markers if m not in bundle.genes.index]:
        told = f"--markers: the bundle does not predict {', '.join(unknown)}"
        warnings.warn(told, HescribeWarning, stacklevel=2)
    scores = []
    for section in tqdm(paired, desc="evaluate", unit="section", disable=None):
        prediction = predict(bundle, section, device=device, picture=False)
        scores.append(
            score_section(
                prediction,
                section.adata,
                genes=genes,
                training_stats=bundle.genes,
                markers=markers,
                allow_same_patient=allow_same_patient,
                seed=seed,
            )
        )
    return scores


def check_unseen(bundle: Bundle, sections: Sequence[Section], *, allow_same_patient: bool) -> None:
    """Refuse sections, and unless allowed patients, that a bundle has learned from.

    Raises
    ------
    LeakageError
        Names them.
    """
    trained = bundle.training_sections
    if seen := [s.section_id for s in sections if s.section_id in trained]:
        raise LeakageError(f"the bundle has learned from section {', '.join(seen)}", fix="evaluate on other sections")
    patients = {patient_key(p) for p in trained.values()}
    same = [s for s in sections if patient_key(s) in patients]
    if same and not allow_same_patient:
        raise LeakageError(
            f"the bundle has learned from patient {', '.join(dict.fromkeys(s.patient_id for s in same))} "
            f"(section {', '.join(s.section_id for s in same)} would be tested)",
            fix="test on other patients, or pass --allow-same-patient and the result is labelled so",
        )


def check_report(path: str | Path) -> None:
    """Refuse a name that ``write_evaluation`` could not use, before the work.

    Raises
    ------
    InputError
        It is a folder, or would be one of the tables' names.
    OutputError
        A table's name is taken, and not by an older evaluation, or nothing can be written there.
    """
    path = Path(path)
    check_place(path)
    if path.is_dir():
        raise InputError("a folder, where a file is to be written", path=path, fix="--output metrics.json")
    if path.suffix.lower() in {".csv", ".md"}:
        raise InputError("the name of a table that is written beside it", path=path, fix="--output metrics.json")
    beside = [path.with_suffix(suffix) for suffix in _TABLES]
    if not path.exists() and (taken := [p for p in beside if p.exists()]):  # a manifest, perhaps
        raise OutputError(f"{taken[0]} is there already and would be written over (choose another name)")


def write_evaluation(scores: Sequence[SectionScores], bundle: Bundle, path: str | Path) -> Path:
    """Write ``metrics.json`` and beside it ``.csv`` (per section), ``.md`` (means) and ``.genes.csv``."""
    path = Path(path)
    means = method_table(scores)
    report = {
        "version": __version__,
        "bundle": bundle.hash,
        "method": bundle.method,
        "encoder": bundle.encoder.name,
        "views": bundle.extraction.views,
        "unit": name_unit(bundle.target_sum),
        "trained_on": bundle.training_sections,
        "sections": [s.to_dict() for s in scores],
        "means": [plain_row(row) for row in means.to_dict("records")],
    }
    for suffix, table in zip(_TABLES, (section_table(scores), means, gene_table(scores)), strict=True):
        write_table(table, path.with_suffix(suffix))
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return path
