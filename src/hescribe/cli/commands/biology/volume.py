"""``hescribe volume``: serial sections → expression in space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved


def volume(
    context: typer.Context,
    sections: o.Sections,
    output: o.Output,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Folder with <section_id>.zarr; otherwise measured expression.")
    ] = None,
    genes: Annotated[
        str, typer.Option(help="Genes on the grid, with commas; default: six that vary most among the trusted.")
    ] = "",
    registration: Annotated[
        str, typer.Option(help="rigid, affine or bspline: how far a section may be bent to fit its neighbours.")
    ] = "affine",
    grid_um: Annotated[float, typer.Option("--grid-um", help="µm between voxels in the plane.")] = 50.0,
    thickness_um: Annotated[
        float, typer.Option("--thickness-um", help="µm between consecutive sections, where the manifest has no z.")
    ] = 16.0,
    registration_um: Annotated[
        float, typer.Option("--registration-um", help="µm per pixel of the pictures that are registered.")
    ] = 12.0,
    only: o.Only = None,
    without: o.Without = None,
    overwrite: o.Overwrite = False,
    config: o.Config = None,
) -> None:
    """Register serial H&E sections and write expression in space, for napari, ParaView and the browser."""
    from hescribe.applications.volume import volume as build_volume

    page = build_volume(
        o.choose_sections(sections, only=only, without=without),
        output,
        predictions=predictions,
        genes=o.split_list(genes),
        registration=registration,
        grid_um=grid_um,
        thickness_um=thickness_um,
        registration_um=registration_um,
        overwrite=overwrite,
    )
    write_resolved(context, output)
    typer.echo(str(page))
