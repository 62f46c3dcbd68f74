"""Reference: the training spots' embeddings and expression, searched exactly, block by block."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import zarr
from scipy import sparse
from torch import Tensor

from hescribe import keys
from hescribe.encoders.extract import cache_folder
from hescribe.errors import BundleError
from hescribe.io.store import write_anndata, write_atomically
from hescribe.methods.base import Retrieval
from hescribe.reference.blend import blend_blocks, blend_on, fits
from hescribe.reference.neighbours import BUDGET_BYTES, Neighbours, prepare, search, weigh
from hescribe.types import Expression, Features, SparseExpression

MAP_FROM_BYTES = 256 * 2**20  #: arrays from this size on are memory-mapped
DENSE_BYTES = 256 * 2**20  #: up to this size a dense copy of the expression is kept for imputation
_GENES_AT_ONCE = 64  #: columns of the dense copy that are blended together; their rows stay in a processor's cache


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
        keys_ = self._keys(similarity, device)
        return search(keys_, queries, k, similarity=similarity, device=device, budget_bytes=budget_bytes)

    def _keys(self, similarity: Literal["cosine", "euclidean"], device: str) -> Features | Tensor:
        """The keys; as they are searched, where a GPU has room for them, so that they are brought there once."""
        brought = self._bring(
            similarity, device, self.embedding.shape, lambda rows: prepare(self.embedding[rows], similarity, device)
        )
        return self.embedding if brought is None else brought

    def _bring(self, what: str, device: str, shape: tuple[int, ...], read: Callable[[slice], Tensor]) -> Tensor | None:
        """A table by rows to a GPU that has room for it, once; None elsewhere."""
        there, size = self._resident, 4 * shape[0] * shape[1]
        if (what, device) not in there and fits(size, device):
            table, step = torch.empty(shape, device=device), max(1, BUDGET_BYTES // (4 * max(shape[1], 1)))
            for start in range(0, shape[0], step):
                rows = slice(start, start + step)
                table[rows] = read(rows)
            there[what, device] = table  # whole: had it come to less, the next who asks would take it as it is
        return there.get((what, device))

    @cached_property
    def _resident(self) -> dict[tuple[str, str], Tensor]:
        """What lies on GPUs, by what it is and the device: keys by their similarity, and ``"expression"``."""
        return {}

    def weights(self, queries: Features, how: Retrieval, *, device: str = "cpu") -> SparseExpression:
        """Weights of the reference spots for each query, (n, m) sparse, rows sum to 1."""
        neighbours = self.search(
            queries, 1 if how.imputation == "top1" else how.k, similarity=how.similarity, device=device
        )
        return weigh(self.embedding, queries, neighbours, mode=how.imputation, temperature=how.temperature)

    def impute(self, queries: Features, how: Retrieval, *, device: str = "cpu") -> Expression:
        """Expression of the queries from their neighbours: sparse weights × expression, (n, g) float32."""
        return self.blend_expression(self.weights(queries, how, device=device), device=device)

    def blend_expression(self, weights: SparseExpression, *, device: str = "cpu") -> Expression:
        """(n, m) weights × expression, (n, g) float32; on a GPU where it has room for the expression."""
        dense = self._dense_on(device)
        if dense is not None:
            return blend_on(dense, weights)
        if self._dense is None:
            return np.asarray((weights @ self.expression).toarray(), dtype=np.float32)
        return blend_blocks(self._dense, weights)

    def _dense_on(self, device: str) -> Tensor | None:
        """(m, g) expression on a GPU that has room for it."""

        def read(rows: slice) -> Tensor:
            return torch.from_numpy(self.expression[rows].toarray().astype(np.float32, copy=False))

        return self._bring("expression", device, self.expression.shape, read)

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
