"""Blocks that several methods share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def gather_rows(own: Tensor) -> Tensor:
    """Rows of all processes that train together, in their order; one's own where it is alone.

    Gradients flow back to every process. Where each computes the same loss on the rows of all, and gradients are
    then averaged over processes (as DDP does), the result is the gradient of that loss.

    Parameters
    ----------
    own
        (n, …), as many rows in each process.

    Returns
    -------
    Tensor
        (n × processes, …).
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    return _GatherRows.apply(own)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        # Each process's loss has its own gradient by these rows
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


class Standardise(nn.Module):
    """Frozen features to zero mean and unit spread over the training spots; the tower of a model without images.

    Encoders' features have very different scales, and a projection head on raw ones needs several times as many
    epochs. As made it changes nothing.

    Parameters
    ----------
    width
        Length of a feature vector.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def learn(self, features: Tensor) -> None:
        """Take mean and spread of (n, width) features; a constant feature keeps its scale."""
        features = features.double()
        spread = features.std(dim=0, unbiased=False)
        self.mean.copy_(features.mean(dim=0))
        self.scale.copy_(torch.where(spread > 1e-8, spread, torch.ones_like(spread)))

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features, or (n, t, width) tokens whose mean they are, → the same shape."""
        return (features - self.mean) / self.scale


class ProjectionHead(nn.Module):
    """The projection head of BLEEP, CMRCNet and CarHE.

    ``p = W₁u + b₁;  out = LayerNorm(Dropout(W₂ GELU(p) + b₂) + p)``. The output is *not* L2-normalised:
    its norm is about √dim, so that plain dot products are logits.

    Parameters
    ----------
    inputs
        Length of the input vectors.
    dim
        Length of the embedding.
    dropout
        Probability.
    eps
        Of the LayerNorm.
    """

    def __init__(self, inputs: int, dim: int, *, dropout: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, dim)
        self.transform = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, inputs) → (n, dim)."""
        projected = self.project(vectors)
        return self.norm(self.dropout(self.transform(F.gelu(projected))) + projected)
