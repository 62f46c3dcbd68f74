"""The controls do what they say and nothing more."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import nn

from hescribe.encoders.context import relative_position
from hescribe.inference.predictors import RetrievalHead
from hescribe.methods.base import Origin, Shapes
from hescribe.methods.baselines.coordinate import COORDINATE_KNN, CoordinateConfig
from hescribe.methods.baselines.knn import Knn
from hescribe.methods.baselines.mean import Mean
from hescribe.reference import Reference


def test_mean_is_the_training_mean_everywhere() -> None:
    expression = sparse.csr_matrix(np.array([[1.0, 0, 4], [3, 0, 0]], dtype="f"))
    model = Mean(nn.Identity(), Shapes(2, 0, 3))
    model.solve(np.zeros((2, 2), "f"), expression, Origin(np.zeros(2, dtype=int), np.zeros(2, dtype=int)))
    np.testing.assert_allclose(model.predict_expression(torch.zeros(4, 2)), np.tile([2, 0, 2], (4, 1)))


def test_knn_standardises_so_that_no_feature_dominates() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 4)).astype("f") * np.array([1, 100, 1e-3, 0], "f") + 7
    model = Knn(nn.Identity(), Shapes(4, 0, 3))
    model.solve(features, sparse.csr_matrix((50, 3)), Origin(np.zeros(50, dtype=int), np.zeros(50, dtype=int)))
    embedded = model.embed_images(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(embedded.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(embedded.std(0)[:3], 1, atol=1e-2)
    assert (embedded[:, 3] == 0).all()


def test_coordinate_knn_averages_the_spots_at_the_same_place() -> None:
    """Two training sections, one drawn larger and elsewhere; a third, on yet another scale, is asked for."""
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2).astype(float)
    sections = [100 + 10 * grid, 7000 + 300 * grid]
    rng = np.random.default_rng(0)
    expression = rng.random((50, 3)).astype("f")
    looks = [rng.normal(size=(25, 6)).astype("f") for _ in range(3)]  # of the tiles: must not count
    keys = np.concatenate([np.hstack([look, relative_position(xy)]) for look, xy in zip(looks, sections, strict=False)])
    config = CoordinateConfig()
    model = COORDINATE_KNN.build(nn.Identity(), Shapes(8, 0, 3), config).eval()
    embedding = model.embed_images(torch.from_numpy(keys)).numpy()
    reference = Reference(embedding, sparse.csr_matrix(expression), ("A", "B", "C"), pd.DataFrame(index=range(50)))
    # The middle spot and its four neighbours, of both sections, are the ten nearest to the middle
    asked = np.hstack([looks[2], relative_position(-40 + 2.5 * grid)])
    found = RetrievalHead(model, reference, config.retrieval)(asked)[12]
    cross = [12, 7, 17, 11, 13]
    np.testing.assert_allclose(found, expression[[*cross, *(25 + i for i in cross)]].mean(axis=0), rtol=1e-5)
