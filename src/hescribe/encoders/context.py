"""A tile and its surroundings: features at several scales, and of the neighbourhood."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.spatial import cKDTree

from hescribe.encoders.extract import Extraction, extract_features
from hescribe.encoders.record import Encoder
from hescribe.predictor import TileSource
from hescribe.types import Centres, Context, Features, Microns

_REACH = 3.0  #: standard deviations beyond which a neighbour's weight is taken as none


class Described(NamedTuple):
    """Tiles of one slide.

    Attributes
    ----------
    plain
        (n, d) features of the tiles themselves.
    full
        (n, width) with their surroundings, as a method wants them; the same array where it wants no more.
    """

    plain: Features
    full: Features


def describe_tiles(
    tiles: TileSource, encoder: Encoder, how: Extraction, *, device: str = "cpu", use_cache: bool = True
) -> Described:
    """Features of every tile of a slide, and of its surroundings as ``how.context`` says.

    The features at each scale are kept in the cache by themselves, so methods share them.
    """
    context = how.context
    scales = [
        extract_features(tiles, encoder, replace(how, tile_um=how.tile_um * scale), device=device, use_cache=use_cache)
        for scale in context.scales
    ]
    if context == Context():
        return Described(scales[0], scales[0])
    own = np.concatenate(scales, axis=1)
    around = [gaussian_mean(own, tiles.centres * tiles.mpp, spread) for spread in context.spreads_um]
    full = np.concatenate([own, *around], axis=1)
    full = centre(full) if context.centred else full
    return Described(scales[0], np.hstack([full, relative_position(tiles.centres)]) if context.position else full)


def gaussian_mean(features: Features, centres_um: Centres, spread_um: Microns) -> Features:
    """Mean over the neighbourhood, weighted by ``exp(−d² / 2σ²)``; the tile itself is part of it.

    Parameters
    ----------
    features
        (n, d).
    centres_um
        (n, 2) positions, µm.
    spread_um
        σ.
    """
    tree = cKDTree(centres_um)
    pairs = tree.sparse_distance_matrix(tree, _REACH * spread_um, output_type="coo_matrix").tocsr()
    # Distances of 0, a tile to itself, are not stored
    weights = sparse.csr_matrix(
        (np.exp(-0.5 * (pairs.data / spread_um) ** 2), pairs.indices, pairs.indptr), pairs.shape
    )
    weights.setdiag(1.0)
    total = np.asarray(weights.sum(axis=1)).ravel()
    return np.asarray((sparse.diags(1.0 / total) @ weights) @ features, dtype=np.float32)


def relative_position(centres: Centres) -> Features:
    """(n, 2) positions, from 0 to 1 between the outermost tiles of each axis."""
    low, high = centres.min(axis=0), centres.max(axis=0)
    return np.asarray((centres - low) / np.maximum(high - low, 1e-9), dtype=np.float32)


def centre(features: Features) -> Features:
    """Each feature less its mean, divided by its spread; a constant one becomes 0."""
    mean = features.mean(axis=0, dtype=np.float64)
    spread: npt.NDArray[np.float64] = features.std(axis=0, dtype=np.float64)
    return ((features - mean) / np.maximum(spread, 1e-6)).astype(np.float32)
