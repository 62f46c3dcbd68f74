"""Blocks that several methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
    """

    def __init__(self, inputs: int, dim: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, dim)
        self.transform = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, inputs) → (n, dim)."""
        projected = self.project(vectors)
        return self.norm(self.dropout(self.transform(F.gelu(projected))) + projected)
