"""Every command as a user types it; every mistake is one line on stderr, exit code 2, and nothing left behind."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from safetensors.torch import save_file

from hescribe.encoders import load_encoder
from hescribe.inference import Bundle, read_prediction
from hescribe.report.viewer import view
from tests.conftest import Cli

Fitted = tuple[Bundle, Path]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def counts(manifest: Path) -> pd.DataFrame:
    return pd.read_csv(manifest.parent / "a.tsv", sep="\t", index_col=0)


def put(manifest: Path, table: pd.DataFrame) -> None:
    table.to_csv(manifest.parent / "a.tsv", sep="\t")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def negative(manifest: Path) -> None:
    table = counts(manifest)
    table.iloc[0, 0] = -1
    put(manifest, table)


def spots_in_units(path: Path) -> None:
    table = pd.read_csv(path, sep="\t")
    table.assign(pixel_x=table["x"], pixel_y=table["y"]).to_csv(path, sep="\t", index=False)


MISTAKES = {
    "missing image": (lambda m: (m.parent / "a.jpg").unlink(), "a.jpg: no such image"),
    "unreadable image": (lambda m: (m.parent / "a.jpg").write_text("no image"), "a.jpg: not a readable image"),
    "empty image": (lambda m: (m.parent / "a.jpg").write_bytes(b""), "a.jpg: the image is empty"),
    "truncated image": (lambda m: truncate(m.parent / "a.jpg"), "a.jpg: the image is truncated"),
    "spots outside": (lambda m: edit(m.parent / "a_spots.tsv", "350.0", "3500.0"), "lie outside the image"),
    "no overlap": (lambda m: put(m, counts(m).rename(index=lambda s: f"9{s}")), "no spot in common"),
    "negative counts": (negative, "a.tsv: negative counts"),
    "normalised counts": (lambda m: put(m, counts(m) / 7), "a.tsv: counts are not whole numbers"),
    "text for counts": (lambda m: put(m, counts(m).astype(str) + "?"), "a.tsv: counts are not all numbers"),
    "duplicate spots": (lambda m: put(m, pd.concat([counts(m)] * 2)), "stands there twice"),
    "unknown technology": (lambda m: edit(m, ",st\n", ",sequencer\n"), "unknown technology 'sequencer'"),
    "missing column": (lambda m: edit(m, "expression", "expr"), "column 'expression' is missing"),
    "missing spot column": (lambda m: edit(m.parent / "a_spots.tsv", "pixel_x", "px"), "'pixel_x' is missing"),
    "missing counts": (lambda m: (m.parent / "a.tsv").unlink(), "a.tsv: no such file"),
    "mpp of no microscope": (
        lambda m: m.write_text(m.read_text().replace(",technology", ",mpp").replace(",st\n", ",1e-9\n")),
        "row 2: mpp is '1e-9', not µm per pixel, 0.02 to 50",
    ),
    "positions that are no pixels": (
        lambda m: spots_in_units(m.parent / "a_spots.tsv"),
        "µm per pixel is 200 by the spots' pitch, where 0.02 to 50 can be",
    ),
    "no manifest": (lambda m: m.unlink(), "sections.csv: no such manifest"),
    "nothing measured": (lambda m: edit(m, "a.tsv", ""), "no section has both an image and expression"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_bad_sections(cli: Cli, st: Path, tmp_path: Path, mistake) -> None:  # type: ignore[no-untyped-def]
    break_it, message = mistake
    break_it(st)
    assert message in cli.refuses("train", st, "-o", tmp_path / "out", "--method", "ridge", "--encoder", "stain")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["st"]


def test_the_unbroken_section_trains(cli: Cli, st: Path, tmp_path: Path) -> None:
    """Otherwise the test above would pass for another reason."""
    code, out, err = cli("train", st, "-o", tmp_path / "out", "--method", "ridge", "--encoder", "stain")
    assert code == 0, err
    assert "30 genes" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "magic"], "unknown method 'magic'"),
        (["--encoder", "magic"], "unknown encoder 'magic'"),
        (["--genes", "hvg:many"], "is no gene panel"),
        (["--genes", "/nowhere/genes.txt"], "neither 'hvg:N', 'all' nor a file"),
        (["--tile-um", "-3"], "tile_um"),
        (["--views", "3"], "views"),
        (["--method", "ridge", "--fine-tune"], "works on frozen features"),
        (["--method", "bleep", "--fine-tune"], "cannot be fine-tuned"),
        (["--method", "bleep", "-O", "retrieval.kk=3"], "retrieval.kk"),
        (["-O", "nonsense"], "is no setting"),
        (["--only", "B"], "no section 'B'"),
        (
            ["--method", "bleep", "--fine-tune", "--encoder", "cmrcnet-vit", "-O", "context.centred=true"],
            "with a frozen encoder only",
        ),
        (["--epochs", "many"], "valid integer"),
        (["--nonsense", "1"], "(see 'hescribe train --help')"),
    ],
)
def test_bad_options(cli: Cli, st: Path, tmp_path: Path, options: list[str], message: str) -> None:
    base = [] if "--encoder" in options else ["--encoder", "stain"]
    assert message in cli.refuses("train", st, "-o", tmp_path / "out", *base, *options)
    assert not (tmp_path / "out").exists()


def test_no_gene_that_is_seen_often_enough(cli: Cli, st: Path, tmp_path: Path) -> None:
    put(st, counts(st).assign(G0=1).mul([0] + [1] * 35, axis=0))
    how = ["-o", tmp_path / "out", "--encoder", "stain", "--min-detected", "1"]
    told = cli.refuses("train", st, *how)
    assert "--min-detected: no gene is seen in 100% of the 36 training spots (at most 0.97)" in told


def test_a_panel_with_no_shared_gene(cli: Cli, st: Path, tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("ENSG1\nENSG2\n")
    line = cli.refuses("train", st, "-o", tmp_path / "out", "--encoder", "stain", "--genes", tmp_path / "genes.txt")
    assert "none of its 2 genes is measured" in line


def test_an_encoder_file_of_another_architecture(cli: Cli, st: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = load_encoder("timm:test_resnet", pretrained=False).module.backbone.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    line = cli.refuses("train", st, "-o", tmp_path / "out", "--encoder", f"timm:test_vit@{tmp_path / 'w.safetensors'}")
    assert "another architecture" in line


def test_a_torn_pyramid_is_our_line_alone(
    cli: Cli, ridge: Fitted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The TIFF library's own report of a page beyond the end stood among the lines."""
    slide = tmp_path / "torn.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    with tifffile.TiffWriter(slide) as tiff:
        tiff.write(pixels, tile=(128, 128), subfiletype=0, resolution=(10_000, 10_000), resolutionunit="CENTIMETER")
        tiff.write(pixels[::2, ::2], tile=(128, 128), subfiletype=1)
    slide.write_bytes(slide.read_bytes()[:200_000])
    assert "truncated" in cli.refuses("predict", ridge[1], slide, "-o", tmp_path / "p")
    assert not [record for record in caplog.records if record.name == "tifffile"]


def test_a_truncated_bundle(cli: Cli, ridge: Fitted, manifest: Path, tmp_path: Path) -> None:
    shutil.copytree(ridge[1], tmp_path / "b")
    truncate(tmp_path / "b" / "weights.safetensors")
    line = cli.refuses("predict", tmp_path / "b", "--sections", manifest, "-o", tmp_path / "out")
    assert "weights.safetensors is truncated or was changed" in line
    assert not (tmp_path / "out").exists()


def test_a_full_disk(cli: Cli, ridge: Fitted, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up in the middle of a store: the half of it is removed."""

    def half(self: ad.AnnData, store: Path, **_: object) -> None:
        (Path(store) / "X").mkdir(parents=True)
        (Path(store) / "X" / "zarr.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ad.AnnData, "write_zarr", half)
    line = cli.refuses("predict", ridge[1], "--sections", manifest, "-o", tmp_path / "out")
    assert "No space left on device" in line
    assert not list((tmp_path / "out").rglob("*"))


def test_leakage_is_refused_by_default(cli: Cli, ridge: Fitted, manifest: Path, tmp_path: Path) -> None:
    line = cli.refuses("evaluate", ridge[1], "--sections", manifest, "-o", tmp_path / "m.json")
    assert "has learned from section" in line


def test_predict_evaluate_report(cli: Cli, ridge: Fitted, sections, manifest: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    unseen = sections[2].section_id
    given = ["--sections", manifest, "--only", unseen]
    assert cli("predict", ridge[1], *given, "-o", tmp_path / "p")[0] == 0
    assert (tmp_path / "p" / f"{unseen}.zarr").is_dir()
    code, out, _ = cli("evaluate", ridge[1], *given, "-o", tmp_path / "m.json")
    assert code == 0
    assert "heg50" in out
    assert json.loads((tmp_path / "m.json").read_text())["views"] == 1
    assert cli("evaluate", ridge[1], *given, "--views", "4", "-o", tmp_path / "n.json")[0] == 0
    one, four = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "mn")
    assert four["views"] == 4
    assert four["means"][0]["pcc"] != one["means"][0]["pcc"]
    assert "--views: 2 is none of 1, 4, 8" in cli.refuses("predict", ridge[1], *given, "--views", "2", "-o", tmp_path)
    code, out, err = cli("report", tmp_path / "p", "--sections", manifest, "--bundle", ridge[1], "-o", tmp_path / "r")
    assert code == 0, err
    page = (tmp_path / "r" / "index.html").read_text()
    assert unseen in page
    assert list((tmp_path / "r" / "figures").glob("*.svg"))


def test_a_section_that_changed_is_not_taken_for_the_one_before(
    cli: Cli,
    ridge: Fitted,
    sections,  # type: ignore[no-untyped-def]
    manifest: Path,
    tmp_path: Path,
) -> None:
    name = sections[2].section_id
    given = ["predict", ridge[1], "--only", name, "-o", tmp_path / "out", "--sections"]
    rows = pd.read_csv(manifest)
    path = Path(manifest).with_name("changed.csv")
    rows.loc[rows["section_id"] == name, "patient_id"] = "Another"
    without_image = rows[rows["section_id"] == name].assign(section_id="unseen", image="")
    pd.concat([without_image, rows]).to_csv(path, index=False)
    assert cli(*given, manifest)[0] == cli(*given, manifest)[0] == 0
    assert "of another patient" in cli.refuses(*given, path)
    # A row without an image does not stop the others
    assert cli("predict", ridge[1], "--sections", path, "--only", f"unseen,{name}", "-o", tmp_path / "other")[0] == 0
    assert [p.name for p in (tmp_path / "other").glob("*.zarr")] == [f"{name}.zarr"]


def test_figures_never_take_the_place_of_a_folder(cli: Cli, ridge: Fitted, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "precious").write_text("kept")
    for output in ("results", "metrics.csv", "metrics.md"):
        assert output in cli.refuses("evaluate", ridge[1], "--sections", manifest, "-o", tmp_path / output)
    assert (tmp_path / "results" / "precious").read_text() == "kept"


def test_figures_never_take_the_place_of_a_manifest(cli: Cli, ridge: Fitted, manifest: Path, tmp_path: Path) -> None:
    mine = tmp_path / "sections.csv"
    mine.write_text("mine")
    told = cli.refuses("evaluate", ridge[1], "--sections", manifest, "-o", tmp_path / "sections.json")
    assert "sections.csv is there already and would be written over" in told
    assert mine.read_text() == "mine"


def test_predict_whole_slides(cli: Cli, ridge: Fitted, sections, manifest: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    slide = sections[2].image
    code, out, err = cli("predict", ridge[1], slide, "-o", tmp_path / "p", "--device", "cpu")
    assert code == 0, err
    written = read_prediction(tmp_path / "p" / f"{slide.stem}.zarr")
    assert out.strip() == str(tmp_path / "p" / f"{slide.stem}.zarr")
    assert f"{written.n_obs:,} tiles × {written.n_vars:,} genes" in err
    with view(out.strip(), port=0, browser=False) as shown:
        assert shown.notice == ""  # the slide is found again by itself
    code, out, err = cli("report", tmp_path / "p", "-o", tmp_path / "r")
    assert code == 0, err
    assert "The slide" in Path(out.strip()).read_text()  # shown without a manifest too
    (tmp_path / "bad.tif").write_bytes(b"")
    both = [tmp_path / "bad.tif", slide]
    assert "1 of 2 slides failed" in cli.refuses("predict", ridge[1], *both, "-o", tmp_path / "p", "--device", "cpu")
    given = ["-o", tmp_path / "p", "--device", "cpu"]
    assert "another --stride-um" in cli.refuses("predict", ridge[1], slide, *given, "--stride-um", "90")
    assert "either slides or --sections" in cli.refuses("predict", ridge[1], *given)
    assert "either slides or --sections" in cli.refuses("predict", ridge[1], slide, "--sections", manifest, *given)
    assert "none of auto, fp32, bf16" in cli.refuses("predict", ridge[1], slide, *given, "--precision", "int8")


def test_predict_a_cohort(cli: Cli, ridge: Fitted, sections, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from distributed import LocalCluster

    slide, folder = sections[2].image, tmp_path / "p"
    (tmp_path / "bad.tif").write_bytes(b"")
    with LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, protocol="tcp://", dashboard_address=":0", memory_limit=0
    ) as cluster:
        given = ["predict", ridge[1], slide, "-o", folder, "--device", "cpu", "--cluster", cluster.scheduler_address]
        code, out, err = cli(*given)
        assert code == 0, err
        assert out.strip() == str(folder / f"{slide.stem}.zarr")
        assert "1 of 2 slides failed" in cli.refuses(*given, tmp_path / "bad.tif")
        assert "its own workers" in cli.refuses(*given, "--workers", "2")
    assert "empty (0 bytes)" in (folder / "summary.md").read_text()
    (tmp_path / "queue.toml").write_text('kind = "cron"\n')
    assert "'cron' is no kind of queue" in cli.refuses(*given[:-1], tmp_path / "queue.toml")
    assert "--cluster local" in cli.refuses("predict", ridge[1], "https://host/a.svs", "-o", folder)


def test_only_genes_that_can_be_trusted(cli: Cli, ridge: Fitted, sections, manifest: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    unseen = sections[2].section_id
    given = ["predict", ridge[1], "--sections", manifest, "--only", unseen]
    assert cli(*given, "-o", tmp_path / "p", "--min-pcc", "0.2")[0] == 0
    expected = ridge[0].genes["expected_pcc"]
    written = read_prediction(tmp_path / "p" / f"{unseen}.zarr")
    assert set(written.var_names) == set(expected.index[expected >= 0.2])
    assert 0 < written.n_vars < len(expected)
    assert "other genes" in cli.refuses(*given, "-o", tmp_path / "p")
    assert "no gene of this bundle" in cli.refuses(*given, "-o", tmp_path / "q", "--min-pcc", "0.999")


def test_options_are_written_back_and_can_be_given_again(cli: Cli, st: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('method = "bleep"\nencoder = "stain"\nepochs = 3\n[option.retrieval]\nk = 7\n')
    code, _, err = cli("train", st, "-o", tmp_path / "a", "--config", tmp_path / "run.toml", "--epochs", "2")
    assert code == 0, err
    resolved = yaml.safe_load((tmp_path / "a.config.yaml").read_text())
    assert resolved["epochs"] == 2  # the flag wins over the file
    assert resolved["option"] == ["retrieval.k=7"]
    del resolved["output"], resolved["sections"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(resolved))
    assert cli("train", st, "-o", tmp_path / "b", "--config", tmp_path / "again.yaml")[0] == 0
    for name in ("weights.safetensors", "genes.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_wrong_option_in_a_file(cli: Cli, st: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("epoch: 3\n")
    assert "unknown option 'epoch'" in cli.refuses("train", st, "-o", tmp_path / "a", "--config", tmp_path / "run.yaml")


def test_nothing_is_overwritten_unasked(cli: Cli, st: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert "already exists" in cli.refuses("train", st, "-o", tmp_path / "a", "--encoder", "stain")


def test_benchmark(cli: Cli, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'methods = ["mean", "ridge"]\nencoder = ["stain"]\ninner_folds = 0\nseed = 0\n'
        '[variant."ridge, 50 genes"]\nmethod = "ridge"\ngenes = "hvg:50"\n'
    )
    arguments = ["benchmark", manifest, "--config", tmp_path / "run.toml"]
    code, out, err = cli(*arguments, "-o", tmp_path / "b")
    assert code == 0, err
    assert str(tmp_path / "b" / "index.html") in out
    table = pd.read_csv(tmp_path / "b" / "methods.csv").set_index(["method", "set"])
    assert table.loc[("mean", "heg50"), "pcc"] == 0
    assert table.loc[("ridge", "heg50"), "pcc"] > 0.2
    assert table.loc[("ridge", "heg50"), "n_sections"] == 3
    assert set(pd.read_csv(tmp_path / "b" / "comparisons.csv")["set"]) >= {"heg50", "hvg50", "all"}
    assert table.loc[("ridge, 50 genes", "heg50"), "pcc"] > 0.2
    resolved = yaml.safe_load((tmp_path / "b.config.yaml").read_text())
    assert resolved["methods"] == "mean,ridge"
    assert yaml.safe_load(resolved["variant"][0]) == {"ridge, 50 genes": {"method": "ridge", "genes": "hvg:50"}}
    given = [*arguments, "-o", tmp_path / "b"]
    for wrong in ("tuned", "tuned: fine_tune=true", "{", "tuned: {}"):
        assert "is no variant (write it as" in cli.refuses(*given, "--variant", wrong)
    twice = ["--variant", "a: {method: ridge}"] * 2
    assert "'a' is given twice" in cli.refuses(*given, *twice)
    assert "another variant 'ridge, 50 genes' (genes hvg:50, now hvg:60)" in cli.refuses(
        *given, "--variant", "ridge, 50 genes: {method: ridge, genes: 'hvg:60'}"
    )
    assert "other settings" in cli.refuses(*given, "--tile-um", "60")
    assert "'half' is not a number" in cli.refuses(*given, "--learning-curve", "0.1,half")
    assert "'1.5' is not a whole number" in cli.refuses(*given, "--seed", "0,1.5")
    assert "unknown protocol 'magic'" in cli.refuses(*given, "--protocol", "leave-one-patient-out,magic")
    assert "unknown method 'magic'" in cli.refuses(*given, "--methods", "ridge,magic")


def test_doctor_and_lists(cli: Cli) -> None:
    code, out, _ = cli("doctor")
    assert code == 0
    assert "BAD" not in out
    code, out, _ = cli("datasets", "list")
    assert code == 0
    assert "synthetic" in out


def test_doctor_knows_the_pair_that_does_not_fit() -> None:
    from hescribe.cli.commands.doctor import pair_problem

    text = pair_problem("2.15.0+cpu", "0.29.2", "operator torchvision::nms does not exist")
    assert "torch 2.15.0+cpu and torchvision 0.29.2 are not a pair" in text
    assert "pip install" in text


COMMANDS = (
    *("demo", "train", "predict", "evaluate", "benchmark", "regions", "tls", "volume", "survival", "report", "view"),
    *("export", "doctor", "datasets list", "datasets fetch", "datasets prepare"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_seed_and_device(cli: Cli, command: str) -> None:
    """So that a script need not know which of them it matters to."""
    code, out, err = cli(*command.split(), "--seed", "3", "--device", "cpu", "--help")
    assert code == 0, err
    assert {"--seed", "--device"} <= set(out.split())
