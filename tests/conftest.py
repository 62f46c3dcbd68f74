"""The command line, as a user types it."""

from __future__ import annotations

import warnings

import pytest

from hescribe.cli.main import run


class Cli:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr("sys.argv", ["hescribe", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
            run()
        out, err = self._capsys.readouterr()
        return int(end.value.code or 0), out, err

    def refuses(self, *arguments: object) -> str:
        """The one line a mistake gives."""
        code, _, err = self(*arguments)
        assert code == 2, err
        lines = err.splitlines()
        assert [line for line in lines if line.startswith("hescribe: error: ")] == lines[-1:], err
        assert "Traceback" not in err
        return lines[-1]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)
