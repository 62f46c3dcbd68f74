"""Batches of spots for training by gradient descent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hescribe.errors import InputError
from hescribe.methods.base import Batch
from hescribe.types import SparseExpression

Images = npt.NDArray[np.generic]


class Spots(Dataset):
    """Spots with their image (or features), panel expression and section.

    Parameters
    ----------
    images
        Per section: (n_s, d) float32 features, or (n_s, side, side, 3) uint8 tiles (a memory map).
    expression
        (n, panel) CSR.
    section
        (n,) index of the section, sections in the order of ``images``.
    """

    def __init__(self, images: list[Images], expression: SparseExpression, section: npt.NDArray[np.intp]) -> None:
        self._images = images
        self._expression = expression
        self._section = section
        sizes = [len(i) for i in images]
        self._start = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def __len__(self) -> int:
        return len(self._section)

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = np.asarray(indices)
        section = self._section[rows]
        expression = torch.tensor(self._expression[rows].toarray())
        return Batch(self._take(section, rows), expression, torch.from_numpy(section.astype(np.int64)))

    def _take(self, section: npt.NDArray[np.intp], rows: npt.NDArray[np.intp]) -> Tensor:
        # Into torch's own memory, which is aligned: sums in a product may depend on it
        shape, dtype = self._images[0].shape[1:], self._images[0].dtype
        taken = torch.empty((len(rows), *shape), dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
        places = taken.numpy()
        for k, (s, i) in enumerate(zip(section, rows - self._start[section], strict=True)):
            places[k] = self._images[s][i]
        # Channels last in memory, as tiles were cut and as they are convolved
        return taken.permute(0, 3, 1, 2) if taken.ndim == 4 else taken


class SeededShuffle(Sampler[list[int]]):
    """Batches of shuffled rows; the order depends on the seed and the epoch alone, so a resumed run repeats it.

    With several processes each takes its part of every batch, so that together they take the batches one would.

    Parameters
    ----------
    rows
        Rows to draw from.
    batch_size
        Spots a batch, of all processes together, rounded down to a multiple of their number; a last, smaller batch
        is dropped unless it is the only one.
    seed
        Seed.
    part
        Number of this process, and how many there are.

    Raises
    ------
    InputError
        Less than two spots a process.
    """

    def __init__(
        self, rows: npt.NDArray[np.intp], batch_size: int, seed: int, *, part: tuple[int, int] = (0, 1)
    ) -> None:
        self._part, processes = part
        size = min(batch_size, len(rows))
        self._size = size - size % processes
        if processes > 1 and self._size < 2 * processes:
            raise InputError(f"a batch of {size} spots for {processes} processes", path="--devices", fix="take fewer")
        self._own = self._size // processes
        self._rows = rows
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._rows) // self._size

    def __iter__(self) -> Iterator[list[int]]:
        shuffled = np.random.default_rng((self._seed, self._epoch)).permutation(self._rows)
        for i in range(len(self)):
            start = i * self._size + self._part * self._own
            yield shuffled[start : start + self._own].tolist()


def whole(batch: Any) -> Any:
    """The dataset already returns whole batches."""
    return batch


class AheadLoader(DataLoader):
    """A loader for a GPU: the next batch is read, and put into page-locked memory, while the GPU is at this one.

    By a thread, not by processes: batches are large and would have to pass through shared memory.
    """

    def __iter__(self) -> Any:
        """The same batches in the same order."""
        batches = super().__iter__()
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield batch


def training_loader(spots: Spots, batches: SeededShuffle, *, device: str = "cpu") -> DataLoader:
    """Shuffled batches of some rows."""
    return _loader(spots, batches, device)


def ordered_loader(spots: Spots, rows: npt.NDArray[np.intp], *, batch_size: int, device: str = "cpu") -> DataLoader:
    """Batches of some rows in order, none dropped."""
    batches = [rows[i : i + batch_size].tolist() for i in range(0, len(rows), batch_size)]
    return _loader(spots, batches, device)


def _loader(spots: Spots, batches: Any, device: str) -> DataLoader:
    if torch.device(device).type == "cuda":
        return AheadLoader(spots, batch_sampler=batches, collate_fn=whole, pin_memory=True)
    return DataLoader(spots, batch_sampler=batches, collate_fn=whole)
