"""Where slides come from: files, folders, patterns, and URLs that are staged to a disk at hand."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.core import split_protocol, url_to_fs

from hescribe.errors import InputError
from hescribe.inference.slides.plan import alone
from hescribe.inference.slides.run import SLIDE_SUFFIXES, look_into
from hescribe.io.store import remove
from hescribe.slides.slide import SEVERAL_FILES

_MARKS = ("size", "ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "Last-Modified", "updated")

#: of botocore, which only those have who read from S3: no attempt would find them
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError"}


def is_url(slide: str | Path) -> bool:
    """Whether a slide has to be fetched; ``file://`` counts, so that a slow disk can be copied from."""
    return "://" in str(slide)


def slide_name(slide: str) -> str:
    """The last part of a path or URL: ``https://host/a%20b.svs?token=x`` → ``a b.svs``."""
    if not is_url(slide):
        return Path(slide).name
    # Only the web has queries: in a bucket, ? and # are letters like any other
    path = unquote(urlsplit(slide).path) if slide.startswith("http") else slide.split("://", 1)[1]
    return PurePosixPath(path).name


def find_sources(given: Sequence[str | Path]) -> dict[str, str]:
    """Slides by the name of their output: files, folders of slides, patterns and URLs, in the order given.

    Files become absolute paths, as workers may have another working folder. URLs that end in ``/`` or hold ``*`` are
    listed, where their file system can be.

    Returns
    -------
    dict
        Stem → path or URL.

    Raises
    ------
    InputError
        Nothing found, two slides of one stem, a URL of an unknown kind, or a remote slide of several files.
    """
    found: dict[str, None] = {}
    for item in given:
        if is_url(item):
            inside = _list_url(str(item))
        else:
            inside = [str(path.absolute()) for path in look_into(item, alone=len(given) == 1)]
        found.update(dict.fromkeys(inside))
    named: dict[str, str] = {}
    for slide in found:
        stem = PurePosixPath(slide_name(slide)).stem
        if stem in named:
            raise InputError(
                f"would be written to the same output as {named[stem]}",
                path=slide,
                fix="rename one, or give them apart",
            )
        named[stem] = slide
    if not named:
        raise InputError("no slides were given", path="slides")
    return named


def _list_url(url: str) -> list[str]:
    protocol = split_protocol(url)[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise InputError(f"{protocol}:// cannot be read: {error}", path=url) from error
    # In a web address, * is a letter, and the listing of a folder is a page like any other
    listed = not str(protocol).startswith("http") and (url.endswith("/") or "*" in url)
    inside = _expand(url) if listed else [url]
    if not slide_name(inside[0]):
        raise InputError("a URL without the name of a file", path=url)
    for one in inside:
        if PurePosixPath(slide_name(one)).suffix.lower() in SEVERAL_FILES:
            raise InputError(
                "slides of several files are read from a disk only", path=one, fix="copy it, with its folder"
            )
    return inside


def _expand(url: str) -> list[str]:
    pattern = f"{url}*" if url.endswith("/") else url
    try:
        system, path = url_to_fs(pattern)
        names = [str(system.unstrip_protocol(name)) for name in system.glob(path)]
    except Exception as error:  # each file system has exceptions of its own
        raise InputError(f"cannot be listed: {_reason(error, url)}", path=url) from error
    slides = [n for n in sorted(names) if PurePosixPath(slide_name(n)).suffix.lower() in SLIDE_SUFFIXES]
    if not slides:
        raise InputError("no slides there", path=url)
    return slides


def look_up(url: str) -> dict[str, str]:
    """What tells a remote file from an earlier one, as far as it is told: size, checksum, time of change.

    Raises
    ------
    InputError
        It is not there, or may not be read.
    OSError
        It cannot be had now.
    """
    try:
        system, path = url_to_fs(url)
        facts = system.info(path)
    except Exception as error:  # each file system has exceptions of its own
        raise _explain(error, url) from error
    return {name: str(facts[name]) for name in _MARKS if facts.get(name) is not None}


def staged_path(url: str, output: str, scratch: str) -> Path:
    """Where a URL is staged: the same place each time, so that what a killed worker left is found and removed."""
    digest = hashlib.blake2b(f"{url}\0{output}".encode(), digest_size=8).hexdigest()
    return Path(scratch or tempfile.gettempdir()) / f"hescribe-{digest}" / slide_name(url)


@contextmanager
def staged(url: str, path: Path, facts: Mapping[str, str]) -> Iterator[None]:
    """Have a remote slide at ``path`` while the block runs.

    Raises
    ------
    InputError
        It is not there, or may not be read.
    OutputError
        Another process is at this slide.
    OSError
        It could not be fetched whole.
    """
    folder = path.parent
    with alone(folder):
        try:
            remove(folder)
            folder.mkdir()
            _fetch(url, path)
            size = path.stat().st_size
            if facts.get("size", str(size)) != str(size):
                raise OSError(f"{url}: only {size:,} of {int(facts['size']):,} bytes came")
            yield
        finally:
            remove(folder)
            remove(folder.with_name(f".{folder.name}.lock"))


def _fetch(url: str, path: Path) -> None:
    try:
        system, there = url_to_fs(url)
        system.get_file(there, str(path))
    except Exception as error:  # each file system has exceptions of its own
        raise _explain(error, url) from error


def _explain(error: Exception, url: str) -> InputError | OSError:
    """An error of a file system → what is wrong with the URL, or what may pass."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:  # over HTTP, "not found" stands for any failure and its cause says which
        chain.append(chain[-1].__cause__)
    last, status = chain[-1], next((s for s in map(_status, chain) if s is not None), None)
    gone = len(chain) == 1 and isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
    unknown = any(type(e).__name__ in _NO_CREDENTIALS for e in chain)
    if gone or unknown or (status is not None and 400 <= status < 500 and status not in {408, 425, 429}):
        return InputError(f"cannot be fetched: {_reason(last, url)}", path=url)
    return OSError(f"{url}: could not be fetched ({_reason(last, url)})")


def _status(error: BaseException) -> int | None:
    """Of an answer over HTTP."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _reason(error: BaseException, url: str) -> str:
    """What went wrong in a few words, without the URL, which stands before them."""
    if (status := _status(error)) is not None:
        return f"{status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, OSError) and error.errno is not None:
        # asyncio's words for a refused connection are its call's; the numbers of names not found are no system's
        text = os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
        return f"{text[:1].lower()}{text[1:]}"
    text = " ".join(str(error).replace(url, "").split())
    if text and text not in url:
        return text
    return "no such file" if isinstance(error, FileNotFoundError) else type(error).__name__


def describe(error: BaseException) -> str:
    """An exception in one line; by its kind too, unless it is a plain ``OSError`` whose words are all there is."""
    text = " ".join(str(error).split())
    if text and type(error) is OSError and error.errno is None:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
