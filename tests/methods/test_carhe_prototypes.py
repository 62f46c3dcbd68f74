"""Embedding and clustering of transcriptomes with and without image, against dense transcriptions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from hescribe.methods.axes import Centred, beside, leading_axes
from hescribe.methods.base import Origin, Shapes, Unpaired
from hescribe.methods.carhe.model import Carhe, CarheConfig
from hescribe.methods.carhe.prototypes import cluster, project_unpaired

PANEL = 30
KINDS = 4


def profiles() -> np.ndarray:
    return 3 * np.random.default_rng(5).random((KINDS, PANEL))


def drawn(kind: np.ndarray, *, shift: float = 0.0, noise: float = 0.1, seed: int = 0) -> sparse.csr_matrix:
    """Transcriptomes of some kinds from a platform that reads every gene higher or lower."""
    rng = np.random.default_rng(seed)
    platform = shift * rng.normal(size=PANEL)
    return sparse.csr_matrix(np.maximum(profiles()[kind] + platform + noise * rng.normal(size=(len(kind), PANEL)), 0))


def without_image(kind: np.ndarray, *, measured: np.ndarray | None = None, **how: float) -> Unpaired:
    seen = np.ones((1, PANEL), bool) if measured is None else measured[None]
    return Unpaired(
        sparse.csr_matrix(drawn(kind, **how).multiply(seen)),  # type: ignore[arg-type]
        np.zeros(len(kind), np.intp),
        seen,
    )


def learned(unpaired: Unpaired | None, kind: np.ndarray, prototypes: int = KINDS) -> Carhe:
    torch.manual_seed(0)
    net = Carhe(nn.Identity(), Shapes(5, PANEL, PANEL), CarheConfig(prototypes=prototypes, components=6, dim=16))
    where = np.zeros(len(kind), np.intp)
    net.learn_prototypes(drawn(kind), Origin(where, where), seed=0, unpaired=unpaired)
    return net.eval()


def nearest(net: Carhe, places: np.ndarray) -> np.ndarray:
    return ((places[:, None] - net.centres()[None]) ** 2).sum(-1).argmin(1)


def test_axes_are_those_of_the_dense_matrix_with_its_weight() -> None:
    rng = np.random.default_rng(0)
    paired, section = rng.gamma(1.0, size=(40, 12)), np.repeat([0, 1], 20)
    other, source = 2 * rng.gamma(1.0, size=(70, 12)), np.repeat([0, 1, 2], [30, 30, 10])
    centred = np.vstack([paired[section == s] - paired[section == s].mean(0) for s in (0, 1)])
    others = np.vstack([other[source == s] - other[source == s].mean(0) for s in (0, 1, 2)])
    weight = np.sqrt((centred**2).sum() / (others**2).sum())
    assert weight < 1
    expected = np.linalg.svd(np.vstack([centred, weight * others]))[2][:3]
    unpaired = Unpaired(sparse.csr_matrix(other), source, np.ones((3, 12), bool))
    found = leading_axes(beside(Centred(sparse.csr_matrix(paired), section), unpaired), 3)
    np.testing.assert_allclose(np.abs(np.sum(found * expected, axis=1)), 1.0, atol=1e-6)


def test_another_platform_s_transcriptomes_fall_to_their_kind() -> None:
    kind = np.arange(120) % KINDS
    others = without_image(kind, shift=0.5, seed=1)
    net = learned(others, kind)
    of_spots = net.assign(torch.from_numpy(drawn(kind).toarray()).float()).numpy()
    assert len(set(of_spots)) == KINDS
    np.testing.assert_array_equal(nearest(net, net.locate_unpaired(others)), of_spots)


def test_genes_that_a_source_lacks_are_not_seen() -> None:
    kind = np.arange(120) % KINDS
    measured = np.random.default_rng(0).random(PANEL) < 0.6
    others = without_image(kind, measured=measured, seed=1)
    net = learned(others, kind)
    of_spots = net.assign(torch.from_numpy(drawn(kind).toarray()).float()).numpy()
    assert (nearest(net, net.locate_unpaired(others)) == of_spots).mean() > 0.95


def test_what_scatters_widely_is_drawn_in_and_nothing_else_is() -> None:
    axes = np.eye(PANEL)[:, :2]
    values = np.random.default_rng(0).normal(size=(50, PANEL)) + 7
    others = Unpaired(sparse.csr_matrix(values), np.zeros(50, np.intp), np.ones((1, PANEL), bool))
    own = values[:, :2] - values[:, :2].mean(0)
    rms = np.sqrt((own**2).sum(1).mean())
    np.testing.assert_allclose(project_unpaired(others, axes, spread=3 * rms), own, atol=1e-5)
    np.testing.assert_allclose(project_unpaired(others, axes, spread=rms / 4), own / 4, atol=1e-5)


def test_a_kind_rare_among_spots_gets_its_prototype_from_the_others() -> None:
    """Five spots of a kind bear no prototype of their own; with sixty transcriptomes without image they do."""
    kind = np.concatenate([np.arange(60) % 3, np.full(3, 3)])
    more = np.concatenate([np.arange(30) % 3, np.full(30, 3)])
    net = learned(without_image(more, seed=1), kind)
    found = net.assign(torch.from_numpy(drawn(kind).toarray()).float()).numpy()
    assert len(set(found[kind == 3])) == 1
    assert found[kind == 3][0] not in set(found[kind < 3])


def test_ready_made_vectors_are_clustered_as_they_are_and_come_back_from_weights() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 9)).astype("f")
    others = Unpaired(sparse.csr_matrix(vectors + 1), np.zeros(60, np.intp), np.ones((1, 9), bool))
    where = np.zeros(60, np.intp)
    net = Carhe(nn.Identity(), Shapes(5, 9, PANEL), CarheConfig(components=4, prototypes=3)).eval()
    net.learn_prototypes(sparse.csr_matrix(vectors), Origin(where, where), seed=0, unpaired=others, embedded=True)
    centred = vectors - vectors.mean(0)
    np.testing.assert_allclose(net.locate(torch.from_numpy(vectors)), centred, atol=1e-5)
    np.testing.assert_allclose(net.locate_unpaired(others), centred + 1, atol=1e-5)
    # A bundle knows the panel's length only, not that of the vectors
    again = Carhe(nn.Identity(), Shapes(5, 20, PANEL), CarheConfig(components=4, prototypes=3)).eval()
    again.load_state_dict(net.state_dict(), strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(again.embed_prototypes(), net.embed_prototypes())


def test_single_cells_are_drawn_in_to_the_spread_of_the_spots() -> None:
    kind = np.arange(120) % KINDS
    cells = without_image(kind, noise=3.0, seed=1)
    net = learned(cells, kind)

    def spread(places: np.ndarray) -> float:
        return float(np.sqrt(((places - places.mean(0)) ** 2).sum(1).mean()))

    of_spots = spread(net.locate(torch.from_numpy(drawn(kind).toarray()).float()).numpy())
    assert spread(cells.expression.toarray()) > 2 * of_spots
    assert spread(net.locate_unpaired(cells)) == pytest.approx(of_spots, rel=1e-3)


def test_places_of_a_source_that_lacks_genes_are_a_ridge_on_the_others() -> None:
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(PANEL, 4)))[0]
    measured = np.arange(PANEL) % 3 > 0
    values = rng.normal(size=(25, PANEL)) * measured
    others = Unpaired(sparse.csr_matrix(values), np.zeros(25, np.intp), measured[None])
    # argmin ‖x − A z‖² + 0.1 ‖z‖² over the measured genes
    rows = np.vstack([axes[measured], np.sqrt(0.1) * np.eye(4)])
    expected = np.linalg.lstsq(rows, np.vstack([values[:, measured].T, np.zeros((4, 25))]))[0].T
    found = project_unpaired(others, axes, spread=1e9)
    np.testing.assert_allclose(found, expected - expected.mean(0), atol=1e-5)


def test_transcriptomes_without_image_weigh_no_more_than_the_spots() -> None:
    """Ten spots at 0 and ten at 10; two thousand cells at 1 are worth twenty spots."""
    spots = np.repeat([0.0, 10.0], 10)[:, None]
    cells = np.ones((2000, 1), "f")
    np.testing.assert_allclose(np.sort(cluster(spots, cells, most=2, seed=0).ravel()), [20 / 30, 10], atol=1e-6)
    rng = np.random.default_rng(0)
    many = cluster(rng.normal(size=(20, 2)), rng.normal(size=(64, 2)).astype("f"), most=100, seed=0)
    assert len(many) == (20 + 20) // 5


def test_the_number_of_prototypes_is_not_lost_by_rounding() -> None:
    """Weights of 2,000 cells add up to 19.999…, with 20 pairs to eight prototypes of five transcriptomes each."""
    rng = np.random.default_rng(0)
    made = cluster(rng.normal(size=(20, 2)), rng.normal(size=(2000, 2)).astype("f"), most=100, seed=0)
    assert len(made) == 8
