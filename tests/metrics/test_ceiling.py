"""The ceiling against what a perfect predictor really reaches."""

import numpy as np
import pytest
from scipy import sparse

from hescribe.errors import InputError
from hescribe.io.expression import log_normalise
from hescribe.metrics.ceiling import _alike, binomial_halves, ceiling_per_gene, reliability_per_gene
from hescribe.metrics.correlation import pearson_per_gene


def tissue(depth, *, n=400, genes=100, seed=0):
    """Known smooth means (n, genes) of a section of ``depth`` counts per spot."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1, n)[:, None]
    waves = np.exp(0.9 * np.sin(2 * np.pi * (x * rng.uniform(0.5, 2, genes) + rng.uniform(size=genes))))
    share = waves * rng.gamma(2, size=genes)
    library = depth * rng.lognormal(0, 0.5, (n, 1))
    return share / share.sum(1, keepdims=True) * library, rng


def attainable(means, rng, draws=60):
    """Correlation with a measurement of the best predictor there is, the conditional mean, from known means."""
    total, squares = 0.0, 0.0
    for _ in range(draws):
        y = log_normalise(sparse.csr_matrix(rng.poisson(means))).toarray().astype(float)
        total, squares = total + y / draws, squares + y**2 / draws
    noise = ((squares - total**2) * draws / (draws - 1)).mean(0)
    signal = total.var(0) - noise / draws
    return np.sqrt(signal / (signal + noise))


@pytest.mark.parametrize("depth", [150, 600, 5000])
def test_ceiling_is_what_a_perfect_predictor_reaches(depth):
    means, rng = tissue(depth)
    counts = sparse.csr_matrix(rng.poisson(means))
    true = attainable(means, rng)
    found = ceiling_per_gene(counts, log_normalise)
    assert found.mean() == pytest.approx(true.mean(), abs=0.03)
    assert np.abs(found - true).mean() < 0.08
    assert np.corrcoef(found, true)[0, 1] > 0.8


def test_log_of_the_true_mean_reaches_the_ceiling_and_not_more():
    means, rng = tissue(2000)
    counts = sparse.csr_matrix(rng.poisson(means))
    reached = pearson_per_gene(log_normalise(sparse.csr_matrix(means)), log_normalise(counts))
    assert reached.mean() == pytest.approx(ceiling_per_gene(counts, log_normalise).mean(), abs=0.04)


def test_spearman_brown_overstates_shallow_sections():
    """Doubling a shallow section's depth gains less, after log1p of counts per 10,000, than the formula says."""
    means, rng = tissue(150)
    counts = sparse.csr_matrix(rng.poisson(means))
    true = attainable(means, rng).mean()
    assert ceiling_per_gene(counts, log_normalise, extrapolation="spearman-brown").mean() > true + 0.03


def test_spearman_brown_holds_on_counts():
    means, rng = tissue(2000, genes=30)
    counts = rng.poisson(means)
    found = reliability_per_gene(counts, lambda c: c.toarray(), extrapolation="spearman-brown", n_splits=20)
    true = means.var(0) / (means.var(0) + means.mean(0))
    assert np.abs(found - true).mean() < 0.03


def test_noise_has_no_ceiling_and_no_gene_is_lost():
    rng = np.random.default_rng(0)
    counts = np.column_stack([rng.poisson(3, 500), np.zeros(500), np.full(500, 2), np.eye(1, 500)[0]]).astype(int)
    found = ceiling_per_gene(counts, lambda c: c.toarray().astype(float))
    assert np.isnan(found[[1, 2]]).all()  # constant: nothing to predict
    assert found[0] < 0.45
    assert found[3] == 0  # one count cannot be in both halves
    assert ((found[[0, 3]] >= 0) & (found[[0, 3]] <= 1)).all()


def test_genes_of_like_abundance_are_judged_together():
    rng = np.random.default_rng(0)
    abundance, wanted = rng.permutation(250), rng.random(250) < 0.9
    bins = _alike(abundance, wanted)
    assert [len(b) for b in bins] == [len(b) for b in np.array_split(np.arange(wanted.sum()), 2)]
    np.testing.assert_array_equal(abundance[np.concatenate(bins)], np.sort(abundance[wanted]))
    assert len(_alike(abundance[:80], wanted[:80])) == 1


def test_halves_sum_up_and_the_seed_decides():
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(2, (20, 5)))
    first, second = binomial_halves(counts, np.random.default_rng(1))
    assert (first + second != counts).nnz == 0
    a, b, c = (reliability_per_gene(counts, lambda x: x.toarray(), seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        (np.array([[0.5], [1]]), {}),
        (np.array([[-1], [1]]), {}),
        (np.array([[1], [2]]), {"n_splits": 0}),
        (np.array([[1], [2]]), {"extrapolation": "guess"}),
    ],
)
def test_what_is_refused(counts, options):
    with pytest.raises(InputError):
        ceiling_per_gene(counts, lambda x: x.toarray(), **options)
