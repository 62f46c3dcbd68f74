"""First stage: features of every tile at every scale, to the disk."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hescribe.encoders import Encoder
from hescribe.encoders.engines.folding import fold_normalisation
from hescribe.encoders.engines.openvino import compile_module, openvino_name
from hescribe.encoders.extract import Precision, encode_batch, to_tensor
from hescribe.encoders.stain import load_colours
from hescribe.errors import InputError
from hescribe.inference.slides.plan import BATCH, CHUNK, TORCH, EngineChoice, PrecisionChoice, Work
from hescribe.io.rows import RowFile
from hescribe.slides.blocks.sweep import Batch, Sweep
from hescribe.types import Features

logger = logging.getLogger(__name__)

_WORTHWHILE = 1.2  #: times faster bf16, or OpenVINO, must be
_SAME = 0.999  #: cosine between a tile's features in both precisions, at least
_EQUAL = 0.9999  #: the same between torch and OpenVINO, both in fp32
_REPEATS = 2
_MEASURED = 16  #: tiles that precisions are measured on: two seconds on two cores, which a slide must be worth


Modules = dict[tuple[str, str], nn.Module]
"""An encoder's modules by device and engine, as ``load_module`` prepares them: what was measured is used on."""


class Encoded(NamedTuple):
    """Features of consecutive tiles: index of the first, one (n, d) array per scale, and (n, 9) colours."""

    start: int
    features: list[Features]


def encode_slide(
    work: Work,
    sweep: Sweep,
    encoder: Encoder,
    stage: Literal["encoded", "beside"] = "encoded",
    *,
    views: int,
    precision: Precision,
    devices: Sequence[str],
    engine: str = TORCH,
    ready: Modules | None = None,
) -> list[RowFile]:
    """Features of every tile of a sweep, one table per scale, and a last one of the tiles' colours.

    Goes on behind the last complete chunk.

    Reading, encoding and writing overlap. Batches are dealt to the devices in turn and written in order, so their
    number changes no number.
    """
    n = len(sweep.placements[0].corners)
    widths = [encoder.width] * len(sweep.placements) + [load_colours(encoder.input_px).width]
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
    with bar, ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        encoded = encode_in_order(
            sweep.batches(BATCH, start=start),
            encoder,
            views,
            precision,
            devices=devices,
            engine=engine,
            ready=ready,
        )
        for chunk in _chunks(encoded):
            if written is not None:
                written.result()
            written = writer.submit(store, chunk)
            bar.update(len(chunk.features[0]))
        if written is not None:
            written.result()
    return tables


def encode_in_order(
    batches: Iterable[Batch],
    encoder: Encoder,
    views: int,
    precision: Precision,
    *,
    devices: Sequence[str],
    engine: str = TORCH,
    ready: Modules | None = None,
) -> Iterator[Encoded]:
    """Features of batches, in their order, a few batches ahead on every device."""
    look = load_colours(encoder.input_px).module
    ready = {} if ready is None else ready
    modules = [(load_module(encoder, device, engine, ready), copy.deepcopy(look).to(device)) for device in devices]

    def encode(pair: tuple[nn.Module, nn.Module], device: str, batch: Batch) -> Encoded:
        module, look = pair
        images = [to_tensor(tiles, device) for tiles in batch.tiles]
        parts = [encode_batch(module, scale, views=views, precision=precision) for scale in images]
        parts.append(encode_batch(look, images[0]))
        return Encoded(batch.start, [part.cpu().numpy() for part in parts])

    waiting: deque[Future[Encoded]] = deque()
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in devices]
        for i, batch in enumerate(batches):
            turn = i % len(devices)
            waiting.append(pools[turn].submit(encode, modules[turn], devices[turn], batch))
            if len(waiting) > 2 * len(devices):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    ready.update({(device, engine): module for device, (module, _) in zip(devices, modules, strict=True)})


def load_module(encoder: Encoder, device: str, engine: str = TORCH, ready: Modules | None = None) -> nn.Module:
    """A copy of an encoder's module on a device, as ``encode_batch`` wants it, its normalisations folded.

    One that is ready is taken out of there: two threads never have the same.

    Raises
    ------
    InputError
        The engine cannot run it.
    """
    if ready and (device, engine) in ready:
        return ready.pop((device, engine))
    module = copy.deepcopy(encoder.module).to(device).eval()
    # Nothing regular: two layers can differ and agree on a tile of one colour
    example = torch.randint(256, (1, 3, encoder.input_px, encoder.input_px), generator=torch.Generator().manual_seed(0))
    module = fold_normalisation(module, example.to(device, torch.uint8)).to(memory_format=torch.channels_last)
    if engine == TORCH:
        return module
    compiled = compile_module(module, encoder.input_px)
    if compiled is None:
        raise InputError(f"OpenVINO cannot run {encoder.name!r}", path="--engine", fix="--engine torch")
    return compiled


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


def settle_precision(
    choice: PrecisionChoice,
    sweep: Sweep,
    encoder: Encoder,
    *,
    views: int,
    device: str,
    ready: Modules | None = None,
) -> Precision:
    """The precision to be used for a slide.

    ``auto``: bf16 where it is at least 1.2 times as fast on the slide's first tiles and every tile's features have a
    cosine above 0.999 with those of fp32. A slide of a few batches is not worth the measurement: fp32; nor is a
    processor that has no bf16.

    Raises
    ------
    InputError
        bf16 is asked for and the encoder has no weights.
    """
    n = len(sweep.placements[0].corners)
    if choice == "fp32" or (choice == "auto" and (n < 8 * BATCH or _lacks_bf16(device))):
        return "fp32"
    ready = {} if ready is None else ready
    (batch,) = sweep.batches(_MEASURED, stop=min(_MEASURED, n))
    module, images = load_module(encoder, device, ready=ready), to_tensor(batch.tiles[0], device)
    ready[device, TORCH] = module
    if next(module.parameters(), None) is None:  # what has no weights, bf16 can only slow down
        if choice == "bf16":
            raise InputError(f"the encoder {encoder.name!r} has no weights to use in bf16", path="--precision")
        return "fp32"
    if choice == "bf16":
        _measure(module, images[:1], views, "bf16", repeats=1)
        return "bf16"
    exact, plain_seconds = _measure(module, images, views, "fp32")
    try:
        # A few tiles first: where a processor lacks bf16, single operations can take seconds
        few_seconds = _measure(module, images[:4], views, "bf16", repeats=1)[1]
        if few_seconds > 2 * plain_seconds:
            return "fp32"
        quick, seconds = _measure(module, images, views, "bf16")
    except (RuntimeError, NotImplementedError):  # an operation that there is in fp32 alone
        return "fp32"
    alike = torch.nn.functional.cosine_similarity(exact.double(), quick.double(), dim=1)
    return "bf16" if plain_seconds >= _WORTHWHILE * seconds and bool((alike > _SAME).all()) else "fp32"


def _lacks_bf16(device: str) -> bool:
    """Whether it is a processor known to have nothing for bf16: there a tile can take seconds, so none is tried."""
    return torch.device(device).type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def settle_engine(
    choice: EngineChoice,
    precision: Precision,
    sweep: Sweep,
    encoder: Encoder,
    *,
    views: int,
    device: str,
    ready: Modules | None = None,
) -> str:
    """What runs the encoder: torch, or OpenVINO, by its name and version.

    ``auto``: OpenVINO where it is installed, at least 1.2 times as fast as torch in the precision that was settled,
    and every tile's features have a cosine above 0.9999 with those of torch in fp32. Not on GPUs, nor for a slide of
    a few batches.

    Raises
    ------
    InputError
        OpenVINO is asked for and not installed, or not on a processor.
    """
    name, on_processor = openvino_name(), torch.device(device).type == "cpu"
    if choice == "openvino":
        if not name:
            raise InputError("OpenVINO is not installed", path="--engine", fix="pip install 'hescribe[openvino]'")
        if not on_processor:
            raise InputError(f"OpenVINO is used on processors, not on {device}", path="--engine", fix="--device cpu")
        return name
    if choice == "auto" and on_processor and not name:
        logger.debug("OpenVINO is not installed: torch runs the encoder (pip install 'hescribe[openvino]')")
    n = len(sweep.placements[0].corners)
    if choice == "torch" or not name or not on_processor or n < 8 * BATCH:
        return TORCH
    ready = {} if ready is None else ready
    ready[device, TORCH] = module = load_module(encoder, device, ready=ready)
    if next(module.parameters(), None) is None:
        return TORCH
    compiled = compile_module(module, encoder.input_px)
    if compiled is None:
        return TORCH
    ready[device, name] = compiled
    (batch,) = sweep.batches(_MEASURED, stop=min(_MEASURED, n))
    images = to_tensor(batch.tiles[0], device)
    return name if _pays(module, compiled, images, views, precision=precision) else TORCH


def _pays(module: nn.Module, compiled: nn.Module, images: Tensor, views: int, *, precision: Precision) -> bool:
    """Whether OpenVINO is quicker than torch in its precision, and says what torch says in fp32."""
    exact, seconds = _measure(module, images, views, precision)
    if precision != "fp32":
        exact = encode_batch(module, images, views=views)
    quick, quick_seconds = _measure(compiled, images, views, "fp32")
    alike = torch.nn.functional.cosine_similarity(exact.double(), quick.double(), dim=1)
    return seconds >= _WORTHWHILE * quick_seconds and bool((alike > _EQUAL).all())


def _measure(
    module: nn.Module, images: Tensor, views: int, precision: Precision, *, repeats: int = _REPEATS
) -> tuple[Tensor, float]:
    """Features, and the seconds of the quickest of a few runs after one that warms up."""
    features, best = torch.empty(0), float("inf")
    for attempt in range(repeats + 1):
        start = time.perf_counter()
        features = encode_batch(module, images, views=views, precision=precision).cpu()
        if attempt:
            best = min(best, time.perf_counter() - start)
    return features, best
