"""Opening slides: whole-slide formats through wsidata, plain JPEG and PNG by decoding them once."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hescribe.errors import HescribeWarning, InputError
from hescribe.types import Mpp

Rgb = npt.NDArray[np.uint8]  #: (height, width, 3)

_PLAIN = {".jpg", ".jpeg", ".png"}
_LARGEST_PLAIN = 1_000_000_000  #: pixels of a plain image that is decoded whole: 3 GB
_DECODED = 2  #: plain images kept decoded (HER2ST: 280 MB each)
_PLAUSIBLE_MPP = (0.05, 20.0)


class Slide(ABC):
    """An image of tissue.

    Attributes
    ----------
    path
        Its file.
    width, height
        Full-resolution pixels.
    mpp
        µm per pixel by the file's own metadata; None where it does not say.
    downsamples
        Of the pyramid's levels; the first is 1.
    """

    path: Path
    width: int
    height: int
    mpp: Mpp | None
    downsamples: tuple[float, ...]

    @abstractmethod
    def _read(self, x: int, y: int, width: int, height: int, *, level: int) -> Rgb:
        """A region that lies inside the level."""

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb:
        """Region of a level, white where it leaves the image.

        Parameters
        ----------
        x, y
            Upper left corner, in the *level's* pixels.
        width, height
            Size, in the level's pixels.
        level
            0 is full resolution.

        Returns
        -------
        ndarray
            (height, width, 3) uint8 RGB.
        """
        scale = self.downsamples[level]
        level_width, level_height = int(self.width / scale), int(self.height / scale)
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, level_width), min(y + height, level_height)
        out = np.full((height, width, 3), 255, dtype=np.uint8)
        if right > left and bottom > top:
            inside = self._read(left, top, right - left, bottom - top, level=level)
            out[top - y : bottom - y, left - x : right - x] = inside
        return out

    def thumbnail(self, max_px: int) -> Rgb:
        """The whole slide, its longer side at most ``max_px``."""
        import cv2

        wanted = max(self.width, self.height) / max_px
        fitting = [i for i, d in enumerate(self.downsamples) if d <= max(wanted, 1.0)]
        level = fitting[-1]
        scale = self.downsamples[level]
        image = self.read_region(0, 0, int(self.width / scale), int(self.height / scale), level=level)
        shrink = min(1.0, max_px / max(image.shape[:2]))
        size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink)))
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))

    @cached_property
    def content_hash(self) -> str:
        """Hash of the file's bytes."""
        return _hash_file(self.path, self.path.stat().st_size, self.path.stat().st_mtime_ns)


class PlainImage(Slide):
    """A JPEG or PNG: one level, decoded whole, kept while it is among the last that were used.

    Pixel coordinates are those of the stored raster; an EXIF orientation is *not* applied, since spot files are
    made on the raster. Resolution tags are not believed: they hold what a photo editor wrote.
    """

    mpp = None
    downsamples = (1.0,)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.width, self.height = _plain_size(path)

    def _read(self, x: int, y: int, width: int, height: int, *, level: int) -> Rgb:
        return _decode(self.path, self.path.stat().st_mtime_ns)[y : y + height, x : x + width]


class WholeSlide(Slide):
    """Any format that OpenSlide or TiffSlide opens, through wsidata."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: Any = _open_wsi(path)
        properties = self._reader.properties
        self.height, self.width = (int(v) for v in properties.shape)
        self.downsamples = tuple(float(d) for d in properties.level_downsample)
        mpp = properties.mpp
        self.mpp = float(mpp) if mpp and _PLAUSIBLE_MPP[0] <= float(mpp) <= _PLAUSIBLE_MPP[1] else None

    def _read(self, x: int, y: int, width: int, height: int, *, level: int) -> Rgb:
        scale = self.downsamples[level]
        try:
            region = self._reader.get_region(round(x * scale), round(y * scale), width, height, level=level)
        except Exception as error:  # each backend raises its own kinds
            raise InputError(
                f"cannot be read at ({x}, {y}): {error}; is it damaged or truncated?", path=self.path
            ) from error
        return np.asarray(region)[..., :3].astype(np.uint8, copy=False)


def open_slide(path: str | Path) -> Slide:
    """Open a slide.

    Raises
    ------
    InputError
        Missing, not an image, damaged or truncated.
    """
    file = Path(path)
    if not file.exists():
        raise InputError("no such image", path=file, fix="check the manifest's column 'image'")
    if file.is_dir():
        raise InputError("a folder, not an image", path=file)
    if file.stat().st_size == 0:
        raise InputError("the image is empty (0 bytes)", path=file)
    return PlainImage(file) if file.suffix.lower() in _PLAIN else WholeSlide(file)


def resolve_mpp(*, metadata: Mpp | None, pitch: Mpp | None, manifest: Mpp | None, path: Path) -> Mpp:
    """µm per pixel from, in order of trust, the image's metadata, the spots' pitch and the manifest.

    Warns (`HescribeWarning`) where two of them differ by more than 10 %.

    Raises
    ------
    InputError
        None of them is known.
    """
    sources = {"the image's metadata": metadata, "the spots' pitch": pitch, "the manifest": manifest}
    known = {name: value for name, value in sources.items() if value}
    if not known:
        raise InputError("µm per pixel is not known", path=path, fix="fill the manifest's column 'mpp'")
    (trusted, mpp), *others = known.items()
    for name, value in others:
        if abs(value / mpp - 1) > 0.1:
            warnings.warn(
                f"{path}: µm per pixel is {mpp:.3f} by {trusted} but {value:.3f} by {name}; {trusted} is used",
                HescribeWarning,
                stacklevel=2,
            )
    return float(mpp)


def _plain_size(path: Path) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, larger limit follows
            with Image.open(path) as image:
                width, height = image.size
                mode = image.mode
    except Image.DecompressionBombError:
        width, height, mode = _LARGEST_PLAIN, 2, "RGB"
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"not a readable image ({error})", path=path) from error
    if width * height > _LARGEST_PLAIN:
        raise InputError(
            f"more than {_LARGEST_PLAIN / 1e9:g} billion pixels in a plain image",
            path=path,
            fix="convert it to a tiled TIFF",
        )
    if mode not in {"RGB", "RGBA", "L", "P", "1"}:
        raise InputError(f"colour mode {mode} is not supported", path=path, fix="save it as 8-bit RGB")
    return int(width), int(height)


@lru_cache(maxsize=_DECODED)
def _decode(path: Path, changed: int) -> Rgb:
    """The whole image; ``changed`` makes a file that was rewritten be read again."""
    import cv2

    # OpenCV fills what a truncated file lacks with grey and says nothing, so the end is checked first
    _check_complete(path)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imread(str(path), flags)
    if image is None:
        raise InputError("cannot be decoded; is it damaged?", path=path)
    return np.ascontiguousarray(image[:, :, ::-1])


def _check_complete(path: Path) -> None:
    """InputError for a JPEG or PNG that ends too early."""
    marker = b"\xff\xd9" if path.suffix.lower() != ".png" else b"IEND"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        if marker not in file.read():
            raise InputError("the image is truncated (its end is missing)", path=path, fix="copy it again")


def _open_wsi(path: Path) -> Any:
    from wsidata import open_wsi

    reasons = []
    for reader in ("openslide", "tiffslide"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return open_wsi(path, store=None, reader=reader).reader  # type: ignore[arg-type] # None: no store is made
        except Exception as error:  # each backend raises its own kinds
            reasons.append(" ".join(str(error).split())[:120] or type(error).__name__)
    raise InputError(f"no reader opens this image (OpenSlide: {reasons[0]}; TiffSlide: {reasons[1]})", path=path)


@lru_cache(maxsize=1024)
def _hash_file(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
