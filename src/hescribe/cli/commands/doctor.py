"""``hescribe doctor``: is this machine ready, and if not, what to type."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata

import typer

Check = tuple[bool, str]


def doctor() -> None:
    """Check Python, the torch stack, readers, the cache and the disk; exit code 2 if something is broken."""
    broken = 0
    for name, check in _CHECKS.items():
        try:
            good, text = check()
        except Exception as error:  # a check that fails is the finding
            good, text = False, f"{type(error).__name__}: {error}"
        broken += not good
        typer.echo(f"{'ok ' if good else 'BAD'}  {name:<12} {' '.join(text.split())}")
    if broken:
        raise typer.Exit(2)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return good, version if good else f"{version}; hescribe needs 3.11 or newer"


def _torch() -> Check:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else _processor(torch.get_num_threads())
    return True, f"torch {torch.__version__} on {device}"


def _processor(threads: int) -> str:
    return f"CPU, {threads} thread{'s' * (threads != 1)}"


def pair_problem(torch_version: str, vision_version: str, error: str) -> str:
    """What to do about a torch and a torchvision that do not match.

    A CPU build of torch carries a local label (``2.15.0+cpu``); torchvision from the default index is built
    against the build without one, and then importing it fails with 'operator torchvision::nms does not exist'.
    """
    return (
        f"torch {torch_version} and torchvision {vision_version} are not a pair ({error}); install both from one "
        "place: pip install --force-reinstall torch torchvision"
    )


def _torchvision() -> Check:
    versions = metadata.version("torch"), metadata.version("torchvision")
    try:
        getattr(importlib.import_module("torchvision.ops"), "nms")  # noqa: B009 - registering the operator is the check
    except (RuntimeError, ImportError, OSError, AttributeError) as error:
        return False, pair_problem(*versions, str(error))
    return True, f"torchvision {versions[1]} matches torch"


def _slides() -> Check:
    from wsidata.reader import READERS  # noqa: F401 - importing is the check

    openslide = importlib.import_module("openslide")
    return True, f"wsidata {metadata.version('wsidata')}, OpenSlide {openslide.__library_version__}"


def _foundation() -> Check:
    try:
        return True, f"lazyslide-models {metadata.version('lazyslide-models')}"
    except metadata.PackageNotFoundError:
        return True, "not installed; pathology encoders need: pip install 'hescribe[foundation]'"


def _cache() -> Check:
    from hescribe.encoders.extract import cache_folder

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder):
        pass
    free = shutil.disk_usage(folder).free / 2**30
    good = free > 1
    return good, f"{folder}, {free:.0f} GB free" + ("" if good else "; set HESCRIBE_CACHE to a larger disk")


_CHECKS: dict[str, Callable[[], Check]] = {
    "python": _python,
    "torch": _torch,
    "torchvision": _torchvision,
    "slides": _slides,
    "encoders": _foundation,
    "cache": _cache,
}
