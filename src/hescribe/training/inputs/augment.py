"""Augmentation on whole batches: symmetries of the square, free turns and crops, and stain."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hescribe.encoders.stain import STAINS


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


def random_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image as it is or, as often, flipped, turned by any angle and cropped.

    The crop has 0.8 to 1.0 of the area and sides in a ratio of up to 4 : 3, and is scaled to the image's size. What a
    turn brings in from outside is the image's own mirror, where black corners would be tissue that no slide has.

    Parameters
    ----------
    images
        (n, 3, side, side) uint8.
    generator
        Of random numbers, on the CPU.

    Returns
    -------
    Tensor
        (n, 3, side, side) uint8.
    """
    count = len(images)
    changed, flip_x, flip_y, angle, area, ratio, x, y = torch.rand((8, count), generator=generator)
    # In units of half a side: the crop's own size, where its middle lies, and how it lies in the image
    side = (0.8 + 0.2 * area).sqrt()
    # As far as the longer side stays inside the image
    stretch = torch.exp((2 * ratio - 1) * math.log(4 / 3) / 2).clamp(side, 1 / side)
    sides = side * torch.stack([stretch, 1 / stretch])
    middle = (2 * torch.stack([x, y]) - 1) * (1 - sides)
    turn = 2 * math.pi * angle
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).unflatten(0, (2, 2))
    mirror = torch.where(torch.stack([flip_x, flip_y]) < 0.5, 1.0, -1.0)
    linear = mirror[:, None] * rotation
    theta = torch.cat([linear * sides, torch.einsum("ijn,jn->in", linear, middle)[:, None]], dim=1).permute(2, 0, 1)
    grid = F.affine_grid(theta, [count, *images.shape[1:]], align_corners=False).to(images.device)
    views = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    keep = (changed < 0.5).to(images.device)[:, None, None, None]
    return torch.where(keep, images, views.round().clamp(0, 255).to(torch.uint8))


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
    stains = (STAINS / STAINS.norm(dim=1, keepdim=True)).to(images.device)
    density = -torch.log((images.float() + 1.0) / 256.0)
    amounts = torch.einsum("nchw,cs->nshw", density, torch.linalg.inv(stains))
    random = torch.rand((2, len(images), 3, 1, 1), generator=generator).to(images.device) * 2 - 1
    amounts = amounts * (1 + strength * random[0]) + 0.1 * strength * random[1]
    changed = torch.exp(-torch.einsum("nshw,sc->nchw", amounts, stains)) * 256.0 - 1.0
    return changed.clamp(0, 255).round().to(torch.uint8)
