"""One pass over a slide that cuts every tile at every scale and decodes no block twice."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hescribe.slides.blocks.cells import Cells, paste, reading_threads
from hescribe.slides.slide import Rgb
from hescribe.slides.tiles import Placement, resize
from hescribe.types import TileArray, TilePx

HELD_BYTES = 512 * 2**20  #: of decoded cells; beyond, the oldest are dropped and may be decoded again
_AHEAD = 4  #: batches being read while one is worked on

_TOGETHER = 4  #: cells that a thread decodes in one go, at most
_TOGETHER_BYTES = 8 * 2**20  #: and of these, since cells that are decoded together are let go together

Cell = tuple[int, int, int]  #: level, column, row


class Batch(NamedTuple):
    """Consecutive tiles, cut.

    Attributes
    ----------
    start
        Index of the first.
    tiles
        One (n, side, side, 3) array per scale.
    """

    start: int
    tiles: list[TileArray]


@dataclass(frozen=True)
class Sweep:
    """Tiles in the order given, at several scales.

    It is known beforehand which tile is the last that needs a cell, so a cell is decoded when it is first needed and
    dropped after its last use: the cells held are those along the front of the sweep.

    Attributes
    ----------
    cells
        Of the slide.
    placements
        Where the tiles lie, one per scale.
    size_px
        Side of the tiles that are given out.
    """

    cells: Cells
    placements: Sequence[Placement]
    size_px: TilePx

    def batches(self, size: int, *, start: int = 0, stop: int | None = None, threads: int = 0) -> Iterator[Batch]:
        """Tiles ``start`` to ``stop`` in batches of ``size``, the next ones being read while the caller works.

        Raises
        ------
        InputError
            The slide is damaged where a tile lies.
        """
        stop = len(self.placements[0].corners) if stop is None else stop
        threads = threads or reading_threads()
        held = _Held(self.cells, _last_uses(self.cells, self.placements, stop), threads)
        waiting: deque[Future[Batch]] = deque()
        # Two pools: cutting waits for decoding, so they must not wait for the same workers
        with ThreadPoolExecutor(threads) as decoders, ThreadPoolExecutor(threads) as cutters:
            try:
                for first in range(start, stop, size):
                    tiles = range(first, min(first + size, stop))
                    parts = held.take([self._needed(tiles, p) for p in self.placements], tiles.stop, decoders)
                    waiting.append(cutters.submit(self._cut, tiles, parts))
                    del parts  # the cells are held by those who use them alone
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
                decoders.shutdown(wait=False, cancel_futures=True)

    def _needed(self, tiles: range, placement: Placement) -> list[Cell]:
        spans = _spans(self.cells, placement, slice(tiles.start, tiles.stop))
        found: dict[Cell, None] = {}
        for left, top, right, bottom in spans:
            for row in range(top, bottom):
                for column in range(left, right):
                    found[placement.level, column, row] = None
        return list(found)

    def _cut(self, tiles: range, parts: list[dict[Cell, _Decoding]]) -> Batch:
        out = []
        for placement, futures in zip(self.placements, parts, strict=True):
            decoded = {cell: future.result()[cell] for cell, future in futures.items()}
            batch = np.empty((len(tiles), self.size_px, self.size_px, 3), dtype=np.uint8)
            spans = _spans(self.cells, placement, slice(tiles.start, tiles.stop))
            corners = placement.corners[tiles.start : tiles.stop]
            outside = self._leaves_image(placement, corners)
            as_wanted = placement.side == self.size_px
            region = np.empty((placement.side, placement.side, 3), dtype=np.uint8)
            for i, (corner, span) in enumerate(zip(corners.tolist(), spans.tolist(), strict=True)):
                region = batch[i] if as_wanted else region
                if outside[i]:
                    region[:] = 255
                self._assemble(region, placement.level, corner, span, decoded)
                if not as_wanted:
                    batch[i] = resize(region, self.size_px)
            out.append(batch)
        return Batch(tiles.start, out)

    def _leaves_image(self, placement: Placement, corners: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        size = np.array(self.cells.slide.level_sizes[placement.level])
        return np.asarray(((corners < 0) | (corners + placement.side > size)).any(axis=1))

    def _assemble(
        self, region: Rgb, level: int, corner: Sequence[int], span: Sequence[int], decoded: dict[Cell, Rgb]
    ) -> None:
        """Copy what lies in the cells into the region; what is outside the image stays."""
        width, height = self.cells.size(level)
        x, y = corner
        left, top, right, bottom = span
        for row in range(top, bottom):
            for column in range(left, right):
                paste(region, decoded[level, column, row], column * width - x, row * height - y)


_Decoding = Future[dict[Cell, Rgb]]  #: some cells together: a task for each would take the interpreter too long


class _Held:
    """Cells that are decoded, or being decoded, and still needed; used by one thread."""

    def __init__(self, cells: Cells, last: dict[int, npt.NDArray[np.int64]], threads: int) -> None:
        self._cells = cells
        self._last = last
        self._threads = threads
        self._futures: OrderedDict[Cell, _Decoding] = OrderedDict()
        self._bytes = 0

    def take(self, wanted: list[list[Cell]], stop: int, pool: ThreadPoolExecutor) -> list[dict[Cell, _Decoding]]:
        """The cells of the tiles before ``stop``, per scale; those that no later tile needs are let go."""
        self._begin(list(dict.fromkeys(c for scale in wanted for c in scale if c not in self._futures)), pool)
        taken = [{cell: self._futures[cell] for cell in scale} for scale in wanted]
        for cell in {cell for scale in wanted for cell in scale}:
            level, column, row = cell
            if self._last[level][row, column] < stop:
                self._drop(cell)
        while self._bytes > HELD_BYTES:
            self._drop(next(iter(self._futures)))
        return taken

    def _begin(self, missing: list[Cell], pool: ThreadPoolExecutor) -> None:
        most = min(_TOGETHER, _TOGETHER_BYTES // max(map(self._size, missing), default=1))
        together = max(1, min(most, len(missing) // self._threads))
        for first in range(0, len(missing), together):
            some = missing[first : first + together]
            future = pool.submit(self._decode, some)
            for cell in some:
                self._futures[cell] = future
                self._bytes += self._size(cell)

    def _decode(self, some: list[Cell]) -> dict[Cell, Rgb]:
        return {cell: self._cells.decode(*cell) for cell in some}

    def _drop(self, cell: Cell) -> None:
        if self._futures.pop(cell, None) is not None:
            self._bytes -= self._size(cell)

    def _size(self, cell: Cell) -> int:
        width, height = self._cells.size(cell[0])
        return 3 * width * height


def _spans(cells: Cells, placement: Placement, rows: slice) -> npt.NDArray[np.int64]:
    """(n, 4) first column, first row and the ends of the cells under each tile; empty where it leaves the image."""
    size, count = np.array(cells.size(placement.level)), np.array(cells.count(placement.level))
    corners = placement.corners[rows]
    first = np.clip(corners // size, 0, count)
    end = np.clip(-((corners + placement.side) // -size), 0, count)
    return np.hstack([first, np.maximum(end, first)])


def _last_uses(cells: Cells, placements: Sequence[Placement], stop: int) -> dict[int, npt.NDArray[np.int64]]:
    """Level → the last tile that needs each cell, (rows, columns)."""
    last = {p.level: np.full(cells.count(p.level)[::-1], -1, dtype=np.int64) for p in placements}
    for placement in placements:
        spans = _spans(cells, placement, slice(0, stop))
        if not len(spans):
            continue
        widest, highest = (spans[:, 2:] - spans[:, :2]).max(axis=0)
        for down in range(highest):
            for right in range(widest):
                row, column = spans[:, 1] + down, spans[:, 0] + right
                inside = np.flatnonzero((row < spans[:, 3]) & (column < spans[:, 2]))
                np.maximum.at(last[placement.level], (row[inside], column[inside]), inside)
    return last
