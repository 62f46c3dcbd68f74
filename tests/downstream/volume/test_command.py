"""``hescribe volume`` from files to a folder; every refusal is one line."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import anndata as ad
import cv2
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from hescribe import tl
from hescribe.cli.main import app
from hescribe.io.expression import log_normalise
from hescribe.io.store import write_anndata
from hescribe.sections import read_sections
from tests.conftest import Cli

from .conftest import UM, apply_map, cut, draw_tissue, place

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIDE = 130  #: pixels
MAPS = [(0, False), (50, False), (-100, True)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three legacy ST sections of one small block, each turned its own way; made without writing any map down."""
    folder = tmp_path_factory.mktemp("serial")
    block = draw_tissue(side=SIDE)
    x, y = np.meshgrid(np.arange(100, SIDE * UM, 200.0), np.arange(100, SIDE * UM, 200.0))
    inside = block[(y / UM).astype(int), (x / UM).astype(int), 1] < 200
    points = np.column_stack([x[inside], y[inside]])
    names = [f"{i}x{j}" for i, j in (points // 200).astype(int)]
    rows = ["section_id,patient_id,image,expression,positions,technology,z"]
    for i, (angle, flip) in enumerate(MAPS):
        truth = place(angle, flip=flip, middle=SIDE * UM / 2)
        cv2.imwrite(str(folder / f"{i}.png"), cut(block, truth, "", i).image[..., ::-1])
        rng = np.random.default_rng(i)
        mean = np.column_stack([points / 40, np.full((len(points), 2), 40)])
        table = pd.DataFrame(rng.poisson(mean), index=names, columns=["EAST", "SOUTH", "<i>", "REST"])
        table.to_csv(folder / f"{i}.tsv", sep="\t")
        pixels = apply_map(truth, points) / UM
        spots = pd.DataFrame({"x": points[:, 0] // 200, "y": points[:, 1] // 200}).astype(int)
        spots.assign(pixel_x=pixels[:, 0], pixel_y=pixels[:, 1], selected=1).to_csv(folder / f"{i}_s.tsv", sep="\t")
        rows.append(f"S{i},P,{i}.png,{i}.tsv,{i}_s.tsv,st,{(20, 0, 10)[i]}")
    (folder / "sections.csv").write_text("\n".join(rows) + "\n")
    return folder / "sections.csv"


@pytest.fixture(scope="module")
def predictions(manifest: Path) -> Path:
    """What was measured, in the form of predictions."""
    folder = manifest.parent / "predictions"
    for section in read_sections(manifest):
        table = section.adata.copy()
        table.X = log_normalise(table.X).toarray()
        table.var["expected_pcc"] = [0.5, 0.4, 0.1, np.nan]
        table.uns = {"hescribe": {"unit": "log1p of counts per 10,000", "slide": section.section_id, "mpp": UM}}
        write_anndata(table, folder / f"{section.section_id}.zarr")
    return folder


@pytest.fixture(scope="module")
def made(manifest: Path, predictions: Path) -> Path:
    options = ["--genes", "EAST,<i>", "--registration", "rigid", "--grid-um", "100"]
    folder = manifest.parent / "out"
    done = CliRunner().invoke(
        app, ["volume", str(manifest), "-o", str(folder), "--predictions", str(predictions), *options]
    )
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith("index.html")
    return folder


def test_what_is_written(made: Path) -> None:
    assert {p.name for p in made.iterdir()} == {
        "figures", "index.html", "stack.zarr", "transforms.json", "volume.ome.zarr", "volume.vti",
    }  # fmt: skip
    transforms = json.loads((made / "transforms.json").read_text())
    assert [s["section"] for s in transforms["sections"]] == ["S1", "S2", "S0"]  # by z
    assert (made.parent / "out.config.yaml").is_file()
    assert "predicted" in (made / "index.html").read_text()
    assert [len(p) for p in (transforms["pairs"], tl.load_placements(made / "transforms.json"))] == [2, 3]


def test_maps_in_the_page_keep_their_colours(made: Path) -> None:
    """Colours of stacks and cuts were chosen by frequency: different values looked the same."""
    levels = {tuple(c) for c in mpl.colormaps["viridis"](np.linspace(0, 1, 160), bytes=True)[:, :3].tolist()}
    pictures = re.findall(r'"data:image/png;base64,([^"]+)" alt="(?:Sections stacked|Orthogonal)', page_of(made))
    assert len(pictures) == 4
    for picture in pictures:
        palette = Image.open(io.BytesIO(base64.b64decode(picture))).getpalette()
        assert levels <= {tuple(palette[i : i + 3]) for i in range(0, len(palette), 3)}


def test_the_page_can_be_heard(made: Path) -> None:
    """Cards were headings of a level below none, and columns had no scope."""
    page = page_of(made)
    assert page.index("<h2") < page.index("<h3")
    assert "<th>" not in page
    assert page.count("<td>yes</td>") == 2  # flipped, which was said as True


def page_of(folder: Path) -> str:
    return (folder / "index.html").read_text()


def test_spots_of_one_place_lie_above_each_other(made: Path) -> None:
    """The three sections were measured at the same places of the block."""
    stack = ad.read_zarr(made / "stack.zarr")
    by_section = {s: stack[stack.obs["section_id"] == s].obsm["spatial_3d"] for s in ("S0", "S1", "S2")}
    assert {s: set(p[:, 2]) for s, p in by_section.items()} == {"S0": {20}, "S1": {0}, "S2": {10}}
    for one in ("S0", "S1"):
        assert np.linalg.norm((by_section[one] - by_section["S2"])[:, :2], axis=1).mean() < 50


def test_the_page_holds_its_view_and_escapes_names(made: Path) -> None:
    text = (made / "index.html").read_text()
    assert 'id="view-3d"' in text
    assert "<i>" not in text
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', text, flags=re.S)[1])
    assert [g["name"] for g in data["genes"]] == ["EAST", "<i>"]
    assert [s["z"] for s in data["sections"]] == [-10, 0, 10]
    assert all(len(s["outline"][0]) > 5 for s in data["sections"])


def test_a_prediction_that_is_missing(manifest: Path, predictions: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(predictions, tmp_path / "some", ignore=shutil.ignore_patterns("S1.zarr"))
    options = ("-o", tmp_path / "out", "--predictions", tmp_path / "some")
    assert "no prediction of section 'S1' (there is S0, S2)" in cli.refuses("volume", manifest, *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_measured_sections(manifest: Path, made: Path, tmp_path: Path) -> None:
    """The same values as predictions of the same values."""
    page = tl.volume(read_sections(manifest), tmp_path / "out", genes=["EAST"], registration="rigid", grid_um=100)
    assert "measured" in page.read_text()
    one, other = (ad.read_zarr(f / "stack.zarr") for f in (page.parent, made))
    np.testing.assert_allclose(one.X.toarray(), other.X, rtol=1e-5)
    np.testing.assert_array_equal(one.obsm["spatial_3d"], other.obsm["spatial_3d"])


REFUSED = {
    "two sections": (("--without", "S1"), "2 sections do not make a volume"),
    "unknown registration": (("--registration", "magic"), "unknown registration 'magic'"),
    "no resolution": (("--registration-um", "0"), "--registration-um is 0"),
    "no predictions": (("--predictions", "nowhere"), "nowhere: no such prediction"),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED.keys())
def test_refusals(manifest: Path, tmp_path: Path, cli: Cli, refused) -> None:
    options, message = refused
    assert message in cli.refuses("volume", manifest, "-o", tmp_path / "out", *options)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_when_asked(manifest: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "--overwrite" in cli.refuses("volume", manifest, "-o", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_sections_that_cannot_be_stacked(manifest: Path, tmp_path: Path, cli: Cli) -> None:
    for old, new, message in (
        ("S1,P,1.png", "S1,P,", "section 'S1' has no image"),
        (",st,10", ",st,", "z is stated for some sections but not for S2"),
        ("1.tsv,1_s.tsv,st", ",,", "section 'S1' has no expression"),
    ):
        broken = manifest.with_name("broken.csv")
        assert old in manifest.read_text()
        broken.write_text(manifest.read_text().replace(old, new))
        assert message in cli.refuses("volume", broken, "-o", tmp_path / "out")


@pytest.mark.chromium
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_view_in_a_browser(made: Path, tmp_path: Path) -> None:
    """Driven by a second script, which the page's policy must be told of."""
    act = """
    const canvas = document.querySelector("#view-3d canvas");
    const note = () => document.querySelector("#view-3d .note").textContent;
    const out = [note(), canvas.toDataURL()];
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
    out.push(canvas.toDataURL());
    const gene = document.getElementById("volume-gene"); gene.value = "1"; gene.dispatchEvent(new Event("change"));
    out.push(note());
    const above = document.getElementById("volume-above"); above.value = "128"; above.dispatchEvent(new Event("input"));
    out.push(note());
    document.body.dataset.outcome = JSON.stringify([out[0], out[1] !== out[2], out[3], out[4]]);
    """
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", (made / "index.html").read_text())
    page = tmp_path / "driven.html"
    page.write_text(text.replace("</body>", f"<script>{act}</script></body>"))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr",
             "--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")  # fmt: skip
    done = subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    outcome = json.loads(
        re.search(r'data-outcome="([^"]*)"', done.stdout)[1]
        .replace("&quot;", '"')
        .replace("&lt;", "<")
        .replace("&gt;", ">")
    )
    spots = re.search(r"of (\d+) spots", outcome[0])[1]
    assert outcome[0].startswith(f"EAST: {spots} of {spots} spots")
    assert outcome[1] is True
    assert outcome[2].startswith(f"<i>: {spots} of")
    assert 0 < int(re.search(r": (\d+) of", outcome[3])[1]) < int(spots)
