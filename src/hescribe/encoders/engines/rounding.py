"""Weights rounded to bf16 so that their errors cancel where they would add up."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


@torch.no_grad()
def round_depthwise(module: nn.Module) -> nn.Module:
    """A copy whose depthwise convolutions have weights that bf16 can hold, or the module itself where it has none.

    bf16 keeps eight bits of a weight. A depthwise filter weighs neighbouring pixels, which are much alike, so what
    counts is the sum of its rounding errors, and a filter that finds edges, whose weights nearly cancel, is changed
    the most: in a MobileNet one such layer makes nearly all of the difference between bf16 and fp32. So each weight
    is rounded together with what is left of those before it, the largest first, and the sum of a filter's errors is at
    most half a step of its smallest weight. Other layers have many different inputs, whose errors do not add up.

    Parameters
    ----------
    module
        In fp32; is not changed.
    """
    depthwise = [name for name, part in module.named_modules() if _is_depthwise(part)]
    if not depthwise:
        return module
    rounded = copy.deepcopy(module)
    for name in depthwise:
        weight = rounded.get_submodule(name).weight
        weight.copy_(_round_rows(weight.flatten(1)).reshape(weight.shape))  # type: ignore[operator, arg-type]
    return rounded


def _is_depthwise(part: nn.Module) -> bool:
    return isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1


def _round_rows(rows: Tensor) -> Tensor:
    """(n, k) float32 → the same in numbers that bf16 holds, whose sums over k are kept."""
    order = rows.abs().argsort(dim=1, descending=True, stable=True)
    wanted = rows.gather(1, order)
    left = torch.zeros_like(rows[:, 0])
    out = torch.empty_like(rows)
    for k in range(rows.shape[1]):
        target = wanted[:, k] + left
        out[:, k] = target.bfloat16().to(rows.dtype)
        left = target - out[:, k]
    return torch.empty_like(rows).scatter(1, order, out)
