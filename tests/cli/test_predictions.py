"""``view`` and ``export`` as a user types them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from hescribe.cli.main import run
from tests.report.viewer.conftest import make


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["hescribe", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        run()
    return int(end.value.code or 0)


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
            assert call(monkeypatch, *arguments, *(["--no-browser"] if arguments[0] == "view" else [])) == 2
            said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hescribe: error: ")]
            assert len(said) == 1
            assert message in said[0]


def test_export_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["export", make(tmp_path / "p"), "--spatialdata", tmp_path / "s.zarr"]
    assert call(monkeypatch, *given) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "s.zarr")
    assert call(monkeypatch, *given) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call(monkeypatch, *given, "--overwrite") == 0


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
