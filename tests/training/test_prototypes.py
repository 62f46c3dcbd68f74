"""The reference that prototypes become, against slow loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from hescribe.methods.base import Origin, Unpaired
from hescribe.training.inputs.unpaired import UnpairedData
from hescribe.training.prototypes import Prototypes


class Line:
    """Transcriptomes lie where their first gene is; prototypes at 0, 1, 2 and far away."""

    def centres(self) -> np.ndarray:
        return np.array([[0.0], [1.0], [2.0], [50.0]])

    def embed_prototypes(self) -> Tensor:
        return torch.arange(4.0)[:, None]

    def locate(self, expression: Tensor) -> Tensor:
        return expression[:, :1]

    def locate_unpaired(self, unpaired: Unpaired) -> np.ndarray:
        return unpaired.expression.toarray()[:, :1]


def whole(seed: int = 0) -> Prototypes:
    """20 spots of three genes; 90 transcriptomes of two sources, of which one lacks the last gene, and two genes more."""
    rng = np.random.default_rng(seed)
    expression = np.column_stack([rng.uniform(0, 2.4, 20), rng.gamma(2.0, size=(20, 2))])
    source = np.repeat([0, 1], [60, 30])
    measured, extra_measured = np.array([[True, True, True], [True, True, False]]), np.array([[1, 1], [1, 0]], bool)
    shares = rng.gamma(1.0, size=(90, 3)) * measured[source]
    extra = rng.gamma(1.0, size=(90, 2)) * extra_measured[source]
    others = UnpairedData(
        sections=(), source=source,
        shares=sparse.csr_matrix(shares / shares.sum(axis=1, keepdims=True)), measured=measured,
        extra=sparse.csr_matrix(extra), extra_measured=extra_measured,
        extra_genes=pd.DataFrame({"mean": [0.9, 1.1]}, index=["X", "Y"]), scgpt=None,
    )  # fmt: skip
    where = np.zeros(20, np.intp)
    return Prototypes(
        expression=sparse.csr_matrix(expression), inputs=sparse.csr_matrix(expression), origin=Origin(where, where),
        genes=("A", "B", "C"), without_image=others, panel=np.ones(3, bool), transfer=True,
    )  # fmt: skip


def less_its_sources_mean(values: np.ndarray, source: np.ndarray) -> np.ndarray:
    return values - np.array([values[source == s].mean(axis=0) for s in source])


def test_prototypes_are_means_over_spots_and_over_transcriptomes_that_weigh_no_more() -> None:
    given = whole()
    others = given.without_image
    assert others is not None
    made = given.reference(Line())
    spots = given.expression.toarray()
    cells = others.on_scale_of(given.expression).toarray().astype(float)
    of_spot = np.abs(spots[:, :1] - np.arange(3)).argmin(axis=1)
    of_cell = np.abs(cells[:, :1] - [0, 1, 2, 50]).argmin(axis=1)
    overall, differ = spots.mean(axis=0), less_its_sources_mean(cells, others.source)
    expected = np.zeros((3, 3))
    for k in range(3):
        for g in range(3):
            total, weight = 0.0, 0.0
            for i in np.flatnonzero(of_spot == k):
                total, weight = total + spots[i, g] - overall[g], weight + 1
            for j in np.flatnonzero(of_cell == k):
                if others.measured[others.source[j], g]:
                    total, weight = total + 20 / 90 * differ[j, g], weight + 20 / 90
            expected[k, g] = max(overall[g] + total / weight, 0)
    assert min(np.bincount(of_cell, minlength=3)[:3]) > 0
    np.testing.assert_allclose(made.expression.toarray()[:, :3], expected, rtol=1e-5)
    # Far away lies no spot, so no image was ever aligned with that prototype
    assert list(made.obs.index) == ["prototype 0", "prototype 1", "prototype 2"]
    np.testing.assert_array_equal(made.embedding.ravel(), [0, 1, 2])
    assert made.obs["spots"].tolist() == np.bincount(of_spot).tolist()
    assert made.obs["unpaired"].tolist() == np.bincount(of_cell, minlength=3)[:3].tolist()


def test_genes_that_no_spot_has_are_means_drawn_to_that_of_all_as_if_by_one() -> None:
    given = whole()
    others = given.without_image
    assert others is not None
    made = given.reference(Line())
    place = others.on_scale_of(given.expression).toarray()[:, 0]
    nearest = np.abs(place[:, None] - [0, 1, 2, 50]).argmin(axis=1)
    differ = less_its_sources_mean(others.extra.toarray(), others.source)
    expected, few = np.zeros((3, 2)), 0
    for k in range(3):
        members = np.flatnonzero(nearest == k)
        if len(members) < 20:  # too few for a mean: the nearest twenty
            members, few = np.argsort(np.abs(place - k))[:20], few + 1
        for g, mean in enumerate((0.9, 1.1)):
            known = [j for j in members if others.extra_measured[others.source[j], g]]
            expected[k, g] = max(mean + sum(differ[j, g] for j in known) / (len(known) + 1), 0)
    assert 0 < few < 3
    assert made.genes == ("A", "B", "C", "X", "Y")
    np.testing.assert_allclose(made.expression.toarray()[:, 3:], expected, rtol=1e-5)


def test_without_others_prototypes_are_plain_means() -> None:
    given = whole()
    alone = Prototypes(
        given.expression, given.inputs, given.origin, given.genes, None, given.panel, transfer=True
    ).reference(Line())
    spots = given.expression.toarray()
    nearest = np.abs(spots[:, :1] - np.arange(3)).argmin(axis=1)
    expected = [spots[nearest == k].mean(axis=0) for k in range(3)]
    np.testing.assert_allclose(alone.expression.toarray(), expected, rtol=1e-5)
    assert alone.genes == given.genes
