"""A bundle trained on another scale than counts per 10,000 says so, and is judged on its own."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

from hescribe.downstream.volume.placement import Placement
from hescribe.downstream.volume.stack import stack_sections
from hescribe.errors import InputError
from hescribe.inference import Bundle, load_bundle, predict, predict_sections
from hescribe.inference.evaluate import evaluate, write_evaluation
from hescribe.inference.present import report_predictions
from hescribe.io.expression import name_unit
from hescribe.sections import Section
from hescribe.training import train
from tests.e2e.conftest import settings

MEDIAN = "log1p of counts per median library size"
Fitted = tuple[Bundle, Path]


@pytest.fixture(scope="module")
def median(sections: list[Section], tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    path = tmp_path_factory.mktemp("median") / "bundle"
    return train(sections[:2], settings("ridge", target_sum="median"), output=path), path


def as_scanpy_has_it(section: Section) -> ad.AnnData:
    """Counts on the scale of the section's median library size, by somebody else."""
    table = section.adata.copy()
    table.X = table.X.astype(np.float32)
    sc.pp.normalize_total(table)
    sc.pp.log1p(table)
    return table


def test_a_bundle_knows_and_says_its_scale(median: Fitted, ridge: Fitted, sections: list[Section]) -> None:
    assert (load_bundle(median[1]).target_sum, ridge[0].target_sum) == ("median", 10_000)
    assert f"({MEDIAN})" in (median[1] / "README.md").read_text()
    assert "(log1p of counts per 10,000)" in (ridge[1] / "README.md").read_text()
    told = predict(median[0], sections[2]).uns["hescribe"]
    assert (told["unit"], told["target_sum"]) == (MEDIAN, "median")
    assert name_unit(1e6) == "log1p of counts per 1,000,000"


def test_it_is_judged_on_its_own_scale(median: Fitted, sections: list[Section], tmp_path: Path) -> None:
    """Truth used to be scaled to 10,000: errors and intervals were those of the difference in scale."""
    unseen = sections[2]
    (scores,) = evaluate(median[0], [unseen])
    predicted, truth = predict(median[0], unseen), as_scanpy_has_it(unseen)
    genes = list(scores.per_gene.index)
    difference = predicted[:, genes].X - truth[:, genes].X.toarray()
    np.testing.assert_allclose(scores.per_gene["rmse"], np.sqrt((difference**2).mean(axis=0)), rtol=1e-4)
    inside = np.abs(difference) <= predicted.var.loc[genes, "interval"].to_numpy() * predicted.obs[
        ["interval_scale"]
    ].to_numpy(dtype=float)
    np.testing.assert_allclose(scores.per_gene["coverage"], inside.mean(axis=0), atol=0.02)
    assert scores.summary.loc["all", "coverage"] > 0.8
    written = json.loads(write_evaluation([scores], median[0], tmp_path / "m.json").read_text())
    assert written["unit"] == MEDIAN


@pytest.mark.slow
def test_what_is_reported_is_of_its_scale(median: Fitted, sections: list[Section], tmp_path: Path) -> None:
    paths = predict_sections(median[0], sections[2:], tmp_path / "p")
    page = report_predictions(paths, tmp_path / "r", sections=sections[2:], bundle=median[0]).read_text()
    assert f"Mean over spots, {MEDIAN}" in page
    assert "per 10,000" not in page


def test_a_stack_has_one_scale(median: Fitted, ridge: Fitted, sections: list[Section]) -> None:
    section = sections[2]
    turned = [Placement(name, np.eye(2, 3), None) for name in ("a", "b")]
    tables = {"a": predict(median[0], section), "b": section.adata}
    mpp = {"a": section.mpp, "b": section.mpp}
    stack = stack_sections(tables, turned, np.array([0.0, 10.0]), mpp=mpp)
    assert stack.uns["hescribe"]["unit"] == MEDIAN
    measured = stack[stack.obs["section_id"] == "b"].X
    truth = as_scanpy_has_it(section)[:, stack.var_names].X.toarray()
    np.testing.assert_allclose(np.asarray(measured), truth, rtol=1e-5)
    with pytest.raises(InputError, match="differ in scale"):
        stack_sections({**tables, "b": predict(ridge[0], section)}, turned, np.array([0.0, 10.0]), mpp=mpp)
