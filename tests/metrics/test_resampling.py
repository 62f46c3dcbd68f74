import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import pearsonr

from hescribe.errors import InputError
from hescribe.metrics.resampling import draw_blocks, percentile_interval, resampled_pearson, spatial_blocks


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 80), k=st.integers(1, 20))
def test_blocks_are_balanced_and_do_not_hang_on_the_order(seed, n, k):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(size=(n, 2)) * [3000, 2000]
    labels = spatial_blocks(centres, k)
    sizes = np.bincount(labels)
    assert len(sizes) == min(n, k)
    assert sizes.min() >= 1
    assert sizes.max() <= 2 * n / min(n, k) + 2
    order = rng.permutation(n)
    np.testing.assert_array_equal(spatial_blocks(centres[order], k), labels[order])


def test_blocks_are_contiguous():
    centres = np.stack(np.meshgrid(np.arange(16), np.arange(16)), -1).reshape(-1, 2).astype(float)
    labels = spatial_blocks(centres, 16)
    assert (np.bincount(labels) == 16).all()
    spread = [np.ptp(centres[labels == i], axis=0).max() for i in range(16)]
    assert max(spread) < 8


def test_resampled_pearson_is_pearson_of_the_drawn_spots():
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(2, 40, 3))
    p += t
    labels = spatial_blocks(rng.uniform(size=(40, 2)), 6)
    draws = draw_blocks(6, 5, seed=1)
    found = resampled_pearson(p, sparse.csr_matrix(t), labels=labels, draws=draws)
    for i, drawn in enumerate(draws):
        rows = np.repeat(np.arange(40), drawn[labels].astype(int))
        np.testing.assert_allclose(found[i], [pearsonr(p[rows, g], t[rows, g]).statistic for g in range(3)], rtol=1e-8)


def test_gene_that_vanishes_in_a_resample_is_left_out():
    labels = np.array([0, 0, 1, 1])
    truth = np.array([[0.0], [0], [1], [2]])
    predicted = np.array([[1.0], [2], [3], [3]])
    found = resampled_pearson(predicted, truth, labels=labels, draws=np.array([[2.0, 0], [0, 2], [1, 1]]))
    assert np.isnan(found[0, 0])
    assert found[1, 0] == 0
    assert found[2, 0] == pytest.approx(pearsonr(predicted[:, 0], truth[:, 0]).statistic)
    assert np.isnan(resampled_pearson(predicted, truth * 0, labels=labels, draws=np.ones((1, 2)))).all()


def test_interval_and_refusals():
    assert percentile_interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert np.isnan(percentile_interval(np.array([np.nan]))).all()
    for wrong in (np.zeros((3, 3)), np.array([[np.nan, 0]])):
        with pytest.raises(InputError):
            spatial_blocks(wrong, 2)
