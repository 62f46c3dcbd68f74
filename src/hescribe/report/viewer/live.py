"""Open a prediction in the browser."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path
from threading import Thread
from types import TracebackType

from hescribe.errors import InputError
from hescribe.io.predictions.stored import StoredPrediction, open_prediction
from hescribe.report.viewer.pyramid import Pyramid
from hescribe.report.viewer.scene import Scene
from hescribe.report.viewer.server import LOCAL, ViewerServer
from hescribe.slides.original import find_original, open_original

PORT = 8765  #: tried first, so that a link of yesterday works today


class Viewer:
    """A page that is being served, until it is closed or the process ends.

    Parameters
    ----------
    server
        Listening.
    """

    def __init__(self, server: ViewerServer) -> None:
        self._server = server
        self._thread = Thread(target=server.serve_forever, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Viewer({self.url!r})"

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The page's address."""
        return self._server.url

    @property
    def notice(self) -> str:
        """Why the slide is not shown; empty where it is."""
        return self._server.scene.notice

    def wait(self) -> None:
        """Serve until the user interrupts."""
        try:
            while self._thread.is_alive():
                time.sleep(0.5)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def view(
    prediction: str | Path,
    *,
    image: str | Path | None = None,
    host: str = LOCAL,
    port: int | None = None,
    browser: bool = True,
) -> Viewer:
    """Show a prediction in the browser: the slide, any gene over it, and how far each can be trusted.

    Parameters
    ----------
    prediction
        A ``.zarr`` that ``predict`` wrote, or a SpatialData store with one inside. Genes are read when they are looked
        at, so it may be larger than memory.
    image
        The slide; by default where it was predicted from, or beside the prediction. Without it the tiles stand on
        white.
    host
        Where to listen. Anyone who reaches that address may look, so it is this machine by default.
    port
        By default 8765, or a free one where that is taken; 0 takes a free one.
    browser
        Open it.

    Returns
    -------
    Viewer
        Serves in the background; has the ``url``.

    Raises
    ------
    InputError
        No prediction, an image that cannot be read or does not belong to it, or a port that is in use.

    Examples
    --------
    >>> viewer = view("predictions/slide.zarr")  # doctest: +SKIP
    >>> viewer.close()  # doctest: +SKIP
    """
    stored = open_prediction(prediction)
    pyramid, notice = _find_slide(stored, Path(image) if image is not None else None)
    server = _listen(Scene(stored, pyramid, notice), host, port)
    viewer = Viewer(server)
    if browser:
        webbrowser.open(viewer.url)
    return viewer


def _listen(scene: Scene, host: str, port: int | None) -> ViewerServer:
    if port is not None:
        return ViewerServer(scene, host, port)
    try:
        return ViewerServer(scene, host, PORT)
    except InputError:
        return ViewerServer(scene, host, 0)


def _find_slide(stored: StoredPrediction, given: Path | None) -> tuple[Pyramid | None, str]:
    """The slide, or why there is none; what the user names must be right."""
    if given is not None:
        return Pyramid(open_original(given, stored.centres)), ""
    try:
        slide = find_original(stored.provenance, stored.path, stored.centres)
    except InputError as error:
        return None, f"The slide is not shown: {error}"
    if slide is None:
        name = stored.provenance.get("image") or "image"
        return None, f"The slide {name} was not found; name it with --image FILE to see it."
    return Pyramid(slide), ""
