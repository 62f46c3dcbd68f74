"""``hescribe datasets``: what can be fetched, fetching it, and making published data sets ready for a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o

app = typer.Typer(help="Data sets that can be fetched or made, and recipes for published ones.", no_args_is_help=True)


@app.command("list")
@o.everywhere
def list_() -> None:
    """Data sets with sizes and licences, and recipes with sections and patients."""
    from hescribe.datasets import list_datasets
    from hescribe.datasets.recipes import list_recipes

    for entry in list_datasets():
        typer.echo(f"{entry.name:<22} {entry.size:>9}  {entry.licence:<16} {entry.summary}")
    typer.echo("\nrecipes, for hescribe datasets prepare:")
    for recipe in list_recipes():
        size = f"{len(recipe.sections)} of {recipe.n_patients}"
        typer.echo(f"{recipe.name:<22} {size:>9}  {recipe.protocols[0]:<22} {recipe.summary}")


@app.command()
@o.everywhere
def fetch(
    name: str,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default: the user's cache.")] = None,
    seed: Annotated[int, typer.Option(help="Of the synthetic data set.")] = 0,
) -> None:
    """Download a data set (or make the synthetic one) and print where it is."""
    from hescribe.datasets import fetch as fetch_dataset

    typer.echo(str(fetch_dataset(name, output, seed=seed)))


@app.command()
@o.everywhere
def prepare(
    name: Annotated[str, typer.Argument(help="A recipe of hescribe datasets list.")],
    folder: Annotated[Path, typer.Argument(help="Where the data were downloaded and unpacked.")],
    output: o.Output,
    only: Annotated[str | None, typer.Option(help="Only these sections of the recipe, by id, with commas.")] = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Find a recipe's exact sections in a download and write sections.csv and benchmark.toml."""
    from hescribe.datasets.recipes import prepare as prepare_recipe

    prepared = prepare_recipe(name, folder, output, only=o.split_list(only), overwrite=overwrite)
    for note in prepared.notes:
        typer.echo(f"note: {note}", err=True)
    for config in prepared.configs:
        typer.echo(f"hescribe benchmark {prepared.manifest} --config {config} -o RESULTS")
