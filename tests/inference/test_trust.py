"""Intervals cover what they promise; novelty grows with distance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from hescribe.inference.trust import COVERAGE, Novelty, Space, Trust, fit_trust, full_level


def residuals(rng: np.random.Generator, n: int, scale: np.ndarray) -> np.ndarray:
    return np.abs(rng.normal(size=(n, 5))).astype("f") * np.array([1, 2, 3, 4, 5], "f") * scale[:, None].astype("f")


def test_a_few_expressed_genes_say_how_errors_grow_with_novelty() -> None:
    """Five genes whose errors double among a thousand that do not: the factor is the five's."""
    rng = np.random.default_rng(6)
    novelty = [rng.uniform(0, 100, 400).astype("f") for _ in range(3)]
    level = np.r_[np.full(5, 3.0), np.full(1000, 0.01)]
    errors = []
    for percentile in novelty:
        error = np.abs(rng.normal(size=(400, 1005))) * np.r_[np.ones(5), np.full(1000, 0.3)]
        error[percentile > 66.7, :5] *= 2
        errors.append(error.astype("f"))
    trust = fit_trust(errors, novelty, np.zeros(1005), level=level)
    assert trust.scale[2] / trust.scale[0] == pytest.approx(2, rel=0.2)


def test_errors_of_nothing_expressed_leave_all_tiles_alike() -> None:
    trust = fit_trust([np.zeros((30, 2), "f")], [np.linspace(0, 100, 30, dtype="f")], np.zeros(2), level=np.zeros(2))
    np.testing.assert_allclose(trust.scale, 1.0)
    np.testing.assert_array_equal(trust.interval, 0.0)


def test_a_tile_farther_away_never_has_a_narrower_interval() -> None:
    novelty = np.linspace(0, 100, 300, dtype="f")
    errors = np.where(novelty < 33, 2.0, 1.0).astype("f")[:, None]
    trust = fit_trust([errors], [novelty], np.zeros(1), level=np.ones(1))
    np.testing.assert_allclose(trust.scale, trust.scale[0])
    assert trust.scale[0] == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize(("n", "rank"), [(5, 5), (9, 9), (10, 10), (19, 18), (100, 91)])
def test_the_half_width_is_the_error_of_its_rank(n: int, rank: int) -> None:
    """⌈(n + 1) 0.9⌉: one spot more than the ninetieth hundredth of those that were seen."""
    errors = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))[:, None]
    trust = fit_trust([errors], [np.linspace(0, 100, n, dtype="f")], np.zeros(1), level=np.zeros(1))
    np.testing.assert_allclose(trust.interval, rank)


def test_intervals_cover_ninety_per_cent_of_new_spots() -> None:
    rng = np.random.default_rng(0)
    novelty = [rng.uniform(0, 100, 400).astype("f") for _ in range(3)]
    trust = fit_trust([residuals(rng, 400, np.ones(400)) for _ in novelty], novelty, np.zeros(5), level=np.ones(5))
    fresh = residuals(rng, 5000, np.ones(5000))
    width = trust.interval * trust.interval_scale(rng.uniform(0, 100, 5000).astype("f"))[:, None]
    np.testing.assert_allclose((fresh <= width).mean(axis=0), COVERAGE, atol=0.025)
    # |normal| has its 90 % quantile at 1.645 standard deviations
    np.testing.assert_allclose(trust.interval / np.arange(1, 6), 1.645, rtol=0.1)


def test_new_looking_tiles_get_wider_intervals_and_keep_coverage() -> None:
    rng = np.random.default_rng(1)
    novelty = [rng.uniform(0, 100, 600).astype("f") for _ in range(3)]
    noise = [np.where(p > 66.7, 3.0, 1.0) for p in novelty]
    trust = fit_trust([residuals(rng, 600, s) for s in noise], novelty, np.zeros(5), level=np.ones(5))
    narrow, wide = trust.interval_scale(np.array([10, 95], "f"))
    assert wide > 2 * narrow
    fresh = rng.uniform(0, 100, 6000).astype("f")
    errors = residuals(rng, 6000, np.where(fresh > 66.7, 3.0, 1.0))
    covered = errors <= trust.interval * trust.interval_scale(fresh)[:, None]
    for part in (fresh < 66, fresh > 67):
        assert covered[part].mean() == pytest.approx(COVERAGE, abs=0.03)


def test_novelty_is_a_percentile_of_the_training_tiles_own_distance() -> None:
    rng = np.random.default_rng(2)
    features, colours = rng.normal(size=(600, 20)).astype("f"), rng.normal(size=(600, 9)).astype("f")
    model = Novelty.fit(features, colours, np.repeat(np.arange(3), 200))
    same = model.percentile(rng.normal(size=(500, 20)).astype("f"), rng.normal(size=(500, 9)).astype("f"))
    assert same.mean() == pytest.approx(50, abs=8)

    # Far away in either is far away; the other stays as it was
    def moved(shift: float | np.ndarray, which: int, n: int) -> np.ndarray:
        pair = [features[:n], colours[:n]]
        pair[which] = pair[which] + np.asarray(shift, "f")
        return model.percentile(*pair)

    for which in (0, 1):
        near, far = (moved(shift, which, 10) for shift in (50, 500))
        assert (near > 99.5).all()
        assert (far > near).all()
        assert (far <= 100).all()
        steps = [float(moved(shift, which, 1)[0]) for shift in np.linspace(0, 30, 5)]
        assert steps == sorted(steps)
        assert steps[0] < 95 < steps[-1]


def test_a_tile_is_as_far_as_its_fifth_nearest_of_other_patients() -> None:
    """Distances of Mahalanobis, by slow loops; tiles of one patient lie together, and do not count."""
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(3), 20)
    features = (rng.normal(size=(60, 4)) + 2 * rng.normal(size=(3, 4))[groups]) @ rng.normal(size=(4, 4))
    inverse = np.linalg.inv(np.cov(features.T, bias=True))

    def distances(tile: np.ndarray, others: np.ndarray) -> list[float]:
        return sorted(float(np.sqrt((tile - other) @ inverse @ (tile - other))) for other in others)

    fifth = np.array([distances(t, features[groups != g])[4] for t, g in zip(features, groups, strict=True)])
    space, own = Space.fit(features, groups)
    far = np.quantile(fifth, 0.99)
    np.testing.assert_allclose(own, fifth / far, rtol=1e-3)
    new = 3 * rng.normal(size=(8, 4))
    np.testing.assert_allclose(space.distance(new), [distances(t, features)[4] / far for t in new], rtol=1e-3)
    # Of one section, to its fifth nearest that is not the tile itself
    alone = np.array([distances(t, features)[5] for t in features])
    np.testing.assert_allclose(Space.fit(features, np.zeros(60, int))[1], alone / np.quantile(alone, 0.99), rtol=1e-3)


def test_novelty_is_saved_and_restored() -> None:
    rng = np.random.default_rng(5)
    features, colours = rng.normal(size=(60, 20)).astype("f"), rng.normal(size=(60, 9)).astype("f")
    model = Novelty.fit(features, colours, np.repeat(np.arange(3), 20))
    again = Novelty.from_arrays(model.arrays())
    np.testing.assert_array_equal(again.percentile(features, colours), model.percentile(features, colours))


def test_novelty_of_a_single_section_does_not_count_the_tile_itself() -> None:
    features = np.random.default_rng(3).normal(size=(100, 6)).astype("f")
    assert (Novelty.fit(features, features, np.zeros(100, dtype=int)).own > 0).all()


def test_few_tiles_and_constant_features() -> None:
    features = np.ones((4, 3), "f")
    features[:, 0] = [0, 1, 2, 3]
    model = Novelty.fit(features, features, np.array([0, 0, 1, 1]))
    assert np.isfinite(model.percentile(features, features)).all()


def test_what_one_patient_says_of_another_is_less_sure_where_expression_is_high() -> None:
    trust = Trust(np.array([0.5, 0.5, 0.5]), np.array([0.3, 1.0, 1.0]), np.array([30.0, 60.0]), np.ones(3))
    mean = np.array([0.0, 1.0, 4.0])
    wider = trust.for_another_patient(mean, mean[None])
    # τ = 0.4 √μ + 0.35 μ: 0, 0.75, 2.2; half-widths add in quadrature
    prior = 1.645 * np.array([0, 0.75, 2.2])
    np.testing.assert_allclose(wider.interval, np.hypot([0.3, 1.0, 1.0], prior), rtol=1e-3)
    np.testing.assert_array_equal(wider.expected_pcc, trust.expected_pcc)
    # Several patients tell themselves how far they differ: all genes by half of the prior, then not at all
    for patients, share in ((2, 1.7), (3, 5 / 3), (5, 1.0), (10, 0.5)):
        levels = np.tile(mean, (patients, 1))
        same = trust.for_another_patient(mean, levels).interval
        np.testing.assert_allclose(same, trust.interval)
        levels[0] += prior / 2
        pairs = patients * (patients - 1) / 2
        size = 0.25 * (patients - 1) / pairs  # mean square over pairs, of which those with the first differ
        found = trust.for_another_patient(mean, levels).interval
        np.testing.assert_allclose(found, np.hypot([0.3, 1.0, 1.0], np.sqrt(share * size) * prior), rtol=1e-3)


def test_a_level_does_not_depend_on_the_depth() -> None:
    """The mean of the logarithms does: a patient sequenced shallowly used to promise too narrow intervals."""
    rng = np.random.default_rng(0)
    share = rng.gamma(2.0, 1e-3 / 2, (4000, 6))  # 10 in 10,000 on average
    levels, means = [], []
    for depth in (650, 9500):
        counts = rng.poisson(depth * share)
        logged = sparse.csr_matrix(np.log1p(1e4 * counts / depth))
        levels.append(full_level(logged))
        means.append(np.asarray(logged.mean(axis=0)).ravel())
    np.testing.assert_allclose(levels, np.log1p(10.0), atol=0.08)
    assert (means[1] - means[0] > 0.6).all()


def test_the_prior_covers_a_new_patient_as_often_as_it_says() -> None:
    """Patients whose levels differ as the prior has it: one patient's own interval falls short, the wider one does not."""
    rng = np.random.default_rng(4)
    mean = np.full(400, 2.0)
    errors = [np.abs(rng.normal(0, 0.6, (300, 400))).astype("f") for _ in range(3)]
    trust = fit_trust(errors, [rng.uniform(0, 100, 300).astype("f")] * 3, np.zeros(400), level=mean)
    shift = rng.normal(0, 0.4 * np.sqrt(2.0) + 0.35 * 2.0, 400)
    another = np.abs(rng.normal(shift, 0.6, (300, 400)))
    assert (another <= trust.interval).mean() < 0.7
    assert (another <= trust.for_another_patient(mean, mean[None]).interval).mean() == pytest.approx(COVERAGE, abs=0.03)
