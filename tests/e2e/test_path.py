"""Sections → bundle → predictions → figures, on synthetic tissue whose truth is known."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from hescribe import keys
from hescribe.datasets.synthetic import make_synthetic
from hescribe.errors import BundleError, InputError, LeakageError, OutputError
from hescribe.evaluation import score_section
from hescribe.inference import Bundle, load_bundle, predict, predict_sections, read_prediction
from hescribe.inference.bundle import hash_files
from hescribe.inference.evaluate import evaluate, write_evaluation
from hescribe.methods import METHODS
from hescribe.sections import Section, read_sections
from hescribe.training import train
from tests.e2e.conftest import settings

Fitted = tuple[Bundle, Path]


def heg50(scores: list) -> float:
    return float(scores[0].summary.at["heg50", "pcc"])


def test_ridge_reads_planted_expression_off_an_unseen_patient(ridge: Fitted, sections: list[Section]) -> None:
    scores = evaluate(ridge[0], sections[2:], seed=0)
    assert heg50(scores) > 0.25
    assert scores[0].summary.at["heg50", "ceiling"] > heg50(scores)


def test_bleep_learns_too(bleep: Fitted, sections: list[Section]) -> None:
    assert heg50(evaluate(bleep[0], sections[2:], seed=0)) > 0.2


def test_a_bundle_may_be_given_by_its_folder(ridge: Fitted, sections: list[Section], tmp_path: Path) -> None:
    """A path, and a section that is no list, ended in an AttributeError and a TypeError."""
    bundle, folder = ridge
    np.testing.assert_array_equal(predict(str(folder), sections[2]).X, predict(bundle, sections[2]).X)
    assert heg50(evaluate(folder, sections[2])) == heg50(evaluate(bundle, sections[2:]))
    (stored,) = predict_sections(folder, sections[2:], tmp_path)
    assert read_prediction(stored).uns[keys.PROVENANCE]["bundle"] == bundle.hash
    with pytest.raises(BundleError):
        predict(tmp_path / "none", sections[2])


def test_nothing_is_learned_from_shuffled_spots(sections: list[Section], tmp_path: Path) -> None:
    """The same pipeline on expression dealt out to spots at random: what it finds above is not an artefact."""
    shuffled = []
    for section in sections[:2]:
        twin = Section(section.row)
        order = np.random.default_rng(0).permutation(section.adata.n_obs)
        counts = section.adata.copy()
        counts.X = section.adata.X[order]
        twin.__dict__["adata"] = counts
        shuffled.append(twin)
    bundle = train(shuffled, settings("ridge"), output=tmp_path / "bundle")
    assert abs(heg50(evaluate(bundle, sections[2:], seed=0))) < 0.25
    assert np.nanmean(bundle.genes[keys.EXPECTED_PCC]) < 0.1


def test_a_prediction_is_as_the_contract_says(ridge: Fitted, sections: list[Section], tmp_path: Path) -> None:
    (path,) = predict_sections(ridge[0], sections[2:], tmp_path)
    assert path == tmp_path / f"{sections[2].section_id}.zarr"
    prediction = read_prediction(path)
    assert prediction.X.dtype == np.float32
    assert list(prediction.obs_names) == list(sections[2].adata.obs_names)
    np.testing.assert_array_equal(prediction.obsm[keys.SPATIAL], sections[2].adata.obsm[keys.SPATIAL])
    assert {keys.EXPECTED_PCC, keys.INTERVAL} <= set(prediction.var)
    assert {keys.NOVELTY, keys.INTERVAL_SCALE} <= set(prediction.obs)
    assert prediction.obs[keys.NOVELTY].between(0, 100).all()
    assert (prediction.var[keys.INTERVAL] >= 0).all()
    told = prediction.uns[keys.PROVENANCE]
    assert told["bundle"] == load_bundle(ridge[1]).hash
    assert told["encoder"] == "stain"
    assert told["method"] == "ridge"
    assert told["mpp"] == pytest.approx(1.0)
    # The whole transcriptome the training sections support, not only the panel
    assert prediction.n_vars > prediction.var[keys.IN_PANEL].sum()


def test_intervals_cover_about_ninety_per_cent(ridge: Fitted, sections: list[Section]) -> None:
    scores = evaluate(ridge[0], sections[2:], seed=0)
    assert 0.75 < scores[0].summary.at["all", "coverage"] < 0.99


def test_a_bundle_holds_only_harmless_files(bleep: Fitted) -> None:
    files = {p.name for p in bleep[1].iterdir()}
    assert files == {
        "config.json",
        "weights.safetensors",
        "reference.zarr",
        "genes.parquet",
        "README.md",
        "history.csv",
    }
    assert not [p for p in bleep[1].rglob("*") if p.suffix in {".pkl", ".pt", ".ckpt", ".pickle"}]


@pytest.mark.parametrize("kind", [pytest.param("ridge", marks=pytest.mark.slow), "bleep"])
def test_a_loaded_bundle_predicts_bit_for_bit(
    kind: str, request: pytest.FixtureRequest, sections: list[Section], tmp_path: Path
) -> None:
    """On a copy elsewhere, in a new process, with an empty cache."""
    bundle, path = request.getfixturevalue(kind)
    here = predict(bundle, sections[2], use_cache=False)
    shutil.copytree(path, tmp_path / "elsewhere")
    code = (
        "import sys; from hescribe.inference import load_bundle, predict_sections; "
        "from hescribe.sections import read_sections; "
        "s = [s for s in read_sections(sys.argv[2]) if s.section_id == sys.argv[3]]; "
        "predict_sections(load_bundle(sys.argv[1]), s, sys.argv[4])"
    )
    manifest = sections[2].image.parents[1] / "sections.csv"  # type: ignore[union-attr]
    arguments = [tmp_path / "elsewhere", manifest, sections[2].section_id, tmp_path / "out"]
    environment = {**os.environ, "HESCRIBE_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, env=environment)
    there = read_prediction(tmp_path / "out" / f"{sections[2].section_id}.zarr")
    np.testing.assert_array_equal(there.X, here.X)
    np.testing.assert_array_equal(there.obs[keys.NOVELTY], here.obs[keys.NOVELTY])


def test_same_seed_same_bundle(bleep: Fitted, sections: list[Section], tmp_path: Path) -> None:
    again = train(sections[:2], settings("bleep", epochs=30), output=tmp_path / "again")
    np.testing.assert_array_equal(predict(again, sections[2]).X, predict(bleep[0], sections[2]).X)


@pytest.fixture(scope="module")
def few_spots(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    """Sections so small that 24 tiles around each spot are soon encoded."""
    folder = tmp_path_factory.mktemp("few") / "data"
    return read_sections(make_synthetic(folder, n_patients=3, n_sections=1, side_um=600, mpp=1.0, n_genes=260, seed=3))


#: its 24 tiles around each spot take half a minute
LONG = {"triplex"}


@pytest.mark.parametrize("name", [pytest.param(m, marks=pytest.mark.slow) if m in LONG else m for m in sorted(METHODS)])
def test_every_method_goes_the_whole_way(name: str, few_spots: list[Section], tmp_path: Path) -> None:
    short = {"epochs": 2} if "optimisation" in METHODS[name].config.model_fields else {}
    options = {"neighbours": 3} if name == "triplex" else {}
    config = settings(name, inner_folds=0, views=1, options=options, **short)
    bundle = train(few_spots[:2], config, output=tmp_path / "b")
    prediction = predict(load_bundle(tmp_path / "b"), few_spots[2])
    np.testing.assert_array_equal(prediction.X, predict(bundle, few_spots[2]).X)
    assert np.isnan(prediction.var[keys.EXPECTED_PCC]).all()  # nothing was left out, so nothing is claimed


def test_the_mean_scores_zero(sections: list[Section], tmp_path: Path) -> None:
    bundle = train(sections[:2], settings("mean", inner_folds=0), output=tmp_path / "b")
    assert heg50(evaluate(bundle, sections[2:], seed=0)) == 0.0


def test_leaks_are_refused(ridge: Fitted, sections: list[Section]) -> None:
    with pytest.raises(LeakageError, match="has learned from section"):
        evaluate(ridge[0], sections[:1])
    twin = Section(sections[2].row.__class__(**{**sections[2].row.__dict__, "patient_id": " p1 "}))
    with pytest.raises(LeakageError, match="has learned from patient"):
        evaluate(ridge[0], [twin])
    assert evaluate(ridge[0], [twin], allow_same_patient=True)[0].same_patient


def test_a_prediction_of_a_training_section_cannot_be_scored(ridge: Fitted, sections: list[Section]) -> None:
    prediction = predict(ridge[0], sections[0])
    assert prediction.uns[keys.PROVENANCE]["seen_in_training"]
    with pytest.raises(LeakageError):
        score_section(prediction, sections[0].adata, allow_same_patient=True)


def test_metrics_are_written_whole(ridge: Fitted, sections: list[Section], tmp_path: Path) -> None:
    scores = evaluate(ridge[0], sections[2:], markers=["ERBB2"], seed=0)
    path = write_evaluation(scores, ridge[0], tmp_path / "metrics.json")
    told = json.loads(path.read_text())
    assert told["sections"][0]["sets"]["heg50"]["pcc"] == pytest.approx(heg50(scores))
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.json", "metrics.csv", "metrics.md", "metrics.genes.csv"}


def test_an_interrupted_run_continues_to_the_same_result(
    bleep: Fitted, sections: list[Section], tmp_path: Path
) -> None:
    """Stopped after some epochs of the first fold, as by a crash; the second start goes on from the checkpoint."""
    code = (
        "import sys; from tests.e2e.conftest import settings; from hescribe.sections import read_sections; "
        "import hescribe.training.module as m; from hescribe.training import train; import os\n"
        "old = m.Training.training_step\n"
        "def step(self, batch, index):\n"
        "    if self.current_epoch == 12: os._exit(9)\n"
        "    return old(self, batch, index)\n"
        "m.Training.training_step = step\n"
        "train(read_sections(sys.argv[1])[:2], settings('bleep', epochs=30), output=sys.argv[2])"
    )
    manifest = sections[0].image.parents[1] / "sections.csv"  # type: ignore[union-attr]
    run = [sys.executable, "-c", code, str(manifest), str(tmp_path / "b")]
    assert subprocess.run(run, check=False, cwd=Path(__file__).parents[2]).returncode == 9
    assert not (tmp_path / "b").exists()
    assert (tmp_path / "b.run" / "fold-0" / "checkpoints" / "last.ckpt").exists()
    resumed = train(sections[:2], settings("bleep", epochs=30), output=tmp_path / "b")
    np.testing.assert_array_equal(predict(resumed, sections[2]).X, predict(bleep[0], sections[2]).X)


def _edit(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def _forget_colours(path: Path) -> None:
    weights = path / "weights.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if not k.startswith("novelty.colours")}, weights)
    _edit(path, files=hash_files(path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: (p / "weights.safetensors").write_bytes((p / "weights.safetensors").read_bytes()[:-100]),
            "truncated",
        ),
        (lambda p: (p / "genes.parquet").unlink(), "genes.parquet is missing"),
        (lambda p: shutil.rmtree(p / "reference.zarr"), "reference.zarr is missing"),
        (lambda p: (p / "config.json").write_text("{"), "not a bundle's configuration"),
        (lambda p: (p / "config.json").unlink(), "no bundle here"),
        (lambda p: _edit(p, format=99), "newer"),
        (lambda p: _edit(p, method="magic"), "unknown method"),
        (_forget_colours, "an older hescribe made it"),
    ],
)
def test_damaged_bundles(bleep: Fitted, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(bleep[1], tmp_path / "b")
    damage(tmp_path / "b")
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path / "b")


def test_truth_of_the_synthetic_data_bounds_every_method(ridge: Fitted, sections: list[Section]) -> None:
    """No method may come above what a perfect predictor of the expectation reaches."""
    from hescribe.datasets.synthetic import attainable_pcc

    section = sections[2]
    truth = ad.read_h5ad(section.image.parents[1] / "truth" / f"{section.section_id}.h5ad")  # type: ignore[union-attr]
    best = attainable_pcc(truth.X, section.adata.X.toarray())
    scores = evaluate(ridge[0], [section], seed=0)[0].per_gene
    reachable = dict(zip(truth.var_names, best, strict=True))
    top = scores.index[scores["heg50"].to_numpy(dtype=bool)]
    assert scores.loc[top, "pcc"].mean() < np.mean([reachable[g] for g in top])


def test_a_used_folder_keeps_nothing_of_what_was_changed(
    ridge: Fitted, sections: list[Section], tmp_path: Path
) -> None:
    """The name of the image alone was compared, so a result of the old picture was taken for one of the new."""
    source = sections[2]
    assert source.image is not None
    image = tmp_path / source.image.name
    shutil.copy(source.image, image)

    def again() -> Section:
        section = Section(replace(source.row, image=image))
        section.__dict__["adata"] = source.adata
        return section

    (path,) = predict_sections(ridge[0], [again()], tmp_path / "p")
    with pytest.raises(OutputError, match="holds a prediction of another --dtype"):
        predict_sections(ridge[0], [again()], tmp_path / "p", dtype="float16")
    with pytest.raises(OutputError, match="holds a prediction of another --views"):
        predict_sections(ridge[0], [again()], tmp_path / "p", views=4)
    before = path.stat().st_mtime_ns
    image.touch()
    assert predict_sections(ridge[0], [again()], tmp_path / "p") == [path]
    assert path.stat().st_mtime_ns == before
    scaled = again()
    scaled.__dict__["mpp"] = 1.02
    with pytest.raises(OutputError, match="holds a prediction of another scale"):
        predict_sections(ridge[0], [scaled], tmp_path / "p")
    renamed = again()
    renamed.__dict__["adata"] = source.adata.copy()
    renamed.adata.obs_names = [f"new {name}" for name in renamed.adata.obs_names]
    with pytest.raises(OutputError, match="holds a prediction of other spots"):
        predict_sections(ridge[0], [renamed], tmp_path / "p")
    with image.open("ab") as file:  # another file of the same name
        file.write(b"\0")
    with pytest.raises(OutputError, match="holds a prediction of an image that has changed since"):
        predict_sections(ridge[0], [again()], tmp_path / "p")
    assert path.stat().st_mtime_ns == before


def test_a_slide_among_sections_is_left_out(
    ridge: Fitted, sections: list[Section], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slide = Section(replace(sections[0].row, section_id="slide", expression=None))
    with caplog.at_level("INFO"):
        written = predict_sections(ridge[0], [slide, sections[2]], tmp_path)
    assert [path.stem for path in written] == [sections[2].section_id]
    assert "without spots, left out: slide" in caplog.text
    with pytest.raises(InputError, match="give slides by their files"):
        predict_sections(ridge[0], [slide], tmp_path)


def test_scanpy_draws_a_prediction_on_its_slide(ridge: Fitted, sections: list[Section], tmp_path: Path) -> None:
    """``images`` was empty, at which scanpy ends with a StopIteration."""
    import matplotlib as mpl
    import scanpy as sc

    (path,) = predict_sections(ridge[0], sections[2:], tmp_path)
    prediction = read_prediction(path)
    library = prediction.uns[keys.SPATIAL][sections[2].section_id]
    small, (shown, downsampling) = library["images"]["lowres"], sections[2].thumbnail(600) or pytest.fail("no image")
    np.testing.assert_array_equal(small, shown)
    assert library["scalefactors"]["tissue_lowres_scalef"] == pytest.approx(1 / downsampling)
    with mpl.rc_context({"backend": "agg"}):
        (axes,) = sc.pl.spatial(prediction, color=prediction.var_names[0], show=False)
    assert axes.get_images()[0].get_array().shape == small.shape
    plain = predict(ridge[0], sections[2], picture=False).uns[keys.SPATIAL][sections[2].section_id]
    assert plain["images"] == {}  # nobody who only scores waits for it


def test_half_as_many_bytes_by_option(ridge: Fitted, sections: list[Section], tmp_path: Path) -> None:
    (whole,) = predict_sections(ridge[0], sections[2:], tmp_path / "whole")
    (half,) = predict_sections(ridge[0], sections[2:], tmp_path / "half", dtype="float16")
    rounded = read_prediction(half)
    assert rounded.X.dtype == np.float16
    np.testing.assert_array_equal(rounded.X, read_prediction(whole).X.astype(np.float16))
    figures = [score_section(read_prediction(p), sections[2].adata).summary.at["heg50", "pcc"] for p in (whole, half)]
    assert figures[0] == pytest.approx(figures[1], abs=1e-3)
    with pytest.raises(InputError, match="--dtype: 'int8' is none of float32, float16"):
        predict_sections(ridge[0], sections[2:], tmp_path / "none", dtype="int8")  # type: ignore[arg-type]
