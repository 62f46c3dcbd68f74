"""Intervals cover what they promise; novelty grows with distance."""

from __future__ import annotations

import numpy as np
import pytest

from hescribe.inference.trust import COVERAGE, Novelty, fit_trust


def residuals(rng: np.random.Generator, n: int, scale: np.ndarray) -> np.ndarray:
    return np.abs(rng.normal(size=(n, 5))).astype("f") * np.array([1, 2, 3, 4, 5], "f") * scale[:, None].astype("f")


def test_intervals_cover_ninety_per_cent_of_new_spots() -> None:
    rng = np.random.default_rng(0)
    novelty = [rng.uniform(0, 100, 400).astype("f") for _ in range(3)]
    trust = fit_trust([residuals(rng, 400, np.ones(400)) for _ in novelty], novelty, np.zeros(5))
    fresh = residuals(rng, 5000, np.ones(5000))
    width = trust.interval * trust.interval_scale(rng.uniform(0, 100, 5000).astype("f"))[:, None]
    np.testing.assert_allclose((fresh <= width).mean(axis=0), COVERAGE, atol=0.025)
    # |normal| has its 90 % quantile at 1.645 standard deviations
    np.testing.assert_allclose(trust.interval / np.arange(1, 6), 1.645, rtol=0.1)


def test_new_looking_tiles_get_wider_intervals_and_keep_coverage() -> None:
    rng = np.random.default_rng(1)
    novelty = [rng.uniform(0, 100, 600).astype("f") for _ in range(3)]
    noise = [np.where(p > 66.7, 3.0, 1.0) for p in novelty]
    trust = fit_trust([residuals(rng, 600, s) for s in noise], novelty, np.zeros(5))
    narrow, wide = trust.interval_scale(np.array([10, 95], "f"))
    assert wide > 2 * narrow
    fresh = rng.uniform(0, 100, 6000).astype("f")
    errors = residuals(rng, 6000, np.where(fresh > 66.7, 3.0, 1.0))
    covered = errors <= trust.interval * trust.interval_scale(fresh)[:, None]
    for part in (fresh < 66, fresh > 67):
        assert covered[part].mean() == pytest.approx(COVERAGE, abs=0.03)


def test_novelty_is_a_percentile_of_the_training_tiles_own_distance() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(600, 20)).astype("f")
    model = Novelty.fit(features, np.repeat(np.arange(3), 200))
    same = model.percentile(rng.normal(size=(500, 20)).astype("f"))
    assert same.mean() == pytest.approx(50, abs=8)
    assert (model.percentile(features[:10] + 50) == 100).all()
    assert (model.percentile(features[:1] + np.linspace(0, 30, 5)[:, None].astype("f")).argsort() == np.arange(5)).all()


def test_novelty_of_a_single_section_does_not_count_the_tile_itself() -> None:
    features = np.random.default_rng(3).normal(size=(100, 6)).astype("f")
    assert (Novelty.fit(features, np.zeros(100, dtype=int)).own > 0).all()


def test_few_tiles_and_constant_features() -> None:
    features = np.ones((4, 3), "f")
    features[:, 0] = [0, 1, 2, 3]
    model = Novelty.fit(features, np.array([0, 0, 1, 1]))
    assert np.isfinite(model.percentile(features)).all()
