"""``hescribe datasets``: what can be fetched, and fetching it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Data sets that can be fetched or made.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """Names, sizes and licences."""
    from hescribe.datasets import list_datasets

    for entry in list_datasets():
        typer.echo(f"{entry.name:<22} {entry.size:>9}  {entry.licence:<16} {entry.summary}")


@app.command()
def fetch(
    name: str,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default: the user's cache.")] = None,
    seed: Annotated[int, typer.Option(help="Of the synthetic data set.")] = 0,
) -> None:
    """Download a data set (or make the synthetic one) and print where it is."""
    from hescribe.datasets import fetch as fetch_dataset

    typer.echo(str(fetch_dataset(name, output, seed=seed)))
