"""Tiles: squares of a stated side in µm, centred on spots or on a grid."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hescribe.errors import InputError
from hescribe.slides.reader import Slide, open_slide
from hescribe.types import Centres, Microns, Mpp, TileArray, TilePx

HEST_PATCH_UM = 112.0  #: side of the patches HEST-1k stores: 224 px at 0.5 µm per pixel


class SlideTiles:
    """Tiles cut from a slide; a `hescribe.predictor.TileSource`.

    Parameters
    ----------
    path
        The image; opened on first use, so that the object may travel to a worker.
    centres
        (n, 2) x, y of the tile centres in full-resolution pixels.
    mpp
        µm per full-resolution pixel.
    slide_id
        Name of the slide or section.
    """

    def __init__(self, path: Path, centres: Centres, *, mpp: Mpp, slide_id: str) -> None:
        self._path = path
        self.centres: Centres = np.ascontiguousarray(centres, dtype=np.float64)
        self.mpp = mpp
        self.slide_id = slide_id

    def __len__(self) -> int:
        return len(self.centres)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "slide"}

    @cached_property
    def slide(self) -> Slide:
        """The open slide."""
        return open_slide(self._path)

    def fingerprint(self) -> str:
        """Hash of image, scale and centres."""
        digest = hashlib.blake2b(self.slide.content_hash.encode(), digest_size=16)
        digest.update(np.float64(self.mpp).tobytes() + self.centres.tobytes())
        return digest.hexdigest()

    def read(self, indices: npt.NDArray[np.intp], *, tile_um: Microns, size_px: TilePx) -> TileArray:
        """Tiles ``indices``: (n, size_px, size_px, 3) uint8 RGB, white beyond the slide's edge."""
        out = np.empty((len(indices), size_px, size_px, 3), dtype=np.uint8)
        for i, index in enumerate(indices):
            out[i] = self._tile(self.centres[index], tile_um / self.mpp, size_px)
        return out

    def _tile(self, centre: Centres, side_px: float, size_px: TilePx) -> TileArray:
        # The coarsest level that still has a pixel for each pixel of the tile
        fitting = [i for i, d in enumerate(self.slide.downsamples) if side_px / d >= size_px]
        level = fitting[-1] if fitting else 0
        scale = self.slide.downsamples[level]
        side = max(1, round(side_px / scale))
        x, y = (int(np.floor(c / scale - side / 2 + 0.5)) for c in centre)
        return resize(self.slide.read_region(x, y, side, side, level=level), size_px)

    def check_inside(self) -> None:
        """Refuse centres that lie outside the image.

        Raises
        ------
        InputError
            Says how many, and the size of the image.
        """
        x, y = self.centres.T
        outside = (x < 0) | (y < 0) | (x >= self.slide.width) | (y >= self.slide.height)
        if outside.any():
            raise InputError(
                f"{outside.sum()} of {len(self)} spots lie outside the image of {self.slide.width} × {self.slide.height} px "
                f"(spots reach x {x.max():.0f}, y {y.max():.0f})",
                path=self._path,
                fix="are positions in full-resolution pixels, and is this the section's image?",
            )


class PatchTiles:
    """Tiles that were cut before, as HEST-1k stores them; a `hescribe.predictor.TileSource`.

    Parameters
    ----------
    path
        HDF5 file with ``img`` (n, side, side, 3), ``barcode`` and ``coords``.
    spots
        Spot ids, in the order wanted.
    centres
        (n, 2) full-resolution pixels.
    mpp
        µm per full-resolution pixel.
    slide_id
        Name of the section.
    """

    def __init__(self, path: Path, spots: list[str], centres: Centres, *, mpp: Mpp, slide_id: str) -> None:
        self._path = path
        self.centres: Centres = np.ascontiguousarray(centres, dtype=np.float64)
        self.mpp = mpp
        self.slide_id = slide_id
        self._rows = _patch_rows(path, spots)

    def __len__(self) -> int:
        return len(self.centres)

    @cached_property
    def _hash(self) -> str:
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    def fingerprint(self) -> str:
        """Hash of the file and of the rows in use."""
        return hashlib.blake2b(self._hash.encode() + self._rows.tobytes(), digest_size=16).hexdigest()

    def read(self, indices: npt.NDArray[np.intp], *, tile_um: Microns, size_px: TilePx) -> TileArray:
        """Tiles ``indices``; a side below 112 µm is cut from the middle.

        Raises
        ------
        InputError
            A side above 112 µm: the patches hold no more.
        """
        import h5py

        if tile_um > HEST_PATCH_UM * 1.001:
            raise InputError(
                f"tiles of {tile_um:g} µm are asked for, but its patches are {HEST_PATCH_UM:g} µm wide",
                path=self._path,
                fix="give the whole-slide image, or --tile-um 112 or less",
            )
        with h5py.File(self._path) as file:
            patches = np.stack([file["img"][self._rows[i]] for i in indices])
        side = patches.shape[1]
        cut = max(1, round(side * min(1.0, tile_um / HEST_PATCH_UM)))
        start = (side - cut) // 2
        inner = patches[:, start : start + cut, start : start + cut, :3]
        return np.stack([resize(p, size_px) for p in inner])


def _patch_rows(path: Path, spots: list[str]) -> npt.NDArray[np.intp]:
    import h5py

    try:
        with h5py.File(path) as file:
            barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in np.ravel(file["barcode"][:])]
            shape = file["img"].shape
    except (OSError, KeyError) as error:
        raise InputError(
            f"not a readable file of patches ({error})", path=path, fix="needs img, barcode, coords"
        ) from error
    if len(shape) != 4 or shape[0] != len(barcodes) or shape[1] != shape[2]:
        raise InputError(f"img has shape {shape} for {len(barcodes)} barcodes", path=path)
    row = {b: i for i, b in enumerate(barcodes)}
    missing = [s for s in spots if s not in row]
    if missing:
        raise InputError(f"{len(missing)} of {len(spots)} spots have no patch (for example {missing[0]!r})", path=path)
    return np.array([row[s] for s in spots], dtype=np.intp)


def patch_barcodes(path: Path) -> set[str]:
    """Barcodes that a file of patches holds."""
    import h5py

    try:
        with h5py.File(path) as file:
            return {b.decode() if isinstance(b, bytes) else str(b) for b in np.ravel(file["barcode"][:])}
    except (OSError, KeyError) as error:
        raise InputError(
            f"not a readable file of patches ({error})", path=path, fix="needs img, barcode, coords"
        ) from error


def resize(image: TileArray, size_px: TilePx) -> TileArray:
    """A square image at another size: averaging when it shrinks, cubic when it grows."""
    import cv2

    if image.shape[0] == size_px:
        return image
    method = cv2.INTER_AREA if image.shape[0] > size_px else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size_px, size_px), interpolation=method))
