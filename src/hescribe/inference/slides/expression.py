"""Second stage: from stored features to the prediction, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree
from tqdm.auto import tqdm

from hescribe.encoders.context import centre_by, gaussian_weights, position_between, raster_cells
from hescribe.inference.bundle import Bundle
from hescribe.inference.predict import read_off
from hescribe.inference.predictors import Head
from hescribe.inference.slides.plan import CHUNK, Work
from hescribe.io.rows import GrowingTable, RowFile
from hescribe.predictor import TileSource
from hescribe.slides.tiles import SomeTiles
from hescribe.types import Centres, Context, Features, Microns, Mpp

_PAIRS = 4_000_000  #: of neighbours whose weights are held at once
_SOURCES = 2048  #: tiles whose features are held at once while means are taken
_BLOCK_BYTES = 16 * 2**20  #: of expression predicted at once
_BLOCK_ROWS = (32, 1024)
_PER_SPREAD = 4  #: tiles to a spread, at least, that means over the neighbourhood are taken of
_REACH = 3.0  #: spreads, as in ``gaussian_weights``

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Beside:
    """Features of the tiles around each tile.

    Attributes
    ----------
    table
        Of those places where no tile of the slide's own lies.
    which
        (n, grid² − 1) rows: of the slide's tiles, and behind them of the table.
    """

    table: RowFile | None
    which: npt.NDArray[np.intp]

    def read(self, own: RowFile, start: int, stop: int) -> Features:
        """(stop − start, (grid² − 1) × d)."""
        rows = self.which[start:stop].ravel()
        further = rows >= own.shape[0]
        out = np.empty((len(rows), own.shape[1]), dtype=np.float32)
        out[~further] = own.take(rows[~further])
        if self.table is not None:
            out[further] = self.table.take(rows[further] - own.shape[0])
        return out.reshape(stop - start, -1)


@dataclass(frozen=True)
class Descriptions:
    """Descriptions of the tiles of a slide, made from tables on the disk; as ``encoders.describe_tiles`` makes them.

    Attributes
    ----------
    own, around
        Features at each scale; means over the neighbourhood, one table per spread.
    colours
        How the tiles are stained.
    beside
        Features of the tiles beside a tile.
    context
        What is described.
    centres
        (n, 2) full-resolution pixels.
    mean, spread
        Of every feature over the slide, where it is centred.
    raster
        What all tiles have in common: the slide's raster.
    """

    own: Sequence[RowFile]
    around: Sequence[RowFile]
    colours: RowFile
    beside: Beside | None
    context: Context
    centres: Centres
    mean: Vector | None = None
    spread: Vector | None = None
    raster: Features | None = None

    def plain(self, start: int, stop: int) -> Features:
        """Features of the tiles themselves."""
        return self.own[0].read(start, stop)

    def full(self, start: int, stop: int) -> Features:
        """With their surroundings, as the method wants them."""
        parts = [self.centred(start, stop)]
        if self.raster is not None:
            parts.append(np.broadcast_to(self.raster, (stop - start, len(self.raster))))
        if self.context.position:
            low, high = self.centres.min(axis=0), self.centres.max(axis=0)
            parts.append(position_between(self.centres[start:stop], low, high))
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def centred(self, start: int, stop: int) -> Features:
        """Features, means and features beside, centred where they are to be."""
        features = self.uncentred(start, stop)
        if self.mean is None or self.spread is None:
            return features
        return centre_by(features, self.mean, self.spread)

    def uncentred(self, start: int, stop: int) -> Features:
        """The same as they are."""
        parts = [table.read(start, stop) for table in (*self.own, *self.around)]
        if self.beside is not None:
            parts.append(self.beside.read(self.own[0], start, stop))
        return np.concatenate(parts, axis=1)


def describe_slide(
    work: Work,
    encoded: Sequence[RowFile],
    beside: Beside | None,
    context: Context,
    *,
    centres: Centres,
    mpp: Mpp,
    stride_um: Microns,
) -> Descriptions:
    """Everything about the tiles that a method wants, from their features at each scale and, last, their colours."""
    *own, colours = encoded
    around = _surround(work, own, context.spreads_um, centres * mpp, stride_um)
    described = Descriptions(own, around, colours, beside, context, centres)
    if context.centred:
        mean, spread = moments(described.uncentred(*span) for span in _spans(0, len(centres), CHUNK))
        described = replace(described, mean=mean, spread=spread)
    return replace(described, raster=_rasterise(described)) if context.raster else described


def _rasterise(described: Descriptions) -> Features:
    """Mean features of the tiles in each cell of the slide's raster, and which cells hold tiles."""
    side, width = described.context.raster, described.own[0].shape[1]
    cells = raster_cells(described.centres, side)
    number = np.bincount(cells, minlength=side**2)
    total = np.zeros((side**2, width))
    for start, stop in _spans(0, len(cells), CHUNK):
        np.add.at(total, cells[start:stop], described.centred(start, stop)[:, :width])
    means = (total / np.maximum(number, 1)[:, None]).astype(np.float32)
    return np.concatenate([means.ravel(), (number > 0).astype(np.float32)])


def moments(blocks: Iterator[Features]) -> tuple[Vector, Vector]:
    """Mean and standard deviation of each column over blocks of rows, each seen once.

    Chan, Golub and LeVeque's update (Amer. Statist. 1983): blocks' own means and squared deviations are merged, so
    nothing is lost where the mean is large beside the spread.
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for block in blocks:
        values = block.astype(np.float64)
        own = values.mean(axis=0)
        off = own - mean
        total = count + len(values)
        squares = squares + ((values - own) ** 2).sum(axis=0) + off**2 * (count * len(values) / total)
        mean = mean + off * (len(values) / total)
        count = total
    return mean, np.sqrt(squares / max(count, 1))


def _surround(
    work: Work, own: Sequence[RowFile], spreads_um: Sequence[Microns], centres_um: Centres, stride_um: Microns
) -> list[RowFile]:
    """Means over the neighbourhood of every tile, one table per spread; goes on behind the last complete chunk."""
    n, width = len(centres_um), sum(table.shape[1] for table in own)
    tables = [work.rows(f"around-{i}", (n, width)) for i in range(len(spreads_um))]
    start = work.done("surrounded")
    if not tables or start >= n:
        return tables
    sources = [thin(centres_um, stride_um, spread_um) for spread_um in spreads_um]
    trees = [cKDTree(centres_um[rows]) for rows in sources]
    bar = tqdm(total=n, initial=start, desc="neighbourhoods", unit="tile", disable=None, leave=False)
    with bar:
        for first, stop in _spans(start, n, CHUNK):
            for table, spread_um, rows, tree in zip(tables, spreads_um, sources, trees, strict=True):
                for low, high in _spans(first, stop, _rows_within(tree, centres_um[first:stop], spread_um)):
                    weights = gaussian_weights(tree, centres_um[low:high], spread_um)
                    table.write(low, _weigh(weights, rows, own))
                table.sync()
            work.mark("surrounded", stop)
            bar.update(stop - first)
    return tables


def thin(centres_um: Centres, stride_um: Microns, spread_um: Microns) -> npt.NDArray[np.intp]:
    """Rows of the tiles that means over a neighbourhood are taken of: all, or of a dense grid every few-th each way.

    A tile is wider than a quarter of the spreads in use, so those that lie closer than that show nothing more, and
    their number would grow with the square of the density: at 8 µm 70,000 for a spread of 400 µm.
    """
    every = int(spread_um / _PER_SPREAD / stride_um)
    every -= every % 2 == 0  # odd, so that the one that stands for a few lies in their middle
    if every < 2:
        return np.arange(len(centres_um))
    places = np.floor(centres_um / stride_um + 1e-6).astype(np.int64)
    rows = np.flatnonzero((places % every == every // 2).all(axis=1))
    return rows if len(rows) else np.arange(len(centres_um))


def _rows_within(tree: cKDTree, points_um: Centres, spread_um: Microns) -> int:
    """So many tiles that their neighbours stay few enough."""
    some = points_um[:: max(1, len(points_um) // 32)]
    most = int(np.max(tree.query_ball_point(some, _REACH * spread_um, return_length=True)))
    return max(1, _PAIRS // max(most, 1))


def _weigh(weights: sparse.csr_matrix, rows: npt.NDArray[np.intp], own: Sequence[RowFile]) -> Features:
    """Weights × features of some rows, these read from the disk a few tiles at a time."""
    columns = weights.tocsc()
    used = np.flatnonzero(np.diff(columns.indptr))
    total = np.zeros((weights.shape[0], sum(table.shape[1] for table in own)))
    for start, stop in _spans(0, len(used), _SOURCES):
        part = used[start:stop]
        features = np.concatenate([table.take(rows[part]) for table in own], axis=1)
        total += columns[:, part].tocsr() @ features
    return total.astype(np.float32)


def express_slide(
    work: Work,
    described: Descriptions,
    head: Head,
    tiles: TileSource,
    *,
    bundle: Bundle,
    genes: Sequence[str],
    dtype: str,
) -> GrowingTable:
    """Expression and novelty of every tile to the disk; goes on behind the last complete block."""
    n = len(described.centres)
    rows = block_rows(max(len(bundle.genes), bundle.extraction.context.width(bundle.encoder.width)))
    table = GrowingTable(work.prediction, (n, len(genes)), dtype=dtype, rows=rows)
    novelty = work.rows("novelty", (n, 1))
    chosen = None if len(genes) == len(bundle.genes) else bundle.genes.index.get_indexer(pd.Index(genes))
    start = work.done("written")

    def store(first: int, expression: Features, percentile: Features, types: Features | None) -> None:
        table.write(first, expression)
        table.sync(first, first + len(expression))
        novelty.write(first, percentile[:, None])
        novelty.sync()
        if types is not None:
            proportions = work.rows("cell_types", (n, types.shape[1]))
            proportions.write(first, types)
            proportions.sync()
        work.mark("written", first + len(expression))

    bar = tqdm(total=n, initial=start, desc="expression", unit="tile", disable=None, leave=False)
    with bar, ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for first, stop in _spans(start, n, rows):
            colours = described.colours.read(first, stop)
            percentile = bundle.novelty.percentile(described.plain(first, stop), colours)
            expression, types = read_off(head, described.full(first, stop), SomeTiles(tiles, np.arange(first, stop)))
            expression = expression if chosen is None else expression[:, chosen]
            if written is not None:
                written.result()
            proportions = None if types is None else types.to_numpy(dtype=np.float32)
            written = writer.submit(store, first, expression, percentile, proportions)
            bar.update(stop - first)
        if written is not None:
            written.result()
    return table


def block_rows(numbers: int) -> int:
    """Tiles predicted at once: a power of two, fewer the more numbers, genes or features, each has."""
    fewest, most = _BLOCK_ROWS
    return int(np.clip(2 ** int(np.log2(max(1.0, _BLOCK_BYTES / (4 * max(numbers, 1))))), fewest, most))


def _spans(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)
