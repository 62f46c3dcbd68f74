"""``hescribe tls`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from shapely.geometry import Point, box, shape

from hescribe.downstream.tls.call import tls
from hescribe.downstream.tls.scores import tls_gene_sets
from hescribe.errors import InputError
from hescribe.io.store import write_anndata

FEW = ("--permutations", "99")
SIGNATURE = tls_gene_sets()["signature"]


def prediction(*, planted: bool = True, name: str = "P1", trusted: float = 0.5) -> ad.AnnData:
    """20 × 15 spots every 200 µm at 0.5 µm per pixel, high in 3 × 3 of them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:15, 0:20]
    where = ((x >= 4) & (x < 7) & (y >= 3) & (y < 6)).ravel()
    genes = [*SIGNATURE, "MS4A1_other", "ACTB", "GAPDH"]
    values = rng.uniform(0, 1, (300, len(genes)))
    values[:, :22] += planted * 0.6 * where[:, None]
    out = ad.AnnData(values.astype(np.float32), var=pd.DataFrame(index=genes))
    out.obs_names = [f"s{i}" for i in range(300)]
    out.var["expected_pcc"] = trusted
    out.obsm["spatial"] = np.column_stack([x.ravel(), y.ravel()]) * 400.0 + 1000
    out.uns["hescribe"] = {"slide": name, "mpp": 0.5, "patient": "P"}
    return out


def store(folder: Path, adata: ad.AnnData) -> Path:
    path = folder / f"{adata.uns['hescribe']['slide']}.zarr"
    write_anndata(adata, path)
    return path


def test_predictions_become_a_folder(tmp_path, cli):
    folder = tmp_path / "in"
    folder.mkdir()
    store(folder, prediction())
    store(folder, prediction(planted=False, name="P2"))
    out = tmp_path / "tls"
    code, said, _ = cli("tls", folder, "-o", out, *FEW)
    assert code == 0
    assert said.strip() == str(out / "index.html")
    found, none = (pd.read_csv(out / f"{n}.tls.csv") for n in ("P1", "P2"))
    assert len(found) == 1
    assert none.empty
    assert np.hypot(found["x"][0] - 3000, found["y"][0] - 2600) < 300
    assert found["area_mm2"][0] == pytest.approx(found["n_spots"][0] * 0.04)
    spots = ad.read_zarr(out / "P1.tls.zarr")
    assert set(spots.obs) == {"tls", "tls_score", "tls_z"}
    assert (spots.obs["tls"] == 1).sum() == found["n_spots"][0]
    features = json.loads((out / "P1.tls.geojson").read_text())["features"]
    inside = spots.obsm["spatial"][spots.obs["tls"].to_numpy() == 1]
    outline = shape(features[0]["geometry"])
    assert all(any(shape(f["geometry"]).contains(Point(*p)) for f in features) for p in inside)
    assert not outline.contains(Point(5000, 5000))
    assert features[0]["properties"]["classification"]["name"] == "TLS"
    assert json.loads((out / "P2.tls.geojson").read_text())["features"] == []
    page = (out / "index.html").read_text()
    assert "1 structure above" in page
    assert "How to read the numbers" in page
    assert "No structure at a level of 0.05" in page
    assert (out / "figures" / "tls_P1.png").stat().st_size > 5000
    assert yaml.safe_load((tmp_path / "tls.config.yaml").read_text())["null"] == "spots"


def test_the_same_command_gives_the_same_files(tmp_path, cli):
    path = store(tmp_path, prediction())
    for name in ("a", "b"):
        assert cli("tls", path, "-o", tmp_path / name, *FEW, "--null", "field", "--control", "fdr")[0] == 0
    for file in ("P1.tls.csv", "P1.tls.geojson"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_measured_sections_and_a_model(tmp_path, cli):
    """Counts of a legacy ST section, with its slide; the scale comes from the spots' pitch."""
    rng = np.random.default_rng(1)
    grid = [(x, y) for x in range(2, 12) for y in range(2, 12)]
    names = [f"{x}x{y}" for x, y in grid]
    rate = np.full((100, 6), 5.0)
    lump = np.array([3 <= x <= 5 and 3 <= y <= 5 for x, y in grid])
    rate[lump, 0] = 60
    counts = pd.DataFrame(rng.poisson(rate), index=names, columns=["MS4A1", "CD3D", "CXCL13", "ACTB", "GAPDH", "KRT8"])
    counts.to_csv(tmp_path / "A.tsv", sep="\t")
    spots = pd.DataFrame([(x, y, x, y, 60 * x, 60 * y, 1) for x, y in grid], columns=[
        "x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"])  # fmt: skip
    spots.to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
    Image.fromarray(rng.integers(150, 255, (840, 840, 3), dtype=np.uint8)).save(tmp_path / "A.jpg")
    (tmp_path / "sections.csv").write_text(
        "section_id,patient_id,image,expression,positions,technology\nA,P,A.jpg,A.tsv,spots.tsv,st\n"
    )
    (tmp_path / "beta.tsv").write_text("gene\tbeta\nMS4A1\t1.0\nACTB\t-0.1\nintercept\t0.5\n")
    out = tmp_path / "tls"
    how = ("--score", "model", "--coefficients", tmp_path / "beta.tsv", "--control", "fdr")
    code, _, err = cli("tls", tmp_path / "sections.csv", "-o", out, *FEW, *how)
    assert code == 0, err
    found = pd.read_csv(out / "A.tls.csv")
    assert len(found) == 1
    assert np.hypot(found["x"][0] - 240, found["y"][0] - 240) < 60
    assert ad.read_zarr(out / "A.tls.zarr").uns["tls"]["mpp"] == pytest.approx(200 / 60, rel=0.01)


def test_genes_below_the_trust_threshold_are_named_on_the_page_and_on_the_screen(tmp_path, cli):
    doubtful = prediction()
    doubtful.var.loc["CD19", "expected_pcc"] = 0.01
    code, _, err = cli("tls", store(tmp_path, doubtful), "-o", tmp_path / "out", *FEW)
    assert code == 0
    assert "CD19" in err
    assert "CD19" in (tmp_path / "out" / "index.html").read_text()


def test_a_gene_named_as_markup_stays_text(tmp_path, cli):
    odd = prediction(name="P<b>1")
    assert cli("tls", store(tmp_path, odd), "-o", tmp_path / "out", *FEW)[0] == 0
    assert "P<b>1" not in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, ("--alpha", "0"), "alpha"),
        ({}, ("--permutations", "5"), "at least 19"),
        ({}, ("--smooth-um", "-1"), "0 or more"),
        ({}, ("--score", "model"), "--coefficients"),
        ({}, ("--score", "magic"), "magic"),
        ({"mpp": float("nan")}, (), "µm per pixel"),
    ],
    ids=["alpha", "permutations", "smoothing", "no coefficients", "unknown score", "no scale"],
)
def test_nonsense_is_one_line(tmp_path, cli, change, options, said):
    adata = prediction()
    adata.uns["hescribe"] |= change
    assert said in cli.refuses("tls", store(tmp_path, adata), "-o", tmp_path / "out", *options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["P1.zarr"]


def test_data_without_a_gene_of_the_score_are_refused(tmp_path, cli):
    adata = prediction()
    adata.var_names = [f"ENSX{i}" for i in range(adata.n_vars)]
    error = cli.refuses("tls", store(tmp_path, adata), "-o", tmp_path / "out")
    assert "no gene of the set 'signature'" in error
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_replaced_unasked(tmp_path, cli):
    path = store(tmp_path, prediction())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    assert "--overwrite" in cli.refuses("tls", path, "-o", tmp_path / "out", *FEW)
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


def test_the_map_shows_outlines_and_numbers():
    from matplotlib.patches import PathPatch

    from hescribe import pl, tl

    section = prediction()
    with pytest.raises(InputError, match=r"tl\.tls"):
        pl.tls_map(section, {})
    found = tl.tls(section, settings=tl.TLSSettings(permutations=99))
    image = np.full((80, 100, 3), 230, dtype=np.uint8), 100.0
    figure = pl.tls_map(section, {1: box(2400, 2000, 3600, 3200)}, thumbnail=image, title="P1")
    panels = [a for a in figure.axes if a.patches]
    assert len(found) == 1
    assert len(panels) == 2
    assert all(isinstance(p, PathPatch) for a in panels for p in a.patches)
    assert all("1" in [t.get_text() for t in a.texts] for a in panels)
    low, high = panels[-1].collections[0].get_clim()
    score = section.obs["tls_score"]
    assert (low, high) == pytest.approx((score.quantile(0.1), score.quantile(0.9)))


def test_several_sections_in_one_table_are_no_section():
    adata = prediction()
    with pytest.raises(InputError, match="300 of 600 spots lie where another does"):
        tls(ad.concat([adata, adata], merge="same", uns_merge="first"))


def test_a_section_that_cannot_be_used_does_not_end_the_others(tmp_path, cli):
    store(tmp_path / "p", prediction())
    broken = prediction(name="P2")
    broken.X[3, 1] = np.nan
    store(tmp_path / "p", broken)
    code, _, err = cli("tls", tmp_path / "p", "-o", tmp_path / "out", *FEW)
    assert code == 0
    assert (
        f"P2: expression must be counts or log1p of counts, without negative or missing values (see '{SIGNATURE[1]}'); left out"
        in err
    )
    assert {p.name for p in (tmp_path / "out").glob("*.csv")} >= {"P1.tls.csv"}
    assert "P2: expression must be" in (tmp_path / "out" / "index.html").read_text()


def test_where_nothing_stands_out_at_all(tmp_path, cli):
    flat = prediction()
    flat.X[:] = 1.0
    code, _, _ = cli("tls", store(tmp_path, flat), "-o", tmp_path / "out", *FEW)
    assert code == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "No structure: no place stands out from the others at all." in page
    assert "inf was needed" not in page
