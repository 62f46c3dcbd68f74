"""Which sections speak for which patients."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from hescribe import keys
from hescribe.datasets.synthetic import make_synthetic
from hescribe.errors import HescribeWarning
from hescribe.inference import Bundle, predict
from hescribe.inference.predict import trusted_genes
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, train


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("tissue") / "data"
    return read_sections(make_synthetic(folder, n_patients=2, n_sections=2, side_um=700, mpp=1.0, n_genes=120, seed=5))


def learn(sections: list[Section], method: str, path: Path) -> Bundle:
    config = TrainConfig(method=method, encoder="stain", genes="hvg:40", device="cpu", views=1)
    return train(sections, config, output=path)


def test_known_and_new_patients_are_judged_apart(sections: list[Section], tmp_path: Path) -> None:
    """Two patients with two sections: patients are left out for a new one, sections for a known one."""
    bundle = learn(sections, "fusion", tmp_path / "bundle")
    left_out = bundle.provenance["inner_folds"]
    ids = {p: [s.section_id for s in sections if s.patient_id == p] for p in {s.patient_id for s in sections}}
    for own in ids.values():
        assert ", ".join(own) in left_out, "a patient is left out whole"
    together = [fold for fold in left_out if fold not in {", ".join(own) for own in ids.values()}]
    assert {s for fold in together for s in fold.split(", ")} == {s.section_id for s in sections}
    assert bundle.trust is not None
    assert bundle.trust_known is not None
    known, new = predict(bundle, sections[0]), bundle.var(known_patient=False)
    np.testing.assert_array_equal(known.var[keys.INTERVAL], bundle.trust_known.interval)
    np.testing.assert_array_equal(new[keys.INTERVAL], bundle.trust.interval)
    assert not np.allclose(known.var[keys.EXPECTED_PCC], new[keys.EXPECTED_PCC], equal_nan=True)


def test_one_patient_alone_gives_wider_intervals_for_others(sections: list[Section], tmp_path: Path) -> None:
    bundle = learn(sections[:2], "ridge", tmp_path / "bundle")
    assert bundle.trust is not None
    assert bundle.trust_known is not None
    assert (bundle.trust.interval >= bundle.trust_known.interval).all()
    assert bundle.trust.interval.sum() > 1.1 * bundle.trust_known.interval.sum()
    np.testing.assert_array_equal(predict(bundle, sections[2]).var[keys.INTERVAL], bundle.trust.interval)
    with pytest.warns(HescribeWarning, match="the only patient learned from"):
        trusted_genes(bundle, 0.0, known_patient=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", HescribeWarning)
        trusted_genes(bundle, 0.0, known_patient=True)
