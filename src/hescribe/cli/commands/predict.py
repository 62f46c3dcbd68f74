"""``hescribe predict``: bundle × slides, or sections → predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o
from hescribe.cli.config import write_resolved
from hescribe.errors import InputError

Slides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SLIDE...]", help="Slides, folders of slides, or patterns such as 'a/*.svs'."),
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
Dtype = Annotated[str, typer.Option(help="Slides: float32 or float16.")]
Patient = Annotated[
    str, typer.Option(help="Slides: whose they are; a patient of the training sections is predicted more boldly.")
]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going/--fail-fast", help="Slides: after one that fails, go on with the others.")
]
Devices = Annotated[
    str, typer.Option(help="cpu, cuda, or for slides several: cuda:0,cuda:1; auto takes what there is.")
]


def predict(
    context: typer.Context,
    bundle: o.BundlePath,
    output: o.Output,
    slides: Slides = None,
    sections: Annotated[Path | None, typer.Option("--sections", help="Manifest of sections.")] = None,
    stride_um: Stride = None,
    mpp: MicronsPerPixel = None,
    precision: Precision = "auto",
    dtype: Dtype = "float32",
    min_pcc: Annotated[
        float | None, typer.Option(help="Write only genes whose expected correlation is at least this, e.g. 0.2.")
    ] = None,
    patient: Patient = "",
    keep_going: KeepGoing = True,
    only: o.Only = None,
    without: o.Without = None,
    seed: o.Seed = 0,
    device: Devices = "auto",
    overwrite: o.Overwrite = False,
    config: o.Config = None,
) -> None:
    """Predict expression over whole slides (DIR/<slide>.zarr), or at the spots of sections (DIR/<section_id>.zarr).

    Interrupted slides go on where they stopped when the command is given again.
    """
    if bool(slides) == (sections is not None):
        raise InputError("give either slides or --sections", path="predict", fix="see 'hescribe predict --help'")
    from hescribe.inference import load_bundle

    trained = load_bundle(bundle)
    common = {"min_pcc": min_pcc, "overwrite": overwrite}
    if sections is not None:
        from hescribe.encoders import resolve_device
        from hescribe.inference import predict_sections

        chosen = o.choose_sections(sections, only=only, without=without)
        written = predict_sections(trained, chosen, output, device=resolve_device(device), **common)  # type: ignore[arg-type]
    else:
        from hescribe.inference.slides import predict_slides

        grid = {"stride_um": stride_um, "mpp": mpp, "precision": precision, "dtype": dtype, "patient": patient}
        written = predict_slides(trained, slides or [], output, device=device, keep_going=keep_going, **grid, **common)  # type: ignore[arg-type]
    write_resolved(context, output)
    for path in written:
        typer.echo(str(path))
