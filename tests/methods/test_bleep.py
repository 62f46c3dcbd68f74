"""BLEEP against a slow, literal transcription of its equations in NumPy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from hescribe.methods.base import Batch, Shapes
from hescribe.methods.bleep import Bleep, BleepConfig
from hescribe.methods.layers import ProjectionHead
from hescribe.methods.losses import contrastive_loss, soft_targets


def softmax(row: np.ndarray) -> np.ndarray:
    e = np.exp(row - row.max())
    return e / e.sum()


def literal_loss(v: np.ndarray, x: np.ndarray, tau: float, *, smooth: bool, renormalise: bool) -> float:
    """Loop over spots, exactly as the equations are written."""
    n = len(v)
    logits = np.array([[x[i] @ v[j] / tau for j in range(n)] for i in range(n)])
    if smooth:
        similar = np.array([[(v[i] @ v[j] + x[i] @ x[j]) / 2 / tau for j in range(n)] for i in range(n)])
        targets = np.array([softmax(row) for row in similar])
    else:
        targets = np.eye(n)
    total = 0.0
    for i in range(n):
        by_expression = -sum(targets[i, j] * np.log(softmax(logits[i])[j]) for j in range(n))
        column = targets[:, i] / (targets[:, i].sum() if renormalise else 1.0)
        by_image = -sum(column[j] * np.log(softmax(logits[:, i])[j]) for j in range(n))
        total += (by_expression + by_image) / 2
    return total / n


@pytest.mark.parametrize("tau", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("renormalise", [True, False])
def test_loss_equals_the_equations(tau: float, smooth: bool, renormalise: bool) -> None:
    rng = np.random.default_rng(0)
    v, x = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    ours = contrastive_loss(
        torch.tensor(v), torch.tensor(x), temperature=tau, smooth=smooth, renormalise=renormalise
    ).mean()
    assert float(ours) == pytest.approx(literal_loss(v, x, tau, smooth=smooth, renormalise=renormalise), abs=1e-5)


def test_two_spots_worked_by_hand() -> None:
    """Orthogonal unit spots, image = expression: logits are the identity, targets softmax([1, 0])."""
    e = torch.eye(2)
    p = math.e / (math.e + 1)
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    torch.testing.assert_close(contrastive_loss(e, e), torch.tensor([entropy, entropy]))


def test_targets_are_probabilities_and_let_gradient_through() -> None:
    v = torch.randn(6, 4, requires_grad=True)
    targets = soft_targets(v, torch.randn(6, 4))
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    targets[0, 1].backward()
    assert v.grad is not None
    assert v.grad.abs().sum() > 0


def test_the_formula_has_full_precision_where_the_towers_have_not() -> None:
    torch.manual_seed(0)
    images, expression = torch.randn(2, 16, 256) + 1.0
    full = contrastive_loss(images, expression)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(contrastive_loss(images, expression), full)
        assert (images @ expression.T).dtype == torch.bfloat16, "or this shows nothing"


def test_pairs_attract() -> None:
    """Matching embeddings cost less than the same ones shuffled: the sign is right."""
    torch.manual_seed(0)
    v = torch.randn(32, 16)
    matched = contrastive_loss(v, v).mean()
    shuffled = contrastive_loss(v, v[torch.randperm(32)]).mean()
    assert matched < shuffled


def test_projection_head_equals_its_formula() -> None:
    head = ProjectionHead(6, 4).eval()
    u = np.random.default_rng(1).normal(size=(3, 6))
    w1, b1 = head.project.weight.detach().double().numpy(), head.project.bias.detach().double().numpy()
    w2, b2 = head.transform.weight.detach().double().numpy(), head.transform.bias.detach().double().numpy()
    p = u @ w1.T + b1
    gelu = p * 0.5 * (1 + np.vectorize(math.erf)(p / math.sqrt(2)))
    h = gelu @ w2.T + b2 + p
    expected = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    out = head(torch.tensor(u, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(out, expected, atol=1e-5)
    # No L2 normalisation: the norm is about the root of the dimension
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 2.0, atol=0.01)


def make(replica: int, *, gather: bool = False) -> Bleep:
    torch.manual_seed(0)
    config = BleepConfig(dim=8, dropout=0.0, replica_batch=replica, gather=gather)
    return Bleep(nn.Identity(), Shapes(features=5, panel=6, genes=9), config)


def batch(n: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(n, 5, generator=generator), torch.rand(n, 6, generator=generator), torch.zeros(n).long())


def test_replicas_are_independent_losses() -> None:
    model, spots = make(4), batch(8)
    halves = [Batch(*(t[i : i + 4] for t in spots)) for i in (0, 4)]
    apart = torch.stack([model.losses(half)["contrastive"] for half in halves]).mean()
    torch.testing.assert_close(model.losses(spots)["contrastive"], apart)
    assert not torch.isclose(apart, make(8).losses(spots)["contrastive"])


def test_gathered_replicas_are_one_loss() -> None:
    spots = batch(8)
    torch.testing.assert_close(make(4, gather=True).losses(spots), make(8).losses(spots))


def test_each_replica_has_its_own_batch_statistics() -> None:
    torch.manual_seed(0)
    tower = nn.BatchNorm1d(5)
    model = Bleep(tower, Shapes(5, 6, 9), BleepConfig(dim=8, dropout=0.0, replica_batch=4))
    spots = batch(8)
    model.train().losses(spots)
    expected = torch.zeros(5)
    for start in (0, 4):
        expected = 0.9 * expected + 0.1 * spots.images[start : start + 4].mean(0)
    torch.testing.assert_close(tower.running_mean, expected)


def test_a_small_remainder_joins_the_replica_before_it() -> None:
    """One spot alone has nothing to contrast with: its loss would be zero."""
    model, spots = make(4), batch(9)
    apart = torch.stack(
        [model.losses(Batch(*(t[a:b] for t in spots)))["contrastive"] for a, b in ((0, 4), (4, 9))]
    ).mean()
    torch.testing.assert_close(model.losses(spots)["contrastive"], apart)


@pytest.mark.parametrize("replica", [2, 3])
def test_no_replica_is_a_single_spot(replica: int) -> None:
    """Of replicas of two or three, one spot that was left used to stand alone: a loss of zero, in the mean of all."""
    model, spots = make(replica), batch(2 * replica + 1)
    ends = (0, replica, 2 * replica + 1)
    apart = [model.losses(Batch(*(t[a:b] for t in spots)))["contrastive"] for a, b in pairwise(ends)]
    torch.testing.assert_close(model.losses(spots)["contrastive"], torch.stack(apart).mean())


def test_gradient_reaches_both_heads() -> None:
    model = make(4)
    model.losses(batch(8))["contrastive"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
