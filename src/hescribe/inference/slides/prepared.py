"""An encoder made ready for whole slides: its modules, and what runs them best on this machine."""

from __future__ import annotations

import copy
import logging
import time

import torch
from torch import Tensor, nn

from hescribe.encoders import Encoder
from hescribe.encoders.engines.folding import fold_normalisation
from hescribe.encoders.engines.openvino import compile_module, openvino_name
from hescribe.encoders.extract import Precision, encode_batch, to_tensor
from hescribe.errors import InputError
from hescribe.inference.slides.plan import BATCH, TORCH, EngineChoice, PrecisionChoice
from hescribe.slides.blocks.sweep import Sweep

logger = logging.getLogger(__name__)

_WORTHWHILE = 1.2  #: times faster bf16 must be, which changes the numbers
_QUICKER = 1.05  #: times faster OpenVINO must be, which does not, and loses less to threads that read and write
_SAME = 0.999  #: cosine between a tile's features in both precisions, at least
_EQUAL = 0.9999  #: the same between torch and OpenVINO, both in fp32
_REPEATS = 2
_MEASURED = 16  #: tiles that precisions are measured on: two seconds on two cores, which a slide must be worth
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
        self._ready: dict[tuple[str, str], nn.Module] = {}  # by device and engine
        self._settled: dict[tuple[str, ...], tuple[Precision, str]] = {}

    def take(self, device: str, engine: str = TORCH) -> nn.Module:
        """The encoder's module on a device, as ``encode_batch`` wants it, its normalisations folded.

        It is the caller's until ``put_back``: two threads never have the same.

        Raises
        ------
        InputError
            The engine cannot run it.
        """
        if (device, engine) in self._ready:
            return self._ready.pop((device, engine))
        module = copy.deepcopy(self.encoder.module).to(device).eval()
        # Nothing regular: two layers can differ and agree on a tile of one colour
        side, generator = self.encoder.input_px, torch.Generator().manual_seed(0)
        example = torch.randint(256, (1, 3, side, side), generator=generator)
        module = fold_normalisation(module, example.to(device, torch.uint8)).to(memory_format=torch.channels_last)
        if engine == TORCH:
            return module
        compiled = compile_module(module, side)
        if compiled is None:
            raise InputError(f"OpenVINO cannot run {self.encoder.name!r}", path="--engine", fix="--engine torch")
        return compiled

    def put_back(self, device: str, engine: str, module: nn.Module) -> None:
        """Keep a module that was taken for the next who asks."""
        self._ready[device, engine] = module

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
        settled = self.settle_precision(
            "fp32" if engine == "openvino" else precision, sweep, views=views, device=device
        )
        choice: EngineChoice = "torch" if engine == "auto" and precision != "auto" else engine
        runs = self.settle_engine(choice, settled, sweep, views=views, device=device)
        if runs != TORCH:
            settled = "fp32"
        if _count(sweep) >= _FEWEST:
            self._settled[asked] = (settled, runs)
            for key in [key for key in self._ready if key[1] != runs]:
                del self._ready[key]  # weights can be large
        return settled, runs

    def settle_precision(
        self,
        choice: PrecisionChoice,
        sweep: Sweep,
        *,
        views: int,
        device: str,
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
        if choice == "fp32" or (choice == "auto" and (_count(sweep) < _FEWEST or _lacks_bf16(device))):
            return "fp32"
        module, images = self._trial(sweep, device)
        if next(module.parameters(), None) is None:  # what has no weights, bf16 can only slow down
            if choice == "bf16":
                raise InputError(f"the encoder {self.encoder.name!r} has no weights to use in bf16", path="--precision")
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

    def settle_engine(
        self,
        choice: EngineChoice,
        precision: Precision,
        sweep: Sweep,
        *,
        views: int,
        device: str,
    ) -> str:
        """What runs the encoder: torch, or OpenVINO, by its name and version.

        ``auto``: OpenVINO where it is installed, at least 1.05 times as fast as torch in the precision that was settled,
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
                raise InputError(
                    f"OpenVINO is used on processors, not on {device}", path="--engine", fix="--device cpu"
                )
            return name
        if choice == "auto" and on_processor and not name:
            logger.debug("OpenVINO is not installed: torch runs the encoder (pip install 'hescribe[openvino]')")
        if choice == "torch" or not name or not on_processor or _count(sweep) < _FEWEST:
            return TORCH
        module, images = self._trial(sweep, device)
        if next(module.parameters(), None) is None:
            return TORCH
        compiled = compile_module(module, self.encoder.input_px)
        if compiled is None:
            return TORCH
        self.put_back(device, name, compiled)
        return name if _pays(module, compiled, images, views, precision=precision) else TORCH

    def _trial(self, sweep: Sweep, device: str) -> tuple[nn.Module, Tensor]:
        """The module torch runs, which stays ready, and a slide's first tiles to measure it on."""
        (batch,) = sweep.batches(_MEASURED, stop=min(_MEASURED, _count(sweep)))
        module = self.take(device)
        self.put_back(device, TORCH, module)
        return module, to_tensor(batch.tiles[0], device)


def _count(sweep: Sweep) -> int:
    return len(sweep.placements[0].corners)


def _lacks_bf16(device: str) -> bool:
    """Whether it is a processor known to have nothing for bf16: there a tile can take seconds, so none is tried."""
    return torch.device(device).type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def _pays(module: nn.Module, compiled: nn.Module, images: Tensor, views: int, *, precision: Precision) -> bool:
    """Whether OpenVINO is quicker than torch in its precision, and says what torch says in fp32."""
    exact, seconds = _measure(module, images, views, precision)
    if precision != "fp32":
        exact = encode_batch(module, images, views=views)
    quick, quick_seconds = _measure(compiled, images, views, "fp32")
    alike = torch.nn.functional.cosine_similarity(exact.double(), quick.double(), dim=1)
    return seconds >= _QUICKER * quick_seconds and bool((alike > _EQUAL).all())


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
