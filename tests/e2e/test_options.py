"""Options that have no effect, do not fit together or make a training run away: one line, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from hescribe.errors import InputError, LeakageError
from hescribe.inference import Bundle, predict_sections, read_prediction
from hescribe.inference.present import report_predictions
from hescribe.methods import METHODS
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, train
from tests.conftest import Cli

Fitted = tuple[Bundle, Path]
TRAINED = [name for name, method in METHODS.items() if "optimisation" in method.config.model_fields]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "ridge", "--epochs", "5"], "--epochs: has no effect here: ridge is solved"),
        (["--method", "fusion", "--batch-size", "5"], "--batch-size: has no effect here: fusion is solved"),
        (["--method", "knn", "--learning-rate", "0.1"], "--learning-rate: has no effect here: knn is solved"),
        (["--method", "bleep", "--stain-jitter", "0.5"], "--stain-jitter: has no effect here"),
        (["--method", "bleep", "--trainable", "all"], "--trainable: has no effect here"),
        (["--method", "bleep", "--strategy", "ddp"], "--strategy: has no effect here"),
        (["--method", "bleep", "--device", "cpu", "--devices", "1000"], "--devices: 1000 wanted"),
        (["--method", "triplex", "-O", "heads=7"], "heads = 7 cannot share dim = 256"),
        (["--method", "triplex", "-O", "dim=250"], "heads = 8 cannot share dim = 250"),
        (["--method", "cmrcnet", "-O", "dim=250"], "dim: should be a multiple of 8, not 250"),
        (["--method", "ridge", "-O", "penalty=-1"], "penalty: should be 'auto' or 'hest' or at least"),
        (["--method", "knn", "-O", "retrieval.key=expression"], "knn has no key 'expression'"),
        (["--method", "bleep", "-O", f"dim={'9' * 5000}"], "cannot be read"),
        (["--target-sum", "average"], "target_sum: should be 'median' or 'counts' or a valid number"),
        (["--min-detected", "3"], "min_detected: should be at most 1"),
        (["--genes", "hvg:²"], "is no gene panel"),
    ],
)
def test_what_cannot_be_is_refused(cli: Cli, st: Path, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in cli.refuses("train", st, "-o", tmp_path / "out", "--encoder", "stain", *options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["st"]


def test_a_file_may_serve_several_methods(cli: Cli, st: Path, tmp_path: Path) -> None:
    """What is without effect for one of them is told, not refused."""
    (tmp_path / "run.yaml").write_text("encoder: stain\nepochs: 5\nstrategy: auto\ntarget_sum: median\n")
    given = ["train", st, "--config", tmp_path / "run.yaml", "--method", "mean", "-o"]
    code, _, err = cli(*given, tmp_path / "out")
    assert code == 0, err
    assert "run.yaml: epochs has no effect here: mean is solved" in err
    assert "strategy" not in err
    assert "per median library size" in (tmp_path / "out" / "README.md").read_text()


def test_a_benchmark_of_what_is_solved_has_no_epochs(cli: Cli, st: Path, tmp_path: Path) -> None:
    given = ["benchmark", st, "-o", tmp_path / "b", "--encoder", "stain", "--epochs", "5", "--methods"]
    assert "--epochs: has no effect here: none of the methods" in cli.refuses(*given, "mean,ridge")
    tuned = "tuned: {method: bleep, epochs: 0}"  # one that has epochs: its own mistake is found, under its name
    assert "--variant 'tuned': epochs: should be at least 1" in cli.refuses(*given, "mean", "--variant", tuned)
    assert not (tmp_path / "b").exists()


def test_a_benchmark_on_another_scale(cli: Cli, st: Path, tmp_path: Path) -> None:
    other = np.random.default_rng(1)
    counts = pd.read_csv(st.parent / "a.tsv", sep="\t", index_col=0)
    (counts + other.poisson(1, counts.shape)).to_csv(st.parent / "b.tsv", sep="\t")
    cv2.imwrite(str(st.parent / "b.jpg"), other.integers(0, 255, (450, 450, 3), dtype=np.uint8))
    with st.open("a") as manifest:
        manifest.write("B,Q,b.jpg,b.tsv,a_spots.tsv,st\n")
    given = ["benchmark", st, "-o", tmp_path / "b", "--encoder", "stain", "--methods", "mean", "--inner-folds", "0"]
    code, _, err = cli(*given, "--target-sum", "median")
    assert code == 0, err
    assert "log1p of counts per median library size" in (tmp_path / "b" / "index.html").read_text()
    prediction = read_prediction(next((tmp_path / "b").rglob("*.zarr/uns")).parent)
    assert prediction.uns["hescribe"]["target_sum"] == "median"
    assert "other settings (target_sum median, now 10000.0)" in cli.refuses(*given)


def test_predict_tells_options_of_slides_from_those_of_sections(cli: Cli, ridge: Fitted, tmp_path: Path) -> None:
    at_spots = ["predict", ridge[1], "--sections", "sections.csv", "-o", tmp_path / "p"]
    for name, value in {
        "--stride-um": "9", "--mpp": "1", "--patient": "P", "--precision": "bf16",
        "--engine": "torch", "--cluster": "local", "--workers": "2",
    }.items():  # fmt: skip
        assert f"{name}: has no effect here" in cli.refuses(*at_spots, name, value)
    on_slides = ["predict", ridge[1], "slide.svs", "-o", tmp_path / "p"]
    for name, value in {"--only": "A", "--without": "A", "--retries": "3", "--scratch": "x"}.items():
        assert f"{name}: has no effect here" in cli.refuses(*on_slides, name, value)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("method", [m if m != "triplex" else pytest.param(m, marks=pytest.mark.slow) for m in TRAINED])
def test_a_training_that_runs_away(cli: Cli, st: Path, tmp_path: Path, method: str) -> None:
    """It used to end in a KeyError, and its folder stayed."""
    given = ["train", st, "-o", tmp_path / "out", "--encoder", "stain", "--method", method, "--epochs", "3"]
    small = ["-O", "dim=16", "-O", "heads=2"] if method == "triplex" else []
    line = cli.refuses(*given, *small, "--learning-rate", "1e30")
    assert "--learning-rate: the loss is no finite number in epoch 1 (take a lower one than 1e+30)" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["st"]


def test_a_last_step_that_runs_away(st: Path, tmp_path: Path) -> None:
    """A single step has a loss that is still finite; its weights are not."""
    config = TrainConfig(method="stnet", encoder="stain", epochs=1, batch_size=512, learning_rate=1e30, inner_folds=0,
                         options={"optimisation": {"fewest_steps": 1, "weight_decay": 1e30}})  # fmt: skip
    with pytest.raises(InputError, match="no finite number"):
        train(read_sections(st), config, output=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["st"]


def test_a_section_is_learned_from_once(cli: Cli, st: Path, tmp_path: Path) -> None:
    """Named twice, it used to be left out of a fold and learned from in the same."""
    section = read_sections(st)[0]
    with pytest.raises(InputError, match="section 'A' is given twice"):
        train([section, section], TrainConfig(method="mean", encoder="stain"), output=tmp_path / "out")
    code, _, err = cli("train", st, "-o", tmp_path / "out", "--encoder", "stain", "--method", "mean", "--only", "A,A")
    assert code == 0, err
    assert "1 sections, 36 spots" in err


def test_report_knows_whom_the_bundle_has_seen(
    ridge: Fitted, sections: list[Section], manifest: Path, tmp_path: Path
) -> None:
    """The manifest's patient counts, as in an evaluation: not the one the prediction was once made for."""
    bundle, unseen = ridge[0], sections[2]
    paths = predict_sections(bundle, [unseen], tmp_path / "p")
    rows = pd.read_csv(manifest)
    rows.loc[rows["section_id"] == unseen.section_id, "patient_id"] = sections[0].patient_id
    changed = manifest.with_name("same_patient.csv")
    rows.to_csv(changed, index=False)
    again = [s for s in read_sections(changed) if s.section_id == unseen.section_id]
    with pytest.raises(LeakageError, match="the bundle has learned from patient"):
        report_predictions(paths, tmp_path / "r", sections=again, bundle=bundle)
    with pytest.raises(LeakageError, match=r"is not known .*--bundle"):
        report_predictions(paths, tmp_path / "r", sections=again)
    assert not (tmp_path / "r").exists()
    page = report_predictions(paths, tmp_path / "r", sections=again, bundle=bundle, allow_same_patient=True)
    assert "was trained on other sections of the same patient" in page.read_text()


def test_report_takes_the_bundle_that_predicted(
    ridge: Fitted, bleep: Fitted, sections: list[Section], tmp_path: Path
) -> None:
    paths = predict_sections(ridge[0], sections[2:], tmp_path / "p")
    with pytest.raises(InputError, match="another bundle made this prediction"):
        report_predictions(paths, tmp_path / "r", bundle=bleep[0])
    assert not (tmp_path / "r").exists()


HEAD = "section_id,patient_id,image,expression,positions,technology\n"
ROW = "A,P,a.jpg,a.tsv,a_spots.tsv,st\n"
MANIFESTS = {
    "semicolons": ((HEAD + ROW).replace(",", ";"), "a single column, 'section_id;patient_id"),
    "too few names": (HEAD + ROW.replace("\n", ",1,2\n"), "the first line names 6 columns, the rows have more cells"),
    "a comment": ("# sections\n" + HEAD + ROW, "the first line names 1 columns, the rows have more cells"),
    "twice": (HEAD + ROW + ROW, "section_id 'A' stands in several rows"),
    "empty": ("", "not a readable table"),
    "no rows": (HEAD, "the manifest has no rows"),
    "empty id after a gap": (HEAD + ROW + ",,,,,\n" + ROW.replace("A", "", 1), "row 4: section_id is empty"),
}


@pytest.mark.parametrize(("text", "message"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_odd_manifests(st: Path, text: str, message: str) -> None:
    st.write_text(text)
    with pytest.raises(InputError, match=message):
        read_sections(st)


def test_manifests_as_other_programs_write_them(st: Path) -> None:
    table = pd.read_csv(st)
    table.set_index("section_id").to_parquet(st.with_name("indexed.parquet"))
    assert [s.section_id for s in read_sections(st.with_name("indexed.parquet"))] == ["A"]
    for text in ("\ufeff" + HEAD + ROW, (HEAD + ROW).replace("\n", "\r\n"), (HEAD + ROW).replace(",", " , "),
                 HEAD + ROW + ",,,,,\n"):  # fmt: skip
        st.write_bytes(text.encode())
        assert [(s.section_id, s.patient_id, s.has_expression) for s in read_sections(st)] == [("A", "P", True)]


def test_files_of_windows(cli: Cli, st: Path, tmp_path: Path) -> None:
    """A byte order mark is no part of the first gene, nor of the first option."""
    (tmp_path / "genes.txt").write_bytes("\ufeffG1\r\n  G2 \r\n".encode())
    (tmp_path / "run.toml").write_bytes('\ufeffmethod = "mean"\r\nencoder = "stain"\r\n'.encode())
    given = ["train", st, "-o", tmp_path / "out", "--config", tmp_path / "run.toml"]
    code, _, err = cli(*given, "--genes", tmp_path / "genes.txt")
    assert code == 0, err
    assert "of which 2 in the panel" in err
    (tmp_path / "run.yaml").write_text("method: 2020-13-45\n")
    assert "run.yaml: cannot be read" in cli.refuses(
        "train", st, "-o", tmp_path / "x", "--config", tmp_path / "run.yaml"
    )
