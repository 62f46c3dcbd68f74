"""Which sections a method learns from and on which it is judged, and the refusal of every leak between them.

The patient is the unit. Two sections of one tumour share genotype, stain and scanner; a method that has seen one
of them is not judged on new tissue by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from hescribe.errors import InputError, LeakageError
from hescribe.metrics.gene_blocks import Mask
from hescribe.metrics.resampling import spatial_blocks
from hescribe.types import Centres


class SectionLike(Protocol):
    """As much of a `hescribe.sections.Section` as a split looks at."""

    @property
    def section_id(self) -> str:
        """Unique id."""

    @property
    def patient_id(self) -> str:
        """Whose tissue it is."""

    @property
    def image(self) -> Path | None:
        """The image, if there is one."""

    @property
    def has_expression(self) -> bool:
        """Whether expression was measured."""


S = TypeVar("S", bound=SectionLike)


@dataclass(frozen=True)
class Split:
    """One round of an evaluation.

    Attributes
    ----------
    name
        What is held out.
    train, test
        Section ids. Training may include unpaired transcriptomics; test sections are paired.
    same_patient
        Test patients also stand in training; figures must be labelled so.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    same_patient: bool = False


def leave_one_patient_out(sections: Sequence[SectionLike]) -> list[Split]:
    """A split for each patient with a paired section: learn from all the other patients.

    Parameters
    ----------
    sections
        Paired sections, unpaired transcriptomics and slides; slides are in no split.

    Returns
    -------
    list of Split
        In order of the patients' first sections. Nothing of the test patient, paired or not, is in training.

    Raises
    ------
    InputError
        Fewer than two patients, or nothing paired to test or to learn from.
    """
    _check_ids(sections)
    names = dict.fromkeys(patient_key(s) for s in sections if is_paired(s))
    if len({patient_key(s) for s in sections if s.has_expression}) < 2:
        raise InputError(
            f"leave-one-patient-out needs two patients, found {len(names)}", fix="use leave-one-section-out and say so"
        )
    splits = []
    for patient in names:
        test = [s for s in sections if patient_key(s) == patient and is_paired(s)]
        train = [s for s in sections if patient_key(s) != patient and s.has_expression]
        splits.append(_split(test[0].patient_id.strip(), train, test))
    return splits


def leave_one_section_out(sections: Sequence[SectionLike], *, allow_same_patient: bool = False) -> list[Split]:
    """A split for each paired section: learn from all the others.

    Unpaired transcriptomics of the test section's patient stay out of training in any case: they may be of the
    very same block of tissue. Each split says in ``same_patient`` whether its patient was seen.

    Parameters
    ----------
    sections
        As for `leave_one_patient_out`.
    allow_same_patient
        Needed where there are several patients of which one has several sections: there leave-one-patient-out
        is possible, and is the honest figure.

    Raises
    ------
    LeakageError
        Several patients, and a test section's patient would be in training.
    InputError
        Fewer than two paired sections.
    """
    _check_ids(sections)
    tested = [s for s in sections if is_paired(s)]
    if len(tested) < 2:
        raise InputError(f"leave-one-section-out needs two sections with image and expression, found {len(tested)}")
    one_patient = len({patient_key(s) for s in tested}) == 1
    splits = []
    for section in tested:
        train = [
            s
            for s in sections
            if s is not section and s.has_expression and (is_paired(s) or patient_key(s) != patient_key(section))
        ]
        splits.append(
            _split(section.section_id, train, [section], allow_same_patient=allow_same_patient or one_patient)
        )
    return splits


PROTOCOLS: Mapping[str, Callable[[Sequence[SectionLike]], list[Split]]] = {
    "leave-one-patient-out": leave_one_patient_out,
    "leave-one-section-out": leave_one_section_out,
}


def explicit_split(
    sections: Sequence[SectionLike],
    train: Iterable[str],
    test: Iterable[str],
    *,
    name: str = "given",
    allow_same_patient: bool = False,
) -> Split:
    """A split by section ids, checked.

    Raises
    ------
    InputError
        An id that is not there, a test section without image or expression, an empty side.
    LeakageError
        As `check_no_leakage`.
    """
    _check_ids(sections)
    sides = [select_sections(sections, ids) for ids in (train, test)]
    return _split(name, sides[0], sides[1], allow_same_patient=allow_same_patient)


def select_sections(sections: Sequence[S], ids: Iterable[str]) -> list[S]:
    """Sections by id, each once, in the order of ``ids``; InputError names the ids that are not there."""
    known = {s.section_id: s for s in sections}
    wanted = list(dict.fromkeys(ids))
    if missing := [i for i in wanted if i not in known]:
        raise InputError(f"no section {', '.join(map(repr, missing))}", fix=f"there are {', '.join(known)}")
    return [known[i] for i in wanted]


def check_no_leakage(
    train: Sequence[SectionLike], test: Sequence[SectionLike], *, allow_same_patient: bool = False
) -> None:
    """Refuse a split whose two sides share anything.

    Ways in that are closed: a section on both sides; one file of expression under two section ids; a patient on
    both sides, however the id is capitalised or spaced; unpaired transcriptomics of a test patient.

    Parameters
    ----------
    train, test
        Sections of the two sides.
    allow_same_patient
        Permit *paired* sections of a test patient in training. The other three stay forbidden.

    Raises
    ------
    LeakageError
        Naming the sections or patients.
    """
    held = {s.section_id.strip() for s in test}
    if shared := [s.section_id for s in train if s.section_id.strip() in held]:
        raise LeakageError(f"in training and in test: section {', '.join(shared)}")
    files = {f: s.section_id for s in test if (f := _expression_file(s))}
    if twins := [f"{s.section_id} and {files[f]}" for s in train if (f := _expression_file(s)) in files]:
        raise LeakageError(f"one file of expression in training and in test: {', '.join(twins)}")
    patients = {patient_key(s) for s in test}
    same = [s for s in train if patient_key(s) in patients]
    if same and not allow_same_patient:
        raise LeakageError(
            f"in training and in test: patient {', '.join(dict.fromkeys(s.patient_id for s in same))} "
            f"(training sections {', '.join(s.section_id for s in same)})",
            fix="leave one patient out, or allow the same patient and label the result so",
        )
    if unpaired := [s.section_id for s in same if not is_paired(s)]:
        raise LeakageError(f"unpaired transcriptomics of a test patient in training: section {', '.join(unpaired)}")


def inner_splits(
    patients: Sequence[str], section: npt.NDArray[np.intp], centres: Centres, *, max_folds: int
) -> list[Mask]:
    """Masks of the spots to hold out, for choosing and calibrating *within* training sections.

    With two patients or more whole patients are held out, with two sections or more whole sections, and in a
    single section contiguous blocks of tissue. Never random spots: their neighbours would give them away.

    Parameters
    ----------
    patients
        Patient of each section.
    section
        (n,) number of the section of each spot, an index into ``patients``.
    centres
        (n, 2) positions of the spots; needed for blocks of tissue only.
    max_folds
        Folds wanted at most, at least 2. Where there are more patients or sections, they are put together to folds
        of nearly equal numbers of spots.

    Returns
    -------
    list of ndarray
        (n,) bool each, True = held out; every spot is held out exactly once.

    Raises
    ------
    InputError
        Fewer than two folds asked for, or fewer than two spots.
    """
    section = np.asarray(section)
    if max_folds < 2 or len(section) < 2:
        raise InputError(f"inner splits need two folds and two spots, found {max_folds} and {len(section)}")
    used = np.unique(section)
    owner = {int(i): patient_key(patients[i]) for i in used}
    if len(used) == 1:
        group = spatial_blocks(centres, max_folds)
    else:
        names: list[str | int] = list(owner.values()) if len(set(owner.values())) >= 2 else list(owner)
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        of_section = {s: number[name] for s, name in zip(owner, names, strict=True)}
        group = _joined(np.array([of_section[int(s)] for s in section]), max_folds)
    return [group == i for i in range(int(group.max()) + 1)]


def is_paired(section: SectionLike) -> bool:
    """Whether a section has image and expression."""
    return section.image is not None and section.has_expression


def patient_key(section: SectionLike | str) -> str:
    """The patient, for comparing: ``"P1"``, ``"p1"`` and ``"P1 "`` are one person, typed by three."""
    patient = section if isinstance(section, str) else section.patient_id
    return patient.strip().casefold()


def _split(
    name: str, train: Sequence[SectionLike], test: Sequence[SectionLike], *, allow_same_patient: bool = False
) -> Split:
    if unfit := [s.section_id for s in test if not is_paired(s)]:
        raise InputError(f"cannot test on section {', '.join(unfit)}: image or expression is missing")
    if not test or not any(is_paired(s) for s in train):
        side = "test on" if not test else "learn from"
        raise InputError(f"split {name!r}: no section with image and expression to {side}")
    check_no_leakage(train, test, allow_same_patient=allow_same_patient)
    same = not {patient_key(s) for s in train}.isdisjoint(patient_key(s) for s in test)
    return Split(name, tuple(s.section_id for s in train), tuple(s.section_id for s in test), same_patient=same)


def _check_ids(sections: Sequence[SectionLike]) -> None:
    ids = [s.section_id for s in sections]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise InputError(f"section {', '.join(twice)} is there twice", fix="give every section an id of its own")


def _expression_file(section: SectionLike) -> Path | None:
    """The file the counts come from; sections made in memory have no manifest row and no file."""
    given = getattr(getattr(section, "row", None), "expression", None)
    return Path(given).resolve() if given else None


def _joined(group: npt.NDArray[np.intp], n_folds: int) -> npt.NDArray[np.intp]:
    """Join groups to at most ``n_folds``: the largest first, each to the fold with the fewest spots."""
    size = np.bincount(group)
    load = np.zeros(min(n_folds, len(size)), dtype=np.intp)
    fold = np.empty(len(size), dtype=np.intp)
    for i in np.argsort(-size, kind="stable"):
        fold[i] = np.argmin(load)
        load[fold[i]] += size[i]
    return fold[group]
