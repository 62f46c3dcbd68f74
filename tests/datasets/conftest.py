import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hescribe.datasets.synthetic import make_synthetic

TINY = {"n_patients": 2, "n_sections": 2, "side_um": 900.0, "mpp": 1.0, "n_genes": 150, "depth": 3000.0}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small cohort: two patients, two consecutive sections each."""
    return make_synthetic(tmp_path_factory.mktemp("synthetic"), **TINY).parent


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: tests are quiet."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local host and the folder it serves, with ``data.zip``."""
    served = tmp_path / "served"
    served.mkdir()
    with zipfile.ZipFile(served / "data.zip", "w") as archive:
        archive.writestr("inside/a.txt", "counts")
    host = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=partial(host.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{host.server_port}", served
    host.shutdown()
    host.server_close()
    thread.join()
