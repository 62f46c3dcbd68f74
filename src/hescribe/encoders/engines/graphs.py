"""An encoder run by torch on a GPU: all its kernels launched at once."""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_WARM_UP = 3  #: runs before a recording, in which libraries choose their kernels and take their memory


class Graphed(nn.Module):
    """A module for inference on a GPU, whose kernels are recorded once as a CUDA graph and then launched together.

    A network launches hundreds of kernels for a batch, one after the other, from Python. Threads that cut tiles wait
    for the same interpreter, and one that feeds a GPU waits for them; besides, each new thread would choose its own
    kernels again, which takes a MobileNet a second and more. The recording is of the very kernels that would run, so
    the bits are the same; this is checked when it is made, and what cannot be recorded is run as it is.

    Parameters
    ----------
    module
        In evaluation mode, on a GPU; may be used by several threads, each in a stream of its own.
    tiles
        Of a batch. Fewer are filled up to it: another number would have its own kernels chosen, in every thread.
    """

    def __init__(self, module: nn.Module, tiles: int) -> None:
        super().__init__()
        self.module = module
        self._tiles = tiles
        self._lock = threading.Lock()
        self._recorded: dict[Any, _Recording | None] = {}  # by shape and precision; None: cannot be recorded

    def forward(self, images: Tensor) -> Tensor:
        """What the module gives, (n, …)."""
        n = len(images)
        if n > self._tiles:
            return self.module(images)
        full = images if n == self._tiles else F.pad(images, (0, 0, 0, 0, 0, 0, 0, self._tiles - n))
        key = (full.shape, full.dtype, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        with self._lock, torch.cuda.device(images.device):
            if key not in self._recorded:
                self._recorded[key] = _record(self.module, full)
            recording = self._recorded[key]
            return (self.module(full) if recording is None else recording.play(full))[:n]


class _Recording:
    """A graph with the memory it reads from and writes to; one stream at a time waits for the one before it."""

    def __init__(self, graph: torch.cuda.CUDAGraph, images: Tensor, features: Tensor) -> None:
        self._graph, self._images, self._features = graph, images, features
        self._free = torch.cuda.Event()

    def play(self, images: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(images.device)
        self._free.wait(stream)
        try:
            self._images.copy_(images)
            self._graph.replay()
            return self._features.clone()
        finally:  # also where there is no memory for the copy: by then the kernels are on their way
            self._free.record(stream)


def _record(module: nn.Module, images: Tensor) -> _Recording | None:
    """The module's kernels for such a batch; None where they cannot be recorded, or would not say the same."""
    try:
        static, expected = images.clone(memory_format=torch.channels_last), module(images)
        stream = torch.cuda.Stream(images.device)
        stream.wait_stream(torch.cuda.current_stream(images.device))
        # Weights that autocast converts must be converted in the recording: what it keeps is gone when it ends
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        convert = torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False)
        with torch.cuda.stream(stream), convert:
            for _ in range(_WARM_UP):
                module(static)
        torch.cuda.synchronize(images.device)
        graph = torch.cuda.CUDAGraph()
        with convert, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            features = module(static)
        recording = _Recording(graph, static, features)
        same = torch.equal(recording.play(images), expected)
    except RuntimeError as error:  # what waits for the GPU, or takes memory that is not there
        logger.debug(f"not recorded as a CUDA graph: {error}")
        torch.cuda.synchronize(images.device)
        return None
    if not same:
        logger.debug("not used as a CUDA graph: it gives other features")
    return recording if same else None
