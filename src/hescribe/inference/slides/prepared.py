"""An encoder made ready for whole slides: its modules, and what runs them best on this machine."""

from __future__ import annotations

import copy
import logging
import time

import torch
from torch import Tensor, nn

from hescribe.encoders import Encoder
from hescribe.encoders.engines.folding import fold_normalisation
from hescribe.encoders.engines.graphs import Graphed
from hescribe.encoders.engines.openvino import compile_module, openvino_has_bf16, openvino_name
from hescribe.encoders.engines.rounding import round_depthwise
from hescribe.encoders.engines.streams import Streams
from hescribe.encoders.extract import Precision, encode_batch, to_tensor
from hescribe.errors import InputError
from hescribe.inference.slides.plan import BATCH, TORCH, EngineChoice, PrecisionChoice
from hescribe.slides.blocks.sweep import Sweep

logger = logging.getLogger(__name__)

_WORTHWHILE = 1.2  #: times faster bf16 must be, which changes the numbers
_QUICKER = 1.05  #: times faster OpenVINO must be, which does not
#: Cosine of a tile's features with those of torch in fp32, at least; in bf16 of either engine, in fp32 of OpenVINO
_SAME: dict[Precision, float] = {"bf16": 0.999, "fp32": 0.9999}
_REPEATS = 10  #: runs of a measurement at most, of which the quickest counts: a machine has hiccups
_ENOUGH_S = 0.25  #: seconds after which no further run is begun
_TURNS = 2  #: further measurements before OpenVINO is left: a shared machine may have been slow when its turn came
_TILES_EACH = 8  #: of a batch, to each of torch's threads
_MEASURED = 16  #: tiles that precisions and engines are measured on: a second or three, which a slide must be worth
_FEWEST = 8 * BATCH  #: tiles of a slide that is worth a measurement


class PreparedEncoder:
    """An encoder whose modules are prepared once, and used for slide after slide.

    What was measured on one slide, precision and engine, holds for the next ones: it depends on the encoder and the
    machine. Not for several threads at a time.

    Parameters
    ----------
    encoder
        As loaded; is not changed.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._folded: dict[str, nn.Module] = {}  # by device
        self._ready: dict[tuple[str, str, Precision], nn.Module] = {}  # by device, engine and precision
        self._settled: dict[tuple[str, ...], tuple[Precision, str]] = {}
        self._trials: dict[tuple[str, str, Precision], tuple[Tensor, float]] = {}  # of the slide being settled

    def take(self, device: str, engine: str = TORCH, precision: Precision = "fp32") -> nn.Module:
        """The encoder's module on a device, as ``encode_batch`` wants it in a precision, its normalisations folded.

        It is the caller's until ``put_back``.

        Raises
        ------
        InputError
            The engine cannot run it.
        """
        if (device, engine, precision) in self._ready:
            return self._ready.pop((device, engine, precision))
        if engine == TORCH:
            module = self._module(device, precision)
            return _quicken(module, device)
        compiled = self._compile(device, precision)
        if compiled is None:
            raise InputError(f"OpenVINO cannot run {self.encoder.name!r}", path="--engine", fix="--engine torch")
        return compiled

    def _compile(self, device: str, precision: Precision) -> nn.Module | None:
        return compile_module(self._module(device, precision), self.encoder.input_px, precision)

    def _module(self, device: str, precision: Precision) -> nn.Module:
        if device not in self._folded:
            module = copy.deepcopy(self.encoder.module).cpu().eval()
            # Nothing regular: two layers can differ and agree on a tile of one colour. On the processor: a GPU
            # convolves in TF32, and what is the same but for rounding would look different
            side, generator = self.encoder.input_px, torch.Generator().manual_seed(0)
            example = torch.randint(256, (1, 3, side, side), generator=generator)
            module = fold_normalisation(module, example.to(torch.uint8))
            self._folded[device] = module.to(device).to(memory_format=torch.channels_last)
        return round_depthwise(self._folded[device]) if precision == "bf16" else self._folded[device]

    def put_back(self, device: str, engine: str, precision: Precision, module: nn.Module) -> None:
        """Keep a module that was taken for the next who asks."""
        self._ready[device, engine, precision] = module

    def settle(
        self, precision: PrecisionChoice, engine: EngineChoice, sweep: Sweep, *, views: int, device: str
    ) -> tuple[Precision, str]:
        """The precision and the engine for a slide: as chosen, or the quickest that says the same.

        Raises
        ------
        InputError
            What was chosen cannot be had here.
        """
        asked = (precision, engine, str(views), device)
        if asked in self._settled and _count(sweep) >= _FEWEST:
            return self._settled[asked]
        self._trials.clear()
        if engine == "openvino":
            runs = _demand_openvino(device)
            settled = self.settle_precision(precision, sweep, views=views, device=device, engine=runs)
        else:
            settled = self.settle_precision(precision, sweep, views=views, device=device)
            measured = engine == "auto" and precision == "auto"
            runs = self.settle_engine(settled, sweep, views=views, device=device) if measured else TORCH
        if _count(sweep) >= _FEWEST:
            self._settled[asked] = (settled, runs)
            for key in [key for key in self._ready if key[1:] != (runs, settled)]:
                del self._ready[key]  # weights can be large
            self._folded.clear()
        return settled, runs

    def settle_precision(
        self,
        choice: PrecisionChoice,
        sweep: Sweep,
        *,
        views: int,
        device: str,
        engine: str = TORCH,
    ) -> Precision:
        """The precision to be used for a slide.

        ``auto``: bf16 where it is at least 1.2 times as fast on the slide's first tiles and every tile's features have a
        cosine above 0.999 with those of fp32. A slide of a few batches is not worth the measurement: fp32; nor is a
        processor that has no bf16.

        Raises
        ------
        InputError
            bf16 is asked for and the encoder has no weights, or OpenVINO does not compute in it here.
        """
        lacking = lacks_bf16(device, engine)
        if choice == "fp32" or (choice == "auto" and (_count(sweep) < _FEWEST or lacking)):
            return "fp32"
        if lacking and engine != TORCH:
            raise InputError("OpenVINO has no bf16 on this processor", path="--precision", fix="--precision fp32")
        if next(self.encoder.module.parameters(), None) is None:  # what has no weights, bf16 can only slow down
            if choice == "bf16":
                raise InputError(f"the encoder {self.encoder.name!r} has no weights to use in bf16", path="--precision")
            return "fp32"
        images = _first_tiles(sweep, device)
        if choice == "bf16":
            module = self._ready_module(device, engine, "bf16")
            _measure(module, images[:1], views, "bf16", repeats=1)  # fails now or never
            return "bf16"
        exact, plain_seconds = self._trial(images, device, engine, "fp32", views=views)
        try:
            # A few tiles first: where a processor lacks bf16, single operations can take seconds
            module = self._ready_module(device, engine, "bf16")
            few_seconds = _measure(module, images[:4], views, "bf16", repeats=2)[1]
            if few_seconds > 2 * plain_seconds:
                return "fp32"
            quick, seconds = self._trial(images, device, engine, "bf16", views=views)
        except (RuntimeError, NotImplementedError):  # an operation that there is in fp32 alone
            return "fp32"
        return "bf16" if plain_seconds >= _WORTHWHILE * seconds and _alike(exact, quick, "bf16") else "fp32"

    def settle_engine(self, precision: Precision, sweep: Sweep, *, views: int, device: str) -> str:
        """The engine that is quicker on a slide in a precision: torch, or OpenVINO, by its name and version.

        OpenVINO where it is installed, at least 1.05 times as fast as torch in that precision, and every tile's features
        have a cosine with those of torch in fp32 above 0.9999, or 0.999 where both are in bf16. Not on GPUs, nor for a
        slide of a few batches.
        """
        name, on_processor = openvino_name(), torch.device(device).type == "cpu"
        if on_processor and not name:
            logger.debug("OpenVINO is not installed: torch runs the encoder (pip install 'hescribe[openvino]')")
        if not name or not on_processor or _count(sweep) < _FEWEST:
            return TORCH
        if next(self.encoder.module.parameters(), None) is None:
            return TORCH
        if precision == "bf16" and lacks_bf16(device, name):
            return TORCH
        images = _first_tiles(sweep, device)
        exact, _ = self._trial(images, device, TORCH, "fp32", views=views)
        _, seconds = self._trial(images, device, TORCH, precision, views=views)
        compiled = self._compile(device, precision)
        if compiled is None:
            return TORCH
        self.put_back(device, name, precision, compiled)
        quick, quick_seconds = self._trial(images, device, name, precision, views=views)
        if not _alike(exact, quick, precision):
            return TORCH
        for _ in range(_TURNS):
            if seconds >= _QUICKER * quick_seconds:
                break
            again = [self._ready_module(device, runs, precision) for runs in (TORCH, name)]
            seconds, quick_seconds = (
                min(best, _measure(module, images, views, precision)[1])
                for best, module in zip((seconds, quick_seconds), again, strict=True)
            )
        return name if seconds >= _QUICKER * quick_seconds else TORCH

    def _trial(
        self, images: Tensor, device: str, engine: str, precision: Precision, *, views: int
    ) -> tuple[Tensor, float]:
        """Features of a slide's first tiles, and the seconds they take; measured once a slide."""
        key = (device, engine, precision)
        if key not in self._trials:
            module = self._ready_module(device, engine, precision)
            self._trials[key] = _measure(module, images, views, precision)
        return self._trials[key]

    def _ready_module(self, device: str, engine: str, precision: Precision) -> nn.Module:
        """A module that stays ready for the next who asks."""
        module = self.take(device, engine, precision)
        self.put_back(device, engine, precision, module)
        return module


def _quicken(module: nn.Module, device: str) -> nn.Module:
    """The same, in torch's quickest way on a device."""
    kind = torch.device(device).type
    if kind == "cpu":
        return Streams(module, _TILES_EACH)
    return Graphed(module, BATCH) if kind == "cuda" else module


def _demand_openvino(device: str) -> str:
    """OpenVINO's name and version, where it was asked for."""
    if not (name := openvino_name()):
        raise InputError("OpenVINO is not installed", path="--engine", fix="pip install 'hescribe[openvino]'")
    if torch.device(device).type != "cpu":
        raise InputError(f"OpenVINO is used on processors, not on {device}", path="--engine", fix="--device cpu")
    return name


def _count(sweep: Sweep) -> int:
    return len(sweep.placements[0].corners)


def lacks_bf16(device: str, engine: str = TORCH) -> bool:
    """Whether it is a processor known to have nothing for bf16: there a tile can take seconds, so none is tried."""
    if torch.device(device).type != "cpu":
        return False
    if engine != TORCH:
        return not openvino_has_bf16()
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _alike(exact: Tensor, quick: Tensor, precision: Precision) -> bool:
    alike = torch.nn.functional.cosine_similarity(exact.double(), quick.double(), dim=1)
    return bool((alike > _SAME[precision]).all())


def _first_tiles(sweep: Sweep, device: str) -> Tensor:
    (batch,) = sweep.batches(_MEASURED, stop=min(_MEASURED, _count(sweep)))
    return to_tensor(batch.tiles[0], device)


def _measure(
    module: nn.Module, images: Tensor, views: int, precision: Precision, *, repeats: int = _REPEATS
) -> tuple[Tensor, float]:
    """Features, and the seconds of the quickest run after a tile that warms up; a slow run is long enough to tell."""
    encode_batch(module, images[:1], views=views, precision=precision)  # a GPU's very first call takes seconds
    features, best, began = torch.empty(0), float("inf"), time.perf_counter()
    for _ in range(repeats):
        start = time.perf_counter()
        features = encode_batch(module, images, views=views, precision=precision).cpu()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > _ENOUGH_S:
            break
    return features, best
