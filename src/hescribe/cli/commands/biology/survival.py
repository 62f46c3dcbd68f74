"""``hescribe survival``: predictions and a clinical table → a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved


def survival(
    context: typer.Context,
    predictions: Annotated[Path, typer.Argument(help="Folder of predictions (.zarr), one a slide.")],
    clinical: Annotated[Path, typer.Option("--clinical", help="Table: patient_id, time, event and covariates.")],
    output: o.Output,
    slides: Annotated[Path | None, typer.Option(help="Table slide_id, patient_id; by default as predicted.")] = None,
    horizon: Annotated[
        float | None, typer.Option(help="Time of the headline AUC; default: median time of events.")
    ] = None,
    model: Annotated[str, typer.Option(help="cox: penalised, on features; attention: over tiles.")] = "cox",
    covariates: Annotated[str, typer.Option(help="Clinical columns to use, with commas.")] = "",
    tissue: Annotated[
        str, typer.Option(help="Whose markers: any, breast, lung, colon, brain, kidney, prostate, skin.")
    ] = "lung",
    endpoint: Annotated[
        str, typer.Option(help="The clinical table is TCGA's or cBioPortal's; take DFI, PFI, OS or DSS from it.")
    ] = "",
    cancers: Annotated[str, typer.Option(help="With --endpoint: only these, e.g. LUAD,LUSC.")] = "",
    unit: Annotated[str, typer.Option(help="Of time, for the figures.")] = "months",
    find_structures: Annotated[
        bool,
        typer.Option(
            "--find-structures", help="Find regions and lymphoid structures on predictions that do not have them."
        ),
    ] = False,
    drop_missing: Annotated[bool, typer.Option("--drop-missing", help="Leave out patients without slides.")] = False,
    folds: Annotated[int, typer.Option(min=2, help="Of the outer cross-validation.")] = 5,
    resamples: Annotated[int, typer.Option(min=10, help="Of patients, for intervals.")] = 500,
    overwrite: o.Overwrite = False,
    seed: o.Seed = 0,
    config: o.Config = None,
) -> None:
    """Predict outcome from predicted expression, judged by nested cross-validation over patients."""
    from hescribe.applications.survival import SurvivalSettings, run_survival

    page = run_survival(
        predictions,
        clinical,
        output,
        slides=slides,
        settings=SurvivalSettings(
            horizon=horizon,
            model=model,
            covariates=tuple(o.split_list(covariates)),
            tissue=tissue,
            endpoint=endpoint,
            cancers=tuple(o.split_list(cancers)),
            unit=unit,
            find_structures=find_structures,
            drop_missing=drop_missing,
            folds=folds,
            resamples=resamples,
            seed=seed,
        ),
        overwrite=overwrite,
    )
    write_resolved(context, output)
    typer.echo(str(page))
