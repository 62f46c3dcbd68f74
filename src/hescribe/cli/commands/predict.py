"""``hescribe predict``: bundle × sections → predictions."""

from __future__ import annotations

from typing import Annotated

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved


def predict(
    context: typer.Context,
    bundle: o.BundlePath,
    sections: o.SectionsOption,
    output: o.Output,
    min_pcc: Annotated[
        float | None, typer.Option(help="Write only genes whose expected correlation is at least this, e.g. 0.2.")
    ] = None,
    only: o.Only = None,
    without: o.Without = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
    config: o.Config = None,
) -> None:
    """Predict expression at the spots of sections: one DIR/<section_id>.zarr each."""
    from hescribe.encoders import resolve_device
    from hescribe.inference import load_bundle, predict_sections

    chosen = o.choose_sections(sections, only=only, without=without)
    trained = load_bundle(bundle)
    written = predict_sections(
        trained, chosen, output, device=resolve_device(device), min_pcc=min_pcc, overwrite=overwrite
    )
    write_resolved(context, output)
    for path in written:
        typer.echo(str(path))
