"""An encoder run by OpenVINO on processors: the same numbers but for rounding, in half to two thirds of torch's time."""

from __future__ import annotations

import logging
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hescribe.encoders.extract import Precision
from hescribe.types import TilePx

logger = logging.getLogger(__name__)


def openvino_name() -> str:
    """Name and version, as a plan notes them; empty where OpenVINO is not installed."""
    try:
        return f"openvino {version('openvino')}"
    except PackageNotFoundError:
        return ""


def openvino_has_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this machine's processor; elsewhere it would quietly use fp32."""
    import openvino as ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compile_module(module: nn.Module, input_px: TilePx, precision: Precision = "fp32") -> nn.Module | None:
    """An encoder's module compiled for this machine's processor; None where that cannot be done.

    It takes what the module takes, (n, 3, side, side) uint8, and gives what it gives. Tiles go through one by one, as
    many at a time as torch has threads, each by one thread: so a tile's features depend neither on the tiles beside it
    nor on the number of threads.

    Parameters
    ----------
    module
        In evaluation mode, on the CPU.
    input_px
        Side of its tiles.
    precision
        What it computes in; tiles and features stay what they are.
    """
    try:
        return _Compiled(_compile(module, input_px, precision, torch.get_num_threads()))
    except Exception as error:  # of tracing, of conversion and of the plugin, each their own kinds
        reason = " ".join(str(error).split())[:120]
        logger.info(f"OpenVINO cannot run this encoder, torch does ({type(error).__name__}: {reason})")
        return None


def _compile(module: nn.Module, input_px: TilePx, precision: Precision, threads: int) -> Any:
    import openvino as ov
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    from openvino.preprocess import PrePostProcessor

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is going out of use, and constants are meant to be constants
        example = torch.zeros((1, 3, input_px, input_px), dtype=torch.uint8)
        traced = torch.jit.freeze(torch.jit.trace(module, example, check_trace=False))
        # Not ov.convert_model: it tells the makers of OpenVINO that it was called
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # must outlive the conversion
        graph = frontend.convert(frontend.load(decoder))
    parameter = graph.inputs[0].get_node()
    parameter.set_element_type(ov.Type.u8)
    parameter.set_partial_shape(ov.PartialShape([1, 3, input_px, input_px]))
    graph.validate_nodes_and_infer_types()
    order = PrePostProcessor(graph)
    order.input().tensor().set_layout(ov.Layout("NHWC"))
    order.input().model().set_layout(ov.Layout("NCHW"))
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    settings = {"NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    return ov.Core().compile_model(order.build(), "CPU", settings)


class _Compiled(nn.Module):
    """A compiled model in a module's clothes; used by one thread at a time.

    All tiles of a batch are given to OpenVINO at once, each with the place for its features, and then waited for. With
    callbacks, or a request for every thread alone, a thread that has ended a tile stands still until Python is free to
    give it the next one, and there are other threads that keep Python busy.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model
        self._requests: list[Any] = []
        self._shape = [int(side) for side in model.output(0).shape]

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, side, side) uint8, best in channels-last order → (n, width) float32."""
        from openvino import Tensor as Shared

        tiles = images.permute(0, 2, 3, 1).contiguous().numpy()
        out = np.empty((len(tiles), *self._shape), dtype=np.float32)
        while len(self._requests) < len(tiles):
            self._requests.append(self._model.create_infer_request())
        running = []
        try:
            for i, request in enumerate(self._requests[: len(tiles)]):
                request.set_input_tensor(Shared(tiles[i : i + 1], shared_memory=True))
                request.set_output_tensor(Shared(out[i], shared_memory=True))
                request.start_async()
                running.append(request)
        finally:  # before the memory they read and write is gone
            for request in running:
                request.wait()
        return torch.from_numpy(out.reshape(len(tiles), -1))
