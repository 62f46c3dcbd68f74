"""``hescribe export``: a prediction into the store of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved


def export(
    context: typer.Context,
    prediction: Annotated[Path, typer.Argument(help="A prediction (.zarr).")],
    spatialdata: Annotated[
        Path,
        typer.Option("--spatialdata", metavar="STORE", help="SpatialData or WSIData store (.zarr); made, or added to."),
    ],
    image: Annotated[
        str | None,
        typer.Option(
            "--image", help="Image element of the store that the tiles lie on; gives their coordinate systems."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prediction that is in the store.")] = False,
    config: o.Config = None,
) -> None:
    """Put a prediction into a SpatialData store, as the table hescribe_tiles, for LazySlide, squidpy and napari."""
    from hescribe.io.predictions import export_spatialdata

    written = export_spatialdata(prediction, spatialdata, image=image, overwrite=overwrite)
    write_resolved(context, written)
    typer.echo(str(written))
