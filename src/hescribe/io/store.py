"""Writing: to a temporary name first, renamed when complete, removed when not."""

from __future__ import annotations

import errno
import math
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hescribe.errors import OutputError

if TYPE_CHECKING:
    import anndata as ad

_ABOUT_WRITING = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO}


def without_secrets(source: str) -> str:
    """A slide's path, or its URL as it may be written down: without user, password and query, which may hold a key."""
    if not source.startswith(("http://", "https://")):
        return source
    parts = urlsplit(source)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_free(path: str | Path, *, overwrite: bool, like: str = "") -> None:
    """Refuse an output that is there already, before the work that would make it.

    Parameters
    ----------
    path
        Of the output.
    overwrite
        It may be replaced.
    like
        Of a folder, the file that an older output of the kind has. A folder is replaced with all that is in it, so
        one that holds other things (predictions, a user's own files) never is.

    Raises
    ------
    OutputError
        It exists and may not be replaced, or cannot be made where it is to be.
    """
    target = Path(path)
    check_place(target)
    if not overwrite and target.exists():
        raise OutputError(f"{target} already exists (choose another output or pass --overwrite)")
    if like and target.is_dir() and any(target.iterdir()) and not (target / like).is_file():
        raise OutputError(f"{target} holds something else, which would be lost (choose another folder)")


def check_place(path: str | Path) -> None:
    """Refuse an output whose folder cannot be made or written to (`OutputError`)."""
    above = next(p for p in Path(path).absolute().parents if p.exists())
    if not above.is_dir():
        raise OutputError(f"{path} cannot be written: {above} is a file (choose another output)")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: {above} is locked (choose another output)")


@contextmanager
def write_atomically(path: str | Path, *, overwrite: bool = True, like: str = "") -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it takes the name ``path``.

    The block may create a file or a folder there. Whatever ends the block early removes it,
    so a reader sees either the old output or the new one, whole.

    Parameters
    ----------
    path
        Where the finished output goes. Parent folders are made.
    overwrite
        Replace what is there; otherwise refuse.
    like
        As in `check_free`.

    Raises
    ------
    OutputError
        If the disk is full, writing is not permitted, or ``path`` exists and may not be replaced.
    """
    target = Path(path)
    check_free(target, overwrite=overwrite, like=like)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        publish(temporary, target)
    except OSError as error:
        if error.errno not in _ABOUT_WRITING:
            raise
        raise OutputError(f"{target}: could not be written: {error.strerror}; nothing was left behind") from error
    finally:
        remove(temporary)


def write_anndata(table: ad.AnnData, path: str | Path) -> None:
    """Write an AnnData as a Zarr store of format 3, under its name when complete."""
    import anndata as ad  # seconds to import; the command line needs only write_atomically

    with write_atomically(path, like="zarr.json") as temporary, quietly(), ad.settings.override(zarr_write_format=3):
        table.write_zarr(temporary)


@contextmanager
def quietly() -> Iterator[None]:
    """Without two announcements of zarr-python about its own coming defaults."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        yield


def publish(temporary: Path, target: Path) -> None:
    """Rename, moving an older folder aside first: a folder cannot be replaced in one step."""
    if target.is_dir() and not temporary.is_dir():
        raise OutputError(f"{target} is a folder, where a file is to be written (choose another output)")
    if target.is_dir() and not target.is_symlink():
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
        os.replace(target, aside)
        try:
            os.replace(temporary, target)
        except OSError:
            os.replace(aside, target)
            raise
        remove(aside)
    else:
        os.replace(temporary, target)


def plain_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of a table as JSON has it: neither numpy's numbers nor NaN, which becomes null."""
    plain = {str(k): v.item() if hasattr(v, "item") else v for k, v in row.items()}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}
