"""Scores of predicted cell types, worked by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from hescribe.evaluation import score_cell_types
from hescribe.evaluation.cell_types import describe_cell_types


def spots(names: list[str], **types: list[float]) -> ad.AnnData:
    adata = ad.AnnData(np.ones((len(names), 1), dtype="f"), obs=pd.DataFrame(index=names))
    if types:
        adata.obsm["cell_types"] = pd.DataFrame(types, index=names)
    return adata


MEASURED = spots(
    list("abcde"), T=[0.1, 0.2, 0.6, np.nan, 0.0], B=[0.9, 0.8, 0.395, np.nan, 1.0], rare=[0, 0, 0.005, np.nan, 0]
)


def test_spots_and_types_are_matched_by_name() -> None:
    # Spots a and b are turned round, d is not known, e is not predicted
    predicted = spots(list("cbad"), B=[0.5, 0.6, 0.7, 0.5], T=[0.5, 0.4, 0.3, 0.5], rare=[0.02] * 4, CAF=[0.0] * 4)
    found = score_cell_types(predicted, MEASURED)
    assert found is not None
    assert list(found.index) == ["T", "B", "rare"]
    assert found.loc["T", "pcc"] == pytest.approx(np.corrcoef([0.3, 0.4, 0.5], [0.1, 0.2, 0.6])[0, 1])
    assert found.loc["B", "measured"] == pytest.approx((0.9 + 0.8 + 0.395) / 3)
    assert found.loc["B", "predicted"] == pytest.approx(0.6)
    assert found["counted"].tolist() == [True, True, False]
    plain = describe_cell_types(found)
    assert plain["n_types"] == 2
    assert plain["pcc"] == pytest.approx(found["pcc"][["T", "B"]].mean())
    assert plain["types"]["rare"]["pcc"] == 0


def test_nothing_to_compare() -> None:
    assert score_cell_types(spots(["a"]), MEASURED) is None
    assert score_cell_types(MEASURED, spots(["a"])) is None
    assert score_cell_types(spots(["a"], other=[1.0]), MEASURED) is None
    assert score_cell_types(spots(["z"], T=[1.0]), MEASURED) is None
