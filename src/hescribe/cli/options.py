"""Options that several commands share, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli.config import load_config

Sections = Annotated[Path, typer.Argument(help="Manifest of sections (CSV or Parquet), or a folder with sections.csv.")]
SectionsOption = Annotated[Path, typer.Option("--sections", help="Manifest of sections.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a trained method.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", callback=load_config, is_eager=True, help="Options from a TOML or YAML file."),
]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes the accelerator there is.")]
Only = Annotated[str | None, typer.Option(help="Only these sections of the manifest, by id, with commas.")]
Without = Annotated[str | None, typer.Option(help="All sections of the manifest but these.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that is already there.")]
Genes = Annotated[str, typer.Option(help="Genes of special interest, with commas.")]
SamePatient = Annotated[
    bool,
    typer.Option("--allow-same-patient", help="Test on sections of patients seen in training; results are labelled so."),
]
MethodSettings = Annotated[
    list[str], typer.Option("--option", "-O", help="A setting of the method, e.g. -O retrieval.k=100; may be repeated.")
]


def split_list(text: str | None) -> list[str]:
    """``"A, B"`` → ``["A", "B"]``."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
