"""Gene sets: reading, matching, scores against slow references, refusals."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from hescribe.downstream.gene_sets import (
    MARKERS,
    enrichment,
    log_expression,
    marker_sets,
    match_genes,
    read_gene_sets,
    score_gene_sets,
)
from hescribe.errors import HescribeWarning, InputError


def table(values: np.ndarray, names: list[str] | None = None, **var: object) -> ad.AnnData:
    genes = names or [f"G{i}" for i in range(values.shape[1])]
    return ad.AnnData(values.astype("f"), var=pd.DataFrame(var, index=genes))


@pytest.fixture
def counts() -> ad.AnnData:
    return table(np.random.default_rng(0).poisson(2.0, (30, 12)))


def test_our_markers_have_what_the_tool_promises() -> None:
    for tissue in ("any", "breast", "lung", "colon", "brain"):
        assert {"tumour", "stroma", "immune", "fat", "necrosis"} <= set(marker_sets(tissue))
    rows = pd.read_csv(MARKERS)
    assert rows.notna().all().all()
    assert not rows.duplicated(["tissue", "set", "gene"]).any()


def test_a_tissue_takes_its_own_sets_and_the_general_ones(tmp_path: Path) -> None:
    path = tmp_path / "sets.csv"
    path.write_text("set,gene,tissue\ntumour,A,any\ntumour,B,lung\nfat,C,any\nfat,C,any\n")
    assert read_gene_sets(path, tissue="Lung") == {"tumour": ["B"], "fat": ["C"]}
    assert read_gene_sets(path) == {"tumour": ["A", "B"], "fat": ["C"]}
    with pytest.raises(InputError, match="no gene set for 'skin' \\(there are any, lung\\)"):
        read_gene_sets(path, tissue="skin")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene\nA\n", "no column set"),
        ("set,gene\n", "holds no gene set"),
        ("", "not a readable table"),
        ("set,gene\n../out,A\n", "cannot be called '../out'"),
        ("set,gene\nT/NK,A\n", "cannot be called 'T/NK'"),
    ],
)
def test_a_bad_table_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sets.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_gene_sets(path)
    assert str(path) in str(caught.value)


def test_genes_are_found_by_name_id_and_unambiguous_case() -> None:
    data = table(np.zeros((2, 4)), ["Actb", "CD3E", "cd3e", "X"], gene_ids=["ENSG1.4", "", "", "ENSG2"])
    assert match_genes(data, ["ACTB", "ENSG2.7", "CD3E", "cd3E", "nothing", "Actb"]).tolist() == [0, 3, 1]


def test_counts_are_normalised_and_log_data_are_not(counts: ad.AnnData) -> None:
    library = counts.X.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(log_expression(counts).toarray(), np.log1p(counts.X / library * 1e4), rtol=1e-5)
    logged = table(np.log1p(counts.X))
    np.testing.assert_array_equal(log_expression(logged), logged.X)
    predicted = table(np.ones((3, 2)), expected_pcc=[0.1, 0.2])
    np.testing.assert_array_equal(log_expression(predicted), 1.0)  # a prediction of whole numbers is no count


def test_mean_and_zscore_by_hand() -> None:
    data = table(np.array([[0.5, 1.5, 9.25], [1.5, 1.5, 0.0], [4.0, 1.5, 0.0]]))
    sets = {"a": ["G0", "G1"], "b": ["G2"]}
    np.testing.assert_allclose(score_gene_sets(data, sets, method="mean")["a"], [1.0, 1.5, 2.75])
    z = (np.array([0.5, 1.5, 4.0]) - 2.0) / np.std([0.5, 1.5, 4.0])
    np.testing.assert_allclose(score_gene_sets(data, sets)["a"], z / 2, rtol=1e-6)  # the constant gene adds nothing


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 12))
def test_enrichment_is_the_area_between_the_running_sums(seed: int, n_genes: int) -> None:
    rng = np.random.default_rng(seed)
    expression = rng.permutation(n_genes).astype(float)
    inside = np.sort(rng.choice(n_genes, rng.integers(1, n_genes), replace=False))
    ranks = stats.rankdata(expression)
    falling = np.argsort(-expression)
    total = sum(ranks[g] ** 0.25 for g in inside)
    area = hit = miss = 0.0
    for gene in falling:
        if gene in inside:
            hit += ranks[gene] ** 0.25 / total
        else:
            miss += 1 / (n_genes - len(inside))
        area += hit - miss
    assert enrichment(ranks[None], inside)[0] == pytest.approx(area / n_genes)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_enrichment_does_not_depend_on_the_order_of_the_genes(seed: int) -> None:
    """Most genes of a spot are tied at nothing; the score is the mean over all orders they could stand in."""
    rng = np.random.default_rng(seed)
    expression = rng.poisson(0.6, 8).astype(float)
    inside = np.sort(rng.choice(8, 3, replace=False))
    ranks = stats.rankdata(expression)
    areas = []
    for order in (rng.permutation(8) for _ in range(400)):
        falling = order[np.argsort(-expression[order], kind="stable")]
        hit = np.where(np.isin(falling, inside), ranks[falling] ** 0.25, 0.0)
        miss = ~np.isin(falling, inside) / 5
        areas.append(np.sum(np.cumsum(hit / hit.sum()) - np.cumsum(miss)))
    found = enrichment(ranks[None], inside)[0]
    assert found == pytest.approx(np.mean(areas) / 8, abs=4 * np.std(areas) / 8 / 20 + 1e-9)
    shuffled = rng.permutation(8)
    there = np.flatnonzero(np.isin(shuffled, inside))
    assert enrichment(ranks[shuffled][None], there)[0] == pytest.approx(found)


def test_ssgsea_is_high_where_the_set_is(counts: ad.AnnData) -> None:
    values = np.log1p(counts.X)
    values[:10, :4] += 3.0
    score = score_gene_sets(table(values), {"s": ["G0", "G1", "G2", "G3"]}, method="ssgsea")["s"]
    assert score.iloc[:10].min() > score.iloc[10:].max()


def test_decouplers_score_points_the_same_way(counts: ad.AnnData) -> None:
    values = np.log1p(counts.X)
    values[:10, :4] += 3.0
    score = score_gene_sets(table(values), {"s": ["G0", "G1", "G2", "G3"]}, method="ulm")["s"]
    assert score.iloc[:10].mean() > score.iloc[10:].mean()


def test_sparse_and_dense_score_alike(counts: ad.AnnData) -> None:
    other = ad.AnnData(sparse.csr_matrix(counts.X), var=counts.var)
    for method in ("mean", "zscore", "ssgsea"):
        ours = [score_gene_sets(d, {"s": ["G1", "G5"]}, method=method) for d in (counts, other)]  # type: ignore[arg-type]
        np.testing.assert_allclose(ours[0], ours[1])


def test_genes_that_cannot_be_trusted_are_named() -> None:
    data = table(np.random.default_rng(0).random((5, 3)), expected_pcc=[0.5, 0.01, 0.3])
    with pytest.warns(HescribeWarning, match="1 of 2 genes are below the trust threshold .*: G1$"):
        score_gene_sets(data, {"s": ["G0", "G1"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_gene_sets(data, {"s": ["G0", "G1"]}, min_pcc=None)
        score_gene_sets(data, {"s": ["G0", "G2"]})


def test_missing_genes_are_counted(counts: ad.AnnData) -> None:
    with pytest.warns(HescribeWarning, match="s: the data have 1 of 3 genes"):
        score_gene_sets(counts, {"s": ["G0", "A", "B"]})


def test_nonsense_is_refused(counts: ad.AnnData) -> None:
    with pytest.raises(InputError, match=r"no gene of the set 'mouse' .Cd3e; the data's are G0, G1, G2"):
        score_gene_sets(counts, {"mouse": ["Cd3e"]})
    with pytest.raises(InputError, match="no way of scoring named 'magic'"):
        score_gene_sets(counts, {"s": ["G0"]}, method="magic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no gene set was given"):
        score_gene_sets(counts, {})
    with pytest.raises(InputError, match="the set 's' is a word"):  # its letters could be genes
        score_gene_sets(counts, {"s": "G0"})  # type: ignore[dict-item]
    for wrong in (-1.0, np.nan):
        values = np.array([[1.0, 2.0], [0.5, wrong]])
        for matrix in (values, sparse.csr_matrix(values), sparse.csc_matrix(values)):
            with pytest.raises(InputError, match=r"without negative or missing values \(see 'G1'\)"):
                score_gene_sets(table(matrix), {"s": ["G0"]})
    with pytest.raises(InputError, match="empty table"):
        score_gene_sets(counts[:0], {"s": ["G0"]})
