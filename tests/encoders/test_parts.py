"""Some parts of an encoder trained, the others as they came."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
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
    many = nn.Sequential(
        nn.ModuleDict({"stem": nn.Linear(2, 2), "blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(12))})
    )
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
    with pytest.raises(InputError, match=r"no part.*parts of: conv1, bn1, layer1") as told:
        train_only(module, ["layer4", part])
    assert "\n" not in str(told.value)


def test_the_weights_of_hipt_s_first_transformer_fit(tmp_path: Path) -> None:
    """The names of DINO's ViT-S/16, as its own code has them, with tiles scaled as that code does."""
    sizes = {"cls_token": (1, 1, 384), "pos_embed": (1, 197, 384), "patch_embed.proj.weight": (384, 3, 16, 16)}
    sizes |= {"patch_embed.proj.bias": (384,), "norm.weight": (384,), "norm.bias": (384,)}
    layers = {"norm1": (384,), "norm2": (384,), "attn.qkv": (1152, 384), "attn.proj": (384, 384)}
    for name, shape in (layers | {"mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536)}).items():
        for block in range(12):
            sizes[f"blocks.{block}.{name}.weight"], sizes[f"blocks.{block}.{name}.bias"] = shape, shape[:1]
    generator = torch.Generator().manual_seed(0)
    stored = {name: torch.randn(shape, generator=generator) for name, shape in sizes.items()}
    save_file(stored, tmp_path / "hipt.safetensors")
    found = load_encoder(f"timm:vit_small_patch16_224@{tmp_path / 'hipt.safetensors'}")
    assert (found.width, found.input_px) == (384, 224)
    assert found.module.mean.unique().tolist() == found.module.std.unique().tolist() == [0.5]  # type: ignore[operator]
    assert has_parts(found.module, ["blocks.-2", "norm"])
    torch.testing.assert_close(
        found.module.state_dict()["backbone.blocks.10.attn.qkv.weight"], stored["blocks.10.attn.qkv.weight"]
    )
