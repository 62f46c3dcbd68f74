"""``hescribe report``: predictions → one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved


def report(
    context: typer.Context,
    prediction: Annotated[Path, typer.Argument(help="A prediction (.zarr), or a folder of predictions.")],
    output: o.Output,
    sections: Annotated[
        Path | None, typer.Option("--sections", help="Manifest; gives the slide and, where measured, the truth.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="The bundle, for its training curves.")] = None,
    genes: o.Genes = "",
    allow_same_patient: o.SamePatient = False,
    seed: o.Seed = 0,
    config: o.Config = None,
) -> None:
    """Write a self-contained HTML report of predictions, with figures as PNG and SVG beside it."""
    from hescribe.inference import load_bundle
    from hescribe.inference.present import find_predictions, report_predictions

    page = report_predictions(
        find_predictions(prediction),
        output,
        sections=o.choose_sections(sections, only=None, without=None) if sections else (),
        bundle=load_bundle(bundle) if bundle else None,
        genes=o.split_list(genes),
        allow_same_patient=allow_same_patient,
        seed=seed,
    )
    write_resolved(context, output)
    typer.echo(str(page))
