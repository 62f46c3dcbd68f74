"""OpenVINO says what torch says, whatever stands beside a tile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hescribe.encoders import load_encoder
from hescribe.encoders.engines import openvino
from hescribe.encoders.engines.folding import fold_normalisation

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    return torch.randint(256, (7, 3, 224, 224), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:resnet18", "timm:vit_tiny_patch16_224"])
@torch.inference_mode()
def test_the_same_features(name: str, tiles: torch.Tensor) -> None:
    torch.manual_seed(0)
    module = load_encoder(name, pretrained=False).module
    module = fold_normalisation(module, tiles[:1])
    compiled = openvino.compile_module(module, 224)
    assert compiled is not None
    expected, found = module(tiles), compiled(tiles)
    assert found.dtype == torch.float32
    assert float(nn.functional.cosine_similarity(expected, found).min()) > 0.9999
    assert float((expected - found).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.skipif(not openvino.openvino_has_bf16(), reason="a processor without bf16")
@torch.inference_mode()
def test_bf16_is_another_rounding_and_nothing_else(tiles: torch.Tensor) -> None:
    torch.manual_seed(0)
    module = load_encoder("timm:resnet18", pretrained=False).module
    compiled = openvino.compile_module(fold_normalisation(module, tiles[:1]), 224, "bf16")
    assert compiled is not None
    expected, found = module(tiles), compiled(tiles)
    assert found.dtype == torch.float32
    apart = (expected - found).abs().max() / expected.abs().max()
    assert 1e-5 < float(apart) < 0.03  # fp32 is within 1e-5 or so; bf16 has 8 bits
    assert float(nn.functional.cosine_similarity(expected, found).min()) > 0.999


@torch.inference_mode()
def test_neighbours_and_threads_change_no_bit(tiles: torch.Tensor) -> None:
    module = load_encoder("timm:mobilenetv3_small_050", pretrained=False).module
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            compiled = openvino.compile_module(module, 224)
            assert compiled is not None
            found += [compiled(tiles), torch.cat([compiled(tiles[i:j]) for i, j in ((0, 1), (1, 5), (5, 7))])]
            found.append(compiled(tiles.contiguous(memory_format=torch.channels_last)))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_what_it_cannot_run_is_left_to_torch(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("cannot be traced")

    with caplog.at_level("INFO"):
        assert openvino.compile_module(Odd(), 224) is None
    assert "cannot be traced" in caplog.text
