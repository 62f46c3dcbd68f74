"""The viewer's server, asked over real connections."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import anndata as ad
import cv2
import numpy as np
import pytest

from hescribe.errors import InputError
from hescribe.io.predictions import StoredPrediction
from hescribe.report.viewer import Viewer, view
from hescribe.report.viewer.pyramid import PICTURE_PX, Pyramid
from hescribe.report.viewer.scene import find_grid
from hescribe.slides.slide import Rgb, Slide
from tests.report.viewer.conftest import EVIL, GENES, HEIGHT, PALE, PINK, STEP, WIDTH, make


def ask(viewer: Viewer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    place = urlsplit(viewer.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        for one in value.split("|"):
            if one:
                connection.putheader(name, one)
    connection.endheaders()
    reply = connection.getresponse()
    out = reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
    connection.close()
    return out


def test_the_page_and_its_parts_come_from_here_alone(viewer: Viewer) -> None:
    status, headers, page = ask(viewer, "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    for name in ("viewer.css", "viewer.js", "map.js", "slide.js", "tiles.js", "genes.js", "icon.svg"):
        status, _, content = ask(viewer, f"/{name}?x=1")
        assert status == 200
        assert b"http://" not in content.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"innerHTML" not in content
    assert b"http" not in page


def test_what_the_page_is_told(viewer: Viewer) -> None:
    facts = json.loads(ask(viewer, "/facts")[2])
    assert facts["genes"] == GENES
    assert facts["expected"] == [0.8, 0.6, None, 0.3, -0.05]
    assert facts["name"] == EVIL
    assert (facts["width"], facts["height"], facts["mpp"]) == (WIDTH, HEIGHT, 0.5)
    assert "this patient" in facts["remark"]
    assert facts["tiles"]["shape"] == "square"
    assert facts["tiles"]["grid"]["step"] == STEP
    assert len(facts["colours"]) == 256


def test_genes_and_tiles_are_sent_as_they_are(viewer: Viewer, prediction: Path) -> None:
    whole = ad.read_zarr(prediction)
    for number in range(len(GENES)):
        status, headers, content = ask(viewer, f"/genes/{number}")
        assert status == 200
        assert int(headers["content-length"]) == len(content)
        np.testing.assert_array_equal(np.frombuffer(content, "<f4"), np.asarray(whole.X)[:, number])
    places = np.frombuffer(ask(viewer, "/tiles/places")[2], "<f4").reshape(-1, 2)
    np.testing.assert_array_equal(places, whole.obsm["spatial"])
    np.testing.assert_array_equal(np.frombuffer(ask(viewer, "/tiles/novelty")[2], "<f4"), whole.obs["novelty"])


def test_a_gene_is_read_once(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(viewer, "/genes/1")[2]
    monkeypatch.setattr(StoredPrediction, "gene_pieces", lambda *_: pytest.fail("read again"))
    assert ask(viewer, "/genes/1")[2] == first


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_it_only_reads(viewer: Viewer, method: str) -> None:
    status, headers, _ = ask(viewer, "/", method)
    assert status == 405
    assert headers["connection"] == "close"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "evil.example:80",
        "localhost@evil.example",
        "10.0.0.1",
        "",
        "localhost|evil.example",
    ],
)
def test_a_name_made_to_point_here_is_refused(viewer: Viewer, host: str) -> None:
    status, headers, content = ask(viewer, "/facts", Host=host)
    assert status == 421
    assert b"RAMP" not in content
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "LOCALHOST", "[::1]:8765"])
def test_a_forwarded_port_is_served(viewer: Viewer, host: str) -> None:
    status, headers, _ = ask(viewer, "/facts", Host=host, Origin="http://evil.example")
    assert status == 200
    assert "access-control-allow-origin" not in headers
    assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "/viewer.js/../../server.py", "//etc/passwd", "/etc/passwd",
        "/page/viewer.js", "/server.py", "/__init__.py", "/genes/-1", "/genes/5", "/genes/99999999999", "/genes/0/../1",
        "/genes/RAMP", "/genes/０", "/slide/0/3/0", "/slide/9/0/0", "/slide/0/-1/0", "/slide/0/0/0/../1", "/tiles/", "/tiles/X",
        "/tiles", "novelty", "/facts/",
    ],
)  # fmt: skip
def test_no_path_leads_elsewhere(viewer: Viewer, path: str) -> None:
    place = urlsplit(viewer.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        reply = b"".join(iter(lambda: line.recv(65536), b""))
    assert reply.split(b"\r\n")[0].split()[1] in {b"404", b"400"}
    assert reply.count(b"\n") < 25


def test_a_browser_that_goes_away_and_one_that_talks_nonsense(viewer: Viewer) -> None:
    place = urlsplit(viewer.url)
    for words in (b"GET /genes/0 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x00\xff\r\n\r\n", b"GET\r\n", b""):
        with socket.create_connection((place.hostname, place.port), timeout=20) as line:
            line.sendall(words)
    assert ask(viewer, "/facts")[0] == 200


def test_pictures_show_the_slide(viewer: Viewer) -> None:
    status, headers, content = ask(viewer, "/slide/0/1/1")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert image.shape == (HEIGHT - PICTURE_PX, PICTURE_PX, 3)
    np.testing.assert_allclose(image[200, 20], PINK, atol=6)
    np.testing.assert_allclose(image[200, -20], PALE, atol=6)
    whole = cv2.imdecode(np.frombuffer(ask(viewer, "/slide/2/0/0")[2], np.uint8), cv2.IMREAD_COLOR)
    assert whole.shape == (250, 310, 3)


class Drawn(Slide):
    """A slide in memory, with levels of the downsamplings given."""

    def __init__(self, image: Rgb, downsamples: tuple[float, ...]) -> None:
        self.path = Path("drawn.png")
        self.height, self.width = image.shape[:2]
        self.downsamples = downsamples
        self.level_sizes = tuple((int(self.width / d), int(self.height / d)) for d in downsamples)
        self._levels = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for size in self.level_sizes]
        self.read = 0

    def _read(self, x: int, y: int, width: int, height: int, *, level: int) -> Rgb:
        self.read = max(self.read, width * height)
        return self._levels[level][y : y + height, x : x + width]


@pytest.mark.parametrize("downsamples", [(1.0,), (1.0, 4.0, 16.0), (1.0, 2.9)])
def test_pictures_lie_where_they_belong(downsamples: tuple[float, ...]) -> None:
    y, x = np.mgrid[0:2500, 0:9000]
    image = np.stack([x % 9000 / 9000 * 255, y / 2500 * 255, 0 * x], axis=2).astype(np.uint8)
    pyramid = Pyramid(Drawn(image, downsamples))
    assert pyramid.picture(pyramid.levels, 0, 0) is None
    for level in range(pyramid.levels):
        side = PICTURE_PX * 2**level
        for column, row in [(0, 0), ((9000 - 1) // side, (2500 - 1) // side)]:
            drawn = pyramid.picture(level, column, row)
            assert drawn is not None
            found = cv2.imdecode(np.frombuffer(drawn, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].astype(float)
            region = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
            assert found.shape[:2] == tuple(-(-s // 2**level) for s in region.shape[:2])
            wanted = cv2.resize(region, found.shape[1::-1], interpolation=cv2.INTER_AREA)
            # Colours are places here: a picture off by one of its own pixels in a hundred would show
            assert np.abs(found[:, :, :2] - wanted[:, :, :2]).mean() < 2.5
    if len(downsamples) == 3:
        assert pyramid.slide.read <= (4 * PICTURE_PX) ** 2  # type: ignore[attr-defined]


def test_pictures_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2048, 2048, 3), dtype=np.uint8)
    pyramid = Pyramid(Drawn(noise, (1.0,)))
    size = len(pyramid.picture(0, 0, 0) or b"")
    monkeypatch.setattr("hescribe.report.viewer.pyramid._KEPT_BYTES", 3 * size)
    for i in range(16):
        pyramid.picture(0, i % 4, i // 4)
    assert pyramid._bytes == sum(map(len, pyramid._kept.values())) <= 3 * size


def test_only_whole_grids_are_drawn_as_one_picture() -> None:
    y, x = (a.ravel() for a in np.mgrid[0:5, 0:7])
    centres = np.stack([x, y], axis=1) * 10.0 + 3
    assert find_grid(centres, 10.0) == {"x": 3.0, "y": 3.0, "step": 10.0, "columns": 7, "rows": 5}
    assert find_grid(centres + np.arange(35)[:, None] * 0.05, 10.0) is None
    assert find_grid(np.concatenate([centres, centres[:1]]), 10.0) is None
    assert find_grid(centres[:1], 10.0) is not None
    assert find_grid(np.array([[0.0, 0.0], [1e9, 1e9]]), 10.0) is None


def test_where_the_slide_is_looked_for(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    with view(path, port=0, browser=False) as shown:
        assert shown.notice == ""
    moved = make(tmp_path / "b", moved=True)
    with view(moved, port=0, browser=False) as shown:
        assert shown.notice == "The slide slide.png was not found; name it with --image FILE to see it."
        assert ask(shown, "/slide/0/0/0")[0] == 404
        assert json.loads(ask(shown, "/facts")[2])["pictures"] is None
    with view(moved, image=tmp_path / "a" / "slide.png", port=0, browser=False) as shown:
        assert ask(shown, "/slide/0/0/0")[0] == 200
    (tmp_path / "slide.png").write_bytes((tmp_path / "a" / "slide.png").read_bytes())  # one folder up
    with view(moved, port=0, browser=False) as shown:
        assert shown.notice == ""
    cv2.imwrite(str(tmp_path / "slide.png"), np.zeros((50, 50, 3), np.uint8))
    with view(moved, port=0, browser=False) as shown:
        assert "tiles lie outside this image" in shown.notice
    with pytest.raises(InputError, match="tiles lie outside this image"):
        view(moved, image=tmp_path / "slide.png", port=0, browser=False)


def test_ports(prediction: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with view(prediction, port=0, browser=False) as shown:
        taken = urlsplit(shown.url).port
        assert taken
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{taken}"):
            view(prediction, port=taken, browser=False)
        monkeypatch.setattr("hescribe.report.viewer.live.PORT", taken)
        with view(prediction, browser=False) as other:
            assert other.url != shown.url
            assert ask(other, "/facts")[0] == 200
    with pytest.raises(InputError, match="cannot listen on"):
        view(prediction, host="no.such.host.invalid", browser=False)


def test_the_browser_is_opened_where_it_listens(prediction: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with view(prediction, port=0) as shown:
        assert opened == [shown.url]
        assert shown.url in repr(shown)
