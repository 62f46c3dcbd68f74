"""One small synthetic data set and one bundle of each kind, made once for all end-to-end tests."""

from __future__ import annotations

from pathlib import Path

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
