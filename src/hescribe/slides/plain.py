"""Images without tiles: decoded once, whole, and cut from memory."""

from __future__ import annotations

import html
import re
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from hescribe.errors import InputError
from hescribe.slides.slide import Rgb, Slide, implausible_mpp, on_white, plausible_mpp
from hescribe.types import Mpp

LARGEST_PLAIN = 1_000_000_000  #: pixels of an image that is decoded whole: 3 GB
LARGEST_BLOCK = 4096  #: pixels of a side of a TIFF's blocks
_DECODED = 2  #: images kept decoded (HER2ST: 280 MB each)
_DECODING = Lock()
_TAIL = 65_536  #: bytes at the end in which the end marker must stand; some cameras append to it
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  #: how the files begin
_INCH, _CENTIMETRE = 2, 3  #: TIFF's resolution units
_OME_UNITS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
_SQUARE = 0.05  #: sides of a pixel that differ by more are refused
_MICRONS = {_INCH: 25_400.0, _CENTIMETRE: 10_000.0}


class _Decoded(Slide):
    """One level, decoded whole, kept while it is among the last that were used."""

    downsamples = (1.0,)

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self.path = path
        self.width, self.height = size
        self.level_sizes = (size,)
        if self.width * self.height > LARGEST_PLAIN:
            raise InputError(
                f"{self.width} × {self.height} px are too many to decode at once (limit {LARGEST_PLAIN:,} pixels)",
                path=path,
                fix="convert it to a tiled, pyramidal TIFF",
            )

    def _read(self, x: int, y: int, width: int, height: int, *, level: int) -> Rgb:
        with _DECODING:  # else threads that come together would each decode it
            whole = _decode(self.path, self.path.stat().st_mtime_ns)
        return whole[y : y + height, x : x + width]


class PlainImage(_Decoded):
    """A JPEG or PNG.

    Pixel coordinates are those of the stored raster; an EXIF orientation is *not* applied, since spot files are
    made on the raster. Resolution tags are the last to be believed: they may hold what a photo editor wrote.
    """

    mpp = None

    def __init__(self, path: Path) -> None:
        size, self.tag_mpp = _plain_facts(path)
        super().__init__(path, size)


class FlatTiff(_Decoded):
    """A TIFF in strips: cutting a tile would decode whole rows of the image, again for every tile."""

    def __init__(self, path: Path) -> None:
        page = tiff_facts(path)
        super().__init__(path, page["size"])
        if page["problem"]:
            raise InputError(page["problem"], path=path, fix="save it as 8-bit RGB")
        self.mpp: Mpp | None = page["mpp"]
        self.refused_mpp = page["refused_mpp"]


def tiff_facts(path: Path) -> dict[str, Any]:
    """Size, µm per pixel (and those refused) and layout of a TIFF's first page, and what keeps it from being read.

    Raises
    ------
    InputError
        Not a TIFF, or its directory is damaged.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            by_tags, by_ome = _tag_sides(page), _ome_sides(tiff.ome_metadata or "")
            sides = _plausible(by_tags) or _plausible(by_ome)
            return {
                "size": (int(page.imagewidth), int(page.imagelength)),
                "tiled": bool(page.is_tiled),
                "mpp": sides[0] if sides else None,
                "refused_mpp": implausible_mpp(*by_tags, *by_ome),
                "problem": _tiff_problem(page) or _side_problem(sides),
            }
    except Exception as error:  # tifffile raises many kinds for damaged files
        raise InputError(f"not a readable TIFF ({error}); is it damaged or truncated?", path=path) from error


def _tiff_problem(page: Any) -> str:
    from tifffile import COMPRESSION, PHOTOMETRIC

    if page.dtype != np.uint8:
        return f"{page.dtype} pixels are not supported"
    if page.is_tiled and max(page.tilewidth, page.tilelength) > LARGEST_BLOCK:
        return f"blocks of {page.tilewidth:,} × {page.tilelength:,} px are too large to be decoded one by one"
    known = {PHOTOMETRIC.RGB, PHOTOMETRIC.MINISBLACK}
    # JPEG's own colours are turned into RGB while decoding; tiles are decoded by a library that knows more
    if page.photometric not in known and not (
        page.photometric == PHOTOMETRIC.YCBCR
        and (page.is_tiled or page.compression in {COMPRESSION.JPEG, COMPRESSION.OJPEG})
    ):
        return f"colour mode {page.photometric.name} is not supported"
    if page.samplesperpixel == 1 and "C" in page.parent.series[0].axes:
        return "channels in pages of their own are not supported"
    if page.samplesperpixel in {1, 3} or _is_rgba(page):
        return ""
    return f"{page.samplesperpixel} channels that are not RGB are not supported"


def _is_rgba(page: Any) -> bool:
    from tifffile import EXTRASAMPLE

    transparent = {EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA}
    return bool(page.samplesperpixel == 4 and len(page.extrasamples) == 1 and page.extrasamples[0] in transparent)


def _tag_sides(page: Any) -> list[float]:
    """µm per pixel across and down, by the resolution tags; empty where they do not say."""
    try:
        unit = _MICRONS[int(page.tags["ResolutionUnit"].value)]
        ratios = [page.tags[f"{axis}Resolution"].value for axis in "XY"]
        return [unit * per / pixels for pixels, per in ratios]
    except (KeyError, ZeroDivisionError, TypeError, ValueError):
        return []


def _ome_sides(description: str) -> list[float]:
    """The same by the first image's ``PhysicalSizeX`` and ``PhysicalSizeY`` of OME-XML."""
    sides = []
    for axis in "XY":
        size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', description)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', description)
        try:
            sides.append(float(size[1]) * _OME_UNITS[html.unescape(unit[1]) if unit else "µm"])  # type: ignore[index]
        except (KeyError, TypeError, ValueError):
            return []
    return sides


def _plausible(sides: list[float]) -> tuple[Mpp, Mpp] | None:
    known = [mpp for side in sides if (mpp := plausible_mpp(side))]
    return (known[0], known[1]) if len(known) == 2 else None


def _side_problem(sides: tuple[Mpp, Mpp] | None) -> str:
    if sides is None or abs(sides[0] / sides[1] - 1) <= _SQUARE:
        return ""
    return f"pixels of {sides[0]:g} × {sides[1]:g} µm are not square"


def _plain_facts(path: Path) -> tuple[tuple[int, int], Mpp | None]:
    """(width and height, µm per pixel by the resolution tag)."""
    # The plugins are used directly: Image.open refuses what it holds for a decompression bomb, far below our limit
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    kinds = {"JPEG": JpegImageFile, "PNG": PngImageFile}
    magic = _first_bytes(path)
    kind = "PNG" if magic == _PNG else "JPEG" if magic.startswith(_JPEG) else None
    if kind is None:
        raise InputError("not a readable image (its content is neither JPEG nor PNG)", path=path)
    try:
        with kinds[kind](path) as image:
            (width, height), mode, per_inch = image.size, image.mode, image.info.get("dpi", ())
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise InputError(f"not a readable {kind} ({error})", path=path) from error
    if mode not in {"RGB", "RGBA", "L", "P", "1"}:
        raise InputError(f"colour mode {mode} is not supported", path=path, fix="save it as 8-bit RGB")
    sides = _plausible([_MICRONS[_INCH] / float(pixels) for pixels in per_inch if pixels])
    return (int(width), int(height)), sides[0] if sides and not _side_problem(sides) else None


@lru_cache(maxsize=_DECODED)
def _decode(path: Path, changed: int) -> Rgb:
    """The whole image; ``changed`` makes a file that was rewritten be read again."""
    return _decode_tiff(path) if path.suffix.lower() in {".tif", ".tiff"} else _decode_plain(path)


def _decode_plain(path: Path) -> Rgb:
    import cv2

    # OpenCV fills what a truncated file lacks with grey and says nothing, so the end is checked first
    _check_complete(path)
    png = _first_bytes(path) == _PNG
    # Only a PNG can be transparent; unchanged, its 16-bit values would stay 16-bit
    wanted = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED if png and _is_transparent(path) else wanted)
    if image is None:
        raise InputError("cannot be decoded; is it damaged?", path=path)
    pixels = (
        np.asarray(image, dtype=np.uint8) if image.dtype == np.uint8 else (np.asarray(image) // 256).astype(np.uint8)
    )
    if pixels.ndim == 2:
        return on_white(pixels)
    if pixels.shape[2] == 4:
        return on_white(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA), dtype=np.uint8))
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels), dtype=np.uint8)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_PNG))


def _is_transparent(path: Path) -> bool:
    from PIL.PngImagePlugin import PngImageFile

    with PngImageFile(path) as image:
        return image.mode == "RGBA" or "transparency" in image.info


def _decode_tiff(path: Path) -> Rgb:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            image, planes_first = page.asarray(), page.axes == "SYX"
    except Exception as error:  # tifffile raises many kinds for damaged files
        raise InputError(f"cannot be decoded ({error}); is it damaged or truncated?", path=path) from error
    return np.ascontiguousarray(on_white(np.moveaxis(image, 0, -1) if planes_first else image))


def _check_complete(path: Path) -> None:
    """InputError for a JPEG or PNG that ends too early."""
    size, png = path.stat().st_size, _first_bytes(path) == _PNG
    with path.open("rb") as file:
        # A preview in a JPEG's header has an end marker of its own, so only what follows the header counts
        start = 0 if png else _jpeg_scan(file)
        file.seek(max(start, size - _TAIL))
        if (b"IEND" if png else b"\xff\xd9") not in file.read():
            raise InputError("the image is truncated (its end is missing)", path=path, fix="copy it again")


def _jpeg_scan(file: Any) -> int:
    """Where a JPEG's header ends and its picture begins; the end of the file if it has no picture."""
    position = 2
    while True:
        file.seek(position)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            return int(file.seek(0, 2))
        if head[1] == 0xFF:  # fill byte
            position += 1
            continue
        position += 2 + int.from_bytes(head[2:], "big")
        if head[1] == 0xDA:
            return position
