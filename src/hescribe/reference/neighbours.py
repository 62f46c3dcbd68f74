"""Exact nearest neighbours, block by block, and the weights they get."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from hescribe.errors import InputError
from hescribe.types import Features, SparseExpression

BUDGET_BYTES = 256 * 2**20  #: largest similarity block ever held


class Neighbours(NamedTuple):
    """The nearest reference spots of each query, nearest first.

    Attributes
    ----------
    indices
        (n, k) int64 rows of the reference.
    similarity
        (n, k) float32; larger is nearer (cosine, or minus the squared Euclidean distance).
    """

    indices: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float32]


def search(
    keys_: Features | Tensor,
    queries: Features,
    k: int,
    *,
    similarity: Literal["cosine", "euclidean"] = "cosine",
    device: str = "cpu",
    budget_bytes: int = BUDGET_BYTES,
) -> Neighbours:
    """Exact k nearest rows of ``keys_`` for each row of ``queries``, in blocks of both.

    Keys in a tensor lie on the device already, prepared.
    """
    if len(keys_) == 0:
        raise InputError("the reference is empty")
    k = min(k, len(keys_))
    query_rows, key_rows = block_sizes(len(queries), len(keys_), k, budget_bytes)
    indices = np.empty((len(queries), k), dtype=np.int64)
    values = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), query_rows):
        block = prepare(queries[start : start + query_rows], similarity, device)
        best, where = _search_block(block, keys_, k, key_rows, similarity)
        indices[start : start + len(block)] = where.cpu().numpy()
        values[start : start + len(block)] = best.cpu().numpy()
    return Neighbours(indices, values)


def block_sizes(n_queries: int, n_keys: int, k: int, budget_bytes: int) -> tuple[int, int]:
    """Rows of queries and of keys whose similarities (4 bytes each) fit the budget, at least k keys."""
    pairs = max(budget_bytes // 4, k)
    query_rows = max(1, min(n_queries, 4096, pairs // min(n_keys, 4096)))
    key_rows = max(k, min(n_keys, pairs // max(query_rows, 1)))
    return query_rows, key_rows


def prepare(vectors: Features, similarity: str, device: str) -> Tensor:
    """(m, dim) vectors on the device as they are searched: of length 1 for the cosine."""
    # Copied: torch takes no read-only memory, and sums may depend on how it is aligned
    tensor = torch.tensor(np.array(vectors, dtype=np.float32), device=device)
    return F.normalize(tensor, dim=1) if similarity == "cosine" else tensor


def _search_block(
    queries: Tensor, keys_: Features | Tensor, k: int, key_rows: int, similarity: str
) -> tuple[Tensor, Tensor]:
    best = torch.full((len(queries), 0), -torch.inf, device=queries.device)
    where = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(keys_), key_rows):
        block = keys_[start : start + key_rows]
        block = block if isinstance(block, Tensor) else prepare(block, similarity, str(queries.device))
        scores = queries @ block.T
        if similarity == "euclidean":
            scores = 2 * scores - (queries**2).sum(1, keepdim=True) - (block**2).sum(1)
        top = scores.topk(min(k, scores.shape[1]), dim=1)
        best = torch.cat([best, top.values], dim=1)
        where = torch.cat([where, top.indices + start], dim=1)
        if best.shape[1] > k:
            kept = best.topk(k, dim=1)
            best, where = kept.values, where.gather(1, kept.indices)
    order = best.argsort(dim=1, descending=True, stable=True)
    return best.gather(1, order), where.gather(1, order)


def weigh(
    keys_: Features,
    queries: Features,
    neighbours: Neighbours,
    *,
    mode: Literal["mean", "weighted", "top1", "softmax"],
    temperature: float = 1.0,
) -> SparseExpression:
    """Weights of the reference spots for each query, (n, m) sparse, rows sum to 1.

    ``mean``: 1/K each. ``weighted``: proportional to ``exp(−(‖z_k − z_q‖² − d₁ + 1))``, with d₁ the squared
    distance to the first neighbour, on the embeddings as they are. ``top1``: the first neighbour alone.
    ``softmax``: of the similarities divided by the temperature.
    """
    indices = neighbours.indices[:, :1] if mode == "top1" else neighbours.indices
    if mode == "weighted":
        difference = keys_[indices] - queries[:, None, :]
        squared = np.einsum("nkd,nkd->nk", difference, difference, dtype=np.float64)
        # The paper's "+ 1" cancels in the normalisation; shifting by the smallest distance instead of
        # the first avoids overflow and cancels just the same
        weights = np.exp(-(squared - squared.min(axis=1, keepdims=True)))
        weights /= weights.sum(axis=1, keepdims=True)
    elif mode == "softmax":
        logits = neighbours.similarity.astype(np.float64) / temperature
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
    else:
        weights = np.full(indices.shape, 1.0 / indices.shape[1])
    n, k = indices.shape
    return sparse.csr_matrix(
        (weights.astype(np.float32).ravel(), indices.ravel(), np.arange(0, n * k + 1, k)), shape=(n, len(keys_))
    )
