"""Reference: the training spots' embeddings and expression, searched exactly, block by block."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
import zarr
from scipy import sparse
from threadpoolctl import ThreadpoolController
from torch import Tensor

from hescribe import keys
from hescribe.encoders.extract import cache_folder
from hescribe.errors import BundleError, InputError
from hescribe.io.store import write_anndata, write_atomically
from hescribe.methods.base import Retrieval
from hescribe.types import Expression, Features, SparseExpression

BUDGET_BYTES = 256 * 2**20  #: largest similarity block ever held
MAP_FROM_BYTES = 256 * 2**20  #: arrays from this size on are memory-mapped
DENSE_BYTES = 256 * 2**20  #: up to this size a dense copy of the expression is kept for imputation
_GENES_AT_ONCE = 64  #: columns of the dense copy that are blended together; their rows stay in a processor's cache


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


@dataclass(frozen=True)
class Reference:
    """Keys and payload for retrieval.

    Attributes
    ----------
    embedding
        (m, dim) float32 keys, not normalised.
    expression
        (m, g) float32 CSR, log1p of counts per 10,000.
    genes
        The g gene symbols.
    obs
        (m rows) section and patient of each spot; of prototypes their ``name`` and number of spots.
    cell_types
        (m × types) composition of each spot or prototype, rows of sum 1, NaN where it is not known.
    """

    embedding: Features
    expression: SparseExpression
    genes: tuple[str, ...]
    obs: pd.DataFrame
    cell_types: pd.DataFrame | None = None

    def search(
        self,
        queries: Features,
        k: int,
        *,
        similarity: Literal["cosine", "euclidean"] = "cosine",
        device: str = "cpu",
        budget_bytes: int = BUDGET_BYTES,
    ) -> Neighbours:
        """Exact k nearest keys of each query.

        Parameters
        ----------
        queries
            (n, dim) float32.
        k
            Neighbours; at most the size of the reference is used.
        similarity
            Cosine, or Euclidean distance on the vectors as they are.
        device
            Torch device.
        budget_bytes
            Bound on one block of similarities; all pairs at once are never built beyond it.
        """
        return search(self.embedding, queries, k, similarity=similarity, device=device, budget_bytes=budget_bytes)

    def weights(self, queries: Features, how: Retrieval, *, device: str = "cpu") -> SparseExpression:
        """Weights of the reference spots for each query, (n, m) sparse, rows sum to 1."""
        neighbours = self.search(
            queries, 1 if how.imputation == "top1" else how.k, similarity=how.similarity, device=device
        )
        return weigh(self.embedding, queries, neighbours, mode=how.imputation, temperature=how.temperature)

    def impute(self, queries: Features, how: Retrieval, *, device: str = "cpu") -> Expression:
        """Expression of the queries from their neighbours: sparse weights × expression, (n, g) float32."""
        return self.blend_expression(self.weights(queries, how, device=device))

    def blend_expression(self, weights: SparseExpression) -> Expression:
        """(n, m) weights × expression, (n, g) float32."""
        if self._dense is None:
            return np.asarray((weights @ self.expression).toarray(), dtype=np.float32)
        rows = torch.tensor(weights.indices, dtype=torch.int64)
        starts = torch.tensor(weights.indptr, dtype=torch.int64)
        shares = torch.tensor(weights.data, dtype=torch.float32)
        out = torch.empty(weights.shape[0], self.expression.shape[1])

        def blend(part: Tensor, block: Tensor) -> None:
            part.copy_(
                F.embedding_bag(rows, block, starts, mode="sum", per_sample_weights=shares, include_last_offset=True)
            )

        # A thread a block, not a block by all threads: those wait for each other after every block, and where other
        # work takes a processor away this waiting takes longer than the sums
        with ThreadPoolExecutor(torch.get_num_threads(), initializer=_work_alone) as pool:
            list(pool.map(blend, out.split(_GENES_AT_ONCE, dim=1), self._dense))
        return out.numpy()

    @cached_property
    def _dense(self) -> tuple[Tensor, ...] | None:
        """The expression in blocks of columns, (m, 64) each; None where it would be too large.

        Half of the work of a sparse product goes into finding out what is where. Means of 50 rows of dense blocks
        that fit a processor's cache take a tenth of its time.
        """
        spots, genes = self.expression.shape
        if 4 * spots * genes > DENSE_BYTES:
            return None
        columns = self.expression.tocsc()
        starts = range(0, genes, _GENES_AT_ONCE)
        blocks = (columns[:, i : i + _GENES_AT_ONCE].toarray(order="C") for i in starts)
        return tuple(torch.from_numpy(np.ascontiguousarray(block, dtype=np.float32)) for block in blocks)

    def blend_cell_types(self, weights: SparseExpression) -> pd.DataFrame | None:
        """(n, m) weights × compositions, n rows × types; None where the reference has none.

        Spots of unknown composition do not count; a row is NaN where all its weight is on such. Others sum to 1.
        """
        if self.cell_types is None:
            return None
        known = self.cell_types.notna().all(axis=1).to_numpy()
        total = np.asarray(weights @ known.astype(np.float64))[:, None]
        blended = np.asarray(weights @ np.where(known[:, None], self.cell_types.to_numpy(dtype=np.float64), 0.0))
        shares = np.divide(blended, total, out=np.full_like(blended, np.nan), where=total > 0)
        return pd.DataFrame(shares, columns=self.cell_types.columns)

    def save(self, path: Path) -> None:
        """Write as an AnnData Zarr store."""
        table = ad.AnnData(X=self.expression, obs=self.obs, var=pd.DataFrame(index=list(self.genes)))
        table.obsm[keys.EMBEDDING] = self.embedding
        if self.cell_types is not None:
            table.obsm[keys.CELL_TYPES] = self.cell_types.set_axis(table.obs_names, axis=0)
        write_anndata(table, path)

    @classmethod
    def load(cls, path: Path, *, identity: str = "", map_from: int = MAP_FROM_BYTES) -> Reference:
        """Read what ``save`` wrote.

        Parameters
        ----------
        path
            The store.
        identity
            Hash of its content. With one, a large array is unpacked into the cache folder once and memory-mapped
            from there, so that a reference of any size can be searched with the memory of a small one.
        map_from
            Bytes from which an array is large.

        Raises
        ------
        BundleError
            The store is missing or damaged.
        """
        try:
            group = zarr.open_group(path, mode="r")
            unpack = _Unpack(cache_folder() / "references" / identity, map_from if identity else sys.maxsize)
            obs, genes = ad.io.read_elem(group["obs"]), ad.io.read_elem(group["var"]).index
            embedding = unpack(group[f"obsm/{keys.EMBEDDING}"], "embedding")
            parts = (unpack(group[f"X/{name}"], name) for name in ("data", "indices", "indptr"))
            expression = sparse.csr_matrix(tuple(parts), shape=(len(obs), len(genes)))
            named = f"obsm/{keys.CELL_TYPES}"
            cell_types = ad.io.read_elem(group[named]) if named in group else None
        except Exception as error:  # zarr and anndata raise many kinds for damaged stores
            raise BundleError(f"the reference cannot be read ({type(error).__name__}: {error})", path=path) from error
        return cls(embedding, expression, tuple(genes), obs, cell_types)


@dataclass(frozen=True)
class _Unpack:
    """Arrays of a store: in memory, or, large ones, mapped from files that are written once.

    Attributes
    ----------
    folder
        Of the files.
    map_from
        Bytes from which an array is large.
    """

    folder: Path
    map_from: int

    def __call__(self, stored: Any, name: str) -> npt.NDArray[Any]:
        if stored.nbytes < self.map_from:
            return np.asarray(stored[:])
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            with write_atomically(path) as temporary:
                out = np.lib.format.open_memmap(temporary, mode="w+", dtype=stored.dtype, shape=stored.shape)
                rows = max(1, self.map_from * stored.shape[0] // stored.nbytes)
                for start in range(0, stored.shape[0], rows):
                    out[start : start + rows] = stored[start : start + rows]
                out.flush()
                del out
        return np.load(path, mmap_mode="r", allow_pickle=False)


@cache
def _threads_of_torch() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


def _work_alone() -> None:
    """Let torch use no threads but the one that calls this; others keep theirs, as ``torch.set_num_threads`` would not."""
    torch.get_num_threads()  # the first question in a thread sets the number, and would do so later
    _threads_of_torch().limit(limits=1)


def search(
    keys_: Features,
    queries: Features,
    k: int,
    *,
    similarity: Literal["cosine", "euclidean"] = "cosine",
    device: str = "cpu",
    budget_bytes: int = BUDGET_BYTES,
) -> Neighbours:
    """Exact k nearest rows of ``keys_`` for each row of ``queries``, in blocks of both."""
    if len(keys_) == 0:
        raise InputError("the reference is empty")
    k = min(k, len(keys_))
    query_rows, key_rows = _block_sizes(len(queries), len(keys_), k, budget_bytes)
    indices = np.empty((len(queries), k), dtype=np.int64)
    values = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), query_rows):
        block = _prepare(queries[start : start + query_rows], similarity, device)
        best, where = _search_block(block, keys_, k, key_rows, similarity)
        indices[start : start + len(block)] = where.cpu().numpy()
        values[start : start + len(block)] = best.cpu().numpy()
    return Neighbours(indices, values)


def _block_sizes(n_queries: int, n_keys: int, k: int, budget_bytes: int) -> tuple[int, int]:
    """Rows of queries and of keys whose similarities (4 bytes each) fit the budget, at least k keys."""
    pairs = max(budget_bytes // 4, k)
    query_rows = max(1, min(n_queries, 4096, pairs // min(n_keys, 4096)))
    key_rows = max(k, min(n_keys, pairs // max(query_rows, 1)))
    return query_rows, key_rows


def _prepare(vectors: Features, similarity: str, device: str) -> Tensor:
    # Copied: torch takes no read-only memory, and sums may depend on how it is aligned
    tensor = torch.tensor(np.array(vectors, dtype=np.float32), device=device)
    return F.normalize(tensor, dim=1) if similarity == "cosine" else tensor


def _search_block(queries: Tensor, keys_: Features, k: int, key_rows: int, similarity: str) -> tuple[Tensor, Tensor]:
    best = torch.full((len(queries), 0), -torch.inf, device=queries.device)
    where = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(keys_), key_rows):
        block = _prepare(keys_[start : start + key_rows], similarity, str(queries.device))
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
