"""Options that several commands share, written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hescribe.cli.config import load_config

if TYPE_CHECKING:
    from hescribe.sections import Section

Number = TypeVar("Number", int, float)

Sections = Annotated[
    Path,
    typer.Argument(metavar="SECTIONS", help="Manifest of sections (CSV or Parquet), or a folder with sections.csv."),
]
SectionsOption = Annotated[Path, typer.Option("--sections", help="Manifest of sections.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a trained method.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", callback=load_config, is_eager=True, help="Options from a TOML or YAML file."),
]
MinDetected = Annotated[
    float, typer.Option(help="Share of the training spots in which a gene must be seen to be predicted, 0 to 1.")
]
TargetSum = Annotated[
    str,
    typer.Option(
        help="Counts per spot before the logarithm; median: each section's median library size; counts: as they are."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same result.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes the accelerator there is.")]
Only = Annotated[str | None, typer.Option(help="Only these sections of the manifest, by id, with commas.")]
Without = Annotated[str | None, typer.Option(help="All sections of the manifest but these.")]
ViewsAgain = Annotated[
    int | None,
    typer.Option(help="Symmetries of a tile to average over, 1, 4 or 8; default: as trained. 1 takes a quarter of 4."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that is already there.")]
Genes = Annotated[str, typer.Option(help="Genes of special interest, with commas.")]
SamePatient = Annotated[
    bool,
    typer.Option(
        "--allow-same-patient", help="Test on sections of patients seen in training; results are labelled so."
    ),
]
MethodSettings = Annotated[
    list[str], typer.Option("--option", "-O", help="A setting of the method, e.g. -O retrieval.k=100; may be repeated.")
]


#: what every command takes, so that a script need not know which of them it matters to
_EVERYWHERE = {
    "seed": (
        Annotated[
            int, typer.Option(min=0, max=2**32 - 1, help="Nothing is drawn at random here: any seed gives the same.")
        ],
        0,
    ),
    "device": (Annotated[str, typer.Option(help="Without effect: this runs on the processor.")], "auto"),
}


def everywhere(command: Callable[..., None]) -> Callable[..., None]:
    """The same command with ``--seed`` and ``--device``, ignored where it has none of its own."""
    given = inspect.signature(command, eval_str=True)
    lacking = {name: option for name, option in _EVERYWHERE.items() if name not in given.parameters}

    @functools.wraps(command)
    def complete(**options: Any) -> None:
        command(**{name: value for name, value in options.items() if name not in lacking})

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in lacking.items()
    ]
    complete.__signature__ = given.replace(parameters=[*given.parameters.values(), *more])  # type: ignore[attr-defined]
    return complete


def split_list(text: str | None) -> list[str]:
    """``"A, B"`` → ``["A", "B"]``."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def split_numbers(text: str, kind: type[Number], option: str) -> list[Number]:
    """``"1, 2"`` → ``[1, 2]``.

    Raises
    ------
    InputError
        Names the option and what is no number.
    """
    from hescribe.errors import InputError

    out = []
    for part in split_list(text):
        try:
            out.append(kind(part))
        except ValueError as error:
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"{part!r} is not {what}", path=option, fix="numbers with commas") from error
    return out


def choose_sections(manifest: Path, *, only: str | None, without: str | None) -> list[Section]:
    """Sections of a manifest, or those of them that are named, or all but those that are named.

    Raises
    ------
    InputError
        A name that is not in the manifest, or nothing left.
    """
    from hescribe.errors import InputError
    from hescribe.evaluation.splits import select_sections
    from hescribe.sections import read_sections

    sections = read_sections(manifest)
    if only:
        sections = select_sections(sections, split_list(only))
    dropped = {s.section_id for s in select_sections(sections, split_list(without))}
    kept = [s for s in sections if s.section_id not in dropped]
    if not kept:
        raise InputError("no section is left", path=manifest, fix="check --only and --without")
    return kept
