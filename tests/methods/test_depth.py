"""Thinned expression against counts that are thinned, many times over."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from hescribe.methods.depth import at_depth


def normalised(counts: np.ndarray) -> np.ndarray:
    return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """60 spots of some 4,000 counts over 300 genes, most of them low; each spot has genes with a single count."""
    rng = np.random.default_rng(0)
    rates = np.sort(rng.lognormal(0, 1.6, 300)) * 3
    found = rng.poisson(rates * rng.uniform(0.3, 2, (60, 1)))
    assert (found == 1).any(axis=1).all()
    return found


def test_it_is_the_mean_over_many_thinnings(counts: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    share = 500 / np.median(counts.sum(axis=1))
    drawn = np.mean([normalised(rng.binomial(counts, share)) for _ in range(600)], axis=0)
    found = at_depth(sparse.csr_matrix(normalised(counts)), np.zeros(60, int), 500).toarray()
    # The depth of a thinned spot is itself random, which the expectation leaves aside: a bias of about one in a hundred
    assert np.abs(found - drawn).mean() < 0.05
    assert abs((found - drawn).mean()) < 0.02
    assert np.corrcoef(found.ravel(), drawn.ravel())[0, 1] > 0.999


def test_one_and_two_counts_by_hand() -> None:
    # 2,000 counts: 1 + 2 + 1,997; half of them are kept, each then worth 10 of 10,000
    expression = sparse.csr_matrix(normalised(np.array([[1, 2, 1997, 0]])))
    found = at_depth(expression, np.zeros(1, int), 1000)
    assert found.nnz == 3
    np.testing.assert_allclose(found.toarray()[0, :2], [0.5 * np.log(11), 0.5 * np.log(11) + 0.25 * np.log(21)])
    assert found[0, 2] == pytest.approx(np.log1p(1997 / 2 * 10), abs=1e-3)


def test_each_section_has_its_own_depth_and_shallow_ones_stay(counts: np.ndarray) -> None:
    section = np.repeat([7, 3], 30)
    both = np.vstack([counts[:30], np.minimum(counts[30:], 2)])
    expression = sparse.csr_matrix(normalised(both))
    limit = float(np.median(both[30:].sum(axis=1))) + 1
    found = at_depth(expression, section, limit)
    np.testing.assert_array_equal(found[30:].toarray(), expression[30:].toarray())
    alone = at_depth(expression[:30], section[:30], limit)
    np.testing.assert_array_equal(found[:30].toarray(), alone.toarray())
    assert (found[:30] != expression[:30]).nnz > 1000


def test_the_median_spot_is_thinned_to_the_depth_asked_for_and_the_others_by_the_same_share() -> None:
    # 400, 800 and 8,000 counts in genes of one and the rest: the median keeps a half, and so do the others
    counts = np.array([[1, 399], [1, 799], [1, 7999]])
    found = at_depth(sparse.csr_matrix(normalised(counts)), np.zeros(3, int), 400).toarray()
    np.testing.assert_allclose(found[:, 0], 0.5 * np.log1p(1e4 / np.array([200, 400, 4000])))


def test_of_a_spot_with_next_to_nothing_a_whole_count_is_left_at_most() -> None:
    """A single count is all there is, however few of a section's counts are kept: it is there or not."""
    counts = np.array([[1, 0], [1, 999], [1, 999]])
    found = at_depth(sparse.csr_matrix(normalised(counts)), np.zeros(3, int), 100).toarray()
    assert found[0].tolist() == pytest.approx([0.1 * np.log1p(1e4), 0])


def test_spots_without_counts_and_many_rows() -> None:
    rng = np.random.default_rng(2)
    counts = np.tile(rng.poisson(3, (50, 40)), (50, 1))
    counts[::7] = 0
    found = at_depth(sparse.csr_matrix(normalised(counts)), np.zeros(len(counts), int), 20)
    assert np.isfinite(found.data).all()
    assert found[::7].nnz == 0
    # Blocks of rows make no difference
    np.testing.assert_array_equal(found[1].toarray(), found[701].toarray())
    assert at_depth(sparse.csr_matrix((5, 4)), np.zeros(5, int), 10).nnz == 0


def test_any_total_is_thinned_to_the_same_depth(counts: np.ndarray) -> None:
    """It used to take 10,000 for granted: scaled to a million, nothing was thinned."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    section = np.zeros(60, int)
    found = [np.expm1(at_depth(sparse.csr_matrix(np.log1p(t * shares)), section, 500).toarray()) for t in (1e4, 1e6)]
    gone = [np.mean(f[counts == 1]) / t for f, t in zip(found, (1e4, 1e6), strict=True)]
    # E log(1 + x) is not log(1 + E x), so the two are alike, not equal
    before = shares[counts == 1].mean()
    assert gone[0] < 0.5 * before
    assert gone[1] < 0.5 * before
