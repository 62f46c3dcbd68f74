"""The report in a real browser: its script runs, and nothing else does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.chromium, pytest.mark.skipif(BROWSER is None, reason="no Chromium")]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=3000",
)  # fmt: skip


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """The page as it stands after its script, and what the browser logged."""
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_the_table_is_drawn_a_page_at_a_time(written: Path, tmp_path: Path) -> None:
    dom, console = browse(written, tmp_path)
    assert console == ""
    assert 'data-ready="true"' in dom
    body = re.search(r"<tbody>(<tr><th scope=\"row\">.*?)</tbody>", dom, flags=re.S)
    assert body is not None
    assert body[1].count("<tr>") == 25
    assert "1–25 of 12,060" in dom
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body[1]
    assert dom.count("<script") == 2
    assert "<title>&lt;img src=x onerror=alert(2)&gt;" in dom


def test_finding_sorting_and_turning_pages(written: Path, tmp_path: Path) -> None:
    """Driven by a second script, which the page's policy must be told of."""
    act = """
    const click = (id) => document.getElementById(id).click();
    const rows = () => [...document.querySelectorAll("#gene-table tbody th")].map((n) => n.textContent);
    const out = {};
    click("next"); out.second = document.getElementById("status").textContent;
    document.querySelectorAll("#gene-table thead button")[1].click(); out.worst = rows()[0];
    const find = document.getElementById("find");
    find.value = "g59_7"; find.dispatchEvent(new Event("input")); out.found = rows();
    find.value = "nothing"; find.dispatchEvent(new Event("input")); out.none = document.getElementById("status").textContent;
    find.value = ""; find.dispatchEvent(new Event("input"));
    const set = document.getElementById("set"); set.value = "0";
    set.dispatchEvent(new Event("change")); out.set = document.getElementById("status").textContent;
    document.querySelector(".zoom").click(); out.zoomed = document.getElementById("enlarged").open;
    document.body.dataset.outcome = JSON.stringify(out);
    """
    text = written.read_text()
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text).replace(
        "</body>", f"<script>{act}</script></body>"
    )
    page = tmp_path / "driven.html"
    page.write_text(text)
    dom, console = browse(page, tmp_path / "profile")
    assert console == ""
    outcome = re.search(r'data-outcome="([^"]*)"', dom)
    assert outcome is not None
    said = outcome[1].replace("&quot;", '"')
    assert '"second":"26–50 of 12,060"' in said
    assert '"worst":"G59"' in said
    assert '"found":["G59_7","G59_70",' in said
    assert '"none":"No gene matches"' in said
    assert '"set":"1–25 of 10,050"' in said
    assert '"zoomed":true' in said


def test_a_script_that_slipped_in_would_not_run(written: Path, tmp_path: Path) -> None:
    page = tmp_path / "attacked.html"
    page.write_text(written.read_text().replace("</body>", "<script>document.body.id = 'owned'</script></body>"))
    dom, console = browse(page, tmp_path / "profile")
    assert 'id="owned"' not in dom
    assert "Content Security Policy" in console
