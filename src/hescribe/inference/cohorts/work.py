"""What a worker does: one slide, from wherever it is, to its output."""

from __future__ import annotations

import io
import threading
import time
import warnings
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import zarr

from hescribe.errors import BundleError, HescribeError, HescribeWarning, OutputError
from hescribe.inference.bundle import Bundle, load_bundle
from hescribe.inference.cohorts.sources import describe, is_url, look_up, staged, staged_path
from hescribe.inference.slides.prepared import PreparedEncoder
from hescribe.inference.slides.run import predict_slide
from hescribe.io.store import without_secrets

_GIVEN = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)  #: of paths that are wrong
_ONE_AT_A_TIME = threading.Lock()  #: a worker may have several threads; what a slide is read with, only one at a time


@dataclass(frozen=True)
class Task:
    """One slide to be predicted.

    Attributes
    ----------
    slide, output
        Path or URL, and the store.
    bundle, bundle_hash
        The folder, and what it must hold.
    device, overwrite, options
        As for ``predict_slide``.
    scratch
        Where URLs are staged; empty: the system's folder for temporary files.
    found
        Of a remote slide that was finished with this bundle and these options: what told it apart then.
    """

    slide: str
    output: str
    bundle: str
    bundle_hash: str
    device: str = "auto"
    overwrite: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    scratch: str = ""
    found: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes
    ----------
    kind
        ``done``; ``refused``: trying again would be in vain; ``unlucky``: the machine's fault, or its network's.
    reason
        In one line.
    tiles, seconds, kept, warnings, found
        As in ``SlideState``.
    """

    kind: Literal["done", "refused", "unlucky"]
    reason: str = ""
    tiles: int = 0
    seconds: float = 0.0
    kept: bool = False
    warnings: tuple[str, ...] = ()
    found: dict[str, str] = field(default_factory=dict)


def predict_one(task: Task) -> Outcome:
    """Predict a slide; whatever goes wrong is told, not raised."""
    began = time.perf_counter()
    # Bars and lines of several workers on one terminal would be a mess: the driver tells what there is to tell
    with _ONE_AT_A_TIME, redirect_stderr(io.StringIO()), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", HescribeWarning)
        try:
            outcome = _predict(task)
        except HescribeError as error:
            outcome = Outcome("unlucky" if _may_pass(error) else "refused", _name_source(str(error), task))
        except Exception as error:  # one slide must not end a cohort, whatever it meets
            outcome = Outcome("unlucky", _name_source(describe(error), task))
    said = tuple(dict.fromkeys(_name_source(str(w.message), task) for w in caught))
    return replace(outcome, seconds=time.perf_counter() - began, warnings=said)


def _may_pass(error: HescribeError) -> bool:
    """Whether the machine is to blame, and not what was given."""
    cause = error.__cause__
    return isinstance(cause, OSError) and (isinstance(error, OutputError) or not isinstance(cause, _GIVEN))


def _predict(task: Task) -> Outcome:
    output, url = Path(task.output), is_url(task.slide)
    there = output.exists() and not task.overwrite
    found = look_up(task.slide) if url else {}
    if there and found and found == task.found:  # not fetched again only to see that nothing is to be done
        return Outcome("done", tiles=_count_tiles(output), kept=True, found=found)
    path = staged_path(task.slide, task.output, task.scratch) if url else Path(task.slide)
    bundle, encoder = _load(task.bundle, task.bundle_hash)
    with staged(task.slide, path, found) if url else nullcontext():
        predict_slide(
            bundle,
            path,
            output,
            device=task.device,
            overwrite=task.overwrite,
            source=without_secrets(task.slide) if url else "",
            encoder=encoder,
            **task.options,
        )
    return Outcome("done", tiles=_count_tiles(output), kept=there, found=found)


def _name_source(text: str, task: Task) -> str:
    """A message about the slide as it was given, not about its copy."""
    if not is_url(task.slide):
        return " ".join(text.split())
    told = text.replace(str(staged_path(task.slide, task.output, task.scratch)), task.slide)
    return " ".join(told.replace(task.slide, without_secrets(task.slide)).split())


@lru_cache(maxsize=1)
def _load(path: str, expected: str) -> tuple[Bundle, PreparedEncoder]:
    """A worker's bundle, and its encoder as it was prepared for the slides before."""
    bundle = load_bundle(path)
    if bundle.hash != expected:
        raise BundleError("not the bundle that this run began with", path=path, fix="run it again")
    return bundle, PreparedEncoder(bundle.encoder)


def _count_tiles(output: Path) -> int:
    return int(zarr.open_array(output / "X", mode="r").shape[0])
