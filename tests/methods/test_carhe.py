"""CarHE, both of it, against slow transcriptions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from hescribe.methods.base import Batch, Origin, Retrieval, Shapes
from hescribe.methods.carhe.clip import CarheClip, CarheClipConfig
from hescribe.methods.carhe.model import Carhe, CarheConfig
from hescribe.methods.losses import soft_targets
from hescribe.reference import Neighbours, weigh

KIND = np.arange(90) % 3
SECTION = np.repeat([0, 1], 45)
ORIGIN = Origin(SECTION, SECTION)


def transcriptomes() -> sparse.csr_matrix:
    """Three kinds of spots, and a level that differs between two sections."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.random((3, 8))
    return sparse.csr_matrix(np.abs(centres[KIND] + 0.05 * rng.normal(size=(90, 8)) + 0.2 * SECTION[:, None]))


def model(**config: object) -> Carhe:
    torch.manual_seed(0)
    made = Carhe(nn.Identity(), Shapes(5, 8, 20), CarheConfig(prototypes=3, components=4, dim=16, **config))  # type: ignore[arg-type]
    made.learn_prototypes(transcriptomes(), ORIGIN, seed=0)
    return made.eval()


def batch() -> Batch:
    images = torch.randn(90, 5, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.from_numpy(transcriptomes().toarray()).float(), torch.from_numpy(SECTION))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_planted_kinds_become_the_prototypes() -> None:
    found = model().assign(batch().expression).numpy()
    for kind in range(3):
        assert len(set(found[kind == KIND])) == 1
    assert len(set(found)) == 3


def test_few_spots_bear_few_prototypes() -> None:
    made = Carhe(nn.Identity(), Shapes(5, 8, 20), CarheConfig(prototypes=50))
    made.learn_prototypes(transcriptomes(), ORIGIN, seed=0)
    assert len(made.embed_prototypes()) == 90 // 5


@pytest.mark.parametrize("target", ["prototype", "spot"])
@pytest.mark.parametrize(("alpha", "same"), [(0.1, 1.0), (0.0, 0.0)])
def test_the_alignment_by_its_equation(target: str, alpha: float, same: float) -> None:
    net = model(target=target, alpha=alpha, same_cluster=same)
    # Kinds of unlike number: T is not its own transpose
    uneven = torch.from_numpy(np.flatnonzero((KIND == 0) | (np.arange(90) < 20)))
    data = Batch(*(part[uneven] for part in batch()))
    p = net.embed_images(data.images).detach().double().numpy()
    cluster = net.assign(data.expression).numpy()
    if target == "prototype":
        c = net.embed_prototypes().detach().double().numpy()[cluster]
    else:
        c = net.embed_expression(data.expression).detach().double().numpy()
    targets = np.where(cluster[:, None] == cluster[None], same, alpha)
    np.fill_diagonal(targets, 1.0)
    targets = targets / targets.sum(axis=1, keepdims=True)
    logits = p @ c.T / 0.1
    losses = [-(targets * np.log(softmax(x))).sum(axis=1).mean() for x in (logits, logits.T)]
    assert float(net.losses(data)["alignment"].detach()) == pytest.approx(np.mean(losses), abs=1e-4)


def test_alignment_makes_tiles_find_their_kind() -> None:
    net, data = model(), batch()
    images = torch.eye(5)[torch.from_numpy(KIND)] + 0.1 * data.images
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        net.losses(data._replace(images=images))["alignment"].backward()
        optimiser.step()
    net.eval()
    nearest = (net.embed_images(images) @ net.embed_prototypes().T).argmax(dim=1)
    assert (nearest == net.assign(data.expression)).float().mean() > 0.95


def test_prototype_weights_by_hand() -> None:
    similarity = np.array([[0.9, 0.1], [0.5, 0.5]], dtype="f")
    found = weigh(
        np.zeros((2, 3), "f"), np.zeros((2, 3), "f"), Neighbours(np.array([[1, 0], [0, 1]]), similarity),
        mode="softmax", temperature=0.4,
    ).toarray()  # fmt: skip
    first = 1 / (1 + np.exp(-0.8 / 0.4))
    np.testing.assert_allclose(found, [[1 - first, first], [0.5, 0.5]], rtol=1e-5)


def test_the_code_s_loss_by_its_equation() -> None:
    torch.manual_seed(0)
    net = CarheClip(nn.Identity(), Shapes(5, 8, 20), CarheClipConfig(temperature=0.5)).eval()
    data = batch()
    v = data.images.double().numpy()
    x = net.embed_expression(data.expression).detach().double().numpy()
    v, x = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (v, x))
    similarity = (v @ v.T + x @ x.T) / 2
    off = ~np.eye(90, dtype=bool)
    similarity[off] /= 1.1
    targets, logits = softmax(similarity / 0.5), x @ v.T / 0.5
    rows = -(targets * np.log(softmax(logits))).sum(axis=1)
    columns = -(targets.T * np.log(softmax(logits.T))).sum(axis=1)
    assert float(net.losses(data)["contrastive"].detach()) == pytest.approx(np.mean((rows + columns) / 2), abs=1e-5)


def test_only_different_spots_are_made_less_alike() -> None:
    """Two spots whose similarity is 0.6, halved: softmax of [1, 0.3] / 0.5."""
    e = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    own = 1 / (1 + np.exp((0.3 - 1) / 0.5))
    expected = torch.tensor([[own, 1 - own], [1 - own, own]], dtype=torch.float32)
    torch.testing.assert_close(soft_targets(e, e, temperature=0.5, off_diagonal=2.0), expected)


def test_the_temperature_is_learned_and_bounded() -> None:
    net = CarheClip(nn.Identity(), Shapes(5, 8, 20), CarheClipConfig()).eval()
    net.losses(batch())["contrastive"].backward()
    assert net.log_temperature.grad is not None
    net.log_temperature.data.fill_(-100.0)
    coldest = net.losses(batch())["contrastive"]
    assert torch.isfinite(coldest)
    for temperature, same in ((0.01, True), (0.02, False)):
        net.log_temperature.data.fill_(np.log(temperature))
        assert torch.allclose(net.losses(batch())["contrastive"], coldest, rtol=1e-4) == same


def test_its_keys_are_prototypes() -> None:
    """``retrieval.key = image`` was taken and changed nothing."""
    with pytest.raises(ValueError, match="carhe has no key 'image'"):
        CarheConfig(retrieval=Retrieval(key="image"))
    assert CarheConfig(retrieval=Retrieval(k=7)).retrieval.k == 7
