"""Where slides come from: what a server, a folder and a pattern give, and what is left behind."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hescribe import keys
from hescribe.errors import InputError
from hescribe.inference import load_bundle, read_prediction
from hescribe.inference.cohorts import predict_cohort, run, sources
from hescribe.inference.cohorts.sources import find_sources, slide_name
from hescribe.inference.slides import predict_slide
from tests.inference.slides.made import draw_slide, write_slide

COARSE = {"stride_um": 300.0, "precision": "fp32"}


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; each path in ``failures`` fails so many times first, with 503 or half of its bytes."""

    def do_GET(self) -> None:
        self.server.fetched.append(self.path)  # type: ignore[attr-defined]
        left = self.server.failures.get(self.path, 0)  # type: ignore[attr-defined]
        if left:
            self.server.failures[self.path] = left - 1  # type: ignore[attr-defined]
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.fetched: list[str] = []
        self.failures: dict[str, int] = {}

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    write_slide(folder / "a b.tif", draw_slide(600))
    made = Server(folder)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_slide_over_http_is_the_same_as_its_file(bundle: Path, here: str, server: Server, tmp_path: Path) -> None:
    url, scratch = server.url("a%20b.tif?token=1"), tmp_path / "scratch"
    given = {"cluster": here, "scratch": scratch, **COARSE}
    summary = predict_cohort(bundle, [url], tmp_path / "out", **given)
    summary.check()
    assert summary.slides[0].slide == url.removesuffix("?token=1"), "a token is nobody else's business"
    made = read_prediction(tmp_path / "out" / "a b.zarr")
    serial = predict_slide(load_bundle(bundle), tmp_path / "served" / "a b.tif", tmp_path / "a b.zarr", **COARSE)
    expected = read_prediction(serial)
    assert (made.X == expected.X).all()
    told, known = made.uns[keys.PROVENANCE], expected.uns[keys.PROVENANCE]
    assert told["source"] == url.removesuffix("?token=1")
    assert {k: told[k] for k in ("slide", "image", "slide_hash", "mpp")} == {
        k: known[k] for k in ("slide", "image", "slide_hash", "mpp")
    }
    assert list(scratch.iterdir()) == []
    fetched = len(server.fetched)
    again = predict_cohort(bundle, [url], tmp_path / "out", **given)
    assert again.slides[0].kept
    assert len(server.fetched) == fetched, "a finished slide is not fetched again"
    write_slide(tmp_path / "served" / "a b.tif", draw_slide(620, seed=3))
    changed = predict_cohort(bundle, [url], tmp_path / "out", **given).slides[0]
    assert "the slide has changed" in changed.reason
    assert list(scratch.iterdir()) == []


def test_a_server_that_fails_for_a_while(
    bundle: Path, here: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_PAUSE", 0.01)
    given = {"cluster": here, "scratch": tmp_path / "scratch", **COARSE}
    url = server.url("a%20b.tif")
    server.failures["/a%20b.tif"] = 2
    summary = predict_cohort(bundle, [url], tmp_path / "out", retries=2, **given)
    assert (summary.slides[0].state, summary.slides[0].attempts) == ("done", 3)
    server.failures["/a%20b.tif"] = 9
    summary = predict_cohort(bundle, [url], tmp_path / "other", retries=1, **given)
    assert (summary.slides[0].state, summary.slides[0].attempts) == ("failed", 2)
    assert summary.slides[0].reason == f"{url}: could not be fetched (503 Service Unavailable)"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_is_not_there_is_not_tried_again(bundle: Path, here: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / "served" / "text.tif").write_text("no image " * 99)
    gone, text = server.url("gone.tif"), server.url("text.tif")
    given = {"cluster": here, "scratch": tmp_path / "scratch", **COARSE}
    summary = predict_cohort(bundle, [gone, text], tmp_path / "out", **given)
    assert [(s.state, s.attempts) for s in summary.slides] == [("failed", 1), ("failed", 1)]
    assert summary.slides[0].reason == f"{gone}: cannot be fetched: 404 File not found"
    assert summary.slides[1].reason.startswith(f"{text}: ")
    assert str(tmp_path / "scratch") not in summary.slides[1].reason


def test_a_server_that_is_not_there_is_told_in_few_words(
    bundle: Path, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read "OSError: URL: could not be fetched: ConnectionRefusedError: [Errno 111] Connect call failed"."""
    monkeypatch.setattr(run, "_PAUSE", 0.01)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.tif"
        summary = predict_cohort(bundle, [url], tmp_path / "out", cluster=here, retries=1, **COARSE)
    assert summary.slides[0].reason == f"{url}: could not be fetched (connection refused)"
    assert summary.slides[0].attempts == 2


def test_what_is_fetched_without_credentials_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not come by waiting, and were waited for."""

    class NoCredentialsError(Exception):
        """As botocore's."""

    def fail(_: str) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(sources, "url_to_fs", fail)
    with pytest.raises(InputError, match=r"^s3://b/a\.svs: cannot be fetched: Unable to locate credentials$"):
        sources.look_up("s3://b/a.svs")


def test_files_that_are_not_there_are_named_once() -> None:
    with pytest.raises(InputError, match=r"^file:///nowhere/a\.svs: cannot be fetched: no such file or directory$"):
        sources.look_up("file:///nowhere/a.svs")


def test_a_copy_that_a_killed_worker_left_is_replaced(bundle: Path, here: str, tmp_path: Path) -> None:
    from hescribe.inference.cohorts.sources import staged_path

    slide = write_slide(tmp_path / "a.tif", draw_slide(600))
    url = slide.as_uri()
    left = staged_path(url, str(tmp_path / "out" / "a.zarr"), str(tmp_path / "scratch"))
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of it")
    summary = predict_cohort(bundle, [url], tmp_path / "out", cluster=here, scratch=tmp_path / "scratch", **COARSE)
    summary.check()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_names() -> None:
    assert slide_name("https://host/x/a%20b.svs?token=x/y") == "a b.svs"
    assert slide_name("s3://bucket/x/a?b#c.svs") == "a?b#c.svs"
    assert slide_name("/x/a b.svs") == "a b.svs"


def test_sources_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("in/a.tif", "in/b.svs", "in/notes.txt", "other/a.svs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    folder = tmp_path / "in"
    both = {"a": str(folder / "a.tif"), "b": str(folder / "b.svs")}
    assert find_sources([folder]) == both
    monkeypatch.chdir(tmp_path)
    assert find_sources(["in/*.tif", "in"]) == both
    (tmp_path / "empty.tif").mkdir()  # one that is no slide does not stop the others
    assert find_sources([folder, tmp_path / "empty.tif"]) == both | {"empty": str(tmp_path / "empty.tif")}
    uris = {name: Path(path).as_uri() for name, path in both.items()}
    assert find_sources([f"{folder.as_uri()}/"]) == uris
    assert find_sources([f"{folder.as_uri()}/*.tif"]) == {"a": uris["a"]}
    with pytest.raises(InputError, match=r"other/a\.svs: would be written to the same output as .*in/a\.tif"):
        find_sources([folder, "other/a.svs"])
    with pytest.raises(InputError, match=r"https://h/a\.svs: would be written to the same output as .*in/a\.tif"):
        find_sources([folder, "https://h/a.svs"])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/a.mrxs", "several files"),
        ("gopher://host/a.svs", "gopher:// cannot be read"),
        ("https://host/", "without the name of a file"),
        ("file:///nowhere/*.svs", "no slides there"),
    ],
)
def test_urls_that_cannot_be(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_sources([url])
    assert "\n" not in str(caught.value)
