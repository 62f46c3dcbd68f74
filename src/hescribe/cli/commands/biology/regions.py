"""``hescribe regions``: predictions or sections → named regions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved


def regions(
    context: typer.Context,
    expression: Annotated[
        Path, typer.Argument(help="A prediction (.zarr), a folder of predictions, or a manifest of measured sections.")
    ],
    output: o.Output,
    tissue: Annotated[
        str, typer.Option(help="Whose markers: any, breast, lung, colon, brain, kidney, prostate, skin.")
    ] = "any",
    gene_sets: Annotated[
        Path | None, typer.Option("--gene-sets", help="Sets of your own: CSV with the columns set, gene [, tissue].")
    ] = None,
    clusters: Annotated[
        int | None, typer.Option(min=2, help="Number of clusters; default: settled by the data.")
    ] = None,
    smooth_um: Annotated[
        float | None, typer.Option(min=0, help="Spread of the neighbourhood, µm; default: one pitch of the spots.")
    ] = None,
    scoring: Annotated[str, typer.Option(help="zscore, mean, ssgsea or ulm.")] = "zscore",
    min_pcc: Annotated[float, typer.Option(help="Expected correlation under which a gene is not trusted.")] = 0.1,
    sections: Annotated[
        Path | None, typer.Option("--sections", help="Manifest that gives the slides of predictions.")
    ] = None,
    overwrite: o.Overwrite = False,
    seed: o.Seed = 0,
    config: o.Config = None,
) -> None:
    """Find regions of like expression and name them by markers: maps, tables, and outlines for QuPath."""
    from hescribe.applications.regions import find_regions
    from hescribe.downstream.regions import RegionSettings

    settings = RegionSettings(
        n_clusters=clusters, smooth_um=smooth_um, scoring=scoring, min_pcc=min_pcc, seed=seed  # type: ignore[arg-type]
    )  # fmt: skip
    page = find_regions(
        expression,
        output,
        tissue=tissue,
        gene_sets=gene_sets,
        settings=settings,
        sections=sections,
        overwrite=overwrite,
    )
    write_resolved(context, output)
    typer.echo(str(page))
