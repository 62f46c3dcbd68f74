"""Some parts of an encoder trained, the others as they came."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hescribe.encoders import TokenTower, has_parts, load_encoder, mean_of_tokens, train_only
from hescribe.encoders.record import Encoder
from hescribe.errors import InputError


def encoder(name: str) -> Encoder:
    torch.manual_seed(0)
    return load_encoder(f"timm:{name}", pretrained=False)


def trained(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("tokens", [False, True])
def test_the_published_parts_of_a_transformer(tokens: bool) -> None:
    """Whatever stands around the architecture, and counted from its end."""
    whole = encoder("test_vit")
    module = TokenTower(mean_of_tokens(whole).module) if tokens else whole.module  # type: ignore[arg-type]
    blocks = len(whole.module.backbone.blocks)
    assert blocks > 2
    train_only(module, ["blocks.-2", "norm"])
    found = {name.split("backbone.")[1] for name in trained(module)}
    assert {".".join(name.split(".")[:2]) for name in found if "blocks" in name} == {f"blocks.{blocks - 2}"}
    assert {name for name in found if "blocks" not in name} == {"norm.weight", "norm.bias"}
    train_only(module, [f"blocks.{blocks - 1}.mlp", "cls_token"])
    assert {name.split("backbone.")[1].split(".fc")[0] for name in trained(module)} == {
        f"blocks.{blocks - 1}.mlp",
        "cls_token",
    }


def test_a_number_is_not_the_beginning_of_another() -> None:
    many = nn.Sequential(nn.ModuleDict({"stem": nn.Linear(2, 2), "blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(12))}))
    train_only(many, ["blocks.1"])
    assert trained(many) == {"0.blocks.1.weight", "0.blocks.1.bias"}


def test_what_stays_frozen_is_told_with_its_batch_statistics() -> None:
    module = encoder("test_resnet").module
    frozen = train_only(module, ["layer4"])
    norms = {name: m for name, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    told = {name for name, m in norms.items() if any(m is part for part in frozen)}
    assert told == {name for name in norms if ".layer4." not in name}
    assert told != set(norms)


@pytest.mark.parametrize("part", ["blocks.-1", "layer9", "layer4.-9", ""])
def test_what_is_not_there_is_refused_in_one_line(part: str) -> None:
    module = encoder("test_resnet").module
    assert not has_parts(module, ["layer4", part])
    with pytest.raises(InputError, match="no part.*parts of: conv1, bn1, layer1") as told:
        train_only(module, ["layer4", part])
    assert "\n" not in str(told.value)
