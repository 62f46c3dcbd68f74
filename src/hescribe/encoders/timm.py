"""Encoders of timm: ``timm:<architecture>``, optionally ``@<file.safetensors>`` for local weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hescribe.encoders.record import IMAGENET_MEAN, IMAGENET_STD, Encoder, Normalised, weights_identity
from hescribe.errors import EncoderError


def load_timm(name: str, *, weights: Path | None = None, pretrained: bool = True) -> Encoder:
    """Load an encoder of timm.

    Parameters
    ----------
    name
        An architecture (``resnet50``) or one with a tag (``resnet50.a1_in1k``).
    weights
        A safetensors state dict to use instead of a download.
    pretrained
        Download the weights when no file is given; otherwise leave them random
        (to be filled from a bundle).

    Raises
    ------
    EncoderError
        Unknown architecture, no network, or a file that does not fit.
    """
    backbone = _create(name, pretrained=pretrained and weights is None)
    if weights is not None:
        _load_weights(backbone, name, weights)
    config: dict[str, Any] = _data_config(backbone)
    module = Normalised(backbone, mean=tuple(config["mean"]), std=tuple(config["std"])).eval()
    return Encoder(
        name=f"timm:{name}",
        module=module,
        width=_output_width(module, config["input_size"][-1], name),
        input_px=int(config["input_size"][-1]),
        mpp=None,
        identity=weights_identity(f"timm:{name}", module),
        licence=str(getattr(backbone, "pretrained_cfg", {}).get("license") or "see the weights' source"),
    )


def load_cmrcnet_vit(*, seed: int = 0) -> Encoder:
    """The image encoder of CMRCNet, which its code trains from scratch: of use with fine-tuning only.

    A vision transformer of patch 32, width 768, depth 8 and 8 heads (the paper says ViT-B/32, which has depth 12 and
    12 heads). As in the code, linear weights start from a truncated normal of σ = 0.01, the class token from one of
    0.02, the patches' projection from a normal whose variance is 2 over its outputs times the pixels of a patch.
    """
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = VisionTransformer(img_size=224, patch_size=32, embed_dim=768, depth=8, num_heads=8, num_classes=0)
        for module in backbone.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.kaiming_normal_(backbone.patch_embed.proj.weight, mode="fan_out")
        nn.init.zeros_(backbone.patch_embed.proj.bias)
        nn.init.trunc_normal_(backbone.get_parameter("cls_token"), std=0.02)
    module = Normalised(backbone, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    identity = weights_identity("cmrcnet-vit", module)
    return Encoder("cmrcnet-vit", module, 768, 224, None, identity, licence="Apache-2.0")


def _create(name: str, *, pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.', maxsplit=1)[0][:8]}*")[:5]) or "see timm.list_models()"
        raise EncoderError(f"timm knows no architecture {name!r}", path="--encoder", fix=f"for example: {near}")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # the hub client raises a dozen kinds: no network, no file, no access
        if not pretrained:
            raise
        raise EncoderError(
            f"weights of {name!r} could not be downloaded ({type(error).__name__})",
            path="--encoder",
            fix=f"give local weights as timm:{name}@FILE.safetensors, or use the encoder 'stain', which has none",
        ) from error


def _load_weights(backbone: nn.Module, name: str, path: Path) -> None:
    if not path.is_file():
        raise EncoderError("no such file of encoder weights", path=path, fix="check the path behind '@'")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise EncoderError(f"not a readable safetensors file ({error})", path=path) from error
    expected = backbone.state_dict()
    missing = sorted(expected.keys() - state.keys())
    # Classifier weights of a full model are of no use here and do no harm
    surplus = sorted(k for k in state.keys() - expected.keys() if not k.startswith(("fc.", "classifier.", "head.")))
    # Some writers store a batch counter, a scalar, with one dimension
    state = {k: v.reshape(()) if k.endswith("num_batches_tracked") and v.numel() == 1 else v for k, v in state.items()}
    wrong = sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape)
    if missing or surplus or wrong:
        what = f"{len(missing)} weights missing, {len(surplus)} surplus, {len(wrong)} of another shape"
        example = (missing + surplus + wrong)[0]
        raise EncoderError(
            f"holds weights of another architecture than {name} ({what}; for example {example!r})",
            path=path,
            fix="name the architecture these weights were saved from",
        )
    backbone.load_state_dict({k: v for k, v in state.items() if k in expected}, strict=True)


def _data_config(backbone: nn.Module) -> dict[str, Any]:
    from timm.data import resolve_model_data_config

    return resolve_model_data_config(backbone)


@torch.inference_mode()
def _output_width(module: nn.Module, input_px: int, name: str) -> int:
    features = module(torch.zeros(1, 3, input_px, input_px, dtype=torch.uint8))
    if features.ndim != 2:
        raise EncoderError(f"{name!r} gives {features.ndim - 1}-dimensional features, not a vector", path="--encoder")
    return int(features.shape[1])
