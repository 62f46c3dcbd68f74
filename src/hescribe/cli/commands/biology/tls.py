"""``hescribe tls``: predictions or sections → tertiary lymphoid structures."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved


class Score(StrEnum):
    """What speaks for a structure."""

    signature = "signature"
    ssgsea = "ssgsea"
    chemokine = "chemokine"
    bxt = "bxt"
    model = "model"


class Null(StrEnum):
    """What rearranged maps keep."""

    spots = "spots"
    field = "field"


class Control(StrEnum):
    """What alpha is a share of."""

    max = "max"
    fdr = "fdr"


def tls(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="PREDICTION|SECTIONS", help="A prediction, a folder of them, or a manifest.")
    ],
    output: o.Output,
    score: Annotated[
        Score, typer.Option(help="Genes of the signature, chemokines, B × T cells, or a model.")
    ] = Score.signature,
    coefficients: Annotated[
        Path | None, typer.Option(help="Of --score model: a table of gene and coefficient.")
    ] = None,
    smooth_um: Annotated[float, typer.Option("--smooth-um", help="Standard deviation of the smoothing, µm.")] = 150.0,
    alpha: Annotated[float, typer.Option(help="Level of the threshold and of the p-values.")] = 0.05,
    permutations: Annotated[int, typer.Option(help="Rearranged maps.")] = 1000,
    null: Annotated[
        Null, typer.Option(help="Rearranged maps keep the values alone, or the patchiness too.")
    ] = Null.spots,
    control: Annotated[
        Control, typer.Option(help="alpha: of sections with a chance find, or of places found.")
    ] = Control.max,
    min_spots: Annotated[int, typer.Option("--min-spots", help="Leave out smaller structures.")] = 2,
    min_pcc: Annotated[
        float,
        typer.Option("--min-pcc", help="Genes of less expected correlation are named; --score model leaves them out."),
    ] = 0.1,
    sections: Annotated[
        Path | None, typer.Option("--sections", help="Manifest with the slides of predictions.")
    ] = None,
    overwrite: o.Overwrite = False,
    seed: o.Seed = 0,
    config: o.Config = None,
) -> None:
    """Find tertiary lymphoid structures: a table, outlines for QuPath, and a map of each section."""
    from hescribe.applications.tls import find_structures
    from hescribe.downstream.tls.call import TLSSettings

    page = find_structures(
        path,
        output,
        score=score.value,
        settings=TLSSettings(smooth_um, alpha, permutations, null.value, control.value, min_spots, seed),
        coefficients=coefficients,
        sections=sections,
        min_pcc=min_pcc,
        overwrite=overwrite,
    )
    write_resolved(context, output)
    typer.echo(str(page))
