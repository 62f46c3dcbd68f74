"""Encoders without weights, from colour-deconvolved intensity: ``stain``, and the colours that novelty looks at.

``stain`` makes some sixty numbers of a tile: how much haematoxylin and eosin there is, how unevenly,
how much glass, and how strong edges and blobs are at several scales. It needs no download and
no training, and is the baseline that any learned encoder should beat.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hescribe.encoders.record import Encoder, weights_identity
from hescribe.types import TilePx

STAIN_INPUT_PX = 224
_SCALES = (1, 2, 4, 8)  #: pixels of Gaussian sigma; about a chromatin grain to a nucleus at 0.5 µm per pixel
_QUANTILES = (0.1, 0.5, 0.9)
_CELLS = 14  #: a side of the raster that colours are measured on; 8 µm at the usual tile of 112 µm
_VERSION = 1  #: raise when any number changes, so that cached features are not mixed
#: optical density in red, green and blue of haematoxylin, eosin and a residual (Ruifrok and Johnston 2001)
STAINS = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])


class StainFeatures(nn.Module):
    """(n, 3, side, side) uint8 RGB → (n, 63) float32 statistics of stain and texture.

    Optical density is separated into haematoxylin, eosin and a residual with the stain vectors
    of Ruifrok and Johnston (Anal. Quant. Cytol. Histol. 2001). For each: mean, standard deviation
    and quantiles; for the first two, energy of gradients and of differences of Gaussians at four
    scales, the quantiles of the blurred density, and the structure tensor's coherence (aligned
    fibres give 1, a salt-and-pepper of nuclei 0).
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("version", torch.tensor(_VERSION), persistent=False)  # part of the identity
        self.register_buffer("unmix", _unmixing(), persistent=False)
        for sigma in _SCALES:
            self.register_buffer(f"kernel_{sigma}", _gaussian(sigma), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Statistics of each tile, in a fixed order."""
        density = _density(tiles.float())
        stains = torch.einsum("nchw,cs->nshw", density, self.unmix)
        glass = (density.mean(1) < 0.06).float().mean((1, 2)).unsqueeze(1)
        colours = torch.cat([density.mean((2, 3)), density.std((2, 3))], dim=1)
        parts = [glass, colours, *self._moments(stains), self._correlation(stains), *self._textures(stains[:, :2])]
        return torch.cat(parts, dim=1)

    @staticmethod
    def _moments(stains: Tensor) -> list[Tensor]:
        flat = stains.flatten(2)
        quantiles = torch.quantile(flat, torch.tensor(_QUANTILES, device=flat.device), dim=2)
        return [flat.mean(2), flat.std(2), quantiles.permute(1, 0, 2).flatten(1)]

    @staticmethod
    def _correlation(stains: Tensor) -> Tensor:
        flat = stains[:, :2].flatten(2)
        centred = flat - flat.mean(2, keepdim=True)
        norm = centred.norm(dim=2).clamp_min(1e-6)
        return ((centred[:, 0] * centred[:, 1]).sum(1) / (norm[:, 0] * norm[:, 1])).unsqueeze(1)

    def _textures(self, stains: Tensor) -> list[Tensor]:
        parts, finer = [], stains
        for sigma in _SCALES:
            blurred = self._blur(stains, sigma)
            dx = (blurred[:, :, 1:-1, 2:] - blurred[:, :, 1:-1, :-2]) / 2
            dy = (blurred[:, :, 2:, 1:-1] - blurred[:, :, :-2, 1:-1]) / 2
            parts.append((finer - blurred).std((2, 3)))
            parts.append((dx**2 + dy**2).mean((2, 3)).sqrt())
            parts.append(_coherence(dx, dy))
            quantiles = torch.tensor((0.05, 0.95), device=stains.device)
            parts.append(torch.quantile(blurred.flatten(2), quantiles, dim=2).permute(1, 0, 2).flatten(1))
            finer = blurred
        return parts

    def _blur(self, images: Tensor, sigma: int) -> Tensor:
        kernel: Tensor = getattr(self, f"kernel_{sigma}")
        radius = kernel.numel() // 2
        channels = images.shape[1]
        rows = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
        padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
        return F.conv2d(F.conv2d(padded, rows, groups=channels), rows.transpose(2, 3), groups=channels)


class ColourFeatures(nn.Module):
    """(n, 3, side, side) uint8 RGB → (n, 9) float32: how the tile is stained, whatever is to be seen on it.

    Mean and standard deviation of haematoxylin, eosin and residual over a raster of 14 × 14 cells, and the three
    correlations between them. Light is averaged within a cell before its density is taken, so neither blur nor a
    coarser scan changes the numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("version", torch.tensor(_VERSION), persistent=False)  # part of the identity
        self.register_buffer("unmix", _unmixing(), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Means, standard deviations, correlations."""
        density = _density(_mean_light(tiles)).flatten(2)
        stains = torch.einsum("ncp,cs->nsp", density, self.unmix)
        mean = stains.mean(2)
        centred = stains - mean.unsqueeze(2)
        covariance = torch.einsum("nap,nbp->nab", centred, centred) / centred.shape[2]
        spread = (covariance.diagonal(dim1=1, dim2=2) + 1e-6).sqrt()  # glass has no correlations, not undefined ones
        correlation = covariance / (spread.unsqueeze(1) * spread.unsqueeze(2))
        return torch.cat([mean, spread, correlation[:, [0, 0, 1], [1, 2, 2]]], dim=1)


def _mean_light(tiles: Tensor) -> Tensor:
    """(n, 3, side, side) uint8 → (n, 3, 14, 14) means; a margin too narrow for another cell is left out."""
    cell = tiles.shape[-1] // _CELLS
    width = cell * _CELLS
    # Whole numbers, the smallest that hold them, rows first in the order of memory: several times as fast as pooling
    dtype = torch.int16 if cell <= 128 else torch.int32
    rows = tiles[:, :, :width, :width].permute(0, 2, 3, 1).reshape(-1, _CELLS, cell, width * 3)
    sums = rows.sum(2, dtype=dtype).view(-1, _CELLS, _CELLS, cell, 3).sum(3, dtype=torch.int32)
    return (sums / cell**2).permute(0, 3, 1, 2)


def _unmixing() -> Tensor:
    """(3, 3): optical density of red, green and blue → haematoxylin, eosin, residual."""
    return torch.linalg.inv(STAINS / STAINS.norm(dim=1, keepdim=True))


def _density(light: Tensor) -> Tensor:
    """Optical density of an intensity between 0 and 255."""
    return -torch.log10((light + 1.0) / 256.0)


def _gaussian(sigma: int) -> Tensor:
    radius = math.ceil(3 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return kernel / kernel.sum()


def _coherence(dx: Tensor, dy: Tensor) -> Tensor:
    """Anisotropy of gradients over the tile, 0 (no direction) to 1 (one direction)."""
    xx, yy, xy = (dx * dx).mean((2, 3)), (dy * dy).mean((2, 3)), (dx * dy).mean((2, 3))
    return ((xx - yy) ** 2 + 4 * xy**2).sqrt() / (xx + yy).clamp_min(1e-8)


def load_stain() -> Encoder:
    """The encoder ``stain``."""
    return _encoder("stain", StainFeatures(), STAIN_INPUT_PX)


def load_colours(input_px: TilePx) -> Encoder:
    """`ColourFeatures` of tiles of the size that another encoder wants."""
    return _encoder(f"colours at {input_px} px", ColourFeatures(), input_px)


def _encoder(name: str, module: nn.Module, input_px: TilePx) -> Encoder:
    module.eval()
    with torch.inference_mode():
        width = int(module(torch.zeros(1, 3, input_px, input_px, dtype=torch.uint8)).shape[1])
    return Encoder(
        name=name,
        module=module,
        width=width,
        input_px=input_px,
        mpp=0.5,
        identity=weights_identity(name, module),
        licence="Apache-2.0",
    )
