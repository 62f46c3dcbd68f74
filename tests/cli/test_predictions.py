"""``view`` and ``export`` as a user types them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.conftest import Cli
from tests.report.viewer.conftest import make


def test_mistakes_are_one_line(tmp_path: Path, cli: Cli) -> None:
    path = make(tmp_path / "p")
    (tmp_path / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        for arguments, message in (
            (["view", tmp_path / "none.zarr"], "no such prediction"),
            (["view", tmp_path / "empty"], "empty: no prediction (give a .zarr of 'predict')"),
            (["view", path.parent], "p: a folder of predictions (give one of its 1: slide.zarr)"),
            (["view", path, "--image", tmp_path / "none.svs"], "no such image"),
            (["view", path, "--port", port], f"cannot listen on 127.0.0.1:{port}"),
            (["view", path, "--port", 70000], "--port"),
            (["export", path, "--spatialdata", tmp_path / "empty"], "not a SpatialData store"),
            (["export", tmp_path / "none.zarr", "--spatialdata", tmp_path / "s.zarr"], "no such prediction"),
            (["export", path], "--spatialdata"),
        ):
            assert message in cli.refuses(*arguments, *(["--no-browser"] if arguments[0] == "view" else []))


def test_export_says_where(tmp_path: Path, cli: Cli) -> None:
    given = ["export", make(tmp_path / "p"), "--spatialdata", tmp_path / "s.zarr"]
    code, out, _ = cli(*given)
    assert (code, out.strip()) == (0, str(tmp_path / "s.zarr"))
    assert "--overwrite" in cli.refuses(*given)
    assert cli(*given, "--overwrite")[0] == 0


def test_the_viewer_serves_until_interrupted(tmp_path: Path) -> None:
    path = make(tmp_path / "p", moved=True)
    # A shell starts what runs in the background deaf to interruptions, and so would be what runs the tests there
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    begun = f"{listening}; from hescribe.cli.main import run; run()"
    command = [sys.executable, "-c", begun, "view", path, "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[0]
            with urllib.request.urlopen(url, timeout=30) as reply:  # noqa: S310 - our own address
                assert b"<title>hescribe</title>" in reply.read()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert said.strip() == "warning: The slide slide.png was not found; name it with --image FILE to see it."
