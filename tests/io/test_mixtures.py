"""Mixtures of cell types against mixtures that are known."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import lsq_linear

from hescribe.datasets.synthetic.cells import CELL_TYPES
from hescribe.datasets.synthetic.counts import draw_counts, expect, lay_spots
from hescribe.datasets.synthetic.make import Cohort, plan_section
from hescribe.datasets.synthetic.signatures import CONTENT, make_signatures, of_patient
from hescribe.errors import InputError
from hescribe.io.mixtures import _telling_genes, cell_type_signatures, estimate_cell_types, estimate_mixtures


def profiles(types: int, genes: int, seed: int) -> np.ndarray:
    raw = np.random.default_rng(seed).gamma(0.4, 1, (types, genes)) + 1e-3
    return raw / raw.sum(axis=1, keepdims=True) * 1e4


@settings(max_examples=25, deadline=None)
@given(types=st.integers(2, 20), seed=st.integers(0, 10**6))
def test_mixtures_without_noise_are_recovered_exactly(types: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    signatures = profiles(types, 400, seed)
    shares = rng.dirichlet(np.full(types, 0.3), 15)
    depth = rng.uniform(10, 10_000, (15, 1))
    np.testing.assert_allclose(estimate_mixtures(depth * (shares @ signatures), signatures), shares, atol=1e-6)


def test_counting_noise_costs_little() -> None:
    rng = np.random.default_rng(0)
    signatures = profiles(12, 1500, 0)
    shares = rng.dirichlet(np.full(12, 0.3), 300)
    estimated = estimate_mixtures(sparse.csr_matrix(rng.poisson(0.3 * shares @ signatures)), signatures)
    np.testing.assert_allclose(estimated.sum(axis=1), 1)
    assert (estimated >= 0).all()
    assert min(np.corrcoef(estimated[:, k], shares[:, k])[0, 1] for k in range(12)) > 0.95
    shuffled = estimated[rng.permutation(300)]
    assert max(abs(np.corrcoef(shuffled[:, k], shares[:, k])[0, 1]) for k in range(12)) < 0.3


def test_the_reduced_problem_is_the_whole_one() -> None:
    """Bounded least squares on all genes and spots as they stand, by another solver."""
    rng = np.random.default_rng(1)
    signatures = profiles(6, 150, 1)
    counts = rng.poisson(0.01 * rng.dirichlet(np.ones(6), 10) @ signatures)
    mean = signatures.mean(axis=0)
    spread = np.sqrt(mean + 0.1 * mean**2)
    used = _telling_genes(signatures, spread)
    for spot, estimated in zip(counts, estimate_mixtures(counts, signatures), strict=True):
        amounts = lsq_linear(
            (signatures / spread)[:, used].T, (spot / spread)[used], bounds=(0, np.inf), tol=1e-14, max_iter=1000
        ).x
        np.testing.assert_allclose(estimated, amounts / amounts.sum(), atol=1e-5)


def test_planted_tissue_is_recovered_from_a_reference_that_is_not_the_patient_s_own() -> None:
    """Signatures of the cohort; the patient's genes, subtype, programs and capture differ from them."""
    cohort = Cohort(side_um=1400, n_genes=600, seed=2)
    planned = plan_section(cohort, 0, 0)
    common = make_signatures(cohort.n_genes, cohort.seed)
    own = of_patient(common, planned.patient.subtype.name, planned.patient.rng(7))
    rng = planned.patient.rng(8, 0)
    truth = expect(planned.tissue, planned.cells, lay_spots(planned.tissue), own, rng, depth=cohort.depth)
    signatures = (common.low + common.high) / 2
    estimated = estimate_mixtures(draw_counts(truth, rng), signatures / signatures.sum(axis=1, keepdims=True) * 1e4)
    # Shares of transcripts: each type's cells count by the RNA they hold
    shares = truth.proportions * CONTENT / (truth.proportions @ CONTENT)[:, None]
    for k in np.flatnonzero(shares.mean(axis=0) > 0.02):
        assert np.corrcoef(estimated[:, k], shares[:, k])[0, 1] > 0.85, CELL_TYPES[k]


def test_a_spot_without_counts_is_unknown() -> None:
    estimated = estimate_mixtures(np.array([[0, 0, 0], [0, 8, 0]]), np.array([[4.0, 0, 4], [0, 4, 4]]))
    np.testing.assert_allclose(estimated, [[np.nan, np.nan], [0, 1]])


def single_cells() -> ad.AnnData:
    counts = np.array([[1, 3, 0], [30, 10, 0], [0, 0, 5], [0, 0, 0], [7, 7, 7], [0, 1, 9]])
    labels = pd.Categorical(["B", "B", "T/NK", "B", None, "T/NK"])
    return ad.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame({"cell_type": labels}, index=[str(i) for i in range(6)]),
        var=pd.DataFrame(index=["G1", "G2", "G3"]),
    )


def test_signatures_are_means_of_normalised_cells() -> None:
    found = cell_type_signatures(single_cells())
    assert list(found.index) == ["B", "T-NK"]
    np.testing.assert_allclose(found.to_numpy(), [[5000, 5000, 0], [0, 500, 9500]])


def test_genes_are_matched_by_name() -> None:
    spots = ad.AnnData(
        np.array([[95.0, 4, 5], [0, 9, 1]]),
        obs=pd.DataFrame(index=["s", "t"]),
        var=pd.DataFrame(index=["G3", "X", "G2"]),
    )
    found = estimate_cell_types(spots, cell_type_signatures(single_cells()))
    assert list(found.index) == ["s", "t"]
    np.testing.assert_allclose(found["T-NK"], [1, 0], atol=1e-9)


def test_what_cannot_be_a_reference_is_refused() -> None:
    cells = single_cells()
    with pytest.raises(InputError, match="no column 'kind'"):
        cell_type_signatures(cells, "kind")
    with pytest.raises(InputError, match="1 cell types"):
        cell_type_signatures(cells[:2])
    with pytest.raises(InputError, match="1 genes in common"):
        estimate_cell_types(cells[:, ["G3"]], cell_type_signatures(cells))
    with pytest.raises(InputError, match="not of the same genes"):
        estimate_mixtures(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(InputError, match="0 genes tell 2 cell types apart"):
        estimate_mixtures(np.ones((2, 3)), np.ones((2, 3)))
