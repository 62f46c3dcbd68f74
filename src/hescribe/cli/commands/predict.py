"""``hescribe predict``: bundle × slides, or sections → predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o
from hescribe.cli.config import check_idle, read_options, write_resolved
from hescribe.errors import InputError

Slides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SLIDE", help="Slides, folders of slides, or patterns such as 'a/*.svs'."),
]
Stride = Annotated[
    float | None, typer.Option("--stride-um", help="Slides: µm between tile centres, 8 or more; default: no overlap.")
]
MicronsPerPixel = Annotated[
    float | None, typer.Option("--mpp", help="Slides: µm per pixel, where their metadata do not say.")
]
Precision = Annotated[
    str, typer.Option(help="Slides: fp32, bf16, or auto: bf16 where it is quicker and gives the same features.")
]
Engine = Annotated[
    str,
    typer.Option(help="Slides: torch, openvino, or auto: OpenVINO where it is installed, quicker and gives the same."),
]
Dtype = Annotated[str, typer.Option(help="Of the prediction: float32 or float16.")]
Patient = Annotated[
    str, typer.Option(help="Slides: whose they are; a patient of the training sections is predicted more boldly.")
]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going/--fail-fast", help="Slides: after one that fails, go on with the others.")
]
Seed = Annotated[int, typer.Option(help="Nothing is drawn at random here: any seed gives the same.")]
Devices = Annotated[
    str, typer.Option(help="cpu, cuda, or for slides several: cuda:0,cuda:1; auto takes what there is.")
]
ClusterChoice = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Slides: one a task on local workers (local), at a Dask scheduler (tcp://host:port), or as jobs (a .toml file).",
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="--cluster: processes at a time; default: one a GPU, else one for two processors.")
]
Retries = Annotated[int, typer.Option(help="--cluster: further attempts after a worker or the network failed.")]
Scratch = Annotated[
    Path | None, typer.Option(help="--cluster: where workers copy slides that are URLs; default: the temporary folder.")
]

_OF_SLIDES = ("stride_um", "mpp", "precision", "engine", "patient", "keep_going", "cluster")
_OF_COHORTS = ("workers", "retries", "scratch")


def _idle(*, sections: bool, cluster: bool) -> dict[str, str]:
    """Options that a run has no use for, each with the reason."""
    if sections:
        out = dict.fromkeys((*_OF_SLIDES, *_OF_COHORTS), "it is of whole slides, and --sections predicts at spots")
        return out | {"mpp": "the manifest says it (column mpp)", "patient": "the manifest says it (column patient_id)"}
    out = dict.fromkeys(("only", "without"), "it chooses rows of --sections")
    return out if cluster else out | dict.fromkeys(_OF_COHORTS, "it is of --cluster")


def predict(
    context: typer.Context,
    bundle: o.BundlePath,
    output: o.Output,
    slides: Slides = None,
    sections: Annotated[Path | None, typer.Option("--sections", help="Manifest of sections.")] = None,
    stride_um: Stride = None,
    mpp: MicronsPerPixel = None,
    precision: Precision = "auto",
    engine: Engine = "auto",
    dtype: Dtype = "float32",
    views: o.ViewsAgain = None,
    min_pcc: Annotated[
        float | None, typer.Option(help="Write only genes whose expected correlation is at least this, e.g. 0.2.")
    ] = None,
    patient: Patient = "",
    keep_going: KeepGoing = True,
    cluster: ClusterChoice = None,
    workers: Workers = None,
    retries: Retries = 2,
    scratch: Scratch = None,
    only: o.Only = None,
    without: o.Without = None,
    seed: Seed = 0,
    device: Devices = "auto",
    overwrite: o.Overwrite = False,
    config: o.Config = None,
) -> None:
    """Predict expression over whole slides (DIR/<slide>.zarr), or at the spots of sections (DIR/<section_id>.zarr).

    Interrupted slides go on where they stopped when the command is given again.
    """
    if bool(slides) == (sections is not None):
        raise InputError("give either slides or --sections", path="predict", fix="see 'hescribe predict --help'")
    check_idle(context, _idle(sections=sections is not None, cluster=cluster is not None))
    common = {"min_pcc": min_pcc, "dtype": dtype, "views": views, "overwrite": overwrite}
    grid = {"stride_um": stride_um, "mpp": mpp, "precision": precision, "patient": patient, "engine": engine}
    if cluster is not None:
        from hescribe.inference.cohorts import predict_cohort

        found = read_options(Path(cluster)) if cluster.endswith((".toml", ".yaml", ".yml")) else cluster
        where = {"cluster": found, "workers": workers, "retries": retries, "scratch": scratch, "device": device}
        summary = predict_cohort(bundle, slides or [], output, keep_going=keep_going, **where, **grid, **common)  # type: ignore[arg-type]
        write_resolved(context, output)
        for path in summary.outputs:
            typer.echo(str(path))
        summary.check()
        return
    from hescribe.inference import load_bundle

    trained, failed = load_bundle(bundle), None
    if sections is not None:
        from hescribe.encoders import resolve_device
        from hescribe.inference import predict_sections

        chosen = o.choose_sections(sections, only=only, without=without)
        written = predict_sections(trained, chosen, output, device=resolve_device(device), **common)  # type: ignore[arg-type]
    else:
        from hescribe.inference.slides import SlidesFailed, predict_slides

        try:
            how = {"device": device, "keep_going": keep_going}
            written = predict_slides(trained, slides or [], output, **how, **grid, **common)  # type: ignore[arg-type]
        except SlidesFailed as error:
            failed, written = error, error.written
    write_resolved(context, output)
    for path in written:
        typer.echo(str(path))
    if failed is not None:
        raise failed
