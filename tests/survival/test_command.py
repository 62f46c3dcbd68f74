"""``hescribe survival`` as a user types it, on tiny predictions with a planted effect."""

from __future__ import annotations

import html
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from hescribe import keys
from hescribe.applications.survival import SurvivalSettings, read_slides
from hescribe.downstream.gene_sets import marker_sets
from hescribe.errors import InputError
from hescribe.io.store import write_anndata
from tests.conftest import Cli

N = 40


def tiles(rng: np.random.Generator, genes: list[str], high: list[str], level: float, patient: str) -> ad.AnnData:
    y, x = np.divmod(np.arange(25), 5)
    expression = rng.normal(1.0, 0.3, (25, len(genes)))
    expression[:, [genes.index(g) for g in high]] += level * (x[:, None] < 3)
    adata = ad.AnnData(
        np.maximum(expression, 0).astype(np.float32), var=pd.DataFrame({keys.EXPECTED_PCC: 0.4}, index=genes)
    )
    adata.obs_names = [f"{a}x{b}" for a, b in zip(x, y, strict=True)]
    adata.obs["region"] = np.where(x < 3, "immune", "tumour")
    adata.obs["tls"] = ((x == 0) & (y < 2)).astype(int)
    adata.var.loc[high[0], keys.EXPECTED_PCC] = 0.01
    adata.obsm[keys.SPATIAL] = np.column_stack([x, y]) * 224.0
    adata.uns[keys.PROVENANCE] = {"slide": patient, "patient": patient, "mpp": 0.5}
    return adata


def test_slides_on_different_scales_are_refused(tmp_path: Path) -> None:
    genes = ["CD3D", "CD79A"]
    paths = {}
    for name, scale in (("a", 1e4), ("b", "median")):
        prediction = tiles(np.random.default_rng(0), genes, genes[:1], 1.0, name)
        prediction.uns[keys.PROVENANCE]["target_sum"] = scale
        paths[tmp_path / f"{name}.zarr"] = name
        write_anndata(prediction, tmp_path / f"{name}.zarr")
    with pytest.raises(
        InputError, match=r"differ in scale \(log1p of counts per 10,000 and log1p of counts per median"
    ):
        read_slides(paths, SurvivalSettings())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    sets = marker_sets("lung")
    genes = sorted({g for members in sets.values() for g in members})
    level = rng.uniform(0, 2, N)
    for i in range(N):
        for part in "AB" if i < 3 else "A":
            first = list(next(iter(sets.values())))
            write_anndata(tiles(rng, genes, first, level[i], f"P{i}"), folder / "predictions" / f"S{i}{part}.zarr")
    time = rng.exponential(40 * np.exp(1.5 * (level - 1)))
    table = pd.DataFrame(
        {"patient_id": [f"P{i}" for i in range(N)], "time": np.minimum(time, 80), "event": (time < 80).astype(int)}
    )
    table["age"] = rng.integers(40, 80, N).astype(float)
    table.loc[4, "age"] = np.nan
    table.to_csv(folder / "clinical.csv", index=False)
    return folder


def test_the_command_writes_a_result(study: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    code, printed, err = cli(
        "survival", study / "predictions", "--clinical", study / "clinical.csv", "-o", out, "--covariates", "age",
        "--horizon", 24, "--folds", 3, "--resamples", 20,
    )  # fmt: skip
    assert code == 0, err
    assert printed.strip() == str(out / "index.html")
    first = next(iter(marker_sets("lung")))
    assert f"expected correlation is below 0.1: {marker_sets('lung')[first][0]}\n" in err
    features = pd.read_csv(out / "features.csv", index_col=0)
    assert len(features) == N
    assert {f"mean:{first}", "fraction:immune", "next:immune|tumour", "tls:fraction"} <= set(features)
    risks = pd.read_csv(out / "risks.csv", index_col=0)
    assert {"fold", "risk image + clinical", "group clinical", "free image"} <= set(risks)
    scores = pd.read_csv(out / "scores.csv").set_index(["model", "metric"])
    assert scores.loc[("image", "C-index"), "value"] > 0.6
    page = (out / "index.html").read_text()
    assert "(95% interval 0." in page
    assert "moran: how far a score gathers in places" in page
    assert '<td class="n">0.000</td></tr>' not in page[page.index("Strongest genes") :]  # genes without effect
    genes = pd.read_csv(out / "genes.csv")
    assert genes.loc[genes["effect"].abs().idxmax(), "effect"] < 0
    for name in ("coefficients.csv", "contributions.csv", "differences.csv", "auc.csv", "calibration.csv"):
        assert (out / name).is_file()
    for figure in ("kaplan_meier", "auc", "calibration", "hazard_ratios", "tiles_0"):
        assert (out / "figures" / f"{figure}.png").stat().st_size > 1000
    page = (out / "index.html").read_text()
    assert "Outcome from slides" in page
    assert "mostly noise" in page
    assert "drawn while at least 5 of its patients are at risk" in page
    lacking = "1 patient without a value; the training patients' mean is taken"
    assert f"warning: age: {lacking}\n" in err
    assert f"age: {lacking}." in html.unescape(page)
    assert "horizon: 24" in (tmp_path / "out.config.yaml").read_text()


MISTAKES = {
    "no such covariate": (["--covariates", "grade"], "column 'grade' is missing"),
    "no such tissue": (["--tissue", "feather"], "feather"),
    "far horizon": (["--horizon", "900"], "horizon 900"),
    "no such table": (["--slides", "nothing.csv"], "nothing.csv: no such table"),
    "no such model": (["--model", "magic"], "unknown model 'magic' (known: cox, attention)"),
    "not TCGA's": (["--endpoint", "DFI"], "neither TCGA's"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(study: Path, tmp_path: Path, cli: Cli, options: list[str], message: str) -> None:
    given = ("--clinical", study / "clinical.csv", "-o", tmp_path / "out")
    assert message in cli.refuses("survival", study / "predictions", *given, *options)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_when_asked(study: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    given = ("--clinical", study / "clinical.csv", "-o", tmp_path)
    assert "--overwrite" in cli.refuses("survival", study / "predictions", *given)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_patients_without_slides_are_refused_or_left_out(study: Path, tmp_path: Path, cli: Cli) -> None:
    table = pd.read_csv(study / "clinical.csv")
    extra = pd.concat([table, table.iloc[:1].assign(patient_id="Q")])
    extra.to_csv(tmp_path / "clinical.csv", index=False)
    call = ["survival", study / "predictions", "--clinical", tmp_path / "clinical.csv", "-o", tmp_path / "out"]
    assert "1 patient has no slide, such as 'Q'" in cli.refuses(*call)
    slides = tmp_path / "slides.csv"
    slides.write_text("slide_id,patient_id\nS1A,P1\n")
    assert "is not in the table of slides" in cli.refuses(*call, "--slides", slides)


def test_regions_and_structures_are_found_where_they_are_not(study: Path) -> None:
    from hescribe.applications.survival import describe, usable_sets
    from hescribe.inference.predict import read_prediction

    adata = read_prediction(study / "predictions" / "S5A.zarr")
    adata.obs = adata.obs[[]]
    sets = usable_sets(adata, "lung")
    assert not any(n.startswith(("fraction:", "tls:")) for n in describe(adata, sets)[1].index)
    scores, row = describe(adata, sets, region_names=[*sets, "unclear"], find_structures=True)
    assert row.filter(like="fraction:").sum() == pytest.approx(1)
    assert row["tls:number"] >= 0
    assert list(scores) == list(sets)
