"""The ridge against scikit-learn and planted truths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler
from torch import nn

from hescribe.methods.base import Origin, Shapes
from hescribe.methods.baselines.ridge import HestRidgeConfig, Ridge, RidgeConfig, choose_penalty, solve_ridge


def planted(n: int = 120, d: int = 20, g: int = 7, noise: float = 0.3, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)).astype(np.float32) * rng.uniform(0.1, 5, size=d).astype(np.float32)
    expression = np.maximum(features[:, :3] @ rng.normal(size=(3, g)) + 3 + noise * rng.normal(size=(n, g)), 0)
    return features, sparse.csr_matrix(expression.astype(np.float32)), np.arange(n) // 40


def fitted(features, expression, groups, **config) -> Ridge:  # type: ignore[no-untyped-def]
    model = Ridge(nn.Identity(), Shapes(features.shape[1], 0, expression.shape[1]), RidgeConfig(**config))
    model.solve(features, expression, Origin(groups, np.zeros_like(groups)))
    return model.eval()


def test_equals_scikit_learns_pipeline() -> None:
    features, expression, groups = planted()
    model = fitted(features, expression, groups, components=8, penalty=0.05)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    scores = PCA(8, svd_solver="full").fit_transform(scaled)
    # Ours scales all scores by one number, so that the first has unit variance: the penalty scales with it
    alpha = 0.05 * len(features) * scores[:, 0].var()
    expected = SklearnRidge(alpha=alpha).fit(scores, expression.toarray()).predict(scores)
    out = model.predict_expression(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(out, np.maximum(expected, 0), atol=2e-3)


def test_the_recipe_of_hest_benchmark() -> None:
    features, expression, groups = planted()
    model = Ridge(nn.Identity(), Shapes(20, 0, 7), HestRidgeConfig(components=8))
    model.solve(features, expression, Origin(groups, groups))
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    scores = PCA(8, svd_solver="full").fit_transform(scaled)
    judge = SklearnRidge(alpha=100 / (8 * 7), fit_intercept=False, solver="lsqr", max_iter=1000, tol=1e-10)
    expected = judge.fit(scores, expression.toarray()).predict(scores)
    np.testing.assert_allclose(model.predict_expression(torch.from_numpy(features)).detach(), expected, atol=1e-4)
    # A task's genes are the panel; what is predicted besides does not change its penalty
    model = Ridge(nn.Identity(), Shapes(20, 3, 7), HestRidgeConfig(components=8))
    model.solve(features, expression, Origin(groups, groups))
    judge = SklearnRidge(alpha=100 / (8 * 3), fit_intercept=False, solver="lsqr", max_iter=1000, tol=1e-10)
    expected = judge.fit(scores, expression.toarray()).predict(scores)
    np.testing.assert_allclose(model.predict_expression(torch.from_numpy(features)).detach(), expected, atol=1e-4)


def test_tiles_that_all_look_the_same_teach_nothing() -> None:
    _, expression, groups = planted()
    for config in (HestRidgeConfig(components=8), RidgeConfig(components=8)):
        model = Ridge(nn.Identity(), Shapes(20, 0, 7), config)
        model.solve(np.ones((len(groups), 20), dtype=np.float32), expression, Origin(groups, groups))
        out = model.predict_expression(torch.ones(2, 20)).numpy()
        mean = expression.toarray().mean(axis=0) if config.intercept else np.zeros(7)
        np.testing.assert_allclose(out, np.tile(mean, (2, 1)), rtol=1e-5, atol=1e-6)


def test_recovers_a_planted_map_and_loses_it_when_shuffled() -> None:
    features, expression, groups = planted(n=240)
    train, test = np.arange(240) < 160, np.arange(240) >= 160
    truth = expression[test].toarray()

    def correlation(order: np.ndarray) -> float:
        model = fitted(features[train][order], expression[train], groups[train])
        out = model.predict_expression(torch.from_numpy(features[test])).numpy()
        return float(np.mean([np.corrcoef(out[:, i], truth[:, i])[0, 1] for i in range(7)]))

    assert correlation(np.arange(160)) > 0.9
    assert abs(correlation(np.random.default_rng(1).permutation(160))) < 0.4


def test_more_noise_asks_for_a_larger_penalty() -> None:
    penalties = []
    for noise in (0.01, 30.0):
        features, expression, groups = planted(n=120, d=60, noise=noise)
        scores = features.astype(float) - features.mean(0)
        scores /= scores.std()
        penalties.append(choose_penalty(scores, expression, Origin(groups, np.zeros_like(groups))))
    assert penalties[0] < penalties[1]


def test_penalty_shrinks_coefficients_monotonously() -> None:
    features, expression, _ = planted()
    norms = [np.linalg.norm(c) for c in solve_ridge(features.astype(float), expression, (0.0, 0.1, 10.0))]
    assert norms[0] > norms[1] > norms[2]


def test_constant_features_and_fewer_spots_than_components() -> None:
    features, expression, groups = planted(n=12, d=30)
    features[:, 5] = 1.0
    model = fitted(features, expression, groups)
    out = model.predict_expression(torch.from_numpy(features))
    assert torch.isfinite(out).all()
    assert (out >= 0).all()


def test_weights_survive_saving() -> None:
    features, expression, groups = planted()
    model = fitted(features, expression, groups)
    again = Ridge(nn.Identity(), Shapes(20, 0, 7), RidgeConfig())
    again.load_state_dict(model.state_dict())
    x = torch.from_numpy(features)
    assert torch.equal(model.predict_expression(x), again.predict_expression(x))


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        RidgeConfig(alpha=3)  # type: ignore[call-arg]


def test_differences_between_a_patients_sections_have_no_vote() -> None:
    """Two patients of two sections: one level of all genes a section, which the features of the section tell as well."""
    rng = np.random.default_rng(4)
    section = np.repeat(np.arange(4), 40)
    origin = Origin(section, section // 2)
    level = np.array([0.0, 6.0, 0.0, 6.0])[section][:, None]
    scores = rng.normal(size=(160, 60))
    program = scores[:, :1] @ rng.normal(size=(1, 30)) + 3 * rng.normal(size=(160, 30))
    expression = sparse.csr_matrix(program + 20)
    apart = sparse.csr_matrix(program + 20 + level)
    scores_apart = scores.copy()
    scores_apart[:, 1:2] += level
    calm = choose_penalty(scores, expression, origin)
    assert choose_penalty(scores_apart, apart, origin) >= calm / 10


def test_the_thousand_most_variable_genes_choose_the_penalty() -> None:
    rng = np.random.default_rng(5)
    section = np.repeat(np.arange(3), 30)
    origin = Origin(section, np.zeros_like(section))
    scores = rng.normal(size=(90, 40))
    clear = 10 * scores @ rng.normal(size=(40, 1000)) + 500
    quiet = scores[:, :1] @ rng.normal(size=(1, 1500)) + 5 * rng.normal(size=(90, 1500)) + 50
    order = rng.permutation(2500)
    both = sparse.csr_matrix(np.hstack([clear, quiet])[:, order])
    chosen = [choose_penalty(scores, sparse.csr_matrix(genes), origin) for genes in (clear, quiet)]
    assert chosen[0] < chosen[1]
    assert choose_penalty(scores, both, origin) == chosen[0]
