"""The viewer in a real browser: pointer, keys and pixels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import anndata as ad
import matplotlib as mpl
import numpy as np
import pytest

from hescribe.plots.maps import colour_range
from hescribe.report.viewer import Viewer, view
from tests.report.viewer.browser import BROWSER, Browser
from tests.report.viewer.conftest import EVIL, HEIGHT, PALE, PINK, STEP, WIDTH, make

pytestmark = [pytest.mark.chromium, pytest.mark.skipif(BROWSER is None, reason="no Chromium")]

ZOOM = 0.75  #: shows the whole slide in a window of 1280 × 800
TEXT = "document.getElementById('{}').innerText"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _nothing_goes_wrong(request: pytest.FixtureRequest, browser: Browser) -> Iterator[None]:
    """No message in the console, no attack carried out, nothing asked of anybody else."""
    browser.console.clear()
    browser.requests.clear()
    yield
    browser.run("new Promise(r => setTimeout(() => r(1), 50))")
    assert browser.console == []
    assert browser.run("window.owned") is None
    assert {urlsplit(url).hostname for url in browser.requests if not url.startswith("about:")} == {"127.0.0.1"}
    browser.resize(1280, 800)


def look(
    browser: Browser, viewer: Viewer, gene: str, *, opacity: int = 100, zoom: float = ZOOM, more: str = ""
) -> None:
    """The middle of the slide in the middle of the map."""
    words = f"gene={quote(gene)}&x={WIDTH / 2}&y={HEIGHT / 2}&zoom={zoom}&opacity={opacity}{more}"
    browser.go(f"{viewer.url}#{words}")


def on_screen(browser: Browser, column: int, row: int, zoom: float = ZOOM) -> tuple[int, int]:
    """Where a tile's centre is seen."""
    width, height = browser.run(
        "[document.getElementById('map').clientWidth, document.getElementById('map').clientHeight]"
    )
    x, y = (column + 0.5) * STEP, (row + 0.5) * STEP
    return round((x - WIDTH / 2) * zoom + width / 2), round((y - HEIGHT / 2) * zoom + height / 2)


def colour_at(browser: Browser, column: int, row: int) -> np.ndarray:
    x, y = on_screen(browser, column, row)
    return browser.picture()[y, x].astype(int)


def at(browser: Browser) -> dict[str, str]:
    """What the address says, once it has been written."""
    time.sleep(0.3)
    return {k: v[0] for k, v in parse_qs(urlsplit(browser.run("location.href")).fragment).items()}


def viridis(value: float, low: float, high: float) -> np.ndarray:
    share = np.clip((value - low) / (high - low), 0, 1)
    return np.array(mpl.colormaps["viridis"](int(np.rint(255 * share)), bytes=True)[:3], dtype=int)


def test_tiles_have_the_colours_of_the_scale(browser: Browser, viewer: Viewer, prediction: Path) -> None:
    values = np.asarray(ad.read_zarr(prediction).X)[:, 0]
    low, high = colour_range(values)
    look(browser, viewer, "RAMP")
    for column in (5, 14, 24):
        np.testing.assert_allclose(colour_at(browser, column, 12), viridis(column / 10, low, high), atol=1)
    assert browser.run(TEXT.format("low")) == f"≤ {low:.2f}"
    assert browser.run(TEXT.format("high")) == f"≥ {high:.2f}"
    np.testing.assert_allclose(colour_at(browser, 3, 1), PINK, atol=6)  # no tile there
    look(browser, viewer, "RAMP", more="&clip=0")
    low, high = float(values.min()), float(values.max())
    np.testing.assert_allclose(colour_at(browser, 24, 12), viridis(2.4, low, high), atol=1)
    assert browser.run(TEXT.format("high")) == f"{high:.2f}"


def test_opacity_fading_and_tiles_without_a_value(browser: Browser, viewer: Viewer) -> None:
    look(browser, viewer, "RAMP", opacity=0)
    np.testing.assert_allclose(colour_at(browser, 10, 12), PINK, atol=6)
    np.testing.assert_allclose(colour_at(browser, 20, 12), PALE, atol=6)
    look(browser, viewer, "HOLES")
    np.testing.assert_allclose(colour_at(browser, 10, 12), (228, 231, 235), atol=1)
    look(browser, viewer, "RAMP")
    strange, familiar = colour_at(browser, 20, 4), colour_at(browser, 20, 12)
    browser.run("document.getElementById('fade').click()")
    browser.settle()
    assert np.abs(colour_at(browser, 20, 4) - PALE).max() < 0.2 * np.abs(strange - PALE).max()
    np.testing.assert_array_equal(colour_at(browser, 20, 12), familiar)
    assert at(browser)["fade"] == "95"


def test_the_tooltip_says_value_interval_and_novelty(browser: Browser, viewer: Viewer) -> None:
    look(browser, viewer, "RAMP")
    browser.move(*on_screen(browser, 20, 12))
    said = browser.run(TEXT.format("tooltip"))
    assert said.splitlines() == ["RAMP", "2.00 ± 0.50", "90% interval 1.50 to 2.50", "Novelty: percentile 20"]
    browser.move(*on_screen(browser, 4, 7))
    said = browser.run(TEXT.format("tooltip"))
    assert "0.40 ± 0.50" in said
    assert "interval 0.00 to 0.90" in said  # expression is never negative
    assert "percentile 99, unlike the training tiles" in said
    browser.move(*on_screen(browser, 3, 1))
    assert browser.run("document.getElementById('tooltip').hidden")
    look(browser, viewer, "FLAT")
    browser.move(*on_screen(browser, 15, 12))
    assert browser.run(TEXT.format("tooltip")).splitlines()[:2] == ["FLAT", "1.50"]
    assert "no section that was left out could say" in browser.run(TEXT.format("trust"))
    legend = browser.run(TEXT.format("legend"))
    assert "1.50 everywhere" in legend
    assert "2.50" not in legend


def test_zooming_keeps_what_is_under_the_pointer(browser: Browser, viewer: Viewer) -> None:
    look(browser, viewer, "RAMP")
    place = on_screen(browser, 22, 10)
    browser.wheel(*place, -300)
    assert float(at(browser)["zoom"]) > 1
    browser.move(*place)
    assert "2.20 ± 0.50" in browser.run(TEXT.format("tooltip"))
    assert browser.run("document.querySelector('#scale-bar span').textContent").endswith("µm")
    bar = browser.run("document.querySelector('#scale-bar i').getBoundingClientRect().width")
    length = float(browser.run("document.querySelector('#scale-bar span').textContent").split()[0])
    assert bar == pytest.approx(length / 0.5 * float(at(browser)["zoom"]), abs=1)
    browser.drag(place, (place[0] - 100, place[1] + 40))
    browser.move(place[0] - 100, place[1] + 40)
    assert "2.20 ± 0.50" in browser.run(TEXT.format("tooltip"))
    browser.run("document.getElementById('whole').click()")
    browser.settle()
    assert float(at(browser)["x"]) == WIDTH / 2


def test_finding_and_switching_genes(browser: Browser, viewer: Viewer) -> None:
    browser.go(viewer.url)
    assert browser.run("document.querySelector('h2').textContent") == "RAMP"  # the best one first
    names = "[...document.querySelectorAll('.row span')].map((n) => n.textContent)"
    assert browser.run(names) == ["RAMP", EVIL, "HOLES", "WORST", "FLAT"]  # unknown ones last
    browser.run("document.getElementById('find').focus()")
    browser.type("onerror")
    assert browser.run(names) == [EVIL]
    browser.press("Enter", 13)
    browser.settle()
    assert browser.run("document.querySelector('h2').textContent") == EVIL
    assert browser.run("document.querySelector('#legend strong').textContent") == EVIL
    assert browser.run("document.title").startswith(EVIL)
    assert browser.run("document.querySelectorAll('img, script').length") == 1
    assert at(browser)["gene"] == EVIL
    browser.run("document.getElementById('find').value = ''")
    browser.run("document.getElementById('find').dispatchEvent(new Event('input'))")
    for _ in range(2):
        browser.press("ArrowDown", 40)
    browser.settle()
    assert browser.run("document.querySelector('h2').textContent") == "WORST"
    assert not browser.run("document.getElementById('doubt').hidden")
    browser.run("document.getElementById('find').value = 'nothing'")
    browser.run("document.getElementById('find').dispatchEvent(new Event('input'))")
    assert browser.run(TEXT.format("found")) == "No gene matches"


def test_an_address_leads_back_to_what_was_seen(browser: Browser, viewer: Viewer) -> None:
    look(browser, viewer, EVIL, opacity=40, zoom=1.2, more="&clip=5&fade=50")
    seen = browser.picture()
    address = at(browser)
    browser.go(f"{viewer.url}#" + "&".join(f"{k}={quote(v)}" for k, v in address.items()))
    np.testing.assert_array_equal(browser.picture(), seen)
    browser.go(f"{viewer.url}#gene=NO%20SUCH&x=hello&zoom=-1&opacity=9e999&clip=7")
    assert "no gene of the name NO SUCH" in browser.run(TEXT.format("notice"))
    assert browser.run("document.querySelector('h2').textContent") == "RAMP"
    browser.run("location.hash = '#gene=HOLES'")  # what was said of a name that is not there holds no longer
    browser.wait("document.querySelector('h2').textContent === 'HOLES'")
    browser.settle()
    assert browser.run("document.getElementById('notice').hidden")


def test_the_legend_gives_way_to_what_is_below_it(browser: Browser, viewer: Viewer) -> None:
    look(browser, viewer, "RAMP")
    place = "(() => { const b = document.getElementById('legend').getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })()"
    left, top, right, bottom = browser.run(place)
    covering = "document.getElementById('legend').classList.contains('covering')"
    for (x, y), expected in {((left + right) / 2, (top + bottom) / 2): True, (left - 20, top - 20): False}.items():
        browser.move(x, y)
        browser.settle()
        assert browser.run(covering) is expected


def test_without_a_slide_it_says_so(browser: Browser, tmp_path: Path) -> None:
    with view(make(tmp_path / "b", moved=True), port=0, browser=False) as shown:
        browser.go(shown.url)
        assert "slide.png was not found" in browser.run(TEXT.format("notice"))
        assert browser.run("document.getElementById('opacity').value") == "100"


@pytest.mark.parametrize("size", [(1280, 800), (400, 800), (800, 420)])
def test_nothing_is_cut_off(browser: Browser, viewer: Viewer, size: tuple[int, int]) -> None:
    browser.resize(*size)
    look(browser, viewer, EVIL)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    for part in ("legend", "scale-bar", "buttons"):
        inside = f"(() => {{ const a = document.getElementById('{part}').getBoundingClientRect(), b = document.querySelector('main').getBoundingClientRect(); return a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom; }})()"
        assert browser.run(inside), part
    assert browser.run("document.getElementById('rows').clientHeight") > 60
