"""Tiles → features, computed once and kept on disk under a hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from platformdirs import user_cache_dir
from torch import Tensor, nn
from tqdm.auto import tqdm

from hescribe.encoders.engines.streams import MOST, Streams
from hescribe.encoders.maps.tokens import MeanOfTokens, TokenTower
from hescribe.encoders.record import Encoder
from hescribe.errors import InputError
from hescribe.io.store import write_atomically
from hescribe.predictor import TileSource
from hescribe.types import Context, Features, Microns, TileArray, TilePx

Precision = Literal["fp32", "bf16"]
_VERSION = 1  #: raise when the way features are computed changes


@dataclass(frozen=True)
class Extraction:
    """How features are computed; part of what a bundle remembers.

    Attributes
    ----------
    tile_um
        Side of a tile, µm.
    views
        1, or 4 or 8: average the features over the tile's right-angle rotations (and mirror images).
    batch_size
        Tiles at once. Kept with the bundle, since sums inside a batched product may depend on it.
    precision
        ``fp32``, or ``bf16`` autocast.
    context
        What of the surroundings is described besides the tile.
    """

    tile_um: Microns = 112.0
    views: int = 1
    batch_size: int = 16
    precision: Precision = "fp32"
    context: Context = field(default_factory=Context)


def cache_folder() -> Path:
    """Where features are kept: ``$HESCRIBE_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("HESCRIBE_CACHE") or user_cache_dir("hescribe"))


def extract_features(
    tiles: TileSource, encoder: Encoder, how: Extraction, *, device: str = "cpu", use_cache: bool = True
) -> Features:
    """Features of every tile.

    Parameters
    ----------
    tiles
        Tiles of one slide.
    encoder
        The encoder.
    how
        Tile side, views, batch and precision.
    device
        Torch device.
    use_cache
        Read and write the cache on disk.

    Returns
    -------
    ndarray
        (n, encoder.width) float32.
    """
    path = cache_folder() / "features" / f"{_key(tiles, encoder, how, device)}.npy"
    if use_cache and path.is_file():
        return np.load(path, allow_pickle=False)
    features = _compute(tiles, encoder, how, device)
    if use_cache:
        with write_atomically(path) as temporary, temporary.open("wb") as file:
            np.save(file, features, allow_pickle=False)
    return features


def _key(tiles: TileSource, encoder: Encoder, how: Extraction, device: str) -> str:
    facts = [_VERSION, tiles.fingerprint(), encoder.identity, how.tile_um, how.views, how.batch_size, how.precision]
    kind = torch.device(device).type
    return hashlib.blake2b(json.dumps([*facts, kind]).encode(), digest_size=16).hexdigest()


def _compute(tiles: TileSource, encoder: Encoder, how: Extraction, device: str) -> Features:
    out = np.empty((len(tiles), encoder.width), dtype=np.float32)
    for start, features in _encoded(tiles, encoder, encoder.module, how, device):
        out[start : start + len(features)] = features
    return out


def _encoded(
    tiles: TileSource, encoder: Encoder, module: nn.Module, how: Extraction, device: str
) -> Iterator[tuple[int, Features]]:
    """What a module of the encoder gives for all tiles, some at a time, each with the number of its first."""
    module = module.to(device).to(memory_format=torch.channels_last).eval()
    together = how.batch_size
    if torch.device(device).type == "cpu":  # batches stay what they are, and go side by side
        module, together = Streams(module, how.batch_size), how.batch_size * min(torch.get_num_threads(), MOST)
    start = 0
    label = f"{tiles.slide_id}: {encoder.name.split('@')[0]}"
    # One of several processes that train together is as silent as its log
    hidden = None if logging.getLogger("hescribe").isEnabledFor(logging.WARNING) else True
    with tqdm(total=len(tiles), desc=label, unit="tile", disable=hidden, leave=False) as bar:
        for batch in read_batches(tiles, how.tile_um, encoder.input_px, together):
            features = encode_batch(module, to_tensor(batch, device), views=how.views, precision=how.precision)
            yield start, features.cpu().numpy()
            start += len(batch)
            bar.update(len(batch))


def token_stack(tiles: TileSource, encoder: Encoder, how: Extraction, *, device: str = "cpu") -> np.memmap:
    """Tokens of every tile as one (n, t, width) float16 array on disk, for training a method that works on them.

    Parameters
    ----------
    tiles
        Tiles of one slide.
    encoder
        As `mean_of_tokens` gives it.
    how, device
        As for `extract_features`; one view, since the places of a turned tile are others.

    Raises
    ------
    InputError
        They are no finite numbers, or none in half precision.
    """
    assert isinstance(encoder.module, MeanOfTokens)  # noqa: S101 - the caller made it so
    path = cache_folder() / "tokens" / f"{_key(tiles, encoder, how, device)}.npy"
    if not path.is_file():
        with write_atomically(path) as temporary:
            stack = None
            for start, tokens in _encoded(tiles, encoder, TokenTower(encoder.module), how, device):
                if stack is None:
                    shape = (len(tiles), *tokens.shape[1:])
                    stack = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
                stack[start : start + len(tokens)] = tokens
                if not np.isfinite(stack[start : start + len(tokens)]).all():
                    what = f"section {tiles.slide_id!r}: the encoder gives features that are no finite numbers"
                    raise InputError(what, path=encoder.name, fix="are its weights whole?")
            del stack
    return np.load(path, mmap_mode="r", allow_pickle=False)


@torch.inference_mode()
def encode_batch(module: nn.Module, images: Tensor, *, views: int = 1, precision: Precision = "fp32") -> Tensor:
    """Features of a batch of tiles, averaged over their symmetries.

    Parameters
    ----------
    module
        An encoder's module, on the device of the images, with its weights in channels-last order.
    images
        (n, 3, side, side) uint8.
    views, precision
        As in ``Extraction``.

    Returns
    -------
    Tensor
        (n, width) float32, or (n, t, width) of a module that gives tokens.
    """
    total = torch.zeros((), device=images.device)
    # Weights that autocast has converted are kept for all threads alike: on a GPU, where each thread has a stream of
    # its own, another could read them before they are written
    kept = images.device.type == "cpu"
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=kept):
        for view in dihedral_views(images, views):
            total = total + module(view.contiguous(memory_format=torch.channels_last)).float()
    return total / views


def dihedral_views(images: Tensor, views: int) -> Iterator[Tensor]:
    """The first 1, 4 or 8 of a square's symmetries: right-angle rotations, then their mirror images."""
    for view in range(views):
        # Turned by nothing, it would be copied all the same, out of channels-last order, and then back again
        rotated = torch.rot90(images, view % 4, dims=(2, 3)) if view % 4 else images
        yield rotated.flip(3) if view >= 4 else rotated


def to_tensor(tiles: TileArray, device: str) -> Tensor:
    """(n, side, side, 3) uint8 array → (n, 3, side, side) uint8 tensor."""
    return torch.tensor(tiles, device=device).permute(0, 3, 1, 2)


def read_batches(tiles: TileSource, tile_um: Microns, size_px: TilePx, batch_size: int) -> Iterator[TileArray]:
    """Batches in order, the next one being read while the caller works on this one."""
    chunks = [np.arange(i, min(i + batch_size, len(tiles))) for i in range(0, len(tiles), batch_size)]
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = None
        for chunk in chunks:
            ready = pending
            pending = pool.submit(tiles.read, chunk, tile_um=tile_um, size_px=size_px)
            if ready is not None:
                yield ready.result()
        if pending is not None:
            yield pending.result()


def tile_stack(tiles: TileSource, tile_um: Microns, size_px: TilePx) -> np.memmap:
    """All tiles as one (n, size_px, size_px, 3) uint8 array on disk, for training on images.

    Cut once and kept in the cache, so that an epoch never opens a slide.
    """
    facts = json.dumps(["tiles", _VERSION, tiles.fingerprint(), tile_um, size_px])
    path = cache_folder() / "tiles" / f"{hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()}.npy"
    if not path.is_file():
        with write_atomically(path) as temporary:
            shape = (len(tiles), size_px, size_px, 3)
            stack = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            start = 0
            for batch in read_batches(tiles, tile_um, size_px, 64):
                stack[start : start + len(batch)] = batch
                start += len(batch)
            stack.flush()
            del stack
    return np.load(path, mmap_mode="r", allow_pickle=False)
