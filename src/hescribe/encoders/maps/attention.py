"""Where on a tile an encoder sees what a score is made of: Grad-CAM, and the tile masked by it.

Selvaraju et al., ICCV 2017 (arXiv 1610.02391).
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hescribe.encoders.maps.tokens import MeanOfTokens
from hescribe.encoders.record import Encoder, Normalised
from hescribe.errors import EncoderError

_NO_GRADIENT = 1e-9  #: largest gradient that is nothing but rounding


class Seen(NamedTuple):
    """Tiles as an encoder sees them.

    Attributes
    ----------
    maps
        (n, positions, width) what is seen at each place of a square grid, row by row; gradients reach it, and
        nothing below it.
    features
        (n, d) the encoder's feature vectors, computed from the maps.
    """

    maps: Tensor
    features: Tensor


def check_maps(encoder: Encoder) -> None:
    """Refuse an encoder whose feature vectors are not pooled from a grid that can be looked at.

    Raises
    ------
    EncoderError
        Names it.
    """
    if not _has_maps(encoder.module) or not _maps_make_the_vector(encoder):
        raise EncoderError(
            f"the encoder {encoder.name!r} has no feature maps to refine prototypes by",
            path="--encoder",
            fix="use timm:<name>, or leave the method's 'refinement' out",
        )


def _has_maps(module: nn.Module) -> bool:
    normalised = module.normalised if isinstance(module, MeanOfTokens) else module
    if not isinstance(normalised, Normalised):
        return False
    backbone: Any = normalised.backbone
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
        return False
    return not _pools_a_class_token(module) or hasattr(getattr(backbone, "blocks", [None])[-1], "norm1")


def _maps_make_the_vector(encoder: Encoder) -> bool:
    """Tried on a tile of noise: few architectures, of hundreds, keep their class token elsewhere or pool otherwise."""
    generator = torch.Generator().manual_seed(0)
    tile = torch.randint(0, 256, (1, 3, encoder.input_px, encoder.input_px), generator=generator)
    device = next(chain(encoder.module.parameters(), encoder.module.buffers())).device
    tile = tile.to(device)
    seen = feature_map(encoder.module, tile)
    with torch.no_grad():
        vector = encoder.module(tile)
    (gradients,) = torch.autograd.grad(seen.features.norm(dim=1).sum(), seen.maps, allow_unused=True)
    reached = gradients is not None and float(gradients.abs().max()) > _NO_GRADIENT
    square = math.isqrt(seen.maps.shape[1]) ** 2 == seen.maps.shape[1]
    return reached and square and torch.allclose(seen.features, vector, rtol=1e-3, atol=1e-4)


def _pools_a_class_token(module: nn.Module) -> bool:
    return isinstance(module, Normalised) and getattr(module.backbone, "global_pool", None) == "token"


def feature_map(module: nn.Module, tiles: Tensor) -> Seen:
    """Feature maps and the feature vectors made of them.

    For a convolutional network the last feature map, for a transformer its last patch tokens (class and register
    tokens take part in the vector, not in the maps). Where the vector *is* the class token, the last patch tokens
    have no part in it; then the maps are what the class token reads last: the tokens as the last block's
    attention gets them, already normalised (before a LayerNorm, gradient and activation are orthogonal, which
    would leave a Grad-CAM of nothing but rounding).

    Parameters
    ----------
    module
        An encoder's, in evaluation mode, which ``check_maps`` accepts.
    tiles
        (n, 3, side, side), 0 to 255.
    """
    normalised: Normalised = module.normalised if isinstance(module, MeanOfTokens) else module  # type: ignore[assignment]
    backbone: Any = normalised.backbone
    inputs = (tiles.float() / 255.0 - normalised.mean) / normalised.std
    if _pools_a_class_token(module):
        return _read_by_class_token(backbone, inputs)
    with torch.no_grad():
        last = backbone.forward_features(inputs)
    with torch.enable_grad():
        if last.ndim == 3:
            prefix = _prefix(backbone)
            maps = last[:, prefix:].clone().requires_grad_()
            whole = torch.cat([last[:, :prefix], maps], dim=1)
            return Seen(maps, whole.mean(dim=1) if isinstance(module, MeanOfTokens) else backbone.forward_head(whole))
        # Convolutional networks have channels first, a few transformers last
        first = last.shape[1] == backbone.num_features
        rows = last.permute(0, 2, 3, 1) if first else last
        maps = rows.flatten(1, 2).clone().requires_grad_()
        if isinstance(module, MeanOfTokens):
            return Seen(maps, maps.mean(dim=1))
        whole = maps.view(rows.shape)
        return Seen(maps, backbone.forward_head(whole.permute(0, 3, 1, 2) if first else whole))


def _read_by_class_token(backbone: Any, inputs: Tensor) -> Seen:
    kept: list[Tensor] = []

    def start_here(_: nn.Module, __: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        # From here on, and not below, a graph is wanted
        torch.set_grad_enabled(True)
        prefix = _prefix(backbone)
        kept.append(tokens[:, prefix:].clone().requires_grad_())
        return torch.cat([tokens[:, :prefix], kept[0]], dim=1)

    hook = backbone.blocks[-1].norm1.register_forward_hook(start_here)
    try:
        with torch.no_grad():  # restores the mode at its end
            features = backbone.forward_head(backbone.forward_features(inputs))
    finally:
        hook.remove()
    return Seen(kept[0], features)


def _prefix(backbone: Any) -> int:
    return int(getattr(backbone, "num_prefix_tokens", 0))


def grad_cam(maps: Tensor, score: Tensor) -> Tensor:
    """Where a score comes from: (n, h, w) in [0, 1], the highest place of each tile 1.

    Parameters
    ----------
    maps
        (n, positions, width), of ``feature_map``.
    score
        (n,) computed from the same call's feature vectors.

    Returns
    -------
    Tensor
        A tile in which nothing speaks for the score has zeros everywhere.
    """
    (gradients,) = torch.autograd.grad(score.sum(), maps, retain_graph=True)
    return class_activation(maps.detach(), gradients)


def class_activation(maps: Tensor, gradients: Tensor) -> Tensor:
    """``relu(Σ_c α_c A_c)`` with ``α_c`` the mean gradient over places, each tile divided by its largest.

    Raises
    ------
    EncoderError
        The places do not form a square.
    """
    side = math.isqrt(maps.shape[1])
    if side * side != maps.shape[1]:
        raise EncoderError(f"{maps.shape[1]} places of a feature map do not form a square")
    weights = gradients.float().mean(dim=1, keepdim=True)
    activation = (weights * maps.float()).sum(dim=2).relu()
    largest = activation.amax(dim=1, keepdim=True)
    # A scale, not a number of its own: scores may have gradients of any size
    scaled = torch.where(largest > 0, activation / largest.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    return scaled.unflatten(1, (side, side))


def prompt(tiles: Tensor, attention: Tensor, floor: float) -> Tensor:
    """Tiles of which little is left but what was attended to.

    What is masked fades into the tile's mean colour. Black or white would be content to an encoder: white is glass
    or fat, and a mask's edge a border of tissue; the mean keeps the stain and has no texture.

    Parameters
    ----------
    tiles
        (n, 3, side, side), 0 to 255.
    attention
        (n, h, w) in [0, 1].
    floor
        What is left of the least attended pixel.

    Returns
    -------
    Tensor
        (n, 3, side, side) float32, 0 to 255.
    """
    images = tiles.float()
    mask = F.interpolate(attention.unsqueeze(1), size=images.shape[2:], mode="bilinear", align_corners=False)
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + (floor + (1 - floor) * mask) * (images - mean)
