"""Cell types from the manifest to a prediction of an unseen patient, on tissue whose cells are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hescribe import keys
from hescribe.datasets.synthetic.cells import CELL_TYPES
from hescribe.datasets.synthetic.signatures import make_signatures
from hescribe.evaluation import score_cell_types
from hescribe.inference import Bundle, predict_sections, read_prediction
from hescribe.inference.evaluate import evaluate, write_evaluation
from hescribe.inference.predict import predict
from hescribe.sections import Section, read_sections
from hescribe.training import train
from tests.e2e.conftest import settings


@pytest.fixture(scope="module")
def carhe(sections: list[Section], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("carhe") / "bundle"
    return train(sections[:2], settings("carhe", epochs=12, inner_folds=0), output=path)


def mean_pcc(prediction: ad.AnnData, section: Section) -> float:
    table = score_cell_types(prediction, section.adata)
    assert table is not None
    return float(table.loc[table["counted"], "pcc"].mean())


def test_cell_types_of_an_unseen_patient(carhe: Bundle, sections: list[Section], tmp_path: Path) -> None:
    (path,) = predict_sections(carhe, sections[2:], tmp_path)
    prediction = read_prediction(path)
    types = prediction.obsm[keys.CELL_TYPES]
    assert list(types.columns) == list(CELL_TYPES)
    assert list(types.index) == list(prediction.obs_names)
    np.testing.assert_allclose(types.sum(axis=1), 1, atol=1e-6)
    assert mean_pcc(prediction, sections[2]) > 0.25


def test_shuffled_cell_types_teach_nothing(carhe: Bundle, sections: list[Section]) -> None:
    """The same reference with its compositions dealt out at random."""
    assert carhe.reference is not None
    assert carhe.reference.cell_types is not None
    control = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(carhe.reference.obs))
        shuffled = dataclasses.replace(carhe.reference, cell_types=carhe.reference.cell_types.iloc[order])
        control.append(mean_pcc(predict(dataclasses.replace(carhe, reference=shuffled), sections[2]), sections[2]))
    assert np.mean(control) < 0.15


def test_prototypes_are_named_by_their_members(carhe: Bundle, sections: list[Section]) -> None:
    reference = carhe.reference
    assert reference is not None
    assert reference.cell_types is not None
    np.testing.assert_allclose(reference.cell_types.sum(axis=1), 1, atol=1e-6)
    # Prototypes are means of disjoint sets of spots: weighted by size they give the mean of all spots
    whole = pd.concat([s.cell_types for s in sections[:2]]).mean()
    np.testing.assert_allclose(
        np.average(reference.cell_types, axis=0, weights=reference.obs["spots"]),
        whole[reference.cell_types.columns],
        atol=1e-6,
    )
    for (_, shares), name in zip(reference.cell_types.iterrows(), reference.obs["name"], strict=True):
        assert name.startswith(f"{shares.max():.2f} {shares.idxmax()}")


@pytest.mark.slow
def test_bleep_blends_the_spots_of_its_reference(bleep: tuple[Bundle, Path], sections: list[Section]) -> None:
    assert mean_pcc(predict(bleep[0], sections[2]), sections[2]) > 0.2


def test_regression_says_nothing_of_cell_types(ridge: tuple[Bundle, Path], sections: list[Section]) -> None:
    assert keys.CELL_TYPES not in predict(ridge[0], sections[2]).obsm


def test_evaluation_tells_how_well(carhe: Bundle, sections: list[Section], tmp_path: Path) -> None:
    scores = evaluate(carhe, sections[2:])
    write_evaluation(scores, carhe, tmp_path / "metrics.json")
    told = json.loads((tmp_path / "metrics.json").read_text())["sections"][0]["cell_types"]
    assert told["pcc"] == pytest.approx(mean_pcc(predict(carhe, sections[2]), sections[2]))
    assert 2 <= told["n_types"] <= len(CELL_TYPES)


def test_a_single_cell_reference_takes_the_place_of_tables(
    sections: list[Section], manifest: Path, tmp_path: Path
) -> None:
    rows = pd.read_csv(manifest)
    for column in ("image", "expression"):
        rows[column] = [str(manifest.parent / v) for v in rows[column]]
    write_single_cells(list(sections[0].adata.var_names), tmp_path / "cells.h5ad")
    cells = {"section_id": "cells", "patient_id": "atlas", "expression": tmp_path / "cells.h5ad", "technology": "h5ad"}
    table = pd.concat([rows.drop(columns=["cell_types", "annotations"]), pd.DataFrame([cells])])
    table.to_csv(tmp_path / "sections.csv", index=False)
    without = read_sections(tmp_path / "sections.csv")
    assert without[0].cell_types is None
    fitting = [without[0], without[1], without[3]]
    bundle = train(fitting, settings("carhe", epochs=12, inner_folds=0), output=tmp_path / "bundle")
    assert mean_pcc(predict(bundle, without[2]), sections[2]) > 0.2


def write_single_cells(genes: list[str], path: Path) -> None:
    """Cells of each type, from the cohort's signatures."""
    signatures = make_signatures(260, 3)
    assert signatures.genes == genes
    rng = np.random.default_rng(0)
    program = rng.random((40 * len(CELL_TYPES), 1))
    kind = np.repeat(np.arange(len(CELL_TYPES)), 40)
    mean = (1 - program) * signatures.low[kind] + program * signatures.high[kind]
    obs = pd.DataFrame({keys.CELL_TYPE: np.array(CELL_TYPES)[kind]}, index=[f"c{i}" for i in range(len(kind))])
    cells = ad.AnnData(sparse.csr_matrix(rng.poisson(2000 * mean).astype("f")), obs=obs, var=pd.DataFrame(index=genes))
    cells.obsm[keys.SPATIAL] = np.zeros((len(kind), 2))
    cells.write_h5ad(path)
