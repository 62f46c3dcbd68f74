"""The contrastive formula; it stands here and nowhere else.

Convention: logits and targets are both *divided* by the temperature τ, rows are expression,
columns are images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_targets(images: Tensor, expression: Tensor, *, temperature: float = 1.0) -> Tensor:
    """How alike the spots of a batch are, as rows of probabilities (BLEEP, eq. 2).

    ``T = softmax_row((V Vᵀ + X Xᵀ) / 2 / τ)``. Gradients flow through.

    Parameters
    ----------
    images, expression
        (n, dim) embeddings V and X.
    temperature
        τ.

    Returns
    -------
    Tensor
        (n, n), rows sum to 1.
    """
    similarity = (images @ images.T + expression @ expression.T) / 2
    return F.softmax(similarity / temperature, dim=-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``−Σⱼ Tᵢⱼ log softmaxⱼ(Lᵢ)`` for every row i: (n, n), (n, n) → (n,)."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def contrastive_loss(
    images: Tensor,
    expression: Tensor,
    *,
    temperature: float = 1.0,
    smooth: bool = True,
    renormalise: bool = False,
) -> Tensor:
    """Symmetric contrastive loss with softened targets, for every spot (BLEEP, eq. 3).

    ``½ [CE(L, T) + CE(Lᵀ, Tᵀ)]`` with ``L = X Vᵀ / τ``.

    Parameters
    ----------
    images, expression
        (n, dim) embeddings, not L2-normalised.
    temperature
        τ.
    smooth
        Softened targets; otherwise the identity, which is plain CLIP.
    renormalise
        Make the rows of ``Tᵀ`` sum to 1. The published code does not.

    Returns
    -------
    Tensor
        (n,) losses.
    """
    logits = expression @ images.T / temperature
    if smooth:
        targets = soft_targets(images, expression, temperature=temperature)
    else:
        targets = torch.eye(len(logits), device=logits.device, dtype=logits.dtype)
    transposed = targets.T
    if renormalise:
        transposed = transposed / transposed.sum(dim=-1, keepdim=True)
    return (soft_cross_entropy(logits, targets) + soft_cross_entropy(logits.T, transposed)) / 2
