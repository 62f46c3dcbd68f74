import numpy as np
import pytest
from scipy import sparse

from hescribe.metrics.gene_sets import detected_genes, gene_moments, named_genes, top_genes


def test_moments_are_those_of_numpy():
    x = np.random.default_rng(0).poisson(0.5, (30, 7)).astype(float)
    moments = gene_moments(sparse.csr_matrix(x))
    np.testing.assert_allclose(moments.mean, x.mean(0))
    np.testing.assert_allclose(moments.variance, x.var(0), atol=1e-15)
    np.testing.assert_allclose(moments.detected, (x > 0).mean(0))
    assert np.isnan(gene_moments(np.ones((0, 2))).mean).all()


def test_top_genes_break_ties_by_name_whatever_the_order():
    genes = ["D", "B", "A", "C", "E"]
    value = np.array([1.0, 2.0, 1.0, 1.0, 0.0])
    for order in (np.arange(5), np.array([4, 3, 2, 1, 0]), np.array([2, 0, 4, 1, 3])):
        names = [genes[i] for i in order]
        chosen = top_genes(value[order], names, 3)
        assert {n for n, c in zip(names, chosen, strict=True) if c} == {"A", "B", "C"}


def test_genes_without_expression_are_never_on_top():
    assert top_genes(np.array([0.0, 3.0, np.nan]), ["a", "b", "c"], 3).tolist() == [False, True, False]
    assert not top_genes(np.full(2, np.nan), ["a", "b"]).any()
    assert top_genes(np.zeros(0), []).shape == (0,)


def test_detected_and_named():
    assert detected_genes(np.array([0.1, 0.09, 3 * 0.1 / 3, np.nan])).tolist() == [True, False, True, False]
    assert named_genes(["A", "B"], ["B", "not there"]).tolist() == [False, True]
    assert named_genes([], ["B"]).shape == (0,)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_number_of_top_genes(n):
    value = np.random.default_rng(n).uniform(1, 2, 60)
    chosen = top_genes(value, [f"g{i}" for i in range(60)], n)
    assert chosen.sum() == n
    assert value[chosen].min() >= value[~chosen].max()
