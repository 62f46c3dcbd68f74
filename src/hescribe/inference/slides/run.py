"""Slide → prediction, whole; many slides → many."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, Unpack

import cv2
import torch

from hescribe.encoders import resolve_device
from hescribe.errors import HescribeError, InputError, OutputError, list_some
from hescribe.inference.bundle import Bundle, load_bundle
from hescribe.inference.slides.job import SlideJob
from hescribe.inference.slides.plan import EngineChoice, PrecisionChoice, SlideOptions, alone
from hescribe.inference.slides.prepared import PreparedEncoder
from hescribe.types import Dtype, Views

logger = logging.getLogger(__name__)

_IN_VAIN = {errno.EROFS, errno.EACCES, errno.EPERM}  #: errors that running again meets again
SLIDE_SUFFIXES = frozenset({
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".vmu", ".czi", ".dcm",
    ".jpg", ".jpeg", ".png",
})  # fmt: skip


class SlidesFailed(InputError):
    """Some of several slides failed.

    Parameters
    ----------
    failed
        Which.
    written
        Predictions of the others.
    of
        How many slides there were.
    """

    def __init__(self, failed: Sequence[Path], written: list[Path], *, of: int) -> None:
        super().__init__(f"{len(failed)} of {of} slides failed: {list_some(failed)}")
        self.written = written


class Options(TypedDict, total=False):
    """Keyword arguments of ``SlideOptions``."""

    stride_um: float | None
    mpp: float | None
    precision: PrecisionChoice
    dtype: Dtype
    min_pcc: float | None
    patient: str
    engine: EngineChoice
    views: Views | None


def predict_slide(
    bundle: Bundle | str | Path,
    path: str | Path,
    output: str | Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    source: str = "",
    encoder: PreparedEncoder | None = None,
    **options: Unpack[Options],
) -> Path:
    """Predict a whole slide into the Zarr store ``output``, on a grid of tiles over its tissue.

    Memory stays bounded however large the slide. Killed at any moment and called again, it goes on from the last
    complete chunk, and the result is the same bit for bit; called again when finished, it does nothing.

    Parameters
    ----------
    bundle
        A trained method, or its folder.
    path
        The slide.
    output
        The store; a folder of work stands beside it until it is complete.
    device
        Torch device, or several with commas, over which the tiles are dealt.
    overwrite
        Replace what is there, and begin anew where a begun prediction is another.
    source
        Where the slide comes from, where ``path`` is a copy; noted in the provenance.
    encoder
        The bundle's, prepared: for many slides in turn, which then start at once.
    **options
        As in ``SlideOptions``.

    Raises
    ------
    InputError
        The slide cannot be read, its µm per pixel are not known, or it shows no tissue.
    OutputError
        A prediction of another bundle, slide or other options is there or begun, another process is at it, or it
        cannot be written.
    """
    settings, bundle = SlideOptions(**options), load_bundle(bundle)
    target, prepared = Path(output), encoder or PreparedEncoder(bundle.encoder)
    try:
        with alone(target), _one_thread_each():
            devices = resolve_devices(device)
            job = SlideJob.prepare(
                bundle, Path(path), target, settings, devices=devices, encoder=prepared, source=source
            )
            return job.run(overwrite=overwrite)
    except OSError as error:
        raise OutputError(f"{target}: could not be written: {_explain(error)}") from error


def _explain(error: OSError) -> str:
    """What is wrong, and whether it helps to run it again."""
    if error.errno in _IN_VAIN:
        return str(error.strerror)
    # numpy says only how much of an array it has written
    full = error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error))
    reason = "no space left on the disk" if full else error.strerror or error
    return f"{reason} (run it again to go on where it stopped)"


def predict_slides(
    bundle: Bundle | str | Path,
    slides: Sequence[str | Path],
    output: str | Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    keep_going: bool = True,
    **options: Unpack[Options],
) -> list[Path]:
    """Predict slides into ``output/<slide's stem>.zarr``; see ``predict_slide``.

    Parameters
    ----------
    bundle, device, overwrite
        As for one slide.
    slides
        Slides, folders of slides, or patterns.
    output
        Folder of the predictions.
    keep_going
        After a slide that fails go on with the others; which failed is said at the end.
    **options
        As in ``SlideOptions``.

    Returns
    -------
    list of Path
        One store a slide.

    Raises
    ------
    InputError
        Two slides would have one output.
    SlidesFailed
        Some slides failed; the others are written.
    """
    paths = find_slides(slides)
    written: list[Path] = []
    failed: list[Path] = []
    bundle = load_bundle(bundle)
    encoder = PreparedEncoder(bundle.encoder)
    for path in paths:
        try:
            target = Path(output) / f"{path.stem}.zarr"
            where = {"device": device, "overwrite": overwrite, "encoder": encoder}
            written.append(predict_slide(bundle, path, target, **where, **options))  # type: ignore[arg-type]
        except Exception as error:  # one slide must not end the others, whatever it meets
            if not keep_going or len(paths) == 1:
                raise
            failed.append(path)
            known = isinstance(error, HescribeError)
            logger.error(f"error: {error}" if known else f"error: {path}: {type(error).__name__}: {error}")
    if failed:
        raise SlidesFailed(failed, written, of=len(paths))
    return written


def find_slides(given: Sequence[str | Path]) -> list[Path]:
    """Files, folders of slides and patterns → slides, each once, in the order given.

    Raises
    ------
    InputError
        A folder or pattern without slides, or two slides of one name.
    """
    found: dict[Path, None] = {}
    for item in given:
        if "://" in str(item):
            raise InputError("a URL", path=item, fix="those are fetched by workers: --cluster local")
        found.update(dict.fromkeys(look_into(item, alone=len(given) == 1)))
    stems: dict[str, Path] = {}
    for path in found:
        if path.stem in stems:
            raise InputError(
                f"would be written to the same output as {stems[path.stem]}", path=path, fix="give them apart"
            )
        stems[path.stem] = path
    return list(found)


def look_into(path: str | Path, *, alone: bool) -> list[Path]:
    """The slides of a folder, what fits a pattern, or the path itself.

    Among others, what cannot be looked into is taken for a slide: it is told of when its turn comes, and the others go
    on.

    Raises
    ------
    InputError
        It is alone, and holds no slides, or is an empty word.
    """
    if not str(path):
        raise InputError("an empty word where a slide should be", path="slides", fix="is a variable not set?")
    path = Path(path)
    try:
        return _inside(path)
    except (InputError, OSError):
        if alone:
            raise
        return [path]


def _inside(path: Path) -> list[Path]:
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SLIDE_SUFFIXES and p.name[0] != ".")
        if not inside:
            raise InputError("a folder without slides", path=path, fix=f"known: {' '.join(sorted(SLIDE_SUFFIXES))}")
        return inside
    if path.exists() or path.is_symlink() or not any(c in str(path) for c in "*?["):
        return [path]
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    matches = anchor.glob(str(path.relative_to(anchor)))
    # Links that lead nowhere are kept, and told of like any slide that cannot be read
    inside = sorted(p for p in matches if p.name[0] != "." and (p.is_file() or p.is_symlink()))
    if not inside:
        raise InputError("no file fits this pattern", path=path)
    return inside


def resolve_devices(device: str) -> tuple[str, ...]:
    """``"cuda:0,cuda:1"`` → both; ``auto`` → the accelerator there is, or the CPU.

    Raises
    ------
    InputError
        There is no such device.
    """
    names = tuple(resolve_device(part.strip()) for part in device.split(",") if part.strip())
    if not names or len({torch.device(name).type for name in names}) > 1:
        raise InputError(f"{device!r} is no device, nor several of one kind", path="--device")
    return names


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep OpenCV from starting threads in every thread that scales tiles."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
