from dataclasses import replace

import numpy as np
import pytest

from hescribe.errors import InputError, LeakageError
from hescribe.evaluation.crossval import cross_validate, predict_at_spots
from hescribe.evaluation.splits import Split, leave_one_patient_out, leave_one_section_out


def test_fit_sees_training_sections_and_nothing_else(sections, oracle):
    seen = []

    def fit(train, split):
        seen.append((split.name, {s.patient_id for s in train}))
        return oracle

    held = cross_validate(sections, leave_one_patient_out(sections), fit)
    assert seen == [("A", {"B", "C"}), ("B", {"A", "C"}), ("C", {"A", "B"})]
    assert [h.section_id for h in held] == [s.section_id for s in sections]
    for h, section in zip(held, sections, strict=True):
        assert list(h.prediction.obs_names) == list(section.adata.obs_names)
        assert h.prediction.X.dtype == np.float32
        assert h.split.name == h.patient_id == h.prediction.uns["hescribe"]["patient"]


def test_a_leak_anywhere_stops_before_any_fit(sections, oracle):
    def fit(train, split):
        pytest.fail("fitted in spite of a leak")

    good = leave_one_patient_out(sections)[0]
    for bad in (Split("patient", ("A1",), ("A2",)), Split("section", ("A1",), ("A1",), same_patient=True)):
        with pytest.raises(LeakageError):
            cross_validate(sections, [good, bad], fit)
    for bad in (replace(good, test=("nowhere",), name="x"), good):
        with pytest.raises(InputError):
            cross_validate(sections, [good, bad], fit)


def test_an_interrupted_run_goes_on(sections, oracle):
    kept, fitted = {}, []

    def fit(train, split):
        fitted.append(split.name)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return oracle

    hooks = {
        "load": lambda split, section_id: kept.get((split.name, section_id)),
        "save": lambda split, section_id, prediction: kept.update({(split.name, section_id): prediction}),
    }
    splits = leave_one_section_out(sections[:3], allow_same_patient=True)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(sections, splits, fit, **hooks)
    held = cross_validate(sections, splits, fit, **hooks)
    assert fitted == ["A1", "A2", "A2", "B1"]
    assert held[0].prediction is kept["A1", "A1"]
    assert [h.split.same_patient for h in held] == [True, True, False]


def test_a_predictor_of_the_wrong_shape_is_refused(sections, oracle):
    with pytest.raises(InputError, match="A1"):
        predict_at_spots(replace(oracle, genes=(*oracle.genes, "one too many")), sections[0])
