"""What can go wrong, as one tree of exceptions.

::

    HescribeError                 anything a user can mend; the CLI prints it and exits with 2
    ├── InputError                a file, column, option or value that was given is wrong
    │   ├── BundleError           a trained method on disk is damaged or of another kind
    │   ├── EncoderError          an encoder is unknown or its weights do not fit
    │   │   └── GatedModelError   the weights need an access that was not granted
    │   ├── LeakageError          a patient or section stands on both sides of a split
    │   └── DivergedError         a training's loss is no finite number
    ├── OutputError               a result could not be written; nothing half-written remains
    └── MissingExtraError         an optional dependency is not installed

    HescribeWarning               something looks wrong but work goes on
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_MOST_NAMES, _LONGEST_NAME = 12, 80  #: of a list in a message


class HescribeError(Exception):
    """Base of all errors that a user can mend; its text is one clear line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class InputError(HescribeError):
    """Something that was given is wrong.

    Parameters
    ----------
    what
        What is wrong, with what was found.
    path
        The file (or option) it is about; named first in the message.
    fix
        What the user should do or type.
    """

    def __init__(self, what: str, *, path: str | Path | None = None, fix: str = "") -> None:
        where = f"{path}: " if path is not None else ""
        remedy = f" ({fix})" if fix else ""
        super().__init__(f"{where}{what}{remedy}")


class BundleError(InputError):
    """A bundle is damaged, incomplete or of an unknown version."""


class EncoderError(InputError):
    """An encoder is unknown, or its weights do not fit its architecture."""


class GatedModelError(EncoderError):
    """An encoder's weights are gated and this user has no access."""


class LeakageError(InputError):
    """Training and test share a patient or a section."""


class DivergedError(InputError):
    """A training has run away: its loss or its weights are no finite numbers."""


class OutputError(HescribeError):
    """A result could not be written (disk full, no permission, already there)."""


class MissingExtraError(HescribeError):
    """An optional dependency is needed.

    Parameters
    ----------
    package
        The import that failed.
    extra
        The extra of hescribe that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed (pip install 'hescribe[{extra}]')")


class HescribeWarning(UserWarning):
    """Something looks wrong in the input; the text says what was assumed."""


def list_some(names: Iterable[object]) -> str:
    """Names for a message, shortened: a table that was cut at the wrong marks has one of a hundred thousand letters."""
    shown = [str(name) for name in names]
    half = _LONGEST_NAME // 2  # both ends: paths begin alike, columns end alike
    cut = [n if len(n) <= _LONGEST_NAME else f"{n[:half]}…{n[-half:]}" for n in shown[:_MOST_NAMES]]
    more = [f"… {len(shown):,} in all"] if len(shown) > _MOST_NAMES else []
    return ", ".join(cut + more) or "none"


def check_choice(value: object, allowed: tuple[object, ...], option: str) -> None:
    """InputError where the value of an option is none of those that there are."""
    if value not in allowed:
        raise InputError(f"{value!r} is none of {', '.join(map(str, allowed))}", path=option)
