"""Opening slides, and settling on their µm per pixel."""

from __future__ import annotations

import math
import warnings
from itertools import combinations
from pathlib import Path

from hescribe.errors import HescribeWarning, InputError
from hescribe.slides.plain import FlatTiff, PlainImage, tiff_facts
from hescribe.slides.slide import Slide
from hescribe.slides.whole import WholeSlide
from hescribe.types import POSSIBLE_MPP, Mpp

_PLAIN = {".jpg", ".jpeg", ".png"}
_TIFF = {".tif", ".tiff"}
_TILED = {".svs"}  #: TIFFs that are tiled always
LARGEST_SLIDE = 200_000_000_000  #: pixels: a whole 75 × 50 mm glass at 0.14 µm per pixel
_DISAGREEMENT = 0.1  #: share by which two sources of µm per pixel may differ unremarked


def open_slide(path: str | Path) -> Slide:
    """Open a slide: JPEG, PNG, TIFF, or any whole-slide format of OpenSlide or TiffSlide.

    Raises
    ------
    InputError
        Missing, not an image, damaged or truncated. What lies in damaged *parts* of an image may show only
        when they are read.
    """
    file = Path(path)
    try:
        if file.is_symlink() and not file.exists():
            raise InputError("a link to a file that is not there", path=file)
        if not file.exists():
            raise InputError("no such image", path=file, fix="check the path, or the manifest's column 'image'")
        if file.is_dir():
            raise InputError("a folder, not an image", path=file)
        if not file.is_file():
            raise InputError("not a file", path=file, fix="a pipe or a device cannot be read as an image")
        _check_name(file)
        with file.open("rb") as content:  # slide libraries do not say that they may not read
            if not content.read(1):
                raise InputError("the image is empty (0 bytes)", path=file)
        return _open(file)
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror or error})", path=file) from error


def _check_name(file: Path) -> None:
    try:
        str(file).encode()
    except UnicodeEncodeError as error:  # it could not be written into a prediction
        name = str(file).encode(errors="backslashreplace").decode()
        raise InputError("its name is not UTF-8", path=name, fix="rename it") from error


def _open(file: Path) -> Slide:
    suffix = file.suffix.lower()
    if suffix in _PLAIN:
        return PlainImage(file)
    if suffix in _TIFF | _TILED:
        facts = tiff_facts(file)
        if not facts["tiled"] and suffix in _TIFF:
            return FlatTiff(file)
        _check_size(facts["size"], file)
        if facts["problem"]:
            raise InputError(facts["problem"], path=file, fix="save it as 8-bit RGB, in tiles of 256 or 512 px")
    slide = WholeSlide(file)
    _check_size((slide.width, slide.height), file)
    if slide.mpp is None and suffix in _TIFF:
        slide.mpp, slide.refused_mpp = facts["mpp"], slide.refused_mpp or facts["refused_mpp"]
    return slide


def _check_size(size: tuple[int, int], path: Path) -> None:
    width, height = size
    if width * height > LARGEST_SLIDE:
        raise InputError(f"it claims to have {width:,} × {height:,} px; no slide is that large", path=path)


def resolve_mpp(
    *,
    metadata: Mpp | None,
    files: Mpp | None = None,
    pitch: Mpp | None = None,
    manifest: Mpp | None = None,
    option: Mpp | None = None,
    tag: Mpp | None = None,
    refused: float | None = None,
    path: Path,
    fix: str = "pass --mpp",
) -> Mpp:
    """µm per pixel from the first of these that says.

    In order of trust: the image's metadata, the spots' files and pitch, the manifest, ``--mpp``, the resolution tag of
    a JPEG or PNG.

    Warns (`HescribeWarning`) where two of them differ by more than 10 %. Where none is known, the error tells of what
    the metadata say that was ``refused``, and of the ``fix``.

    Raises
    ------
    InputError
        None of them is known, or the first cannot be that of an image.
    """
    sources = {
        "the image's metadata": metadata,
        "the files of the spots": files,
        "the spots' pitch": pitch,
        "the manifest": manifest,
        "--mpp": option,
        "the image's resolution tag": tag,
    }
    known = {name: float(v) for name, v in sources.items() if v is not None and math.isfinite(v) and v > 0}
    if not known:
        told = f": its metadata say {refused:.3g} µm per pixel, which cannot be" if refused else ""
        raise InputError(f"µm per pixel is not known{told}", path=path, fix=fix)
    trusted, mpp = next(iter(known.items()))
    low, high = POSSIBLE_MPP
    if not low <= mpp <= high:
        told = f"µm per pixel is {mpp:.3g} by {trusted}, where {low:g} to {high:g} can be"
        raise InputError(told, path=path, fix="are the spots' positions in pixels of this image?")
    for (name, value), (other, another) in combinations(known.items(), 2):
        if abs(another / value - 1) > _DISAGREEMENT:
            warnings.warn(
                f"{path}: µm per pixel is {value:.3f} by {name} but {another:.3f} by {other}; "
                f"{mpp:.3f} by {trusted} is used",
                HescribeWarning,
                stacklevel=2,
            )
    return mpp
