"""Cell types of training spots and names of prototypes."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hescribe.errors import HescribeWarning
from hescribe.training.inputs.cells import compositions, mean_composition, name_mixture

SIGNATURES = np.array([[40.0, 10, 0, 5], [0, 10, 40, 5]])


@dataclass
class Made:
    adata: ad.AnnData
    cell_types: pd.DataFrame | None = None


def made(name: str, shares: np.ndarray, types: list[str] | None = None) -> Made:
    obs = pd.DataFrame(index=[f"{name}{i}" for i in range(len(shares))])
    adata = ad.AnnData(sparse.csr_matrix(shares @ SIGNATURES), obs=obs, var=pd.DataFrame(index=list("ABCD")))
    return Made(adata, None if types is None else pd.DataFrame(shares, obs.index, types))


def reference(labels: list[str] | None) -> Made:
    cells = made("cell", np.repeat(np.eye(2), 3, axis=0))
    if labels:
        cells.adata.obs["cell_type"] = np.repeat(labels, 3)
    return cells


SHARES = np.array([[0.2, 0.8], [1.0, 0.0]])


def test_tables_stand_one_below_the_other_and_unknown_spots_stay_unknown() -> None:
    found = compositions([made("a", SHARES, ["T", "B"]), made("b", SHARES[:1])])  # type: ignore[list-item]
    assert found is not None
    assert list(found.index) == ["a0", "a1", "b0"]
    np.testing.assert_array_equal(found.to_numpy(), [*SHARES, [np.nan, np.nan]])


def test_a_type_that_only_another_table_names_is_zero() -> None:
    second = made("b", np.vstack([SHARES[:1], [[np.nan, np.nan]]]), ["B", "CAF"])
    with pytest.warns(HescribeWarning, match="name different cell types"):
        found = compositions([made("a", SHARES[:1], ["T", "B"]), second])  # type: ignore[list-item]
    assert found is not None
    assert list(found.columns) == ["T", "B", "CAF"]
    np.testing.assert_array_equal(found.to_numpy(), [[0.2, 0.8, 0], [0, 0.2, 0.8], [np.nan] * 3])


def test_without_tables_a_single_cell_reference_tells() -> None:
    sections = [made("a", SHARES), made("b", SHARES[:1])]
    found = compositions(sections, [reference(None), reference(["T", "B"])])  # type: ignore[arg-type]
    assert found is not None
    assert list(found.index) == ["a0", "a1", "b0"]
    np.testing.assert_allclose(found[["T", "B"]].to_numpy(), [*SHARES, SHARES[0]], atol=1e-9)
    # A table that was given counts for more
    sections[0].cell_types = pd.DataFrame(SHARES, sections[0].adata.obs_names, ["X", "Y"])
    measured = compositions(sections, [reference(["T", "B"])])  # type: ignore[arg-type]
    assert measured is not None
    assert list(measured.columns) == ["X", "Y"]


def test_nothing_to_go_by() -> None:
    assert compositions([made("a", SHARES)], [reference(None)]) is None  # type: ignore[list-item]


def test_groups_have_the_mean_of_what_is_known_of_their_spots() -> None:
    spots = pd.DataFrame({"T": [1.0, 0.0, np.nan, np.nan, 0.5], "B": [0.0, 1.0, np.nan, np.nan, 0.5]})
    found = mean_composition(spots, np.array([2, 2, 2, 0, 3]), 5)
    np.testing.assert_array_equal(found["T"], [np.nan, np.nan, 0.5, 0.5, np.nan])
    np.testing.assert_allclose(found.dropna().sum(axis=1), 1)


@pytest.mark.parametrize(
    ("shares", "name"),
    [
        ({"CAF": 0.22, "cancer epithelial": 0.612, "T": 0.168}, "0.61 cancer epithelial, 0.22 CAF"),
        ({"CAF": 0.95, "T": 0.05}, "0.95 CAF"),
        ({"A": 0.09, "B": 0.08, "C": 0.07}, "0.09 A"),
        ({"A": np.nan, "B": np.nan}, ""),
    ],
)
def test_names(shares: dict[str, float], name: str) -> None:
    assert name_mixture(pd.Series(shares)) == name
