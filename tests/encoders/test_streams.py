"""Parts of a batch side by side are the batch, in the caller's modes, and leave the threads as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hescribe.encoders.engines.streams import Streams
from hescribe.encoders.extract import encode_batch


@pytest.fixture
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Telling(nn.Module):
    """Doubles a tile's first number and tells how it was run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        modes = torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()
        self.seen.append((len(images), torch.get_num_threads(), *modes))
        if images.float().max() > 100:
            raise ValueError("a tile is too bright")
        return 2 * images[:, :1, 0, 0].float()


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 40), tiles=st.integers(1, 9))
def test_order_is_kept(n: int, tiles: int) -> None:
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1)
    module = Telling()
    assert torch.equal(Streams(module, tiles)(images)[:, 0], 2.0 * torch.arange(n))
    assert sorted(seen[0] for seen in module.seen) == sorted(len(part) for part in images.split(tiles))


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize(("n", "threads"), [(24, 1), (8, 1), (4, 3)])
def test_threads_are_dealt_out(n: int, threads: int) -> None:
    module = Telling()
    Streams(module, 4)(torch.zeros((n, 1, 1, 1), dtype=torch.uint8))
    assert {seen[1] for seen in module.seen} == {threads}
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_modes_of_the_caller_hold(precision: str) -> None:
    module = Telling()
    encode_batch(Streams(module, 4), torch.zeros((12, 3, 2, 2), dtype=torch.uint8), precision=precision)  # type: ignore[arg-type]
    assert {seen[2:] for seen in module.seen} == {(precision == "bf16", True)}


@pytest.mark.usefixtures("_three_threads")
def test_an_error_comes_through() -> None:
    images = torch.zeros((12, 1, 1, 1), dtype=torch.uint8)
    images[7] = 200
    with pytest.raises(ValueError, match="too bright"):
        Streams(Telling(), 2)(images)
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("_three_threads")
@torch.inference_mode()
def test_what_stands_beside_a_part_changes_no_bit() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    images = torch.rand((16, 3, 32, 32))
    streams = Streams(module, 4)
    assert torch.equal(streams(images), torch.cat([streams(images[:8]), streams(images[8:])]))
    torch.testing.assert_close(streams(images), module(images))
