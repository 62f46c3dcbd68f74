"""Folding changes the modules and not the numbers, and is left undone where it would change them."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from hescribe.encoders.engines.folding import fold_normalisation


def scrambled(module: nn.Module) -> nn.Module:
    """With statistics and weights of which none is neutral."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
    return module.eval()


def normalisations(module: nn.Module) -> int:
    return sum(isinstance(p, nn.BatchNorm2d) for p in module.modules())


@pytest.mark.parametrize("name", ["mobilenetv1_100", "resnet18", "regnety_002", "vgg11_bn"])
def test_features_stay_and_normalisation_goes(name: str) -> None:
    module = scrambled(timm.create_model(name, num_classes=0))
    before = normalisations(module)
    images = torch.randn(3, 3, 64, 64)
    folded = fold_normalisation(module, images[:1])
    with torch.no_grad():
        torch.testing.assert_close(folded(images), module(images), rtol=1e-3, atol=1e-4)
    assert normalisations(folded) == 0
    assert normalisations(module) == before > 0  # what was given is as it was


def test_a_normalisation_after_something_else_stays() -> None:
    """DenseNet normalises what several layers have made."""
    module = scrambled(timm.create_model("densenet121", num_classes=0))
    images = torch.randn(2, 3, 64, 64)
    folded = fold_normalisation(module, images[:1])
    assert 0 < normalisations(folded) < normalisations(module)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), module(images), rtol=1e-3, atol=1e-4)


class Shared(nn.Module):
    """The convolution's own output is read besides the normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.normalisation = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        return (y + self.normalisation(y)).mean(dim=(2, 3))


def test_an_output_that_is_read_twice_is_left() -> None:
    module = scrambled(Shared())
    assert fold_normalisation(module, torch.randn(1, 3, 8, 8)) is module


def test_without_normalisation_there_is_nothing_to_do() -> None:
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    assert fold_normalisation(module, torch.randn(1, 3, 224, 224)) is module
