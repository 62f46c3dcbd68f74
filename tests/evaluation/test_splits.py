"""Splits, and a test for each way a leak gets in."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hescribe.errors import InputError, LeakageError
from hescribe.evaluation.splits import (
    PROTOCOLS,
    check_no_leakage,
    explicit_split,
    inner_splits,
    leave_one_patient_out,
    leave_one_section_out,
    select_sections,
)


@dataclass(frozen=True)
class Stub:
    section_id: str
    patient_id: str
    image: Path | None = Path("image.jpg")
    has_expression: bool = True
    row: object = None


def unpaired(section_id, patient_id):
    return Stub(section_id, patient_id, image=None)


COHORT = [
    Stub("B4", "B"),
    Stub("C2", "C"),
    Stub("C3", "C"),
    unpaired("C9", "C"),
    unpaired("D1", "D"),
    Stub("slide", "E", has_expression=False),
]


def test_leave_one_patient_out():
    splits = leave_one_patient_out(COHORT)
    assert [(s.name, s.train, s.test, s.same_patient) for s in splits] == [
        ("B", ("C2", "C3", "C9", "D1"), ("B4",), False),
        ("C", ("B4", "D1"), ("C2", "C3"), False),
    ]


def test_leave_one_section_out_with_one_patient_is_labelled():
    sections = [Stub("C2", "C"), Stub("C3", "C"), unpaired("C9", "C"), unpaired("D1", "D")]
    splits = leave_one_section_out(sections)
    # The patient's unpaired transcriptome may be of the same block of tissue
    assert [(s.train, s.test) for s in splits] == [(("C3", "D1"), ("C2",)), (("C2", "D1"), ("C3",))]
    assert all(s.same_patient for s in splits)


def test_leave_one_section_out_with_several_patients_must_be_asked_for():
    with pytest.raises(LeakageError, match="patient C"):
        leave_one_section_out(COHORT)
    splits = leave_one_section_out(COHORT, allow_same_patient=True)
    assert [(s.name, s.same_patient) for s in splits] == [("B4", False), ("C2", True), ("C3", True)]
    assert all("C9" not in s.train for s in splits[1:])
    one_each = [Stub("A1", "A"), Stub("B1", "B")]
    assert not any(s.same_patient for s in leave_one_section_out(one_each))


def test_the_same_section_on_both_sides():
    with pytest.raises(LeakageError, match="section C2"):
        check_no_leakage(COHORT[:2], [COHORT[1]], allow_same_patient=True)


def test_the_same_patient_on_both_sides():
    with pytest.raises(LeakageError, match=r"patient C.*C2"):
        check_no_leakage([COHORT[1]], [COHORT[2]])
    check_no_leakage([COHORT[1]], [COHORT[2]], allow_same_patient=True)


@pytest.mark.parametrize("alias", ["c", " C", "C "])
def test_the_same_patient_written_otherwise(alias):
    with pytest.raises(LeakageError):
        check_no_leakage([Stub("X", alias)], [COHORT[1]])
    sections = [Stub("C2", "C"), Stub("X", alias), Stub("B4", "B")]
    assert [s.test for s in leave_one_patient_out(sections)] == [("C2", "X"), ("B4",)]


def test_unpaired_transcriptome_of_a_test_patient():
    for allowed in (False, True):
        with pytest.raises(LeakageError, match="C9"):
            check_no_leakage([COHORT[0], COHORT[3]], [COHORT[1]], allow_same_patient=allowed)


def test_one_file_under_two_names(tmp_path):
    row = SimpleNamespace(expression=tmp_path / "counts.tsv")
    again = SimpleNamespace(expression=tmp_path / "sub" / ".." / "counts.tsv")
    with pytest.raises(LeakageError, match="X and C2"):
        check_no_leakage([Stub("X", "other", row=row)], [Stub("C2", "C", row=again)], allow_same_patient=True)


def test_explicit_splits():
    assert explicit_split(COHORT, ["B4", "D1"], ["C2"]).train == ("B4", "D1")
    assert explicit_split(COHORT, ["C3"], ["C2"], allow_same_patient=True).same_patient
    with pytest.raises(LeakageError):
        explicit_split(COHORT, ["C3"], ["C2"])
    for train, test in ((["B4"], ["nowhere"]), (["B4"], ["D1"]), (["D1"], ["C2"]), (["B4"], [])):
        with pytest.raises(InputError):
            explicit_split(COHORT, train, test)


@pytest.mark.parametrize("protocol", list(PROTOCOLS.values()))
def test_too_little_or_ambiguous_is_refused(protocol):
    for sections in ([], [Stub("A", "A")], [Stub("A", "A"), Stub("A", "B")], [Stub("A", "A"), unpaired("B", "B")]):
        with pytest.raises(InputError):
            protocol(sections)


def test_select_sections_keeps_the_order_asked_for():
    assert [s.section_id for s in select_sections(COHORT, ["C3", "B4"])] == ["C3", "B4"]


def check_partition(masks, n):
    assert len(masks) >= 2
    assert (np.sum(masks, axis=0) == 1).all()
    assert all(m.any() and len(m) == n for m in masks)


def test_inner_splits_hold_out_patients_where_there_are_three():
    patients = ["A", "a ", "B", "C", "D"]
    section = np.repeat(np.arange(5), [10, 20, 30, 25, 5])
    masks = inner_splits(patients, section, np.zeros((90, 2)), max_folds=3)
    check_partition(masks, 90)
    assert len(masks) == 3
    for mask in masks:
        held = {patients[i].strip().lower() for i in section[mask]}
        assert held.isdisjoint(patients[i].strip().lower() for i in section[~mask])


def test_inner_splits_join_patients_to_folds_of_like_numbers_of_spots():
    section = np.repeat(np.arange(5), [100, 90, 20, 10, 10])
    folds = inner_splits(list("ABCDE"), section, np.zeros((230, 2)), max_folds=2)
    assert sorted(int(f.sum()) for f in folds) == [110, 120]


def test_inner_splits_hold_out_sections_of_a_single_patient():
    section = np.repeat([0, 2, 3], 10)  # section 1 has no spots here
    masks = inner_splits(["A", "Z", "A", "a "], section, np.zeros((30, 2)), max_folds=5)
    check_partition(masks, 30)
    assert [set(section[m]) for m in masks] == [{0}, {2}, {3}]


def test_inner_splits_hold_out_whole_patients_where_there_are_two():
    """Sections of the patient who is left out would make the calibration too hopeful for a new patient."""
    section = np.repeat([0, 1, 2], 10)
    masks = inner_splits(["A", "B", "A"], section, np.zeros((30, 2)), max_folds=5)
    assert [set(section[m]) for m in masks] == [{0, 2}, {1}]


def test_inner_splits_of_one_section_are_blocks_of_tissue():
    centres = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2).astype(float)
    masks = inner_splits(["A"], np.zeros(400, dtype=int), centres, max_folds=4)
    check_partition(masks, 400)
    assert len(masks) == 4
    inner = np.all((centres > 0) & (centres < 19), axis=1)
    surrounded = 0
    for mask in masks:
        near = [mask[np.abs(centres - c).sum(axis=1) == 1].all() for c in centres[mask & inner]]
        surrounded += sum(near)
    # Random spots would hardly ever have all four neighbours held out with them
    assert surrounded / inner.sum() > 0.7


def test_inner_splits_of_nothing():
    for folds, n in ((1, 10), (2, 1), (2, 0)):
        with pytest.raises(InputError):
            inner_splits(["A"], np.zeros(n, dtype=int), np.zeros((n, 2)), max_folds=folds)
