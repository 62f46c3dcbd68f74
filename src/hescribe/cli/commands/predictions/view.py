"""``hescribe view``: a prediction in the browser."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from hescribe.cli import options as o


def view(
    prediction: Annotated[Path, typer.Argument(help="A prediction (.zarr), or a SpatialData store with one inside.")],
    image: Annotated[Path | None, typer.Option("--image", help="The slide, where it was moved since.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; whoever reaches it may look.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Default: 8765, or a free one where that is taken.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    config: o.Config = None,
) -> None:
    """Look at genes on a slide in the browser, until Ctrl-C."""
    from hescribe.report.viewer import view as show

    viewer = show(prediction, image=image, host=host, port=port, browser=browser)
    if viewer.notice:
        typer.echo(f"warning: {viewer.notice}", err=True)
    with suppress(KeyboardInterrupt):  # one that comes before it waits
        typer.echo(f"{viewer.url} (Ctrl-C ends)")
        viewer.wait()
