"""Recipes: from a download as it lies on disk to a manifest, its sections, and a judged prediction."""

from __future__ import annotations

import gzip
import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hescribe.datasets import fetch
from hescribe.datasets.recipes import find_recipe, list_recipes, prepare, published_figures
from hescribe.datasets.recipes.prepare import NEED_SLIDES
from hescribe.datasets.registry import DATASETS
from hescribe.errors import InputError, OutputError
from hescribe.methods import METHODS
from hescribe.sections import Section, read_sections
from tests.conftest import Cli
from tests.datasets import standins
from tests.datasets.test_fetch import sha256
from tests.test_sections import SHARED, real

LIVER = {"C73_A1": "GSM7697868", "C73_B1": "GSM7697869", "C73_C1": "GSM7697870", "C73_D1": "GSM7697871"}


def check_sections(manifest: Path, recipe: str, *, mpp: float, spots: int) -> list[Section]:
    """Every section reads, in the recipe's order, and its tiles show what its counts say."""
    sections = read_sections(manifest)
    told = find_recipe(recipe).sections
    assert [(s.section_id, s.patient_id) for s in sections] == [(s.section_id, s.patient_id) for s in told]
    for section in sections:
        assert section.adata.n_obs == spots
        assert section.mpp == pytest.approx(mpp, rel=0.01)
        tiles = section.tiles().read(np.arange(spots), tile_um=0.5 * mpp * 100, size_px=32)
        dark = section.adata[:, "DARK"].X.toarray().ravel()
        assert np.corrcoef(tiles.mean(axis=(1, 2, 3)), dark)[0, 1] < -0.9
    return sections


def options(config: Path) -> dict[str, object]:
    return tomllib.loads(config.read_text())


def ids(recipe: str) -> list[str]:
    return [s.section_id for s in find_recipe(recipe).sections]


def test_hest_with_slides(tmp_path: Path) -> None:
    standins.write_hest(tmp_path / "hest", ids("cmrcnet-read"))
    prepared = prepare("cmrcnet-read", tmp_path / "hest", tmp_path / "out")
    # 0.5 by the data set's own metadata, 0.46 by the TIFF's tag; the first spot is not under tissue
    sections = check_sections(prepared.manifest, "cmrcnet-read", mpp=0.5, spots=35)
    assert all(s.image.suffix == ".tif" for s in sections)
    assert list(sections[0].adata.var_names[:3]) == ["DARK", "LIGHT", "G0"]
    assert [c.name for c in prepared.configs] == ["benchmark.toml", "benchmark.leave-one-section-out.toml"]
    headline, published = map(options, prepared.configs)
    assert headline["protocol"] == "leave-one-patient-out"
    assert "allow_same_patient" not in headline
    # two sections of a patient, one of them in training: only allowed where it is asked for
    assert published["allow_same_patient"] is True
    assert headline["recipe"] == "cmrcnet-read"
    assert headline["genes"] == "hvg:1000"
    assert "fusion" in str(headline["methods"])


def test_a_task_of_hest_benchmark_with_its_genes(tmp_path: Path) -> None:
    standins.write_hest(tmp_path / "bench", ids("hest-idc"), bench="IDC")
    prepared = prepare("hest-idc", tmp_path / "bench", tmp_path / "out")
    # the task's own folder may be given as well
    assert options(prepare("hest-idc", tmp_path / "bench" / "IDC", tmp_path / "b").configs[0])["genes"] != "hvg:50"
    check_sections(prepared.manifest, "hest-idc", mpp=0.5, spots=34)
    told = options(prepared.configs[0])
    assert Path(str(told["genes"])).read_text().split() == list(standins.GENES[:10])
    # stored tiles show nothing around the spots
    assert not NEED_SLIDES & set(str(told["methods"]).split(","))
    assert any("fusion" in note and "whole-slide" in note for note in prepared.notes)


def test_hest_with_patches_alone(tmp_path: Path) -> None:
    standins.write_hest(tmp_path / "hest", ids("hest-skcm"), slides=False)
    prepared = prepare("hest-skcm", tmp_path / "hest", tmp_path / "out")
    check_sections(prepared.manifest, "hest-skcm", mpp=0.5, spots=34)
    assert options(prepared.configs[0])["genes"] == "hvg:50"
    assert any("SKCM/var_50genes.json is not there" in note for note in prepared.notes)


def test_methods_that_need_slides_are_those_that_look_around_a_tile() -> None:
    """A method with scales or neighbours cannot run on stored tiles, and must be left out there."""
    looking = set()
    for name, method in METHODS.items():
        context = getattr(method.config(), "context", None)
        if context is not None and (max(context.scales) > 1 or context.grid):
            looking.add(name)
    assert looking == set(NEED_SLIDES)


@pytest.mark.parametrize("zipped", [True, False])
def test_cscc_as_geo_has_it(tmp_path: Path, zipped: bool) -> None:
    end = ".gz" if zipped else ""
    folder = tmp_path / "GSE144240"
    for i, name in enumerate(ids("cscc")):
        sample = f"GSM{4284316 + i}"
        standins.write_st(
            folder / f"{sample}_{name}_stdata.tsv{end}",
            folder / f"{sample}_spot_data-selection-{name}.tsv{end}",
            folder / f"{sample}_{name}.jpg{end}",
            seed=i,
        )
    prepared = prepare("cscc", folder, tmp_path / "out")
    sections = check_sections(prepared.manifest, "cscc", mpp=2.0, spots=35)
    assert {s.patient_id for s in sections} == {"P2", "P5", "P9", "P10"}
    # images are unpacked beside the manifest, and named relative to it
    assert (sections[0].image.parent == tmp_path / "out" / "images") == zipped
    table = pd.read_csv(prepared.manifest)
    assert table.image.str.startswith("images/").all() == zipped
    if zipped:
        before = sections[0].image.stat().st_mtime_ns
        prepare("cscc", folder, tmp_path / "out")
        assert sections[0].image.stat().st_mtime_ns == before


@pytest.mark.parametrize("end", ["_", "_VISIUM_"])
def test_the_liver_as_geo_has_it(tmp_path: Path, end: str) -> None:
    for i, (name, sample) in enumerate(LIVER.items()):
        tissue = standins.make_tissue(i, pitch_px=120, hexagonal=True)
        for file, text in standins.visium_files(tissue).items():
            zip_it = not file.endswith(".json")
            path = tmp_path / "geo" / f"{sample}_{name.replace('_', '')}{end}{file}{'.gz' if zip_it else ''}"
            standins.zip_text(path, text) if zip_it else path.write_text(text)
        standins.zip_bytes(tmp_path / "geo" / f"{sample}_GEX_{name}_Merged.tiff.gz", standins.liver_image(tissue))
    prepared = prepare("human-liver", tmp_path / "geo", tmp_path / "out")
    sections = check_sections(prepared.manifest, "human-liver", mpp=100 / 120, spots=36)
    assert sections[0].adata.uns["spatial"]["C73_A1"]["scalefactors"]["spot_diameter_fullres"] == 66
    told = options(prepared.configs[0])
    assert told["protocol"] == "leave-one-section-out"
    assert told["tile_um"] == 68


def write_bleep(folder: Path) -> None:
    """Counts and positions as in BLEEP's repository, images as at GEO; no scale factors."""
    data = folder / "BLEEP-2395967" / "GSE240429_data" / "data"
    for i, (name, sample) in enumerate(LIVER.items()):
        tissue = standins.make_tissue(i, pitch_px=120, hexagonal=True)
        files = standins.visium_files(tissue)
        matrix = data / "filtered_expression_matrices" / str(i + 1)
        matrix.mkdir(parents=True)
        for file in ("matrix.mtx", "barcodes.tsv", "features.tsv"):
            (matrix / file).write_text(files[file])
        positions = data / "tissue_pos_matrices" / f"tissue_positions_list_{i + 1}.csv"
        positions.parent.mkdir(exist_ok=True)
        positions.write_text(files["tissue_positions_list.csv"])
        standins.zip_bytes(folder / f"{sample}_GEX_{name}_Merged.tiff.gz", standins.liver_image(tissue))


def test_the_liver_as_it_is_fetched(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The registered files, served from here: an archive that is unpacked, and images that stay gzipped."""
    url, served = server
    write_bleep(tmp_path / "source")
    shutil.make_archive(str(served / "BLEEP"), "zip", tmp_path / "source", "BLEEP-2395967")
    for image in (tmp_path / "source").glob("*.gz"):
        image.rename(served / image.name)
    entry = DATASETS["human-liver"]
    files = [replace(file, url=f"{url}/{file.name}", sha256=sha256(served / file.name)) for file in entry.files]
    monkeypatch.setitem(DATASETS, "human-liver", replace(entry, files=tuple(files)))
    folder = fetch("human-liver", tmp_path / "download")
    prepared = prepare("human-liver", folder, tmp_path / "out")
    sections = check_sections(prepared.manifest, "human-liver", mpp=100 / 120, spots=36)
    diameter = sections[0].adata.uns["spatial"]["C73_A1"]["scalefactors"]["spot_diameter_fullres"]
    assert diameter == pytest.approx(0.55 * 120, rel=0.01)


@pytest.mark.parametrize("source", ["github", "zenodo"])
def test_her2st_as_either_source_has_it(tmp_path: Path, source: str) -> None:
    root = tmp_path / "her2st"
    for i, section in enumerate(find_recipe("her2st").sections):
        name, patient = section.section_id, section.patient_id
        if source == "github":
            files = (f"data/ST-cnts/{name}.tsv.gz", f"data/ST-spotfiles/{name}_selection.tsv")
            image = f"data/ST-imgs/{patient}/{name}/190825_HE_BT_{name}.jpg"
        else:
            files = (f"count-matrices/{name}.tsv.gz", f"spot-selections/{name}_selection.tsv.gz")
            image = f"images/HE/{name}.jpg"
        standins.write_st(root / files[0], root / files[1], root / image, seed=i)
    prepared = prepare("her2st", root, tmp_path / "out")
    sections = check_sections(prepared.manifest, "her2st", mpp=2.0, spots=35)
    assert len(sections) == 36
    assert len({s.patient_id for s in sections}) == 8


@real
@pytest.mark.shared
def test_the_real_her2st(tmp_path: Path) -> None:
    prepared = prepare("her2st", SHARED / "her2st", tmp_path, only=["B4", "C2", "C3", "C4", "C5"])
    sections = read_sections(prepared.manifest)
    assert [s.patient_id for s in sections] == ["B", "C", "C", "C", "C"]
    assert all(0.6 < s.mpp < 0.85 for s in sections)
    assert any("5 of the 36 sections" in note for note in prepared.notes)


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    standins.write_hest(tmp_path / "hest", ids("hest-read"))
    (tmp_path / "hest" / "wsis" / "ZEN40.tif").unlink()
    (tmp_path / "hest" / "patches" / "ZEN40.h5").unlink()
    (tmp_path / "hest" / "st" / "ZEN48.h5ad").unlink()
    with pytest.raises(InputError) as caught:
        prepare("hest-read", tmp_path / "hest", tmp_path / "out")
    text = str(caught.value)
    assert "\n" not in text
    assert "2 of 4 sections of hest-read are missing: image of ZEN40; expression of ZEN48" in text
    assert "hf download MahmoodLab/hest-bench" in text
    assert not (tmp_path / "out").exists()
    # what is there can be prepared
    prepared = prepare("hest-read", tmp_path / "hest", tmp_path / "out", only=["ZEN36", "ZEN49"])
    assert [s.section_id for s in read_sections(prepared.manifest)] == ["ZEN36", "ZEN49"]


def test_a_download_that_was_cut_short(tmp_path: Path) -> None:
    standins.write_st(tmp_path / "a_P2_ST_rep1_stdata.tsv", tmp_path / "x", tmp_path / "a_P2_ST_rep1.jpg.gz", seed=0)
    (tmp_path / "x").rename(tmp_path / "a_spot_data-selection-P2_ST_rep1.tsv")
    image = tmp_path / "a_P2_ST_rep1.jpg.gz"
    whole = image.read_bytes()
    for broken in (whole[: len(whole) // 2], gzip.decompress(whole)):
        image.write_bytes(broken)
        with pytest.raises(InputError, match=r"P2_ST_rep1\.jpg\.gz: does not unpack"):
            prepare("cscc", tmp_path, tmp_path / "out", only=["P2_ST_rep1"])
        assert not list((tmp_path / "out").rglob("*.jpg"))
        assert not (tmp_path / "out" / "sections.csv").exists()


def test_what_prepare_refuses(tmp_path: Path) -> None:
    standins.write_hest(tmp_path / "hest", ids("hest-skcm"))
    with pytest.raises(InputError, match=r"no recipe 'hest-brain'.*hest-idc"):
        prepare("hest-brain", tmp_path / "hest", tmp_path / "out")
    with pytest.raises(InputError, match=r"no section 'TENX1'.*TENX115"):
        prepare("hest-skcm", tmp_path / "hest", tmp_path / "out", only=["TENX1"])
    with pytest.raises(InputError, match="no such folder"):
        prepare("hest-skcm", tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sections.csv").write_text("my own")
    with pytest.raises(OutputError, match=r"holds another sections\.csv"):
        prepare("hest-skcm", tmp_path / "hest", tmp_path / "mine")
    assert (tmp_path / "mine" / "sections.csv").read_text() == "my own"
    prepare("hest-skcm", tmp_path / "hest", tmp_path / "mine", overwrite=True)
    (tmp_path / "hest" / "again" / "st").mkdir(parents=True)
    prepare("hest-skcm", tmp_path / "hest", tmp_path / "mine")  # its own manifest it may replace
    (tmp_path / "hest" / "SKCM").mkdir()
    (tmp_path / "hest" / "SKCM" / "var_50genes.json").write_text("[1]")
    with pytest.raises(InputError, match=r"var_50genes\.json: no list of genes"):
        prepare("hest-skcm", tmp_path / "hest", tmp_path / "mine")


def test_of_two_copies_the_one_that_lies_less_deep(tmp_path: Path) -> None:
    """HEST-Benchmark has older patches of a task in a folder of its own, and the hub's client hidden copies."""
    standins.write_hest(tmp_path, ids("hest-skcm"), bench="SKCM")
    standins.write_hest(tmp_path / "SKCM" / "old", ids("hest-skcm"), bench="x")
    standins.write_hest(tmp_path / ".cache", ids("hest-skcm"), bench="x")
    prepared = prepare("hest-skcm", tmp_path, tmp_path / "out")
    assert {s.image.parent for s in read_sections(prepared.manifest)} == {tmp_path / "SKCM" / "patches"}
    standins.write_hest(tmp_path / "twice", ids("hest-skcm"), bench="")
    (tmp_path / "twice").rename(tmp_path / "t")
    (tmp_path / "t" / "st").rename(tmp_path / "t" / "adata")
    with pytest.raises(InputError, match=r"both fit 'adata/TENX115\.h5ad'.*keep one"):
        prepare("hest-skcm", tmp_path, tmp_path / "out")


def test_a_mistake_on_the_command_line_is_one_line(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "empty").mkdir()
    error = cli.refuses("datasets", "prepare", "hest-skcm", tmp_path / "empty", "-o", tmp_path / "out")
    assert "expression, image of TENX115, TENX117" in error
    assert not (tmp_path / "out").exists()


def test_from_download_to_a_judged_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """As a user types it: prepare, train on one section, evaluate on another patient's, benchmark by the config."""
    monkeypatch.setenv("HESCRIBE_CACHE", str(tmp_path / "cache"))
    standins.write_hest(tmp_path / "hest", ids("hest-skcm"), bench="SKCM")
    data = tmp_path / "data"
    code, out, err = cli("datasets", "prepare", "hest-skcm", tmp_path / "hest", "-o", data)
    assert code == 0, err
    assert f"hescribe benchmark {data}/sections.csv --config {data}/benchmark.toml" in out
    train = ["train", data, "-o", tmp_path / "bundle", "--method", "ridge", "--encoder", "stain", "--device", "cpu"]
    assert cli(*train, "--genes", data / "genes.txt", "--without", "TENX117")[0] == 0
    judge = ["evaluate", tmp_path / "bundle", "--sections", data, "--only", "TENX117", "-o", tmp_path / "metrics.json"]
    assert cli(*judge, "--markers", "DARK,LIGHT")[0] == 0
    scores = json.loads((tmp_path / "metrics.json").read_text())["sections"][0]
    assert scores["sets"]["marker"]["pcc"] > 0.8
    assert scores["sets"]["panel"]["n_genes"] == 10
    config = data / "benchmark.toml"
    code, _, _ = cli(
        "benchmark", data, "--config", config, "-o", tmp_path / "results",
        "--methods", "mean,ridge-hest", "--encoder", "stain", "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    table = pd.read_csv(tmp_path / "results" / "methods.csv").set_index(["method", "set"])
    assert table.loc[("ridge-hest", "panel"), "n_sections"] == 2
    assert table.loc[("ridge-hest", "panel"), "pcc"] > table.loc[("mean", "panel"), "pcc"] + 0.1
    # What is published of the task is of encoders that were not run here
    assert json.loads((tmp_path / "results" / "benchmark.json").read_text())["recipe"] == "hest-skcm"
    assert json.loads((tmp_path / "results" / "benchmark.json").read_text())["settings"]["target_sum"] == "counts"
    apart = pd.read_csv(tmp_path / "results" / "published_elsewhere.csv")
    assert len(apart) == len(published_figures("hest-skcm"))
    assert apart["differs"].str.fullmatch("encoder .*, which was not run here").all()
    assert not (tmp_path / "results" / "published.csv").exists()


def test_the_list_names_every_recipe(cli: Cli) -> None:
    code, out, _ = cli("datasets", "list")
    assert code == 0
    assert all(recipe.name in out for recipe in list_recipes())
