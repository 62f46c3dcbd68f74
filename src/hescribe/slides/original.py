"""The slide that a prediction was made from, found again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hescribe.errors import InputError
from hescribe.slides.reader import open_slide
from hescribe.slides.slide import Slide
from hescribe.types import Centres


def find_original(told: Mapping[str, Any], store: Path, centres: Centres) -> Slide | None:
    """The slide that a prediction names: where it was, where it was copied from, or beside the prediction.

    Parameters
    ----------
    told
        Provenance of the prediction: ``image``, ``image_path``, ``source``.
    store
        Where the prediction is.
    centres
        (n, 2) its tiles.

    Returns
    -------
    Slide or None
        None where no such file is there.

    Raises
    ------
    InputError
        It cannot be opened, or is too small for these tiles.
    """
    name, path, source = (str(told.get(key) or "") for key in ("image", "image_path", "source"))
    known = [Path(path)] if path else []
    if urlsplit(source).scheme == "file":
        known.append(Path(unquote(urlsplit(source).path)))
    folder = store.resolve().parent
    # Only the name's last part: a prediction from elsewhere must not point to other files
    known += [place / Path(name).name for place in (folder, folder.parent)] if name else []
    for candidate in known:
        if candidate.is_file():
            return open_original(candidate, centres)
    return None


def open_original(path: Path, centres: Centres) -> Slide:
    """Open a slide that must hold these tiles.

    Raises
    ------
    InputError
        It cannot be opened, or is too small for them.
    """
    slide = open_slide(path)
    x, y = centres.max(axis=0)
    if x >= slide.width or y >= slide.height or centres.min() < 0:
        raise InputError(
            f"tiles lie outside this image of {slide.width:,} × {slide.height:,} px (they reach {x:,.0f}, {y:,.0f})",
            path=path,
            fix="is it the slide that was predicted?",
        )
    return slide
