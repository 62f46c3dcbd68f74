"""Benchmarks as a whole: what is compared, what is made twice, what a failure or an interruption leaves."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hescribe.datasets.synthetic import make_synthetic
from hescribe.encoders import load_encoder
from hescribe.errors import InputError, LeakageError, OutputError
from hescribe.evaluation import score_section
from hescribe.inference import read_prediction
from hescribe.sections import Section, SomeSpots, read_sections
from hescribe.training.benchmark import Benchmark, benchmark, execute, run, tables
from hescribe.training.benchmark.plan import Run
from tests.e2e.conftest import settings

LOPO = "leave-one-patient-out"
CONFIG = settings("ridge", inner_folds=0, genes="hvg:60")
Count = Callable[[], int]


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    """Two patients, a small section each."""
    folder = tmp_path_factory.mktemp("pair") / "data"
    made = make_synthetic(folder, n_patients=2, n_sections=1, side_um=700, mpp=1.0, n_genes=120, seed=3)
    return [s for s in read_sections(made) if s.image is not None]


@pytest.fixture(scope="module", autouse=True)
def _few_resamples() -> Iterator[None]:
    """The bootstrap has tests of its own, and takes half of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("method_table", "compare_methods"):
            patch.setattr(tables, name, partial(getattr(tables, name), n_resamples=40))
        yield


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Count:
    """How many trainings there have been."""
    calls, train = [], execute.train

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return train(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "train", counted)
    return lambda: len(calls)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at tables alone."""
    monkeypatch.setattr(run, "write_benchmark_page", lambda folder, *_, **__: folder / "index.html")


@pytest.fixture(scope="module")
def made(sections: list[Section], tmp_path_factory: pytest.TempPathFactory) -> tuple[Benchmark, Path]:
    """Two controls, all the spots and a half of them; tests work on copies of the folder."""
    folder = tmp_path_factory.mktemp("made") / "b"
    return benchmark(sections, ["ridge", "knn"], CONFIG, output=folder, learning_curve=[0.5]), folder


@pytest.fixture
def folder(made: tuple[Benchmark, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "b"))


def test_tables_tell_runs_apart(made: tuple[Benchmark, Path], sections: list[Section]) -> None:
    result, folder = made
    assert list(dict.fromkeys(result.methods["method"])) == ["ridge", "knn"]
    for name in ("methods", "sections", "genes", "comparisons", "learning_curve", "cost", "cell_types"):
        table = pd.read_csv(folder / f"{name}.csv")
        assert set(table["encoder"]) == {"stain"}
        assert set(table["protocol"]) == {LOPO}
        assert "seed" not in table
    assert not (folder / "failed.csv").exists()
    rows = pd.read_csv(folder / "genes.csv")
    assert len(rows) == 2 * rows["gene"].nunique()
    # Only what retrieves knows cell types
    assert set(pd.read_csv(folder / "cell_types.csv")["method"]) == {"knn"}


def test_a_score_is_that_of_the_prediction_kept(made: tuple[Benchmark, Path], sections: list[Section]) -> None:
    result, folder = made
    section = sections[1]
    prediction = read_prediction(
        folder / "runs" / LOPO / "stain" / "ridge" / "seed-0" / "share-1" / "P2" / f"{section.section_id}.zarr"
    )
    expected = score_section(prediction, section.adata, training_stats=prediction.var, seed=0)
    table = result.tables["sections"].set_index(["method", "section_id", "set"])
    for name in ("heg50", "all"):
        found = table.loc[("ridge", section.section_id, name)]
        assert found["pcc"] == pytest.approx(expected.summary.loc[name, "pcc"])
        assert found["rvd"] == pytest.approx(expected.summary.loc[name, "rvd"])
        assert found["n_spots"] == expected.n_spots == section.adata.n_obs


def test_fewer_spots_and_no_leak(made: tuple[Benchmark, Path], sections: list[Section]) -> None:
    result, folder = made
    curve = result.tables["learning_curve"]
    spots = curve.groupby("share")["training_spots"].first()
    assert spots[1.0] == pytest.approx(np.mean([s.adata.n_obs for s in sections]))
    assert spots[0.5] == pytest.approx(spots[1.0] / 2, abs=1)
    whole = curve[curve["share"] == 1].set_index(["method", "set"])["pcc"]
    pd.testing.assert_series_equal(whole, result.methods.set_index(["method", "set"])["pcc"])
    assert set(result.methods["n_sections"]) == {2}
    for config in folder.glob("runs/*/*/*/*/share-0.5/*/bundle/config.json"):
        learned = json.loads(config.read_text())["provenance"]["sections"]
        assert config.parts[-3] not in learned.values()
        assert len(learned) == 1


def test_costs_are_kept(made: tuple[Benchmark, Path]) -> None:
    cost = made[0].tables["cost"]
    assert len(cost) == 2 * 2 * 2
    assert (cost[["training_seconds", "prediction_seconds"]] > 0).all(axis=None)
    assert (cost["training_memory_mb"] >= cost["memory_before_mb"]).all()
    knn, ridge = (cost[cost["method"] == m] for m in ("knn", "ridge"))
    assert (knn["reference_spots"] == knn["training_spots"]).all()
    assert (ridge["reference_spots"] == 0).all()
    assert ridge["model_numbers"].min() > knn["model_numbers"].max()
    assert (cost["encoder_parameters"] == 0).all()


def test_the_page_stands_alone(made: tuple[Benchmark, Path]) -> None:
    result, folder = made
    page = result.page.read_text()
    assert result.page == folder / "index.html"
    for heading in ("Results", "Who is ahead", "Genes", "Structure", "Learning curve", "Cell types", "Cost"):
        assert f">{heading}</h2>" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "HEG-50, leave-one-patient-out, stain: ridge " in page
    assert len(list((folder / "figures").glob("*.png"))) == 4
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == [".benchmark.json.lock"]


@pytest.mark.usefixtures("no_page")
def test_a_finished_one_is_not_made_again_and_a_new_encoder_joins(
    folder: Path, made: tuple[Benchmark, Path], sections: list[Section], trained: Count, tmp_path: Path
) -> None:
    again = benchmark(sections, ["ridge", "knn"], CONFIG, output=folder, learning_curve=[0.5])
    assert trained() == 0
    for name, table in made[0].tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table, obj=name)
    torch.manual_seed(0)
    state = load_encoder("timm:test_resnet", pretrained=False).module.backbone.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "random.safetensors")
    encoder = f"timm:test_resnet@{tmp_path / 'random.safetensors'}"
    more = benchmark(sections, ["ridge"], CONFIG, output=folder, encoder=encoder)
    assert trained() == 2
    heg50 = more.methods[more.methods["set"] == "heg50"].set_index(["method", "encoder"])["pcc"]
    assert set(heg50.index) == {("ridge", "stain"), ("knn", "stain"), ("ridge", "timm:test_resnet@random")}
    # What is asked for first stands first, whatever is asked for now
    assert list(dict.fromkeys(more.methods["method"])) == ["ridge", "knn"]
    # Neither encoders nor protocols are compared with one another
    assert set(more.comparisons["encoder"]) == {"stain"}
    cost = more.tables["cost"].set_index("encoder")["encoder_parameters"]
    assert (cost["timm:test_resnet@random"] > 1000).all()
    save_file({k: v.contiguous() + 1 for k, v in state.items()}, tmp_path / "random.safetensors")
    with pytest.raises(OutputError, match="other weights of timm:test_resnet@random"):
        benchmark(sections, ["ridge"], CONFIG, output=folder, encoder=encoder)


@pytest.mark.usefixtures("no_page")
@pytest.mark.slow
def test_a_second_seed_and_protocol(folder: Path, sections: list[Section], trained: Count) -> None:
    more = benchmark(sections, ["mean"], CONFIG, output=folder, protocol="leave-one-section-out", seed=[0, 1])
    assert trained() == 2 * 2
    # Means over seeds stand in the main tables, each seed's own figures in a table for them
    two, one = (more.methods[more.methods["protocol"] == p] for p in ("leave-one-section-out", LOPO))
    assert "seed" not in two
    assert set(two["n_seeds"]) == {2}
    assert (two["seed_spread"] == 0).all()  # the mean is a closed form
    assert set(one["n_seeds"]) == {1}
    assert one["seed_spread"].isna().all()
    own = pd.read_csv(folder / "seeds.csv")
    assert set(own.loc[own["protocol"] == "leave-one-section-out", "seed"]) == {0, 1}
    assert set(own.loc[own["protocol"] == LOPO, "share"]) == {0.5, 1}
    assert Run("mean", "stain", "leave-one-section-out", 1, 1.0) in more.scores
    assert Run("ridge", "stain", LOPO, 0, 0.5) in more.scores
    together = more.comparisons.groupby(["encoder", "protocol"]).size()
    assert list(together.index) == [("stain", LOPO)]


@pytest.mark.usefixtures("no_page")
def test_an_interruption_costs_what_was_being_done(
    sections: list[Section], tmp_path: Path, trained: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = execute.score_section, []

    def interrupted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "score_section", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark(sections, ["mean"], CONFIG, output=tmp_path / "b")
    assert trained() == 2
    result = benchmark(sections, ["mean"], CONFIG, output=tmp_path / "b")
    # What was trained and predicted, but not scored, is only scored
    assert trained() == 2
    assert len(calls) == 2 + 1
    assert result.tables["cost"]["training_seconds"].notna().all()


def test_what_was_asked_for_and_never_finished_is_on_the_page(
    folder: Path, sections: list[Section], trained: Count
) -> None:
    shutil.rmtree(folder / "runs" / LOPO / "stain" / "knn")
    result = benchmark(sections, ["ridge"], CONFIG, output=folder)
    assert trained() == 0
    assert set(result.methods["method"]) == {"ridge"}
    assert "knn was asked for and is not finished: it stands in no table." in result.page.read_text()


def patches(sections: list[Section], folder: Path) -> list[Section]:
    """The same sections with their tiles cut beforehand, and no slide."""
    folder.mkdir()
    rows = []
    for s in sections:
        tiles = s.tiles().read(np.arange(s.adata.n_obs), tile_um=112.0, size_px=224)
        with h5py.File(folder / f"{s.section_id}.h5", "w") as file:
            file["img"] = tiles
            file["barcode"] = np.array([str(n) for n in s.adata.obs_names], dtype="S")
            file["coords"] = (s.adata.obsm["spatial"] - 56 / s.mpp).astype(int)
        told = {k: str(v) for k, v in vars(s.row).items() if v is not None and k not in ("z", "annotations")}
        rows.append(told | {"image": str(folder / f"{s.section_id}.h5")})
    pd.DataFrame(rows).to_csv(folder / "sections.csv", index=False)
    return read_sections(folder / "sections.csv")


def test_one_that_fails_does_not_take_the_others_with_it(sections: list[Section], tmp_path: Path) -> None:
    """Patches hold no surroundings, which `triplex` looks at."""
    given = patches(sections, tmp_path / "patches")
    result = benchmark(given, ["triplex", "mean"], CONFIG, output=tmp_path / "b")
    assert set(result.methods["method"]) == {"mean"}
    failed = pd.read_csv(tmp_path / "b" / "failed.csv")
    assert list(failed["method"]) == ["triplex"]
    assert "give the whole-slide image" in failed["reason"][0]
    page = result.page.read_text()
    assert "1 run failed" in page
    assert "give the whole-slide image" in page
    assert "ridge and knn were not run" in page
    with pytest.raises(InputError, match="1 of 2 runs failed; triplex on stain"):
        result.check()
    # Where nothing worked there is nothing to write but the reason
    with pytest.raises(InputError, match="give the whole-slide image"):
        benchmark(given, ["triplex"], CONFIG, output=tmp_path / "c")


@pytest.mark.usefixtures("no_page")
def test_what_would_mix_is_refused(folder: Path, sections: list[Section], tmp_path: Path) -> None:
    def again(given: list[Section] = sections, tile_um: float = 112.0, **how: object) -> None:
        config = CONFIG.model_copy(update={"tile_um": tile_um})
        benchmark(given, ["ridge"], config, output=folder, **how)  # type: ignore[arg-type]

    with pytest.raises(OutputError, match=r"other settings \(tile_um 112.0, now 60.0\)"):
        again(tile_um=60.0)
    renamed = [Section(s.row.__class__(**{**vars(s.row), "section_id": f"{s.patient_id}-x"})) for s in sections]
    with pytest.raises(OutputError, match=r"other sections \(P1-x, P1_S1, P2-x, P2_S1\)"):
        again(renamed)
    again(recipe="bulb")
    with pytest.raises(OutputError, match="of the recipe 'bulb'"):
        again(recipe="breast")
    (folder / "benchmark.json").write_text('{"protocol": "leave-one-patient-out"}')
    with pytest.raises(OutputError, match="older hescribe"):
        again()


@pytest.mark.usefixtures("no_page")
def test_other_data_under_an_old_name_are_refused(folder: Path, sections: list[Section], tmp_path: Path) -> None:
    """What was recorded of a section used to be its name and its patient alone."""
    first, second = sections

    def again(changed: Section) -> None:
        benchmark([first, changed], ["ridge"], CONFIG, output=folder)

    def refused(what: str, changed: Section) -> None:
        with pytest.raises(OutputError, match=f"of section 'P2_S1' with other {what}; choose another folder"):
            again(changed)

    def with_row(**changes: object) -> Section:
        return Section(second.row.__class__(**{**vars(second.row), **changes}))

    refused("patient", with_row(patient_id="P9"))
    refused("cell types", with_row(cell_types=first.row.cell_types))
    fewer = SomeSpots(second.row, second, np.arange(second.adata.n_obs - 1))
    refused("counts, cell types, positions", fewer)
    noisy, moved = with_row(), with_row()
    noisy.adata.X = noisy.adata.X * 2
    refused("counts", noisy)
    moved.adata.obsm["spatial"] = moved.adata.obsm["spatial"] + 1
    refused("positions", moved)
    vars(coarser := with_row())["mpp"] = second.mpp * 2
    refused("mpp", coarser)
    assert second.image is not None
    image = tmp_path / second.image.name
    shutil.copy(second.image, image)  # a copy is the same image
    again(with_row(image=image))
    Image.fromarray(255 - np.asarray(Image.open(image).convert("RGB"))).save(image.with_suffix(".png"))
    vars(inverted := with_row(image=image.with_suffix(".png")))["mpp"] = second.mpp
    refused("image", inverted)


@pytest.mark.usefixtures("no_page")
def test_a_file_of_genes_is_what_it_holds(sections: list[Section], tmp_path: Path) -> None:
    genes = tmp_path / "genes.txt"
    names = list(sections[0].adata.var_names[:40])
    genes.write_text("\n".join(names))
    config = CONFIG.model_copy(update={"genes": str(genes)})
    benchmark(sections, ["mean"], config, output=tmp_path / "b")
    genes.write_text("\n".join(names[:30]))
    with pytest.raises(OutputError, match=r"other settings \(genes genes.txt \(\w+\), now genes.txt \(\w+\)\)"):
        benchmark(sections, ["mean"], config, output=tmp_path / "b")


VARIANTS = {
    "ridge": {},
    "ridge <b>8 views</b>": {"method": "ridge", "views": 8},
    "bleep, 3 steps": {"method": "bleep", "epochs": 3, "options": {"retrieval": {"k": 7}}},
}


@pytest.mark.slow
def test_variants_stand_beside_plain_methods(sections: list[Section], tmp_path: Path, trained: Count) -> None:
    published = {"method": "bleep", "figure": "T", "set": "heg50", "pcc": 0.3, "protocol": LOPO, "source": "Doe",
                 "comparable": True, "differs": ""}  # fmt: skip
    result = benchmark(sections, VARIANTS, CONFIG, output=tmp_path / "b", published=pd.DataFrame([published]))
    assert list(dict.fromkeys(result.methods["method"])) == list(VARIANTS)
    # Compared by the variants' names, not by those of their methods
    pairs = result.comparisons[["first", "second"]].drop_duplicates()
    assert list(map(tuple, pairs.to_numpy())) == list(itertools.combinations(VARIANTS, 2))
    assert list(result.tables["published"]["method"]) == ["bleep, 3 steps"]
    (config,) = (tmp_path / "b").glob("runs/*/*/bleep_3_steps-*/*/*/P1/bundle/config.json")
    told = json.loads(config.read_text())
    assert told["provenance"]["settings"]["epochs"] == 3
    assert told["provenance"]["settings"]["options"] == {"retrieval": {"k": 7}}
    page = result.page.read_text()
    assert "ridge &lt;b&gt;8 views&lt;/b&gt;" in page
    assert "<b>8 views" not in page
    assert "method ridge, views 8" in page
    before = trained()
    # They are kept where they are not asked for again, and cannot be redefined
    again = benchmark(sections, ["ridge"], CONFIG, output=tmp_path / "b")
    assert trained() == before
    pd.testing.assert_frame_equal(again.methods, result.methods)
    changed = {"bleep, 3 steps": {**VARIANTS["bleep, 3 steps"], "epochs": 4}}
    with pytest.raises(OutputError, match=r"another variant 'bleep, 3 steps' \(epochs 3, now 4\); choose another name"):
        benchmark(sections, changed, CONFIG, output=tmp_path / "b")


@pytest.mark.usefixtures("no_page")
def test_a_fine_tuned_variant_on_its_own_encoder(sections: list[Section], tmp_path: Path) -> None:
    """Published CMRCNet on tokens could not stand beside methods on frozen features."""
    torch.manual_seed(0)
    state = load_encoder("timm:test_vit", pretrained=False).module.backbone.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "random.safetensors")
    tokens = {
        "method": "cmrcnet",
        "encoder": f"timm:test_vit@{tmp_path / 'random.safetensors'}",
        "fine_tune": True,
        "epochs": 1,
    }
    result = benchmark(sections, {"ridge": {}, "cmrcnet, tokens": tokens}, CONFIG, output=tmp_path / "b")
    assert {tuple(run[:2]) for run in result.scores} == {
        ("ridge", "stain"),
        ("cmrcnet, tokens", "timm:test_vit@random"),
    }
    cost = result.tables["cost"].set_index("method")
    assert (
        cost.loc["cmrcnet, tokens", "trainable_parameters"] > cost.loc["cmrcnet, tokens", "encoder_parameters"]
    ).all()
    assert result.comparisons.empty  # a gain with another encoder is one of the encoder


def test_mistakes_are_found_before_anything_is_written(sections: list[Section], tmp_path: Path) -> None:
    def refuses(message: str, error: type[Exception] = InputError, **how: object) -> None:
        options = {"output": tmp_path / "b", **how}
        with pytest.raises(error, match=message):
            benchmark(sections, options.pop("methods", ["ridge"]), options.pop("config", CONFIG), **options)  # type: ignore[arg-type]

    refuses("unknown method 'magic'", methods=["ridge", "magic"])
    refuses("unknown encoder 'magic'", encoder=["stain", "magic"])
    refuses("unknown protocol 'magic'", protocol=[LOPO, "magic"])
    refuses("no method to compare", methods=[])
    refuses("'ridge' is a method's own name", methods={"ridge": {"method": "ridge", "views": 8}})
    refuses("'_a' is no name of a variant", methods={"_a": {"method": "ridge"}})
    refuses("which method it is of is not said", methods={"a": {"views": 8}})
    refuses("unknown method 'magic'", methods={"a": {"method": "magic"}})
    refuses("--variant 'a': epoch: there is no such setting", methods={"a": {"method": "bleep", "epoch": 8}})
    refuses("seed is the same for all variants", methods={"a": {"method": "bleep", "seed": 8}})
    refuses(
        "--variant 'a': the encoder 'stain' cannot be fine-tuned", methods={"a": {"method": "bleep", "fine_tune": True}}
    )
    refuses("works on frozen features", methods={"a": {"method": "ridge", "fine_tune": True}})
    refuses("--variant 'a': magic", methods={"a": {"method": "bleep", "options": {"magic": 8}}})
    refuses("2 is no share", learning_curve=[0.5, 2])
    refuses("-1 is no seed", seed=[-1])
    refuses("4294967296 is no seed", seed=[2**32])
    refuses("two files of weights have one name", encoder=["timm:a@x/w.safetensors", "timm:a@y/w.safetensors"])
    refuses("cannot be used", config=CONFIG.model_copy(update={"device": "nodevice"}))
    (tmp_path / "file").touch()
    refuses("is a file, where a folder is to be made", OutputError, output=tmp_path / "file")
    twins = [*sections, Section(sections[0].row.__class__(**{**vars(sections[0].row), "section_id": "twin"}))]
    with pytest.raises(LeakageError):
        benchmark(twins, ["ridge"], CONFIG, output=tmp_path / "b", protocol="leave-one-section-out")
    assert not (tmp_path / "b").exists()


def test_published_figures_stand_beside_ours_only_where_they_may(folder: Path, sections: list[Section]) -> None:
    published = pd.DataFrame(
        {
            "method": ["ridge", "knn", "bleep"],
            "figure": ["Table 2", "Figure 3", "Table 1"],
            "set": ["heg50", "heg50", "hvg50"],
            "pcc": [0.31, 0.71, 0.2],
            "protocol": [LOPO, "random spots", LOPO],
            "source": ["Doe 2024", "<script>alert(1)</script>", "Roe 2025"],
            "comparable": [True, False, True],
            "differs": ["", "spots of the test section were trained on", ""],
        }
    )
    result = benchmark(sections, ["ridge", "knn"], CONFIG, output=folder, recipe="bulb", published=published)
    same = pd.read_csv(folder / "published.csv")
    assert list(same["method"]) == ["ridge", "bleep"]
    ours = result.methods.set_index(["method", "set"]).loc[("ridge", "heg50"), "pcc"]
    assert same["pcc"][0] == pytest.approx(ours, abs=1e-4)
    assert np.isnan(same["pcc"][1])
    other = pd.read_csv(folder / "published_elsewhere.csv")
    assert "pcc" not in other
    assert list(other["differs"]) == ["spots of the test section were trained on"]
    page = result.page.read_text()
    assert "Another protocol: not to be compared with ours" in page
    assert "<script>alert" not in page
    assert json.loads((folder / "benchmark.json").read_text())["recipe"] == "bulb"
