"""Exact retrieval at scale against the bare matrix product and top-k on the same blocks.

    python benchmarks/retrieval.py [--spots 1000000] [--queries 4096] [--device cpu]

A reference of ``--spots`` × 256 embeddings and 10,000 sparse genes is written once (``-o``, a few GB), loaded as a
bundle loads it (large arrays memory-mapped) and searched. Prints seconds, their ratio and the peak memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from hescribe.methods.base import Retrieval
from hescribe.reference import Reference, weigh
from hescribe.reference.neighbours import BUDGET_BYTES, block_sizes

DIM, GENES, K = 256, 10_000, 50


def make(path: Path, spots: int, per_spot: int) -> None:
    """Random embeddings, and expression with so many genes a spot."""
    rng = np.random.default_rng(0)
    indices = np.sort(rng.integers(0, GENES, (spots, per_spot), dtype=np.int32), axis=1).ravel()
    data = rng.random(spots * per_spot, dtype=np.float32)
    expression = sparse.csr_matrix((data, indices, np.arange(0, spots * per_spot + 1, per_spot)), shape=(spots, GENES))
    obs = pd.DataFrame(index=pd.RangeIndex(spots).astype(str))
    embedding = rng.standard_normal((spots, DIM), dtype=np.float32)
    Reference(embedding, expression, tuple(f"G{i}" for i in range(GENES)), obs).save(path)


def bare(keys: torch.Tensor, queries: torch.Tensor) -> None:
    """What no exact search in blocks can do without."""
    query_rows, key_rows = block_sizes(len(queries), len(keys), K, BUDGET_BYTES)
    for i in range(0, len(queries), query_rows):
        for j in range(0, len(keys), key_rows):
            (queries[i : i + query_rows] @ keys[j : j + key_rows].T).topk(K, dim=1)


def seconds(function: object, device: str) -> float:
    start = time.perf_counter()
    function()  # type: ignore[operator]
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--per-spot", type=int, default=300, help="genes seen in a spot")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/retrieval"))
    args = parser.parse_args()
    path = args.output / f"{args.spots}-{args.per_spot}.zarr"
    if not path.exists():
        make(path, args.spots, args.per_spot)
    reference = Reference.load(path, identity=f"benchmark-{args.spots}-{args.per_spot}")
    queries = np.random.default_rng(1).standard_normal((args.queries, DIM), dtype=np.float32)
    normalised = [
        torch.nn.functional.normalize(torch.tensor(np.array(v)), dim=1).to(args.device)
        for v in (reference.embedding, queries)
    ]
    reference.search(queries[:1], K, device=args.device)  # brings the keys to a GPU, once
    rows = []
    for _ in range(args.repeats):
        rows.append(
            {
                "bare": seconds(lambda: bare(*normalised), args.device),
                "search": seconds(lambda: reference.search(queries, K, device=args.device), args.device),
            }
        )
    table = pd.DataFrame(rows).min()
    found = reference.search(queries, K, device=args.device)
    weights = weigh(reference.embedding, queries, found, mode=Retrieval().imputation)
    reference.blend_expression(weights[:1], device=args.device)  # and the expression, where there is room
    impute = seconds(lambda: reference.blend_expression(weights, device=args.device), args.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"bare product and top-k {table['bare']:.2f} s; search {table['search']:.2f} s; ratio "
          f"{table['search'] / table['bare']:.2f}; imputation of {GENES:,} genes {impute:.2f} s; peak {peak:.1f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
