"""``hescribe evaluate``: bundle × sections → figures."""

from __future__ import annotations

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved


def evaluate(
    context: typer.Context,
    bundle: o.BundlePath,
    sections: o.SectionsOption,
    output: o.Output,
    only: o.Only = None,
    without: o.Without = None,
    markers: o.Genes = "",
    allow_same_patient: o.SamePatient = False,
    views: o.ViewsAgain = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    config: o.Config = None,
) -> None:
    """Score a bundle on sections it has not seen; write METRICS.json and tables beside it."""
    from hescribe.encoders import resolve_device
    from hescribe.evaluation import markdown, method_table
    from hescribe.inference import load_bundle
    from hescribe.inference.evaluate import check_report, write_evaluation
    from hescribe.inference.evaluate import evaluate as evaluate_bundle

    check_report(output)
    trained = load_bundle(bundle).with_views(views)  # type: ignore[arg-type]
    scores = evaluate_bundle(
        trained,
        o.choose_sections(sections, only=only, without=without),
        markers=o.split_list(markers),
        allow_same_patient=allow_same_patient,
        device=resolve_device(device),
        seed=seed,
    )
    path = write_evaluation(scores, trained, output)
    write_resolved(context, output)
    columns = ["set", "n_sections", "n_genes", "pcc", "pcc_low", "pcc_high", "ceiling", "share_of_ceiling", "coverage"]
    typer.echo(markdown(method_table(scores)[columns]))
    typer.echo(str(path))
