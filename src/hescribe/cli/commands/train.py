"""``hescribe train``: sections → bundle."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hescribe.cli import options as o
from hescribe.cli.config import check_idle, parse_settings, write_resolved


def train(
    context: typer.Context,
    sections: o.Sections,
    output: o.Output,
    method: Annotated[str, typer.Option(help="The method; the README lists them.")] = "fusion",
    encoder: Annotated[
        str, typer.Option(help="stain, resnet50, uni …, timm:NAME or timm:NAME@FILE.safetensors.")
    ] = "resnet50",
    genes: Annotated[str, typer.Option(help="Panel of the embedding: hvg:N, all, or a file of genes.")] = "hvg:1000",
    min_detected: o.MinDetected = 0.03,
    target_sum: o.TargetSum = "10000",
    tile_um: Annotated[float, typer.Option(help="Side of a tile, µm.")] = 112.0,
    epochs: Annotated[int | None, typer.Option(help="At most; default: the method's.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Spots a step, of all processes together; default: the method's.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the method's.")] = None,
    fine_tune: Annotated[bool, typer.Option("--fine-tune", help="Train the encoder's weights too.")] = False,
    trainable: Annotated[
        str | None,
        typer.Option(help="Parts of the encoder --fine-tune trains: blocks.-1,norm; all. Default: the method's."),
    ] = None,
    inner_folds: Annotated[
        int | None, typer.Option(help="Folds left out for stopping and trust; default: 4, or 1 with --fine-tune.")
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Average features over 1, 4 or 8 symmetries of a tile; default: the method's.")
    ] = None,
    stain_jitter: Annotated[float, typer.Option(help="Stain augmentation with --fine-tune, 0 to 1.")] = 0.0,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    only: o.Only = None,
    without: o.Without = None,
    option: o.MethodSettings = [],
    seed: o.Seed = 0,
    device: o.Device = "auto",
    devices: Annotated[int, typer.Option(help="Processes on each machine, one a GPU (or parts of a CPU).")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines; start the command on each with torchrun or srun.")] = 1,
    strategy: Annotated[
        str, typer.Option(help="Of several processes: auto, or ddp (quicker with --fine-tune; no weight may be idle).")
    ] = "auto",
    overwrite: o.Overwrite = False,
    config: o.Config = None,
) -> None:
    """Learn from sections that have both an image and expression; write a bundle."""
    from hescribe.io.store import check_free
    from hescribe.keys import BUNDLE_CONFIG
    from hescribe.training import TrainConfig
    from hescribe.training import train as train_bundle
    from hescribe.training.config import validated
    from hescribe.training.processes import is_first

    check_free(output, overwrite=overwrite, like=BUNDLE_CONFIG)
    names = TrainConfig.model_fields.keys()
    values: dict[str, Any] = {k: v for k, v in context.params.items() if k in names}
    settings = validated(TrainConfig, {**values, "options": parse_settings(option)}, "options")
    check_idle(context, settings.idle)
    chosen = o.choose_sections(sections, only=only, without=without)
    bundle = train_bundle(chosen, settings, output=output)
    if not is_first():
        return
    write_resolved(context, output)
    expected = bundle.genes["expected_pcc"]
    typer.echo(f"{output}: {bundle.method}, {len(bundle.genes):,} genes", nl=False)
    typer.echo(
        f", {int((expected > 0.2).sum()):,} with an expected correlation above 0.2" if expected.notna().any() else ""
    )
