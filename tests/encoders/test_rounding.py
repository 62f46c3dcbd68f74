"""Rounding to bf16 keeps what a depthwise filter sees on an even surface."""

from __future__ import annotations

import copy

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hescribe.encoders.engines.rounding import round_depthwise


def step(weight: torch.Tensor) -> torch.Tensor:
    """Distance of neighbouring bf16 numbers about each weight: eight bits, the first of them not stored."""
    return 2.0 ** (torch.floor(torch.log2(weight.abs())) - 7)


@given(
    side=st.sampled_from([1, 3, 5, 7]), channels=st.integers(2, 9), seed=st.integers(0, 2**31),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
def test_sums_are_kept_and_no_weight_goes_far(side: int, channels: int, seed: int, size: float) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(channels, channels, side, groups=channels)
    with torch.no_grad():
        layer.weight.normal_(std=size)
    before = copy.deepcopy(layer.weight.detach())
    after = round_depthwise(nn.Sequential(layer))[0].weight.detach()  # type: ignore[index, union-attr]
    assert torch.equal(after, after.bfloat16().float())
    assert torch.equal(layer.weight, before)
    off = (after.double() - before.double()).flatten(1)
    steps = step(before).flatten(1)
    # What the last and smallest weight cannot take up: half a step of it (a step, where it moved to the next power of 2)
    noise = 1e-5 * before.abs().amax(dim=(1, 2, 3))
    assert bool((off.sum(1).abs() <= steps.amin(1) + noise).all())
    assert bool((off.abs() <= 2 * steps.amax(1, keepdim=True)).all())


def test_by_hand() -> None:
    """Between 1 and 2, bf16 goes in steps of 1/128; two thirds of a step are rounded up, and the next one pays."""
    layer = nn.Conv2d(2, 2, (1, 3), groups=2, bias=False)
    third = 1 / 384
    with torch.no_grad():
        layer.weight[0, 0, 0] = torch.tensor([1 + 2 * third, -1 - 2 * third, 1 + 2 * third])
        layer.weight[1, 0, 0] = torch.tensor([1.0, 0.5, 0.25])
    found = round_depthwise(layer).weight[:, 0, 0].detach().numpy()  # type: ignore[union-attr, index]
    # A third of a step is left of the first and makes the second -1 - 1/128 exactly; the third has nothing to take up
    np.testing.assert_array_equal(found[0], [1 + 1 / 128, -1 - 1 / 128, 1 + 1 / 128])
    np.testing.assert_array_equal(found[1], [1.0, 0.5, 0.25])


def test_a_filter_of_edges_keeps_its_silence() -> None:
    """Plain rounding makes it answer to an even surface."""
    edge = torch.tensor([[0.1003, -0.3007, 0.2004]] * 3).reshape(1, 1, 3, 3).repeat(4, 1, 1, 1)
    layer = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(edge)
    even = torch.full((1, 4, 3, 3), 200.0)
    with torch.no_grad():
        true, ours = layer(even), round_depthwise(layer)(even)
        layer.weight.copy_(edge.bfloat16().float())
        plain = layer(even)
    assert float((ours - true).abs().max()) < 0.1 * float((plain - true).abs().max())


def test_other_layers_are_left() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 4))
    assert round_depthwise(module) is module
