"""Augmentation on whole batches: symmetries of the square, and stain."""

from __future__ import annotations

import torch
from torch import Tensor

# Haematoxylin, eosin, residual in optical density (Ruifrok and Johnston 2001)
_STAINS = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])


def random_symmetry(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight symmetries for each image, at random.

    The published flips (each with probability ½) and rotations by a random right angle give just these eight,
    all equally likely.
    """
    out = torch.empty_like(images)
    choice = torch.randint(8, (len(images),), generator=generator)
    for symmetry in range(8):
        mask = (choice == symmetry).to(images.device)
        if mask.any():
            turned = torch.rot90(images[mask], symmetry % 4, dims=(2, 3))
            out[mask] = turned.flip(3) if symmetry >= 4 else turned
    return out


def jitter_stain(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Scale and shift haematoxylin and eosin of each image at random.

    Parameters
    ----------
    images
        (n, 3, h, w) uint8.
    strength
        Largest relative change of a stain's density; 0.2 is moderate.
    generator
        Of random numbers, on the CPU.

    Returns
    -------
    Tensor
        (n, 3, h, w) uint8.
    """
    stains = (_STAINS / _STAINS.norm(dim=1, keepdim=True)).to(images.device)
    density = -torch.log((images.float() + 1.0) / 256.0)
    amounts = torch.einsum("nchw,cs->nshw", density, torch.linalg.inv(stains))
    random = torch.rand((2, len(images), 3, 1, 1), generator=generator).to(images.device) * 2 - 1
    amounts = amounts * (1 + strength * random[0]) + 0.1 * strength * random[1]
    changed = torch.exp(-torch.einsum("nshw,sc->nchw", amounts, stains)) * 256.0 - 1.0
    return changed.clamp(0, 255).round().to(torch.uint8)
