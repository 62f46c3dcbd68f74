"""``hescribe benchmark``: methods × encoders × protocols on the same splits → tables and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hescribe.cli import options as o
from hescribe.cli.config import check_idle, parse_variants, write_resolved

if TYPE_CHECKING:
    import pandas as pd


def benchmark(
    context: typer.Context,
    sections: o.Sections,
    output: o.Output,
    methods: Annotated[str, typer.Option(help="Methods to compare, with commas.")] = "mean,knn,ridge,bleep,fusion",
    variant: Annotated[
        list[str],
        typer.Option(
            help="A method with settings of its own, e.g. 'bleep, tuned: {method: bleep, fine_tune: true}'; may be repeated."
        ),
    ] = [],
    protocol: Annotated[
        str, typer.Option(help="leave-one-patient-out, leave-one-section-out, or both with a comma.")
    ] = "leave-one-patient-out",
    encoder: Annotated[str, typer.Option(help="Encoders that every method gets, with commas.")] = "resnet50",
    genes: Annotated[str, typer.Option(help="Panel: hvg:N, all, or a file of genes.")] = "hvg:1000",
    min_detected: o.MinDetected = 0.03,
    target_sum: o.TargetSum = "10000",
    tile_um: Annotated[float, typer.Option(help="Side of a tile, µm.")] = 112.0,
    epochs: Annotated[int | None, typer.Option(help="At most; default: each method's.")] = None,
    inner_folds: Annotated[int | None, typer.Option(help="Folds left out inside training; default: 4.")] = None,
    views: Annotated[
        int | None, typer.Option(help="Average features over 1, 4 or 8 symmetries of a tile; default: the method's.")
    ] = None,
    learning_curve: Annotated[
        str, typer.Option(help="Shares of the training spots to learn from as well, with commas, e.g. 0.1,0.25,0.5.")
    ] = "",
    recipe: Annotated[
        str, typer.Option(help="Recipe the data are of; its published figures stand in the report.")
    ] = "",
    markers: o.Genes = "",
    only: o.Only = None,
    without: o.Without = None,
    allow_same_patient: o.SamePatient = False,
    seed: Annotated[str, typer.Option(help="Seeds, with commas; same seed, same result.")] = "0",
    device: o.Device = "auto",
    config: o.Config = None,
) -> None:
    """Compare methods without leakage; a benchmark that was interrupted continues, one asked for more grows."""
    from hescribe.evaluation import markdown
    from hescribe.training import TrainConfig
    from hescribe.training.benchmark import RECORD
    from hescribe.training.benchmark import benchmark as run_benchmark
    from hescribe.training.config import validated

    names = TrainConfig.model_fields.keys() - {"encoder", "seed"}
    values: dict[str, Any] = {k: v for k, v in context.params.items() if k in names}
    settings: TrainConfig = validated(TrainConfig, values, "options")
    compared = {**{name: {} for name in o.split_list(methods)}, **parse_variants(variant)}
    rows = [settings.model_copy(update={"method": changes.get("method", name)}) for name, changes in compared.items()]
    # A folder that was begun with a number of epochs is only continued with it
    if rows and not (output / RECORD).is_file() and all("epochs" in row.idle for row in rows):
        check_idle(context, {"epochs": "none of the methods is trained step by step"})
    result = run_benchmark(
        o.choose_sections(sections, only=only, without=without),
        compared,
        settings,
        output=output,
        encoder=o.split_list(encoder),
        protocol=o.split_list(protocol),
        seed=o.split_numbers(seed, int, "--seed"),
        learning_curve=o.split_numbers(learning_curve, float, "--learning-curve"),
        markers=o.split_list(markers),
        allow_same_patient=allow_same_patient,
        recipe=recipe,
        published=_published(recipe),
    )
    write_resolved(context, output)
    columns = [*("method", "encoder", "protocol", "set", "n_sections", "n_seeds"),
               *("pcc", "pcc_low", "pcc_high", "ceiling", "share_of_ceiling")]  # fmt: skip
    table = result.methods
    typer.echo(markdown(table[[c for c in columns if c in table]]))
    typer.echo(str(result.page))
    result.check()


def _published(recipe: str) -> pd.DataFrame | None:
    """What the literature reports on a recipe's data."""
    if not recipe:
        return None
    from hescribe.datasets.recipes import published_figures

    return published_figures(recipe)
