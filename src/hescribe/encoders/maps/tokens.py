"""Tokens of an encoder, and the encoder whose feature vector is their mean."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hescribe.encoders.record import Encoder, Normalised, weights_identity
from hescribe.errors import EncoderError


class MeanOfTokens(nn.Module):
    """A timm encoder that gives the plain mean of all its tokens, whatever pooling it came with.

    A method that works on tokens trains on them and is used on their mean; with the encoder's own pooling (a class
    token, a mean without it) the two would differ.
    """

    def __init__(self, normalised: Normalised) -> None:
        super().__init__()
        self.normalised = normalised

    def tokens(self, tiles: Tensor) -> Tensor:
        """(n, 3, side, side) uint8 → (n, t, width): a transformer's tokens, or the places of the last feature map."""
        backbone: Any = self.normalised.backbone
        n = self.normalised
        features = backbone.forward_features((tiles.float() / 255.0 - n.mean) / n.std)
        if features.ndim == 3:
            return features
        # Convolutional networks have channels first, a few transformers last
        first = features.shape[1] == backbone.num_features
        return features.flatten(2).transpose(1, 2) if first else features.flatten(1, 2)

    def forward(self, tiles: Tensor) -> Tensor:
        """(n, 3, side, side) uint8 → (n, width)."""
        return self.tokens(tiles).mean(dim=1)


class TokenTower(nn.Module):
    """The tower of a method that works on tokens.

    Parameters
    ----------
    pooled
        The encoder it is a view of; trained along with it.
    """

    def __init__(self, pooled: MeanOfTokens) -> None:
        super().__init__()
        self.pooled = pooled

    def forward(self, tiles: Tensor) -> Tensor:
        """(n, 3, side, side) uint8 → (n, t, width)."""
        return self.pooled.tokens(tiles)


def mean_of_tokens(encoder: Encoder) -> Encoder:
    """The same encoder with the mean of its tokens as feature vector.

    Raises
    ------
    EncoderError
        It has no tokens.
    """
    module = encoder.module
    if not isinstance(module, Normalised) or not hasattr(module.backbone, "forward_features"):
        raise EncoderError(f"the encoder {encoder.name!r} gives no tokens", path="--encoder", fix="use timm:<name>")
    wrapped = MeanOfTokens(copy.deepcopy(module)).eval()
    width = int(getattr(module.backbone, "num_features", encoder.width))
    return replace(
        encoder, module=wrapped, width=width, pool="tokens", identity=weights_identity(encoder.name, wrapped)
    )
