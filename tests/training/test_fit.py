"""Training by gradient descent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hescribe.datasets.synthetic import make_synthetic
from hescribe.inference import load_bundle, predict
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, train


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("tissue") / "data"
    return read_sections(make_synthetic(folder, n_patients=2, n_sections=1, side_um=700, mpp=1.0, n_genes=120, seed=5))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small convolutional network with batch normalisation."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return path


def test_fine_tuning_trains_batch_statistics_too(sections: list[Section], weights: Path, tmp_path: Path) -> None:
    """The encoder comes in evaluation mode, and Lightning keeps modes: its batch statistics stayed those it came with."""
    config = TrainConfig(
        method="bleep",
        encoder=f"timm:test_resnet@{weights}",
        genes="hvg:40",
        fine_tune=True,
        epochs=2,
        inner_folds=0,
        device="cpu",
    )
    bundle = train(sections, config, output=tmp_path / "bundle")
    before = load_file(weights)
    after = bundle.encoder.module.state_dict()
    moved = [
        key
        for key, value in before.items()
        if key.endswith("running_mean") and not torch.allclose(value, after[f"backbone.{key}"])
    ]
    assert moved, "no batch statistic has moved"
    trained = [k for k, v in before.items() if k.endswith("weight") and not torch.equal(v, after[f"backbone.{k}"])]
    assert trained
    losses = bundle.history.query("split == 'train' and metric == 'loss'")["value"]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("method", [pytest.param("cmrcnet", marks=pytest.mark.slow), "stnet"])
def test_other_methods_fine_tune_and_come_back_from_disk(
    sections: list[Section], weights: Path, tmp_path: Path, method: str
) -> None:
    config = TrainConfig(
        method=method,
        encoder=f"timm:test_resnet@{weights}",
        genes="hvg:40",
        fine_tune=True,
        epochs=1,
        inner_folds=0,
        device="cpu",
        options={"optimisation": {"average": 0.5}},
    )
    bundle = train(sections[:1], config, output=tmp_path / "bundle")
    first = predict(bundle, sections[1])
    again = predict(load_bundle(tmp_path / "bundle"), sections[1])
    np.testing.assert_array_equal(first.X, again.X)
    assert bundle.encoder.pool == ("tokens" if method == "cmrcnet" else "own")
    assert np.isfinite(first.X).all()


def test_a_regression_stops_by_the_correlation(sections: list[Section], tmp_path: Path) -> None:
    config = TrainConfig(method="stnet", encoder="stain", genes="hvg:40", epochs=8, inner_folds=1, device="cpu")
    history = train(sections, config, output=tmp_path / "bundle").history
    watched = history.query("metric == 'correlation'")
    assert set(watched["split"]) == {"validation"}
    # The final fit, in which nothing is left out, takes as many epochs as were best
    last = history[history["fold"] == history["fold"].iloc[-1]] if "fold" in history else history
    assert last["epoch"].max() == watched.loc[watched["value"].idxmax(), "epoch"]


@pytest.mark.slow
def test_triplex_comes_back_from_disk(sections: list[Section], weights: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        method="triplex",
        encoder=f"timm:test_resnet@{weights}",
        genes="hvg:40",
        epochs=1,
        inner_folds=0,
        device="cpu",
        options={"dim": 16, "heads": 2, "neighbours": 3, "raster": 3},
    )
    bundle = train(sections[:1], config, output=tmp_path / "bundle")
    assert bundle.extraction.context.grid == 3
    first = predict(bundle, sections[0])
    again = predict(load_bundle(tmp_path / "bundle"), sections[0], use_cache=False)
    np.testing.assert_array_equal(first.X, again.X)
    assert np.isfinite(first.X).all()
