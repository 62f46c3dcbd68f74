"""Encoder: what turns tiles into feature vectors, with an identity that changes with its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from hescribe.errors import InputError
from hescribe.types import Mpp, TilePx

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalised(nn.Module):
    """uint8 RGB tiles → a backbone's features; scaling and normalisation belong to the encoder.

    Parameters
    ----------
    backbone
        Maps (n, 3, side, side) float images to (n, width) features.
    mean, std
        Per channel, on the scale [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        # Not persistent: they are facts about the architecture, not weights
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """(n, 3, side, side) uint8 → (n, width)."""
        return self.backbone((tiles.float() / 255.0 - self.mean) / self.std)


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Attributes
    ----------
    name
        As it can be asked for again (``timm:resnet50``, ``stain``), without local paths.
    module
        (n, 3, input_px, input_px) uint8 RGB → (n, width) float; in evaluation mode.
    width
        Length of a feature vector.
    input_px
        Side of the tile it wants, pixels.
    mpp
        µm per pixel its training images had, where known.
    identity
        Hash of architecture, normalisation and weights.
    licence
        Licence of the weights.
    redistributable
        Whether the weights may be stored in a bundle; gated ones may not.
    pool
        Its own pooling, or the mean of its tokens.
    """

    name: str
    module: nn.Module
    width: int
    input_px: TilePx
    mpp: Mpp | None
    identity: str
    licence: str
    redistributable: bool = True
    pool: Literal["own", "tokens"] = "own"

    def with_module(self, module: nn.Module) -> Encoder:
        """The same encoder with other weights, hence another identity."""
        return replace(self, module=module.eval(), identity=weights_identity(self.name, module))


def weights_identity(name: str, module: nn.Module) -> str:
    """Hash of a name and of every weight and buffer of a module, 32 hex digits."""
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    for key, buffer in sorted(module.named_buffers()):
        digest.update(key.encode())
        digest.update(buffer.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def resolve_device(device: str) -> str:
    """``auto`` → the accelerator there is, or the CPU.

    Raises
    ------
    InputError
        There is no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.zeros(1, device=device).is_meta:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"the device {device!r} cannot be used ({reason})", path="--device") from error
    return device
