"""On a GPU the same as on a processor, and the same every time; skipped where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hescribe.datasets.synthetic import make_synthetic
from hescribe.inference import read_prediction
from hescribe.inference.predict import predict
from hescribe.inference.slides import predict_slide
from hescribe.inference.slides.plan import Work
from hescribe.methods import METHODS
from hescribe.reference import search
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, train
from tests.inference.slides.made import draw_slide, make_bundle, write_slide



#: cuDNN convolves float32 in TF32, with ten bits of mantissa
CLOSE = 2e-3


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("tissue") / "data"
    return read_sections(make_synthetic(folder, n_patients=3, n_sections=1, side_um=700, mpp=1.0, n_genes=120, seed=5))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide") / "slide.tif", draw_slide(700))


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_the_nearest_are_exact(similarity: str) -> None:
    rng = np.random.default_rng(0)
    keys, queries = rng.normal(size=(5000, 64)).astype("f"), rng.normal(size=(300, 64)).astype("f")
    found = search(keys, queries, 50, similarity=similarity, device="cpu", budget_bytes=2**20)  # type: ignore[arg-type]
    k, q = keys.astype(float), queries.astype(float)
    if similarity == "cosine":
        k, q = k / np.linalg.norm(k, axis=1, keepdims=True), q / np.linalg.norm(q, axis=1, keepdims=True)
    exact = q @ k.T if similarity == "cosine" else -((q[:, None] - k[None]) ** 2).sum(2)
    best = -np.sort(-exact, axis=1)[:, :50]
    np.testing.assert_allclose(np.take_along_axis(exact, found.indices, axis=1), best, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["ridge", "bleep", "fusion", "carhe", "triplex"])
def test_a_slide_is_predicted_as_on_a_processor(method: str, slide: Path, tmp_path: Path) -> None:
    bundle = make_bundle(method)
    here = read_prediction(predict_slide(bundle, slide, tmp_path / "cpu.zarr", precision="fp32"))
    there = read_prediction(predict_slide(bundle, slide, tmp_path / "gpu.zarr", precision="fp32", device="cpu"))
    np.testing.assert_array_equal(here.obsm["spatial"], there.obsm["spatial"])
    assert there.uns["hescribe"]["device"] == "cpu"
    scale = np.abs(here.X).max()
    close = np.isclose(here.X, there.X, atol=CLOSE * scale, rtol=0).mean()
    # Which of two neighbours is the fiftieth can hang on the last bits
    assert close > (0.9 if bundle.reference is not None else 0.999)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_and_resumed_it_is_the_same_bit_for_bit(
    precision: str, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hescribe.inference.slides import features

    monkeypatch.setattr(features, "CHUNK", 64)
    bundle, how = make_bundle("fusion"), {"stride_um": 40.0, "precision": precision, "device": "cpu"}
    whole = predict_slide(bundle, slide, tmp_path / "whole.zarr", **how)  # type: ignore[arg-type]
    mark, marks = Work.mark, []

    def stop(self: Work, stage: str, tiles: int) -> None:
        mark(self, stage, tiles)  # type: ignore[arg-type]
        marks.append(stage)
        if len(marks) in {2, 9}:
            raise KeyboardInterrupt

    monkeypatch.setattr(Work, "mark", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            predict_slide(bundle, slide, tmp_path / "cut.zarr", **how)  # type: ignore[arg-type]
    cut = predict_slide(bundle, slide, tmp_path / "cut.zarr", **how)  # type: ignore[arg-type]
    np.testing.assert_array_equal(read_prediction(cut).X, read_prediction(whole).X)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_learns_and_the_same_seed_gives_the_same(
    method: str, sections: list[Section], tmp_path: Path
) -> None:
    short = {"epochs": 3} if hasattr(METHODS[method].config(), "optimisation") else {}
    config = TrainConfig(method=method, encoder="stain", genes="hvg:40", device="cpu", inner_folds=1, **short)  # type: ignore[arg-type]
    bundles = [train(sections[:2], config, output=tmp_path / f"bundle-{i}") for i in range(2)]
    one, other = (predict(bundle, sections[2], device="cpu").X for bundle in bundles)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", ["bleep", "cmrcnet", "carhe", "stnet"])
def test_fine_tuning_is_the_same_every_time(method: str, sections: list[Section], tmp_path: Path) -> None:
    config = TrainConfig(
        method=method, encoder="cmrcnet-vit", genes="hvg:40", device="cpu", inner_folds=0, fine_tune=True, epochs=2
    )
    bundles = [train(sections[:2], config, output=tmp_path / f"bundle-{i}") for i in range(2)]
    one, other = (predict(bundle, sections[2], device="cpu", use_cache=False).X for bundle in bundles)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)
