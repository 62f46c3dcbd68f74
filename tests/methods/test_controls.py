"""The controls do what they say and nothing more."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import nn

from hescribe.methods.base import Origin, Shapes
from hescribe.methods.baselines.knn import Knn
from hescribe.methods.baselines.mean import Mean


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
