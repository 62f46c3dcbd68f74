"""Training by gradient descent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hescribe import keys
from hescribe.datasets.synthetic import make_synthetic
from hescribe.encoders import Extraction, extract_features, load_encoder, mean_of_tokens
from hescribe.encoders.extract import token_stack
from hescribe.errors import EncoderError, HescribeWarning, InputError
from hescribe.inference import Bundle, load_bundle, predict
from hescribe.io.manifest import ManifestRow
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, fit, train
from hescribe.training.module import Training
from hescribe.training.train import _fitter


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


def on_tokens(weights: Path, **settings: object) -> TrainConfig:
    options = {"tokens": True, "dim": 32}
    common = {"genes": "hvg:40", "epochs": 2, "inner_folds": 0, "device": "cpu", "options": options}
    common["encoder"] = f"timm:test_resnet@{weights}"
    return TrainConfig(method="cmrcnet", **(common | settings))


def test_a_frozen_encoder_gives_its_tokens(sections: list[Section], weights: Path, tmp_path: Path) -> None:
    """Trained on the places of the last feature map, used on their mean; the encoder stays as it came."""
    bundle = train(sections[:1], on_tokens(weights), output=tmp_path / "bundle")
    assert bundle.encoder.pool == "tokens"
    assert all(torch.equal(v, bundle.encoder.module.state_dict()[f"normalised.backbone.{k}"])
               for k, v in load_file(weights).items())  # fmt: skip
    first = predict(bundle, sections[1])
    np.testing.assert_array_equal(first.X, predict(load_bundle(tmp_path / "bundle"), sections[1]).X)
    one = train(sections[:1], on_tokens(weights, options={"dim": 32}), output=tmp_path / "one")
    rebuilt = [b.history.query("metric == 'reconstruction'")["value"].to_numpy() for b in (bundle, one)]
    assert not np.allclose(*rebuilt), "the reconstruction saw one token"


def test_tokens_that_are_kept_are_those_whose_mean_is_the_vector(sections: list[Section], weights: Path) -> None:
    encoder, how = mean_of_tokens(load_encoder(f"timm:test_resnet@{weights}")), Extraction()
    tokens = token_stack(sections[0].tiles(), encoder, how)
    assert tokens.shape == (len(sections[0].adata), (encoder.input_px // 32) ** 2, encoder.width)
    vectors = extract_features(sections[0].tiles(), encoder, how)
    np.testing.assert_allclose(np.asarray(tokens, dtype="f").mean(axis=1), vectors, rtol=2e-3, atol=1e-4)


def test_tokens_are_of_one_view(sections: list[Section], weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one view"):
        train(sections[:1], on_tokens(weights, views=4), output=tmp_path / "bundle")


def test_an_encoder_without_tokens_is_refused(sections: list[Section], weights: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="'stain' gives no tokens"):
        train(sections[:1], on_tokens(weights, encoder="stain"), output=tmp_path / "bundle")


def test_a_regression_stops_by_the_correlation(sections: list[Section], tmp_path: Path) -> None:
    config = TrainConfig(method="stnet", encoder="stain", genes="hvg:40", epochs=8, inner_folds=1, device="cpu")
    history = train(sections, config, output=tmp_path / "bundle").history
    watched = history.query("metric == 'correlation'")
    assert set(watched["split"]) == {"validation"}
    # The final fit, in which nothing is left out, takes as many epochs as were best
    last = history[history["fold"] == history["fold"].iloc[-1]] if "fold" in history else history
    assert last["epoch"].max() == watched.loc[watched["value"].idxmax(), "epoch"]


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small vision transformer."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


def fine_tuned(sections: list[Section], encoder: str, output: Path, **settings: object) -> Bundle:
    common = {"genes": "hvg:40", "fine_tune": True, "epochs": 1, "inner_folds": 0, "device": "cpu"}
    return train(sections, TrainConfig(encoder=encoder, **{**common, **settings}), output=output)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"method": "carhe-clip"}, {"blocks.-2", "norm"}),
        ({"method": "carhe"}, {"blocks.-2", "blocks.-1"}),
        ({"method": "bleep", "trainable": "blocks.-1.mlp"}, {"blocks.-1"}),
        ({"method": "carhe-clip", "trainable": "all"}, None),
    ],
)
def test_only_the_wanted_parts_of_an_encoder_are_trained(
    sections: list[Section], vision: Path, tmp_path: Path, settings: dict[str, str], parts: set[str] | None
) -> None:
    bundle = fine_tuned(sections[:1], f"timm:test_vit@{vision}", tmp_path / "bundle", learning_rate=1e-2, **settings)
    after = bundle.encoder.module.state_dict()
    moved = {k for k, v in load_file(vision).items() if not torch.equal(v, after[f"backbone.{k}"])}
    blocks = len(bundle.encoder.module.backbone.blocks)  # type: ignore[union-attr, arg-type]
    if parts is None:
        assert "patch_embed.proj.weight" in moved
        return
    held = {p.replace("-2", str(blocks - 2)).replace("-1", str(blocks - 1)) for p in parts}
    assert {h for h in held if any(f"{m}.".startswith(f"{h}.") for m in moved)} == held
    assert all(any(m.startswith(f"{h}.") for h in held) for m in moved)


def test_parts_that_an_encoder_lacks(sections: list[Section], weights: Path, tmp_path: Path) -> None:
    """Asked for, they are refused; where a method has them as published, all is trained and that is said."""
    encoder = f"timm:test_resnet@{weights}"
    with pytest.raises(InputError, match=r"no part .blocks\.-1. to train"):
        fine_tuned(sections[:1], encoder, tmp_path / "none", method="bleep", trainable="blocks.-1")
    assert not list(tmp_path.iterdir())
    with pytest.warns(HescribeWarning, match=r"blocks\.-2 and norm, which this encoder does not have: all of it"):
        bundle = fine_tuned(sections[:1], encoder, tmp_path / "all", method="carhe-clip")
    after = bundle.encoder.module.state_dict()
    assert not torch.equal(load_file(weights)["conv1.0.weight"], after["backbone.conv1.0.weight"])


def test_every_fit_of_a_run_has_the_batches_of_the_smallest(
    sections: list[Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs are counted without some sections; with all of them an epoch is longer, and its steps are the same."""
    seen = []

    class Spy(fit.SeededShuffle):
        def __init__(self, rows: np.ndarray, size: int, seed: int, **more: object) -> None:
            seen.append((len(rows), size))
            super().__init__(rows, size, seed, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(fit, "SeededShuffle", Spy)
    spots = [s.adata.n_obs for s in sections[:2]]
    few = {"optimisation": {"batch_size": 256, "fewest_steps": min(spots) // 32}}
    config = TrainConfig(method="bleep", encoder="stain", epochs=1, inner_folds=2, device="cpu", options=few)
    train([replace(s, row=replace(s.row, patient_id="P")) for s in sections[:2]], config, output=tmp_path / "bundle")
    assert [n for n, _ in seen] == [*spots, sum(spots)]
    assert {size for _, size in seen} == {32}


def test_frozen_parts_keep_their_batch_statistics(sections: list[Section], weights: Path, tmp_path: Path) -> None:
    bundle = fine_tuned(
        sections[:1], f"timm:test_resnet@{weights}", tmp_path / "bundle", method="stnet", trainable="layer4"
    )
    after = bundle.encoder.module.state_dict()
    moved = {k for k, v in load_file(weights).items() if "running" in k and not torch.equal(v, after[f"backbone.{k}"])}
    assert moved
    assert all(name.startswith("layer4.") for name in moved)


@pytest.mark.parametrize("choice", ["auto", "learned"])
def test_the_code_s_carhe_takes_scgpt_vectors(sections: list[Section], tmp_path: Path, choice: str) -> None:
    """And a bundle, which knows the panel alone, loads with a head as wide as the vectors."""
    made = []
    for section in sections:
        table = section.adata.copy()
        table.obsm[keys.SCGPT] = np.log1p(table.X[:, :17].toarray()).astype("f")
        table.uns.clear()
        path = tmp_path / f"{section.section_id}.h5ad"
        table.write_h5ad(path)
        made.append(Section(ManifestRow(section.section_id, section.patient_id, section.image, path, mpp=1.0)))
    config = TrainConfig(
        method="carhe-clip", encoder="stain", genes="hvg:40", epochs=2, inner_folds=1, device="cpu",
        options={"gene_embedding": choice},
    )  # fmt: skip
    bundle = train(made, config, output=tmp_path / "bundle")
    panel = int(bundle.genes[keys.IN_PANEL].sum())
    inputs = bundle.model.expression_head.project.in_features  # type: ignore[union-attr]
    assert panel != 17
    assert inputs == (17 if choice == "auto" else panel)
    again = load_bundle(tmp_path / "bundle")
    np.testing.assert_array_equal(predict(bundle, made[0]).X, predict(again, made[0]).X)


def test_a_fit_of_few_epochs_follows_the_beginning_of_the_whole_course(
    sections: list[Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inner folds chose their number by it."""
    rates: list[float] = []

    class Watched(Training):
        def on_train_epoch_start(self) -> None:
            rates.append(float(self.trainer.optimizers[0].param_groups[0]["lr"]))

    monkeypatch.setattr(fit, "Training", Watched)
    config = TrainConfig(method="cmrcnet", encoder="stain", genes="hvg:40", device="cpu", options={"dim": 16})
    fitter = _fitter(sections, config, "cpu")
    rows = np.arange(len(fitter.data.section))
    fitter.fit(rows, rows[:0], panel=fitter.data.panel, folder=tmp_path / "fit", epochs=3)
    course = 1e-5 + (1e-4 - 1e-5) * (1 + np.cos(np.pi * np.arange(3) / 60)) / 2
    np.testing.assert_allclose(rates, course, rtol=1e-6)


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
