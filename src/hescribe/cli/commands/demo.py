"""``hescribe demo``: the whole path on synthetic tissue, in a few minutes, without network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved


def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for data, bundle and report.")] = Path("demo"),
    method: Annotated[str, typer.Option(help="The method to train.")] = "fusion",
    seed: o.Seed = 0,
    overwrite: o.Overwrite = False,
    config: o.Config = None,
) -> None:
    """Make synthetic tissue, learn from two patients, predict a third, evaluate, and write a report."""
    from hescribe.datasets.synthetic import make_synthetic
    from hescribe.evaluation.splits import leave_one_patient_out, select_sections
    from hescribe.inference import predict_sections
    from hescribe.inference.evaluate import evaluate, write_evaluation
    from hescribe.inference.present import report_predictions
    from hescribe.io.store import check_free, remove
    from hescribe.sections import read_sections
    from hescribe.training import TrainConfig, train

    # What this encoder measures does not change when a tile is turned
    settings = TrainConfig(method=method, encoder="stain", views=1, seed=seed, device="cpu")
    settings.method_config()  # refused before anything is removed
    check_free(output, overwrite=overwrite, like="data/sections.csv")
    remove(output)
    typer.echo("1/5 making synthetic tissue of three patients")
    sections = read_sections(make_synthetic(output / "data", seed=seed))
    split = leave_one_patient_out(sections)[-1]
    typer.echo(f"2/5 training {method} without patient {split.name}")
    bundle = train(select_sections(sections, split.train), settings, output=output / "bundle")
    unseen = select_sections(sections, split.test)
    typer.echo(f"3/5 predicting {', '.join(split.test)}")
    predictions = predict_sections(bundle, unseen, output / "predictions")
    typer.echo("4/5 evaluating")
    scores = evaluate(bundle, unseen, seed=seed)
    write_evaluation(scores, bundle, output / "metrics.json")
    typer.echo("5/5 writing the report")
    page = report_predictions(predictions, output / "report", sections=unseen, bundle=bundle, scores=scores)
    write_resolved(context, output / "demo")
    typer.echo(f"report: {page.resolve()}")
