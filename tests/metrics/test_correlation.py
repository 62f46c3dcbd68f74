"""Correlations against scipy and scikit-learn, then the degenerate cases by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from hescribe.errors import InputError
from hescribe.metrics import gene_blocks
from hescribe.metrics.correlation import (
    mae_per_gene,
    pearson_per_gene,
    pearson_per_spot,
    rmse_per_gene,
    spearman_per_gene,
)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    truth = np.log1p(rng.poisson(1.5, (60, 9))).astype(np.float32)
    return (truth * 0.3 + rng.normal(0, 0.5, truth.shape)).astype(np.float32), truth


def test_pearson_and_spearman_agree_with_scipy(pair):
    for ours, theirs in ((pearson_per_gene, pearsonr), (spearman_per_gene, spearmanr)):
        expected = [
            theirs(p.astype(float), t.astype(float)).statistic for p, t in zip(*(m.T for m in pair), strict=True)
        ]
        np.testing.assert_allclose(ours(*pair), expected, rtol=1e-10)


def test_errors_agree_with_scikit_learn(pair):
    for ours, theirs in ((rmse_per_gene, root_mean_squared_error), (mae_per_gene, mean_absolute_error)):
        np.testing.assert_allclose(ours(*pair), theirs(pair[1], pair[0], multioutput="raw_values"), rtol=1e-5)


def test_sparse_and_blocks_change_nothing(pair, monkeypatch):
    whole = [f(*pair) for f in (pearson_per_gene, spearman_per_gene, rmse_per_gene)]
    monkeypatch.setattr(gene_blocks, "_BLOCK_VALUES", 130)  # two genes a block
    for kind in (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array):
        for f, expected in zip((pearson_per_gene, spearman_per_gene, rmse_per_gene), whole, strict=True):
            np.testing.assert_allclose(f(pair[0], kind(pair[1])), expected, rtol=1e-12)


def test_spotwise_is_the_transpose(pair):
    expected = [pearsonr(p.astype(float), t.astype(float)).statistic for p, t in zip(*pair, strict=True)]
    np.testing.assert_allclose(pearson_per_spot(pair[0], sparse.csr_matrix(pair[1])), expected, rtol=1e-10)


@pytest.mark.parametrize("correlate", [pearson_per_gene, spearman_per_gene])
def test_constants(correlate):
    truth = np.array([[1, 5, 0], [2, 5, 1], [4, 5, 0]], dtype=np.float32)
    predicted = np.array([[3, 1, 2], [3, 2, 2], [3, 9, 2]], dtype=np.float32)
    # The constant gene is left out even where the prediction is constant too
    np.testing.assert_array_equal(correlate(predicted, truth), [0, np.nan, 0])
    np.testing.assert_array_equal(correlate(np.full((3, 1), 7.0), np.full((3, 1), 2.0)), [np.nan])


@pytest.mark.parametrize("correlate", [pearson_per_gene, spearman_per_gene])
def test_rounding_noise_is_constant(correlate):
    """A training mean, summed in another order for some rows, used to correlate at random instead of 0."""
    mean = np.float32(2.7182817)
    predicted = np.array([mean, np.nextafter(mean, np.float32(9)), mean, np.nextafter(mean, np.float32(0))])[:, None]
    assert correlate(predicted, np.arange(4.0)[:, None]) == [0.0]


def test_ties_take_their_mean_rank():
    p, t = np.array([1, 1, 2, 3.0]), np.array([4, 5, 5, 5.0])
    np.testing.assert_allclose(spearman_per_gene(p[:, None], t[:, None]), spearmanr(p, t).statistic)


def test_one_spot_no_spot_and_no_gene():
    for n in (0, 1):
        assert np.isnan(pearson_per_gene(np.ones((n, 2)), np.ones((n, 2)))).all()
        assert np.isnan(spearman_per_gene(np.ones((n, 2)), np.ones((n, 2)))).all()
    assert np.isnan(rmse_per_gene(np.ones((0, 2)), np.ones((0, 2)))).all()
    assert pearson_per_gene(np.ones((3, 0)), np.ones((3, 0))).shape == (0,)


def test_large_offset_keeps_digits():
    x = np.arange(10.0)[:, None]
    assert pearson_per_gene(x + 1e5, x) == pytest.approx(1.0)
    assert pearson_per_gene(x * 1e-200, x * 1e200) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "predicted", [np.ones((3, 2)), np.ones(3), np.array([[np.nan], [1], [2]]), np.array([[np.inf], [1], [2]])]
)
def test_what_does_not_fit_is_refused(predicted):
    with pytest.raises(InputError):
        pearson_per_gene(predicted, np.arange(3.0)[:, None])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_invariances(seed, scale, shift):
    rng = np.random.default_rng(seed)
    p, t = rng.normal(size=(2, 15, 3))
    order = rng.permutation(15)
    r = pearson_per_gene(p, t)
    np.testing.assert_allclose(pearson_per_gene(scale * p + shift, t), r, atol=1e-7)
    np.testing.assert_allclose(pearson_per_gene(-p, t), -r, atol=1e-12)
    np.testing.assert_allclose(pearson_per_gene(t, p), r, atol=1e-12)
    for f in (pearson_per_gene, spearman_per_gene, rmse_per_gene, mae_per_gene):
        np.testing.assert_allclose(f(p[order], t[order]), f(p, t), atol=1e-12)
    np.testing.assert_allclose(spearman_per_gene(np.exp(p), t), spearman_per_gene(p, t), atol=1e-12)
