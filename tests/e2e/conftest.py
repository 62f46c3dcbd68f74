"""One small synthetic data set and one bundle of each kind, made once for all end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from hescribe.datasets.synthetic import make_synthetic
from hescribe.inference import Bundle
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, train


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import os

    os.environ["HESCRIBE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    return make_synthetic(folder, n_patients=3, n_sections=1, side_um=1100, mpp=1.0, n_genes=260, seed=3)


@pytest.fixture(scope="session")
def sections(manifest: Path) -> list[Section]:
    return read_sections(manifest)


def settings(method: str, **changes: object) -> TrainConfig:
    options = {"genes": "hvg:150", "device": "cpu", "encoder": "stain", **changes}
    return TrainConfig(method=method, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def ridge(sections: list[Section], tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    path = tmp_path_factory.mktemp("ridge") / "bundle"
    return train(sections[:2], settings("ridge"), output=path), path


@pytest.fixture(scope="session")
def bleep(sections: list[Section], tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    path = tmp_path_factory.mktemp("bleep") / "bundle"
    return train(sections[:2], settings("bleep", epochs=30), output=path), path


@pytest.fixture
def st(tmp_path: Path) -> Path:
    """A legacy ST section on a plain JPEG, small and right; tests make it wrong. Returns the manifest."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "st"
    folder.mkdir()
    grid = [(x, y) for x in range(2, 8) for y in range(2, 8)]
    names = [f"{x}x{y}" for x, y in grid]
    counts = pd.DataFrame(rng.poisson(3, (36, 30)), index=names, columns=[f"G{i}" for i in range(30)])
    counts.to_csv(folder / "a.tsv", sep="\t")
    spots = pd.DataFrame(grid, columns=["x", "y"]).assign(selected=1)
    spots["pixel_x"], spots["pixel_y"] = spots["x"] * 50.0, spots["y"] * 50.0
    spots.to_csv(folder / "a_spots.tsv", sep="\t", index=False)
    cv2.imwrite(str(folder / "a.jpg"), rng.integers(0, 255, (450, 450, 3), dtype=np.uint8))
    manifest = folder / "sections.csv"
    manifest.write_text("section_id,patient_id,image,expression,positions,technology\nA,P,a.jpg,a.tsv,a_spots.tsv,st\n")
    return manifest
