"""First stage: features of every tile at every scale, to the disk."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import cache
from itertools import count
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from hescribe.encoders.extract import Precision, encode_batch, to_tensor
from hescribe.encoders.stain import load_colours
from hescribe.inference.slides.plan import BATCH, CHUNK, TORCH, Work
from hescribe.inference.slides.prepared import PreparedEncoder
from hescribe.io.rows import RowFile
from hescribe.slides.blocks.sweep import Batch, Sweep
from hescribe.types import Features

_FEEDERS = 2  #: threads that feed a GPU


class Encoded(NamedTuple):
    """Features of consecutive tiles: index of the first, one (n, d) array per scale, and (n, 9) colours."""

    start: int
    features: list[Features]


def encode_slide(
    work: Work,
    sweep: Sweep,
    prepared: PreparedEncoder,
    stage: Literal["encoded", "beside"] = "encoded",
    *,
    views: int,
    precision: Precision,
    devices: Sequence[str],
    engine: str,
) -> list[RowFile]:
    """Features of every tile of a sweep, one table per scale, and a last one of the tiles' colours.

    Goes on behind the last complete chunk.

    Reading, encoding and writing overlap. Batches are dealt to the devices in turn and written in order, so their
    number changes no number.
    """
    n = len(sweep.placements[0].corners)
    widths = [prepared.encoder.width] * len(sweep.placements) + [load_colours(prepared.encoder.input_px).width]
    tables = [work.rows(f"{stage}-{i}", (n, width)) for i, width in enumerate(widths)]
    start = work.done(stage)
    if start >= n:
        return tables

    def store(chunk: Encoded) -> None:
        for table, features in zip(tables, chunk.features, strict=True):
            table.write(chunk.start, features)
            table.sync()
        work.mark(stage, chunk.start + len(chunk.features[0]))

    bar = tqdm(total=n, initial=start, desc="tiles", unit="tile", disable=None, leave=False)
    encoded = encode_in_order(
        sweep.batches(BATCH, start=start), prepared, views, precision, devices=devices, engine=engine
    )
    # Closed here whatever happens: collected as garbage at another time, it would wait for threads that wait for what
    # the collecting thread holds
    with bar, ThreadPoolExecutor(1) as writer, closing(encoded):
        written: Future[None] | None = None
        for chunk in _chunks(_counted(encoded, bar)):
            if written is not None:
                written.result()
            written = writer.submit(store, chunk)
        if written is not None:
            written.result()
    return tables


def encode_in_order(
    batches: Iterable[Batch],
    prepared: PreparedEncoder,
    views: int,
    precision: Precision,
    *,
    devices: Sequence[str],
    engine: str = TORCH,
) -> Generator[Encoded, None, None]:
    """Features of batches, in their order, a few batches ahead on every device."""
    look = load_colours(prepared.encoder.input_px).module
    modules = [(prepared.take(device, engine, precision), copy.deepcopy(look).to(device)) for device in devices]

    for device in devices:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)  # modules may still be on their way there, in another order than a stream's

    def encode(pair: tuple[nn.Module, nn.Module], device: str, batch: Batch) -> Encoded:
        module, look = pair
        with _own_stream(device):
            images = [to_tensor(tiles, device) for tiles in batch.tiles]
            parts = [encode_batch(module, scale, views=views, precision=precision) for scale in images]
            parts.append(encode_batch(look, images[0]))
            return Encoded(batch.start, [part.cpu().numpy() for part in parts])

    waiting: deque[Future[Encoded]] = deque()
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ThreadPoolExecutor(_threads(device), initializer=_number, initargs=(count(),)))
            for device in devices
        ]
        stack.callback(_cancel, waiting)  # who stops waits for what is running, not for what was to come
        for i, batch in enumerate(batches):
            turn = i % len(devices)
            waiting.append(pools[turn].submit(encode, modules[turn], devices[turn], batch))
            if len(waiting) > 2 * sum(map(_threads, devices)):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    for device, (module, _) in zip(devices, modules, strict=True):
        prepared.put_back(device, engine, precision, module)


def _cancel(futures: Iterable[Future[Encoded]]) -> None:
    for future in futures:
        future.cancel()


def _threads(device: str) -> int:
    """That feed a device: on a GPU a batch is brought there, and another taken back, while one is encoded."""
    return _FEEDERS if torch.device(device).type == "cuda" else 1


_feeder = threading.local()


def _number(numbers: Iterator[int]) -> None:
    """Give this thread a number among those that feed a device."""
    _feeder.number = next(numbers)


@cache
def _stream(device: str, number: int) -> torch.cuda.Stream:
    """The same for slide after slide: torch keeps memory for each stream apart."""
    return torch.cuda.Stream(device)


def _own_stream(device: str) -> AbstractContextManager[object]:
    """Work on a GPU in the order of this thread alone."""
    if torch.device(device).type != "cuda":
        return nullcontext()
    return torch.cuda.stream(_stream(device, _feeder.number))


def _counted(batches: Iterable[Encoded], bar: tqdm) -> Iterator[Encoded]:
    """The same, each told to the bar when it comes: a chunk may take minutes."""
    for batch in batches:
        bar.update(len(batch.features[0]))
        yield batch


def _chunks(batches: Iterable[Encoded]) -> Iterator[Encoded]:
    """Batches joined to chunks of the size between two marks of progress."""
    held: list[Encoded] = []
    for batch in batches:
        held.append(batch)
        if len(held) * BATCH >= CHUNK:
            yield _join(held)
            held = []
    if held:
        yield _join(held)


def _join(parts: list[Encoded]) -> Encoded:
    scales = zip(*(p.features for p in parts), strict=True)
    return Encoded(parts[0].start, [np.concatenate(scale) for scale in scales])
