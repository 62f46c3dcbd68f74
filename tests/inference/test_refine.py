"""Refined prototypes against a slow transcription, and on tiles where the answer is planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy import sparse
from torch import Tensor, nn

from hescribe.datasets.synthetic import make_synthetic
from hescribe.encoders import Encoder, Extraction, load_encoder
from hescribe.encoders.record import Normalised
from hescribe.errors import EncoderError, InputError
from hescribe.inference import load_bundle, predict
from hescribe.inference.predictors import RetrievalHead, retrieval_head
from hescribe.inference.refine import State, step
from hescribe.methods.base import Batch, JointModel, Refinement
from hescribe.methods.carhe.model import CarheConfig
from hescribe.reference import Reference
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, train
from hescribe.types import Context

SIDE = 4  #: pixels, each a place of the feature map, so that a mask needs no interpolation


class Pixels(nn.Module):
    """The image is its own feature map, its mean colour the vector; counts what it is shown."""

    num_features = 3
    shown = 0

    def forward_features(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        return images

    def forward_head(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class ColourModel(JointModel):
    """The vector is the embedding."""

    tower = nn.Identity()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def embed_images(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(images, dim=1)

    def embed_expression(self, expression: Tensor) -> Tensor:
        return expression


class Tiles:
    slide_id, mpp = "planted", 0.5

    def __init__(self, tiles: np.ndarray) -> None:
        self.tiles, self.centres = tiles, np.zeros((len(tiles), 2))

    def __len__(self) -> int:
        return len(self.tiles)

    def fingerprint(self) -> str:
        return "planted"

    def read(self, indices, *, tile_um, size_px):  # type: ignore[no-untyped-def]
        return self.tiles[indices]


def colour_encoder() -> Encoder:
    module = Normalised(Pixels(), mean=(0, 0, 0), std=(1, 1, 1)).eval()
    return Encoder("timm:pixels", module, 3, SIDE, None, "pixels", "none")


def head(
    keys: np.ndarray, refinement: Refinement | None, encoder: Encoder | None = None, batch: int = 16
) -> RetrievalHead:
    reference = Reference(
        keys.astype("f"), sparse.eye(len(keys), format="csr", dtype="f"), tuple("abcdefgh"[: len(keys)]), pd.DataFrame()
    )
    config = CarheConfig(refinement=refinement)
    described_by = (encoder or colour_encoder(), Extraction(batch_size=batch))
    return retrieval_head(ColourModel(), reference, config, described_by, device="cpu")


def refined(tiles: np.ndarray, keys: np.ndarray, refinement: Refinement | None, **how: object) -> np.ndarray:
    features = tiles.mean(axis=(1, 2)).astype("f") / 255
    return head(keys, refinement, **how).weights(features, Tiles(tiles)).toarray()  # type: ignore[arg-type]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def look(tile: np.ndarray, key: np.ndarray) -> tuple[float, np.ndarray]:
    """Cosine of a tile's mean colour and a key, and its Grad-CAM from the derivative of a cosine on paper."""
    mean = tile.mean(axis=(0, 1))
    length = np.linalg.norm(mean)
    cosine = mean @ key / length
    gradient = (key / length - cosine * mean / length**2) / SIDE**2
    attention = np.maximum(tile @ gradient, 0)
    return cosine, attention / attention.max() if attention.max() > 0 else attention


def slowly(tile: np.ndarray, keys: np.ndarray, how: Refinement, temperature: float = 0.1) -> np.ndarray:
    """The procedure as its description has it, one tile and one prototype at a time."""
    tile = tile / 255.0
    first = softmax(np.array([look(tile, k)[0] for k in keys]) / temperature)
    alive = list(np.argsort(-first)[: how.candidates])
    weights = {m: first[m] / first[alive].sum() for m in alive}
    attention = {m: look(tile, keys[m])[1] for m in alive}
    for _ in range(how.rounds):
        cosine = {}
        for m in alive:
            mask = how.floor + (1 - how.floor) * attention[m][:, :, None]
            masked = tile.mean(axis=(0, 1)) * (1 - mask) + tile * mask
            cosine[m], attention[m] = look(masked, keys[m])
        p = dict(zip(alive, softmax(np.array([cosine[m] for m in alive]) / temperature), strict=True))
        left = [m for m in alive if p[m] >= how.threshold or p[m] == max(p.values())]
        new = {m: p[m] / sum(p[j] for j in left) for m in left}
        done = len(left) == 1 or (left == alive and max(abs(new[m] - weights[m]) for m in left) < 1e-3)
        alive, weights = left, new
        if done:
            break
    out = np.zeros(len(keys))
    out[list(weights)] = list(weights.values())
    return out


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(("threshold", "candidates"), [(0.4, 5), (0.25, 3), (0.0, 5)])
def test_against_a_slow_transcription(rounds: int, threshold: float, candidates: int) -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8)
    keys = rng.random((7, 3))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    how = Refinement(rounds=rounds, threshold=threshold, candidates=candidates)
    found = refined(tiles, keys, how)
    np.testing.assert_allclose(found, [slowly(t, keys, how) for t in tiles], atol=2e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert (found > 0).sum(axis=1).max() <= candidates


def planted() -> tuple[np.ndarray, np.ndarray]:
    """A pure red left half; on the right blue, with green strewn in. Prototypes: red, blue, green and yellow."""
    tile = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    tile[:, :2] = (170, 10, 10)
    tile[:, 2:] = (10, 10, 220)
    tile[::2, 2] = (10, 220, 10)
    keys = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 0]], dtype=float)
    return tile[None], keys / np.linalg.norm(keys, axis=1, keepdims=True)


def test_a_tile_of_two_kinds_keeps_both_and_drops_the_distractor() -> None:
    tiles, keys = planted()
    first = refined(tiles, keys, None)[0]
    assert abs(first[0] - first[1]) < 0.2  # ambiguous between red and blue
    assert first[2] > 0.001
    found = refined(tiles, keys, Refinement(candidates=3, rounds=1, threshold=0.3))[0]
    assert found[0] > 0.3
    assert found[1] > 0.3
    np.testing.assert_array_equal(found[2:], 0)
    np.testing.assert_allclose(
        found, slowly(tiles[0], keys, Refinement(candidates=3, rounds=1, threshold=0.3)), atol=2e-4
    )


def test_one_round_by_hand() -> None:
    cosine = torch.tensor([[0.3, 0.3, 0.0], [0.2, 0.19, 0.18], [0.9, 0.0, 0.0], [0.5, 0.4, 0.3]])
    before = State(
        torch.full((4, 3), 1 / 3),
        torch.tensor([[True] * 3, [True] * 3, [True] * 3, [False, True, True]]),
        torch.tensor([True, True, True, True]),
    )
    found = step(before, cosine, threshold=0.4, temperature=0.1)
    # exp(-3) leaves the third 2 %; nothing reaches 0.4 in the second row, so its largest alone is kept;
    # a candidate that was dropped stays dropped
    np.testing.assert_allclose(found.weights[0], [0.5, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(found.weights[1], [1, 0, 0])
    np.testing.assert_allclose(found.weights[2], [1, 0, 0])
    np.testing.assert_allclose(found.weights[3], [0, 1, 0])
    assert found.moving.tolist() == [True, False, False, False]
    again = step(found, torch.ones(4, 3), threshold=0.4, temperature=0.1)
    assert again.moving.tolist() == [False] * 4  # neither weights nor candidates have changed
    torch.testing.assert_close(again.weights, found.weights)


def test_a_tile_goes_on_where_a_candidate_is_dropped_although_weights_hardly_move() -> None:
    """Of 0.5, 0.4992 and 0.0008 the last falls to 0.0006, below the threshold."""
    weights = torch.tensor([[0.5, 0.4992, 0.0008]])
    before = State(weights, weights > 0, torch.tensor([True]))
    cosine = torch.tensor([[0.5002, 0.4992, 0.0006]]).log()
    assert step(before, cosine, threshold=0.0007, temperature=1.0).moving.tolist() == [True]
    assert step(before, cosine, threshold=0.0005, temperature=1.0).moving.tolist() == [False]


def test_it_stops_when_nothing_changes() -> None:
    tiles, keys = planted()
    encoder = colour_encoder()
    refined(tiles, keys, Refinement(candidates=2, rounds=100), encoder=encoder)
    assert encoder.module.backbone.shown < 100
    encoder = colour_encoder()
    refined(tiles, keys, Refinement(candidates=1, rounds=100), encoder=encoder)
    assert encoder.module.backbone.shown <= 4  # one candidate: nothing to be refined after the check and the first look


def test_no_rounds_are_no_refinement_to_the_bit() -> None:
    tiles, keys = planted()
    np.testing.assert_array_equal(refined(tiles, keys, Refinement(rounds=0)), refined(tiles, keys, None))


def test_batches_do_not_matter_and_runs_repeat() -> None:
    tiles = np.random.default_rng(1).integers(0, 256, (11, SIDE, SIDE, 3), dtype=np.uint8)
    keys = planted()[1]
    first = refined(tiles, keys, Refinement())
    np.testing.assert_array_equal(first, refined(tiles, keys, Refinement()))
    np.testing.assert_allclose(first, refined(tiles, keys, Refinement(), batch=2), atol=1e-5)
    keys = np.random.default_rng(2).random((7, 3))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    few = Refinement(candidates=2)  # which two, its own first weights decide
    np.testing.assert_allclose(refined(tiles, keys, few), refined(tiles, keys, few, batch=2), atol=1e-5)


def test_what_cannot_be_refined_is_refused() -> None:
    keys = planted()[1]
    with pytest.raises(EncoderError, match="'stain' has no feature maps"):
        head(keys, Refinement(), encoder=load_encoder("stain"))
    config = CarheConfig(refinement=Refinement(), retrieval={"imputation": "mean"})
    reference = Reference(keys.astype("f"), sparse.eye(4, format="csr"), tuple("abcd"), pd.DataFrame())
    with pytest.raises(InputError, match="softmax of cosines"):
        retrieval_head(ColourModel(), reference, config, (colour_encoder(), Extraction()), device="cpu")
    wide = Extraction(context=Context(centred=True))
    with pytest.raises(InputError, match="tile alone"):
        retrieval_head(
            ColourModel(), reference, CarheConfig(refinement=Refinement()), (colour_encoder(), wide), device="cpu"
        )
    with pytest.raises(InputError, match="by the tiles"):
        head(keys, Refinement()).weights(np.ones((1, 3), "f"))


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("tissue") / "data"
    return read_sections(make_synthetic(folder, n_patients=2, n_sections=1, side_um=500, mpp=1.0, n_genes=120, seed=5))


@pytest.mark.parametrize(("architecture", "fine_tune"), [("test_resnet", True), ("test_vit", False)])
@pytest.mark.slow
def test_a_bundle_refines_and_comes_back_the_same(
    sections: list[Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, fine_tune: bool
) -> None:
    import timm

    monkeypatch.setenv("HESCRIBE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    weights = tmp_path / "tiny.safetensors"
    save_file(timm.create_model(architecture, num_classes=0).state_dict(), weights)
    config = TrainConfig(
        method="carhe",
        encoder=f"timm:{architecture}@{weights}",
        genes="hvg:12",
        epochs=1,
        inner_folds=2 if fine_tune else 0,
        fine_tune=fine_tune,
        device="cpu",
        options={"prototypes": 4, "refinement": {"candidates": 2, "threshold": 0.2, "rounds": 2}},
    )
    bundle = train(sections, config, output=tmp_path / "bundle")
    prediction = predict(bundle, sections[1])
    np.testing.assert_array_equal(prediction.X, predict(load_bundle(tmp_path / "bundle"), sections[1]).X)
    predictor, tiles = bundle.predictor(), sections[1].tiles()
    features = predictor.describe(tiles).full
    weights_found = predictor.head.weights(features, tiles)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(prediction.X, predictor.head.reference.blend_expression(weights_found))  # type: ignore[attr-defined]
    assert np.diff(weights_found.indptr).max() <= 2
    plain = RetrievalHead(bundle.model, bundle.reference, bundle.config.retrieval)  # type: ignore[arg-type, attr-defined]
    assert not np.allclose(plain(features), prediction.X)


def test_training_is_refused_before_it_starts(sections: list[Section], tmp_path: Path) -> None:
    config = TrainConfig(method="carhe", encoder="stain", genes="hvg:40", device="cpu", options={"refinement": {}})
    with pytest.raises(EncoderError, match="no feature maps"):
        train(sections, config, output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
