"""Batch normalisation folded into the convolutions before it: the same numbers but for rounding, in less time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CLOSE = 1e-4  #: largest difference of a feature, relative to the largest feature


@torch.no_grad()
def fold_normalisation(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy in which every convolution does the normalisation that follows it, or the module itself.

    In evaluation mode, batch normalisation multiplies and shifts each channel by constants, which a convolution's
    weights and bias can do as well. A MobileNet saves a fifth to a third of its time by it.

    Which follows which is seen by running the example: names and order of modules do not tell it. Where the result
    is not the same (an output that something else reads too), everything is left as it is.

    Parameters
    ----------
    module
        In evaluation mode; is not changed.
    example
        Input to run it on, on the module's device.

    Returns
    -------
    nn.Module
        The copy, or the module where there is nothing to fold.
    """
    if not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        return module
    folded = copy.deepcopy(module)
    names = {part: name for name, part in folded.named_modules()}
    pairs = _consecutive(folded, example)
    if not pairs:
        return module
    for convolution, normalisation in pairs:
        folded.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, normalisation))
        folded.set_submodule(names[normalisation], _rest(normalisation))
    expected, found = module(example), folded(example)
    scale = expected.abs().max().clamp_min(1e-12)
    return folded if bool((found - expected).abs().max() <= _CLOSE * scale) else module


def _consecutive(module: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and the normalisations that read their very output, each once."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the tensors, so that no address is used twice
    pairs: dict[nn.Conv2d, nn.BatchNorm2d] = {}

    def made(convolution: nn.Module, _: object, output: Tensor) -> None:
        outputs[id(output)] = (convolution, output)  # type: ignore[assignment]

    def read(normalisation: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = outputs.get(id(inputs[0]))
        if found is not None and normalisation not in pairs.values():
            pairs.setdefault(found[0], normalisation)  # type: ignore[arg-type]

    hooks = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            hooks.append(part.register_forward_hook(made))
        elif isinstance(part, nn.BatchNorm2d) and part.track_running_stats:
            hooks.append(part.register_forward_pre_hook(read))
    if hooks:
        module(example)
    for hook in hooks:
        hook.remove()
    return list(pairs.items())


def _rest(normalisation: nn.BatchNorm2d) -> nn.Module:
    """What a normalisation does besides: timm's hold the activation that follows."""
    parts = (getattr(normalisation, name, None) for name in ("drop", "act"))
    return nn.Sequential(*(p for p in parts if isinstance(p, nn.Module)))
