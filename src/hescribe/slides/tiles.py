"""Tiles: squares of a stated side in µm, centred on spots or on a grid."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hescribe.errors import InputError
from hescribe.predictor import TileSource
from hescribe.slides.reader import Slide, open_slide
from hescribe.slides.slide import hash_file
from hescribe.types import Centres, Microns, Mpp, TileArray, TilePx

HEST_MPP = 0.5  #: µm per pixel of the patches HEST-1k stores; they are 224 px wide, 256 in its first release


@dataclass(frozen=True)
class Placement:
    """Where tiles lie on a level of a slide.

    Attributes
    ----------
    level
        The level they are cut from.
    side
        Their side there, pixels.
    corners
        (n, 2) int64 upper left corners there.
    """

    level: int
    side: int
    corners: npt.NDArray[np.int64]


def place_tiles(downsamples: tuple[float, ...], centres: Centres, *, side_px: float, size_px: TilePx) -> Placement:
    """The coarsest level that still has a pixel for each pixel of the tile, and the tiles there.

    Parameters
    ----------
    downsamples
        Of the slide's levels.
    centres
        (n, 2) full-resolution pixels.
    side_px
        Side of a tile, full-resolution pixels.
    size_px
        Side to which the tile will be scaled.
    """
    # Rounded, as downsamplings are not quite whole
    fitting = [i for i, d in enumerate(downsamples) if round(side_px / d) >= size_px]
    level = fitting[-1] if fitting else 0
    scale = downsamples[level]
    side = max(1, round(side_px / scale))
    return Placement(level, side, np.floor(centres / scale - side / 2 + 0.5).astype(np.int64))


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

    def at(self, centres: Centres) -> SlideTiles:
        """Tiles of the same slide, centred elsewhere; beyond its edge they are white."""
        moved = SlideTiles(self._path, centres, mpp=self.mpp, slide_id=self.slide_id)
        moved.slide = self.slide
        return moved

    def fingerprint(self) -> str:
        """Hash of image, scale and centres."""
        return _fingerprint(self.slide.content_hash, self.mpp, self.centres)

    def read(self, indices: npt.NDArray[np.intp], *, tile_um: Microns, size_px: TilePx) -> TileArray:
        """Tiles ``indices``: (n, size_px, size_px, 3) uint8 RGB, white beyond the slide's edge."""
        out = np.empty((len(indices), size_px, size_px, 3), dtype=np.uint8)
        where = place_tiles(self.slide.downsamples, self.centres[indices], side_px=tile_um / self.mpp, size_px=size_px)
        for i, (x, y) in enumerate(where.corners.tolist()):
            out[i] = resize(self.slide.read_region(x, y, where.side, where.side, level=where.level), size_px)
        return out

    def check_inside(self) -> None:
        """Refuse centres that lie outside the image.

        Raises
        ------
        InputError
            Says how many, and the size of the image.
        """
        x, y = self.centres.T
        inside = (x >= 0) & (y >= 0) & (x < self.slide.width) & (y < self.slide.height)
        outside = ~inside  # true of NaN as well
        if outside.any():
            raise InputError(
                f"{outside.sum()} of {len(self)} spots lie outside the image of {self.slide.width} × {self.slide.height} px "
                f"(spots reach x {x.max():.0f}, y {y.max():.0f})",
                path=self._path,
                fix="are positions in full-resolution pixels, and is this the section's image?",
            )


@dataclass(frozen=True)
class SomeTiles:
    """Some tiles of a slide, in the order of ``rows``; a `hescribe.predictor.TileSource`."""

    whole: TileSource
    rows: npt.NDArray[np.intp]

    @property
    def slide_id(self) -> str:
        """That of the slide."""
        return self.whole.slide_id

    @property
    def centres(self) -> Centres:
        """(n, 2) positions."""
        return self.whole.centres[self.rows]

    @property
    def mpp(self) -> Mpp:
        """µm per full-resolution pixel."""
        return self.whole.mpp

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, centres: Centres) -> TileSource:
        """Tiles of the same slide, centred elsewhere."""
        return self.whole.at(centres)

    def fingerprint(self) -> str:
        """Hash of the slide's tiles and of the rows."""
        return hashlib.blake2b(self.whole.fingerprint().encode() + self.rows.tobytes(), digest_size=16).hexdigest()

    def read(self, indices: npt.NDArray[np.intp], *, tile_um: Microns, size_px: TilePx) -> TileArray:
        """Tiles ``indices`` of these rows."""
        return self.whole.read(self.rows[indices], tile_um=tile_um, size_px=size_px)


class PatchTiles:
    """Tiles that were cut before, as HEST-1k stores them; a `hescribe.predictor.TileSource`.

    Parameters
    ----------
    path
        HDF5 file with ``img`` (n, side, side, 3) at 0.5 µm per pixel, ``barcode`` and ``coords``.
    spots
        Spot ids, in the order wanted.
    centres
        (n, 2) full-resolution pixels.
    mpp
        µm per full-resolution pixel of the slide, not of the stored tiles.
    slide_id
        Name of the section.

    Raises
    ------
    InputError
        The file is malformed, or has no tile for a spot.
    """

    def __init__(self, path: Path, spots: list[str], centres: Centres, *, mpp: Mpp, slide_id: str) -> None:
        self._path = path
        self.centres: Centres = np.ascontiguousarray(centres, dtype=np.float64)
        self.mpp = mpp
        self.slide_id = slide_id
        row = {barcode: i for i, barcode in enumerate(patch_barcodes(path))}
        missing = [s for s in spots if s not in row]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(spots)} spots have no patch (for example {missing[0]!r})", path=path
            )
        self._rows = np.array([row[s] for s in spots], dtype=np.intp)

    def __len__(self) -> int:
        return len(self.centres)

    def at(self, centres: Centres) -> PatchTiles:
        """Not to be had: there is no slide to cut them from."""
        raise InputError(
            "this method looks at tiles around a spot, but the patches hold the spots alone",
            path=self._path,
            fix="give the whole-slide image",
        )

    def fingerprint(self) -> str:
        """Hash of the file, the rows in use, the scale and the centres."""
        return _fingerprint(hash_file(self._path) + self._rows.tobytes().hex(), self.mpp, self.centres)

    def read(self, indices: npt.NDArray[np.intp], *, tile_um: Microns, size_px: TilePx) -> TileArray:
        """Tiles ``indices``; a side below that of the patches (112 µm) is cut from the middle.

        Raises
        ------
        InputError
            A larger side: the patches hold no more.
        """
        import h5py

        out = np.empty((len(indices), size_px, size_px, 3), dtype=np.uint8)
        try:
            with h5py.File(self._path) as file:
                stored = file["img"]
                inner = self._middle(stored.shape[1], tile_um)
                for i, index in enumerate(indices):
                    out[i] = resize(stored[self._rows[index], inner, inner, :3], size_px)
        except OSError as error:
            raise InputError(f"cannot be read ({error}); is it damaged or truncated?", path=self._path) from error
        return out

    def _middle(self, side: int, tile_um: Microns) -> slice:
        widest = side * HEST_MPP
        if tile_um > widest * 1.001:
            raise InputError(
                f"tiles of {tile_um:g} µm are asked for, but its patches are {widest:g} µm wide",
                path=self._path,
                fix=f"give the whole-slide image, or --tile-um {widest:g} or less",
            )
        cut = min(side, max(1, round(tile_um / HEST_MPP)))
        start = (side - cut) // 2
        return slice(start, start + cut)


def patch_barcodes(path: Path) -> list[str]:
    """Spot ids of a file of patches, in its order.

    Raises
    ------
    InputError
        The file is malformed.
    """
    import h5py

    try:
        with h5py.File(path) as file:
            barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in np.ravel(file["barcode"][:])]
            shape, dtype = file["img"].shape, file["img"].dtype
    except (OSError, KeyError, AttributeError) as error:
        raise InputError(
            f"not a readable file of patches ({error})", path=path, fix="needs img, barcode, coords"
        ) from error
    if len(shape) != 4 or shape[0] != len(barcodes) or shape[1] != shape[2] or shape[3] < 3 or dtype != np.uint8:
        raise InputError(f"img has shape {shape} of {dtype} for {len(barcodes)} barcodes", path=path)
    return barcodes


def patch_mpp(path: Path, spots: list[str], centres: Centres) -> Mpp | None:
    """µm per full-resolution pixel of the slide that patches were cut from; None where the file does not tell.

    ``coords`` are the patches' upper left corners on the slide, so a corner and the spot's centre lie half a patch
    apart; in µm a patch is as wide as its stored pixels make it.
    """
    import h5py

    with h5py.File(path) as file:
        corners = np.asarray(file["coords"][:], dtype=np.float64) if "coords" in file else np.empty(0)
        side_um = file["img"].shape[1] * HEST_MPP
    row = {barcode: i for i, barcode in enumerate(patch_barcodes(path))}
    shared = [(row[s], i) for i, s in enumerate(spots) if s in row]
    if corners.shape != (len(row), 2) or not shared:
        return None
    theirs, ours = np.array(shared).T
    half = float(np.median(np.asarray(centres)[ours] - corners[theirs]))
    return side_um / (2 * half) if half > 0 else None


def _fingerprint(content: str, mpp: Mpp, centres: Centres) -> str:
    digest = hashlib.blake2b(content.encode(), digest_size=16)
    digest.update(np.float64(mpp).tobytes() + centres.tobytes())
    return digest.hexdigest()


def resize(image: TileArray, size_px: TilePx) -> TileArray:
    """A square image at another size: averaging when it shrinks, cubic when it grows."""
    import cv2

    if image.shape[0] == size_px:
        return image
    method = cv2.INTER_AREA if image.shape[0] > size_px else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size_px, size_px), interpolation=method))
