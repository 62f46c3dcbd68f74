"""The contrastive formula; it stands here and nowhere else.

Convention: logits and targets are both *divided* by the temperature τ, rows are expression,
columns are images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

_P = ParamSpec("_P")


def soft_targets(
    images: Tensor, expression: Tensor, *, temperature: float | Tensor = 1.0, off_diagonal: float = 1.0
) -> Tensor:
    """How alike the spots of a batch are, as rows of probabilities (BLEEP, eq. 2).

    ``T = softmax_row((V Vᵀ + X Xᵀ) / 2 / τ)``. Gradients flow through.

    Parameters
    ----------
    images, expression
        (n, dim) embeddings V and X.
    temperature
        τ.
    off_diagonal
        Similarities of different spots are divided by this (CarHE's code: 1.1).

    Returns
    -------
    Tensor
        (n, n), rows sum to 1.
    """
    similarity = (images @ images.T + expression @ expression.T) / 2
    if off_diagonal != 1.0:
        same = torch.eye(len(similarity), device=similarity.device, dtype=torch.bool)
        similarity = torch.where(same, similarity, similarity / off_diagonal)
    return F.softmax(similarity / temperature, dim=-1)


def _in_full_precision(
    formula: Callable[Concatenate[Tensor, Tensor, _P], Tensor],
) -> Callable[Concatenate[Tensor, Tensor, _P], Tensor]:
    """Without autocast, whose products have the eight bits of bf16: too few for similarities of a few hundred."""

    @functools.wraps(formula)
    def full(one: Tensor, other: Tensor, *args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        with torch.autocast(one.device.type, enabled=False):
            wide = torch.promote_types(one.dtype, torch.float32)
            return formula(one.to(wide), other.to(wide), *args, **kwargs)

    return full


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``−Σⱼ Tᵢⱼ log softmaxⱼ(Lᵢ)`` for every row i: (n, n), (n, n) → (n,)."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1)


@_in_full_precision
def contrastive_loss(
    images: Tensor,
    expression: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    smooth: bool = True,
    renormalise: bool = False,
    off_diagonal: float = 1.0,
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
    off_diagonal
        As in ``soft_targets``.

    Returns
    -------
    Tensor
        (n,) losses.
    """
    logits = expression @ images.T / temperature
    if smooth:
        targets = soft_targets(images, expression, temperature=temperature, off_diagonal=off_diagonal)
    else:
        targets = torch.eye(len(logits), device=logits.device, dtype=logits.dtype)
    transposed = targets.T
    if renormalise:
        transposed = transposed / transposed.sum(dim=-1, keepdim=True)
    return (soft_cross_entropy(logits, targets) + soft_cross_entropy(logits.T, transposed)) / 2


@_in_full_precision
def aligned_loss(images: Tensor, genes: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Symmetric alignment with given targets: ``½ [CE(P Cᵀ / τ, T) + CE(C Pᵀ / τ, T)]``, the mean over the batch.

    Parameters
    ----------
    images, genes
        (n, dim) P and C.
    targets
        (n, n) T, rows sum to 1.
    temperature
        τ.
    """
    logits = images @ genes.T / temperature
    return (soft_cross_entropy(logits, targets) + soft_cross_entropy(logits.T, targets)).mean() / 2
