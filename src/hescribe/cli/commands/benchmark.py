"""``hescribe benchmark``: methods on the same splits → tables."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved


def benchmark(
    context: typer.Context,
    sections: o.Sections,
    output: o.Output,
    methods: Annotated[str, typer.Option(help="Methods to compare, with commas.")] = "ridge,bleep",
    protocol: Annotated[
        str, typer.Option(help="leave-one-patient-out or leave-one-section-out.")
    ] = "leave-one-patient-out",
    encoder: Annotated[str, typer.Option(help="The encoder all methods share.")] = "resnet50",
    genes: Annotated[str, typer.Option(help="Panel: hvg:N, all, or a file of genes.")] = "hvg:1000",
    tile_um: Annotated[float, typer.Option(help="Side of a tile, µm.")] = 112.0,
    epochs: Annotated[int | None, typer.Option(help="At most; default: each method's.")] = None,
    inner_folds: Annotated[int | None, typer.Option(help="Folds left out inside training; default: 4.")] = None,
    views: Annotated[
        int | None, typer.Option(help="Average features over 1, 4 or 8 symmetries of a tile; default: the method's.")
    ] = None,
    markers: o.Genes = "",
    only: o.Only = None,
    without: o.Without = None,
    allow_same_patient: o.SamePatient = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    config: o.Config = None,
) -> None:
    """Compare methods without leakage; an interrupted benchmark continues where it stopped."""
    from hescribe.evaluation import markdown
    from hescribe.training import TrainConfig
    from hescribe.training.benchmark import benchmark as run_benchmark
    from hescribe.training.config import validated

    names = TrainConfig.model_fields.keys()
    values: dict[str, Any] = {k: v for k, v in context.params.items() if k in names}
    result = run_benchmark(
        o.choose_sections(sections, only=only, without=without),
        o.split_list(methods),
        validated(TrainConfig, values, "options"),
        output=output,
        protocol=protocol,
        markers=o.split_list(markers),
        allow_same_patient=allow_same_patient,
    )
    write_resolved(context, output)
    columns = ["method", "set", "n_sections", "pcc", "pcc_low", "pcc_high", "ceiling", "share_of_ceiling"]
    typer.echo(markdown(result.methods[columns]))
    typer.echo(str(output / "methods.md"))
