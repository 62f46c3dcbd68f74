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
from hescribe.encoders.stain import load_colours
from hescribe.predictor import TileSource
from hescribe.slides.tiles import SomeTiles
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
    colours
        (n, 9) how the tiles are stained, which learned features tell only in part; see `ColourFeatures`.
    """

    plain: Features
    full: Features
    colours: Features


def describe_tiles(
    tiles: TileSource, encoder: Encoder, how: Extraction, *, device: str = "cpu", use_cache: bool = True
) -> Described:
    """Features of every tile of a slide, and of its surroundings as ``how.context`` says.

    The features at each scale are kept in the cache by themselves, so methods share them. Some tiles of a slide are
    described as they stand among all of it.
    """
    if isinstance(tiles, SomeTiles):
        among = describe_tiles(tiles.whole, encoder, how, device=device, use_cache=use_cache)
        return Described(*(part[tiles.rows] for part in among))
    context = how.context
    scales = [
        extract_features(tiles, encoder, replace(how, tile_um=how.tile_um * scale), device=device, use_cache=use_cache)
        for scale in context.scales
    ]
    # One view will do, since no turn of a tile changes them
    look = Extraction(how.tile_um, batch_size=how.batch_size)
    colours = extract_features(tiles, load_colours(encoder.input_px), look, device=device, use_cache=use_cache)
    if context == Context():
        return Described(scales[0], scales[0], colours)
    parts = [own := np.concatenate(scales, axis=1)]
    parts += [gaussian_mean(own, tiles.centres * tiles.mpp, spread) for spread in context.spreads_um]
    if context.grid:
        parts.append(_beside(tiles, encoder, how, device=device, use_cache=use_cache))
    if context.centred:
        parts = [centre(part) for part in parts]
    if context.raster:
        means, occupied = rasterise(parts[0][:, : encoder.width], tiles.centres, context.raster)
        whole = np.concatenate([means.ravel(), occupied])
        parts.append(np.broadcast_to(whole, (len(own), len(whole))))
    if context.position:
        parts.append(relative_position(tiles.centres))
    return Described(scales[0], np.concatenate(parts, axis=1), colours)


def _beside(tiles: TileSource, encoder: Encoder, how: Extraction, *, device: str, use_cache: bool) -> Features:
    """(n, (grid² − 1) × d) features of the tiles around each tile, in the order of `lattice`, its middle left out."""
    places, which = places_beside(tiles.centres, how.tile_um / tiles.mpp, how.context.grid)
    features = extract_features(tiles.at(places), encoder, how, device=device, use_cache=use_cache)
    return features[which].reshape(len(tiles), -1)


def places_beside(centres: Centres, pitch: float, side: int) -> tuple[Centres, npt.NDArray[np.intp]]:
    """Where the tiles around each of n centres lie: (m, 2) places, each once, and (n, side² − 1) which are whose."""
    # Places in whole pixels: on a grid of tiles, one's neighbour is another's, and each is encoded once
    around = np.delete(np.rint(lattice(centres, pitch, side)), side**2 // 2, axis=1)
    places, which = np.unique(around.reshape(-1, 2), axis=0, return_inverse=True)
    return places, which.reshape(len(centres), -1)


def lattice(centres: Centres, pitch: float, side: int) -> Centres:
    """(n, side², 2) places of a square lattice around each of (n, 2) centres: left to right, then top to bottom."""
    steps = (np.arange(side) - side // 2) * pitch
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return np.asarray(centres)[:, None] + np.stack([x.ravel(), y.ravel()], axis=1)


def raster_cells(centres: Centres, side: int) -> npt.NDArray[np.intp]:
    """(n,) cell of a raster between the outermost of (n, 2) centres."""
    column, row = np.minimum((relative_position(centres) * side).astype(np.intp), side - 1).T
    return row * side + column


def rasterise(features: Features, centres: Centres, side: int) -> tuple[Features, Features]:
    """Mean features of the tiles in each cell of a raster laid between the outermost tiles.

    Returns
    -------
    means, occupied
        (side², d), zero for a cell without tiles, and (side²,) 1 for a cell with tiles, else 0; cells from left to
        right, then top to bottom.
    """
    cell = raster_cells(centres, side)
    number = np.bincount(cell, minlength=side**2)
    total = np.zeros((side**2, features.shape[1]))
    np.add.at(total, cell, features)
    means = total / np.maximum(number, 1)[:, None]
    return means.astype(np.float32), (number > 0).astype(np.float32)


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
    weights = gaussian_weights(cKDTree(centres_um), centres_um, spread_um)
    return np.asarray(weights @ features, dtype=np.float32)


def gaussian_weights(tree: cKDTree, points_um: Centres, spread_um: Microns) -> sparse.csr_matrix:
    """(k, n) weights of n tiles in the means over the neighbourhoods of k points; rows sum to 1.

    Parameters
    ----------
    tree
        Of the tiles' positions, µm.
    points_um
        (k, 2) positions, µm.
    spread_um
        σ.
    """
    near = cKDTree(points_um).sparse_distance_matrix(tree, _REACH * spread_um, output_type="coo_matrix").tocsr()
    weights = sparse.csr_matrix((np.exp(-0.5 * (near.data / spread_um) ** 2), near.indices, near.indptr), near.shape)
    # Distances of 0, a tile to itself, may not be stored; and where no tile is near, the nearest stands for all
    rows, (_, nearest) = np.arange(len(points_um)), tree.query(points_um)
    missing = np.asarray(weights[rows, nearest]).ravel() == 0
    if missing.any():
        own = sparse.csr_matrix((np.ones(missing.sum()), (rows[missing], nearest[missing])), weights.shape)
        weights = (weights + own).tocsr()
    total = np.asarray(weights.sum(axis=1)).ravel()
    return (sparse.diags(1.0 / total) @ weights).tocsr()


def relative_position(centres: Centres) -> Features:
    """(n, 2) positions, from 0 to 1 between the outermost tiles of each axis."""
    low, high = centres.min(axis=0), centres.max(axis=0)
    return position_between(centres, low, high)


def position_between(centres: Centres, low: Centres, high: Centres) -> Features:
    """(n, 2) positions as shares of the way from ``low`` to ``high``, (2,) each."""
    return np.asarray((centres - low) / np.maximum(high - low, 1e-9), dtype=np.float32)


def centre(features: Features) -> Features:
    """Each feature less its mean, divided by its spread; a constant one becomes 0."""
    mean = features.mean(axis=0, dtype=np.float64)
    spread: npt.NDArray[np.float64] = features.std(axis=0, dtype=np.float64)
    return centre_by(features, mean, spread)


def centre_by(features: Features, mean: npt.NDArray[np.float64], spread: npt.NDArray[np.float64]) -> Features:
    """Centring with a mean and a spread that are known."""
    return ((features - mean) / np.maximum(spread, 1e-6)).astype(np.float32)
