"""What a run costs: seconds, memory, numbers that are learned and kept."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from hescribe.encoders import describe_tiles, load_encoder
from hescribe.evaluation.splits import is_paired
from hescribe.inference.bundle import Bundle
from hescribe.io.store import write_atomically
from hescribe.sections import Section
from hescribe.training.config import TrainConfig
from hescribe.training.fit import extraction_of

_EVERY = 0.02  #: seconds between two looks at the memory
_MB = 1e6


@dataclass
class Spent:
    """What a piece of work took; filled when it has ended.

    Attributes
    ----------
    seconds
        By the clock.
    memory
        MB: the largest resident set of this process that was seen meanwhile, whatever it holds.
    before
        MB: its resident set when the work began.
    gpu
        MB: the largest allocation on a CUDA device; NaN on others.
    """

    seconds: float = float("nan")
    memory: float = float("nan")
    before: float = float("nan")
    gpu: float = float("nan")

    def known(self) -> dict[str, float]:
        """What was measured, by name, as JSON has numbers."""
        return {name: value for name, value in vars(self).items() if not math.isnan(value)}


@dataclass
class _Watch:
    """A thread that looks at the process's memory again and again."""

    process: psutil.Process = field(default_factory=psutil.Process)
    most: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> int:
        """Resident memory now, bytes."""
        now = int(self.process.memory_info().rss)
        self.most = max(self.most, now)
        return now

    def run(self) -> None:
        """Look until it is over."""
        while not self.over.wait(_EVERY):
            self.look()


@contextmanager
def measured(device: str = "cpu") -> Iterator[Spent]:
    """Time and memory of what is done inside.

    Parameters
    ----------
    device
        Torch device the work is done on.
    """
    spent, watch = Spent(), _Watch()
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    spent.before = watch.look() / _MB
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    start = time.perf_counter()
    try:
        yield spent
    finally:
        spent.seconds = time.perf_counter() - start
        watch.over.set()
        thread.join()
        watch.look()
        spent.memory = watch.most / _MB
        if cuda:
            spent.gpu = torch.cuda.max_memory_allocated(device) / _MB


def encode(sections: Sequence[Section], config: TrainConfig, *, device: str) -> float:
    """Features of all tiles into the cache, where a method works on frozen ones; the seconds it took.

    So neither training nor prediction counts what only the first method on an encoder would have to pay.
    """
    if config.fine_tune:
        return 0.0
    start = time.perf_counter()
    encoder, how = load_encoder(config.encoder), extraction_of(config, config.method_config())
    for section in sections:
        if is_paired(section):
            describe_tiles(section.tiles(), encoder, how, device=device)
    return time.perf_counter() - start


def sizes(bundle: Bundle, folder: Path, *, fine_tuned: bool) -> dict[str, float]:
    """Numbers that a bundle holds, by what they are.

    Parameters
    ----------
    bundle, folder
        As loaded, and where from.
    fine_tuned
        The encoder's weights were trained too.
    """
    encoder = sum(p.numel() for p in bundle.encoder.module.parameters())
    trained = sum(p.numel() for p in bundle.model.parameters() if p.requires_grad)
    return {
        "trainable_parameters": trained + encoder * fine_tuned,
        "model_numbers": sum(t.numel() for t in bundle.model.state_dict().values()),
        "encoder_parameters": encoder,
        "reference_spots": 0 if bundle.reference is None else len(bundle.reference.embedding),
        "bundle_mb": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / _MB,
    }


def write_cost(path: Path, changes: dict[str, Any]) -> None:
    """Add to the record of a split's costs."""
    facts = {**read_cost(path), **changes}
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")


def read_cost(path: Path) -> dict[str, Any]:
    """The record of a split's costs; empty where there is none, since nothing else depends on it."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
