"""Sparse weights × expression: what neighbours say, joined."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from threadpoolctl import ThreadpoolController
from torch import Tensor

from hescribe.types import Expression, SparseExpression

GPU_SHARE = 0.25  #: of a GPU's free memory, up to which keys, or a dense copy of the expression, stay there
_PINNED_BYTES = 64 * 2**20  #: up to this size a result comes from a GPU into page-locked memory, several times as fast
_PART_BYTES = 256 * 2**20  #: of a result, blended at once on a GPU


class _Bags(NamedTuple):
    """Sparse weights, as torch's sums of rows take them: columns, where each row begins, and the weights."""

    rows: Tensor
    starts: Tensor
    shares: Tensor


def _bags(weights: SparseExpression, device: str | torch.device) -> _Bags:
    return _Bags(
        torch.tensor(weights.indices, dtype=torch.int64).to(device),
        torch.tensor(weights.indptr, dtype=torch.int64).to(device),
        torch.tensor(weights.data, dtype=torch.float32).to(device),
    )


def _sum(bags: _Bags, dense: Tensor) -> Tensor:
    """(n, m) weights × (m, g), both on one device."""
    return F.embedding_bag(
        bags.rows, dense, bags.starts, mode="sum", per_sample_weights=bags.shares, include_last_offset=True
    )


def blend_blocks(blocks: Sequence[Tensor], weights: SparseExpression) -> Expression:
    """(n, m) weights × expression in blocks of columns, (m, …) each, on the processor; (n, g) float32.

    A thread a block, not a block by all threads: those wait for each other after every block, and where other work
    takes a processor away this waiting takes longer than the sums.
    """
    bags, widths = _bags(weights, "cpu"), [block.shape[1] for block in blocks]
    out = torch.empty(weights.shape[0], sum(widths))

    def blend(part: Tensor, block: Tensor) -> None:
        part.copy_(_sum(bags, block))

    with ThreadPoolExecutor(torch.get_num_threads(), initializer=_work_alone) as pool:
        list(pool.map(blend, out.split(widths, dim=1), blocks))
    return out.numpy()


def blend_on(dense: Tensor, weights: SparseExpression) -> Expression:
    """(n, m) weights × (m, g) dense expression on its own device, a part of the rows at a time."""
    n, genes = weights.shape[0], dense.shape[1]
    out = torch.empty(n, genes, pin_memory=dense.is_cuda and 4 * n * genes <= _PINNED_BYTES)
    rows = max(1, _PART_BYTES // (4 * max(genes, 1)))
    for start in range(0, n, rows):
        part = weights if n <= rows else weights[start : start + rows]
        out[start : start + rows] = _sum(_bags(part, dense.device), dense)
    return out.numpy()


def fits(size: int, device: str) -> bool:
    """Whether so many bytes may stay on a GPU; never on a processor, whose memory holds them already."""
    if torch.device(device).type != "cuda":
        return False
    return size <= GPU_SHARE * torch.cuda.mem_get_info(torch.device(device))[0]


@cache
def _threads_of_torch() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


def _work_alone() -> None:
    """Let torch use no threads but the one that calls this; others keep theirs, as ``torch.set_num_threads`` would not."""
    torch.get_num_threads()  # the first question in a thread sets the number, and would do so later
    _threads_of_torch().limit(limits=1)
