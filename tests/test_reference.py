"""Retrieval and imputation against slow, literal NumPy."""

from __future__ import annotations

import dataclasses
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from hescribe.errors import BundleError, InputError
from hescribe.methods.base import Retrieval
from hescribe.reference import Neighbours, Reference, search, weigh


def literal_neighbours(keys: np.ndarray, query: np.ndarray, k: int, similarity: str) -> list[int]:
    scores = []
    for key in keys:
        if similarity == "cosine":
            scores.append(float(query @ key / (np.linalg.norm(query) * np.linalg.norm(key))))
        else:
            scores.append(-float(((query - key) ** 2).sum()))
    return sorted(range(len(keys)), key=lambda i: -scores[i])[:k]


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 60),
    n=st.integers(1, 9),
    k=st.integers(1, 12),
    budget=st.sampled_from([4, 64, 400, 10**6]),
    similarity=st.sampled_from(["cosine", "euclidean"]),
)
def test_search_is_exact_whatever_the_blocks(m: int, n: int, k: int, budget: int, similarity: str) -> None:
    rng = np.random.default_rng(m * 1000 + n * 10 + k)
    keys = rng.normal(size=(m, 6)).astype(np.float32)
    queries = rng.normal(size=(n, 6)).astype(np.float32)
    found = search(keys, queries, k, similarity=similarity, budget_bytes=budget)  # type: ignore[arg-type]
    assert found.indices.shape == (n, min(k, m))
    for i in range(n):
        assert list(found.indices[i]) == literal_neighbours(keys, queries[i], k, similarity)
    assert (np.diff(found.similarity, axis=1) <= 0).all()


def test_no_block_exceeds_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    import hescribe.reference.neighbours as module

    seen = []
    original = module._search_block

    def spy(queries, keys_, k, key_rows, similarity):  # type: ignore[no-untyped-def]
        seen.append(len(queries) * min(key_rows, len(keys_)) * 4)
        return original(queries, keys_, k, key_rows, similarity)

    monkeypatch.setattr(module, "_search_block", spy)
    rng = np.random.default_rng(0)
    budget = 64 * 1024
    search(rng.normal(size=(5000, 8)).astype("f"), rng.normal(size=(700, 8)).astype("f"), 50, budget_bytes=budget)
    assert seen
    assert max(seen) <= budget


def test_weights_equal_the_published_formula() -> None:
    rng = np.random.default_rng(3)
    keys, queries = rng.normal(size=(20, 4)).astype("f"), rng.normal(size=(3, 4)).astype("f")
    neighbours = search(keys, queries, 5)
    weights = weigh(keys, queries, neighbours, mode="weighted").toarray()
    for i in range(3):
        first = ((keys[neighbours.indices[i, 0]] - queries[i]) ** 2).sum()
        raw = [np.exp(-(((keys[j] - queries[i]) ** 2).sum() - first + 1)) for j in neighbours.indices[i]]
        expected = np.zeros(20)
        expected[neighbours.indices[i]] = np.array(raw) / np.sum(raw)
        np.testing.assert_allclose(weights[i], expected, atol=1e-5)


def test_softmax_weights_by_hand() -> None:
    # Similarities of 0.5 and 0.5 − 0.2 log 3, over a temperature of 0.2: 3 to 1
    near = Neighbours(np.array([[2, 0]]), np.array([[0.5, 0.5 - 0.2 * np.log(3)]]))
    nothing = np.zeros((3, 2), dtype="f")
    weights = weigh(nothing, nothing[:1], near, mode="softmax", temperature=0.2)
    np.testing.assert_allclose(weights.toarray(), [[0.25, 0, 0.75]], rtol=1e-6)


def test_weights_survive_far_away_first_neighbours() -> None:
    """The nearest by cosine may be far by distance; exp of that difference used to overflow."""
    keys = np.array([[100.0, 0.0], [1.0, 0.1]], dtype="f")
    queries = np.array([[1.0, 0.0]], dtype="f")
    weights = weigh(keys, queries, search(keys, queries, 2), mode="weighted").toarray()
    np.testing.assert_allclose(weights, [[0.0, 1.0]], atol=1e-6)


@pytest.fixture
def reference() -> Reference:
    rng = np.random.default_rng(4)
    expression = sparse.random(30, 12, density=0.4, format="csr", random_state=0, dtype=np.float32)
    obs = pd.DataFrame({"section_id": ["a"] * 30, "patient_id": ["p"] * 30}, index=[f"a:{i}" for i in range(30)])
    genes = tuple(f"g{i}" for i in range(12))
    return Reference(rng.normal(size=(30, 6)).astype("f"), expression, genes, obs)


@pytest.mark.parametrize("mode", ["mean", "top1"])
def test_imputation_is_the_plain_mean_of_the_neighbours(reference: Reference, mode: str) -> None:
    queries = np.random.default_rng(5).normal(size=(4, 6)).astype("f")
    out = reference.impute(queries, Retrieval(k=7, imputation=mode))  # type: ignore[arg-type]
    dense = reference.expression.toarray()
    for i, query in enumerate(queries):
        nearest = literal_neighbours(reference.embedding, query, 7 if mode == "mean" else 1, "cosine")
        np.testing.assert_allclose(out[i], dense[nearest].mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "weighted", "softmax", "top1"])
@pytest.mark.parametrize("dense_bytes", [2**20, 0])
def test_imputation_is_a_loop_over_the_spots(mode: str, dense_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several blocks of genes, one of them narrow, and without a dense copy."""
    import hescribe.reference.store as module

    monkeypatch.setattr(module, "DENSE_BYTES", dense_bytes)
    rng = np.random.default_rng(6)
    expression = sparse.random(90, 150, density=0.3, format="csr", random_state=1, dtype=np.float32)
    obs = pd.DataFrame(index=[f"s{i}" for i in range(90)])
    reference = Reference(rng.normal(size=(90, 6)).astype("f"), expression, tuple(f"g{i}" for i in range(150)), obs)
    queries = rng.normal(size=(11, 6)).astype("f")
    how = Retrieval(k=20, imputation=mode)  # type: ignore[arg-type]
    weights, dense = reference.weights(queries, how).toarray().astype(np.float64), expression.toarray()
    out = reference.impute(queries, how)
    assert out.dtype == np.float32
    for i in range(11):
        mixed = sum(weights[i, j] * dense[j] for j in np.flatnonzero(weights[i]))
        np.testing.assert_allclose(out[i], mixed, atol=1e-6)


def test_imputation_has_the_same_bits_at_any_number_of_threads_and_leaves_it(reference: Reference) -> None:
    queries = np.random.default_rng(7).normal(size=(40, 6)).astype("f")
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(reference.impute(queries, Retrieval(k=7)))
            assert torch.get_num_threads() == threads
            with ThreadPoolExecutor(1) as fresh:
                assert fresh.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_more_neighbours_than_spots(reference: Reference) -> None:
    out = reference.impute(np.ones((1, 6), dtype="f"), Retrieval(k=500))
    np.testing.assert_allclose(out[0], np.asarray(reference.expression.mean(axis=0)).ravel(), atol=1e-5)


def test_round_trip(reference: Reference, tmp_path: Path) -> None:
    reference.save(tmp_path / "reference.zarr")
    again = Reference.load(tmp_path / "reference.zarr")
    np.testing.assert_array_equal(again.embedding, reference.embedding)
    assert (again.expression != reference.expression).nnz == 0
    assert again.genes == reference.genes
    assert list(again.obs["section_id"]) == ["a"] * 30


def test_damaged_store(tmp_path: Path) -> None:
    (tmp_path / "reference.zarr").mkdir()
    with pytest.raises(BundleError, match=r"reference\.zarr"):
        Reference.load(tmp_path / "reference.zarr")


def test_empty_reference() -> None:
    with pytest.raises(InputError, match="empty"):
        search(np.zeros((0, 3), dtype="f"), np.ones((1, 3), dtype="f"), 5)


def test_mean_weights_sum_to_one() -> None:
    neighbours = Neighbours(np.array([[0, 2], [1, 2]]), np.zeros((2, 2), dtype="f"))
    weights = weigh(np.zeros((3, 2), dtype="f"), np.zeros((2, 2), dtype="f"), neighbours, mode="mean")
    np.testing.assert_allclose(weights.toarray(), [[0.5, 0, 0.5], [0, 0.5, 0.5]])


def test_cell_types_are_blended_by_the_same_weights() -> None:
    types = pd.DataFrame({"T-NK": [1.0, 0.5, np.nan], "CAF": [0.0, 0.5, np.nan]})
    reference = Reference(
        np.eye(3, dtype="f"),
        sparse.csr_matrix(np.eye(3, dtype="f")),
        ("a", "b", "c"),
        pd.DataFrame(index=list("xyz")),
        types,
    )
    weights = sparse.csr_matrix(np.array([[0.5, 0.5, 0], [0.25, 0, 0.75], [0, 0, 1]], dtype="f"))
    blended = reference.blend_cell_types(weights)
    assert blended is not None
    assert list(blended.columns) == ["T-NK", "CAF"]
    # What is not known of a spot does not count; where nothing is known, nothing is said
    np.testing.assert_allclose(blended.to_numpy(), [[0.75, 0.25], [1, 0], [np.nan, np.nan]])
    np.testing.assert_allclose(reference.blend_expression(weights), weights.toarray())


def test_cell_types_come_back_from_disk_and_may_be_missing(reference: Reference, tmp_path: Path) -> None:
    """Bundles written before there were cell types have none."""
    reference.save(tmp_path / "old.zarr")
    assert Reference.load(tmp_path / "old.zarr").cell_types is None
    assert reference.blend_cell_types(sparse.csr_matrix(np.ones((1, 30)) / 30)) is None
    types = pd.DataFrame({"B cells": np.linspace(0, 1, 30), "CAF": np.linspace(1, 0, 30)}, index=range(30))
    types.iloc[3] = np.nan
    dataclasses.replace(reference, cell_types=types).save(tmp_path / "new.zarr")
    again = Reference.load(tmp_path / "new.zarr").cell_types
    assert again is not None
    np.testing.assert_array_equal(again.to_numpy(), types.to_numpy())
    assert list(again.columns) == ["B cells", "CAF"]


def is_mapped(array: object) -> bool:
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


def test_a_large_reference_is_mapped_and_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HESCRIBE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    expression = sparse.random(300, 40, density=0.2, format="csr", random_state=0, dtype=np.float32)
    names = pd.Index([f"s{i}" for i in range(300)])
    reference = Reference(
        rng.normal(size=(300, 8)).astype("f"), expression, tuple(f"g{i}" for i in range(40)), pd.DataFrame(index=names)
    )
    reference.save(tmp_path / "reference.zarr")
    whole = Reference.load(tmp_path / "reference.zarr")
    mapped = Reference.load(tmp_path / "reference.zarr", identity="abc", map_from=1000)
    again = Reference.load(tmp_path / "reference.zarr", identity="abc", map_from=1000)
    for part in (mapped, again):
        assert is_mapped(part.embedding)
        assert is_mapped(part.expression.data)
    queries = rng.normal(size=(20, 8)).astype("f")
    how = Retrieval(k=5)
    expected = reference.impute(queries, how)
    for other in (whole, mapped, again):
        np.testing.assert_array_equal(other.impute(queries, how), expected)
    assert not is_mapped(whole.embedding)


@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_blended_by_parts_it_is_the_product(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way a GPU goes."""
    import hescribe.reference.blend as module

    monkeypatch.setattr(module, "_PART_BYTES", rows * 4 * 150)
    expression = np.random.default_rng(0).normal(size=(90, 150)).astype("f")
    weights = sparse.random(11, 90, density=0.2, format="csr", random_state=1, dtype=np.float32)
    out = module.blend_on(torch.from_numpy(expression), weights)
    np.testing.assert_allclose(out, weights.toarray().astype(float) @ expression.astype(float), atol=1e-5)


def test_a_processor_keeps_no_second_copy_of_the_keys(reference: Reference) -> None:
    reference.search(np.ones((1, 6), dtype="f"), 3)
    assert not reference._resident


def test_a_copy_that_was_interrupted_is_not_taken_for_whole(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to be kept as it was, zeros and all, and the next prediction was made with it."""
    import hescribe.reference.store as module

    def fail(_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "fits", lambda size, device: True)
    with monkeypatch.context() as out_of_memory, pytest.raises(RuntimeError):
        out_of_memory.setattr(module.torch, "from_numpy", fail)
        reference._dense_on("cpu")
    dense = reference._dense_on("cpu")
    assert dense is not None
    np.testing.assert_array_equal(dense.numpy(), reference.expression.toarray())
