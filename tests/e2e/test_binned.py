"""Visium HD and Xenium from the manifest to a prediction: two sections are learned from, a third is predicted."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from hescribe.inference import read_prediction
from hescribe.sections import read_sections
from tests.conftest import Cli
from tests.io.tenx_files import Matrix, Numbers, write_alignment, write_bins, write_xenium

SIDE = 800  #: µm, and pixels of the image
GENES = [f"G{i}" for i in range(40)]
PIXEL_UM = 0.2125
HELD_OUT = "S2"


def purple(rng: np.random.Generator) -> Numbers:
    """How purple each µm of the section is, from 0 to 1."""
    coarse = cv2.resize(rng.random((7, 7)).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse, 0, 1).astype(np.float64)


def write_image(path: Path, tissue: Numbers, rng: np.random.Generator) -> None:
    pink, dark = np.array([235.0, 160, 200]), np.array([90.0, 50, 140])
    colour = pink + (dark - pink) * tissue[..., None] + rng.normal(0, 6, (SIDE, SIDE, 3))
    cv2.imwrite(str(path), np.clip(colour[..., ::-1], 0, 255).astype(np.uint8))


def draw_counts(places: Numbers, tissue: Numbers, mean: float, rng: np.random.Generator) -> Matrix:
    """The first ten genes rise with the purple, the next ten fall, the others know nothing of it."""
    there = tissue[places[:, 1].astype(int), places[:, 0].astype(int)][:, None]
    slopes = np.repeat([1.0, -1.0, 0.0], [10, 10, 20])
    counts = rng.poisson(mean * np.exp(3 * slopes * (there - 0.5)))
    ids = [f"ENSG{i:011}" for i in range(len(GENES))]
    return Matrix(counts.astype(np.int32), [], ids, GENES, ["Gene Expression"] * len(GENES))


def visium_hd(folder: Path, tissue: Numbers, rng: np.random.Generator) -> None:
    """Of the bins every third in each direction lies under tissue, to have few tiles on a wide section."""
    size, n = 16, 42
    rows, columns = (a.ravel() for a in np.mgrid[:n, :n])
    places = np.column_stack([columns, rows]) * size + 70.0
    under = (rows % 3 == 0) & (columns % 3 == 0)
    barcodes = np.array([f"s_016um_{r:05}_{c:05}-1" for r, c in zip(rows, columns, strict=True)])
    matrix = draw_counts(places[under], tissue, 3, rng)
    matrix.barcodes = list(barcodes[under])
    positions = pd.DataFrame({"barcode": barcodes, "in_tissue": under, "array_row": rows, "array_col": columns})
    positions["pxl_row_in_fullres"], positions["pxl_col_in_fullres"] = places[:, 1], places[:, 0]
    write_bins(folder / "outs" / "binned_outputs" / "square_016um", positions, matrix, size_um=size, mpp=1.0)


def xenium(folder: Path, tissue: Numbers, rng: np.random.Generator) -> None:
    """The H&E lies a quarter turn from the morphology image, a pixel of 1 µm instead of 0.2125."""
    places = rng.uniform(0, SIDE, (3000, 2))
    matrix = draw_counts(places, tissue, 1, rng)
    matrix.barcodes = [f"c{i:07}-1" for i in range(len(places))]
    centroids = {"x_centroid": places[:, 1], "y_centroid": SIDE - places[:, 0]}
    write_xenium(folder, matrix, pd.DataFrame({"cell_id": matrix.barcodes, **centroids}), ids="text")
    scale = 1 / PIXEL_UM
    write_alignment(folder / "he_imagealignment.csv", [[0, scale, 0], [-scale, 0, SIDE * scale], [0, 0, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("write", [visium_hd, xenium], ids=lambda f: f.__name__)
def test_two_sections_teach_and_a_third_is_predicted(write: object, tmp_path: Path, cli: Cli) -> None:
    lines = ["section_id,patient_id,image,expression"]
    for i in range(3):
        rng = np.random.default_rng(i)
        tissue = purple(rng)
        write_image(tmp_path / f"S{i}.png", tissue, rng)
        write(tmp_path / f"S{i}", tissue, rng)  # type: ignore[operator]
        lines.append(f"S{i},P{i},S{i}.png,S{i}")
    manifest = tmp_path / "sections.csv"
    manifest.write_text("\n".join(lines) + "\n")
    bundle, out = tmp_path / "bundle", tmp_path / "predictions"
    options = ["--method", "ridge", "--encoder", "stain", "--genes", "all", "--device", "cpu"]
    assert cli("train", manifest, "-o", bundle, "--without", HELD_OUT, *options)[0] == 0
    assert cli("predict", bundle, "--sections", manifest, "--only", HELD_OUT, "-o", out, "--device", "cpu")[0] == 0
    prediction = read_prediction(out / f"{HELD_OUT}.zarr")
    measured = read_sections(manifest)[2].adata
    assert list(prediction.obs_names) == list(measured.obs_names)
    assert set(prediction.var_names) == set(GENES)
    correlations = {
        gene: np.corrcoef(prediction[:, gene].X.ravel(), measured[:, gene].X.toarray().ravel())[0, 1] for gene in GENES
    }
    assert np.mean([correlations[g] for g in GENES[:20]]) > 0.4
    assert abs(np.mean([correlations[g] for g in GENES[20:]])) < 0.2
