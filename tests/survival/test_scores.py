"""Scores against lifelines, torchsurv, scikit-learn and slow formulas written out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.datasets import load_gbsg2, load_lung, load_rossi
from lifelines.statistics import logrank_test
from lifelines.utils import concordance_index
from scipy.stats import poisson
from sklearn.metrics import roc_auc_score
from torchsurv.metrics.auc import Auc
from torchsurv.metrics.brier_score import BrierScore
from torchsurv.stats.ipcw import get_ipcw

from hescribe.survival.crossval import HeldOut, predict_survival
from hescribe.survival.judge import kaplan_meier_at, logrank_p, observed_over_expected
from hescribe.survival.scores import (
    Followed,
    brier,
    concordance,
    draw_patients,
    dynamic_auc,
    integrated,
    uncensored,
    widened_interval,
)

Data = tuple[np.ndarray, np.ndarray, np.ndarray]


def rossi() -> Data:
    table = load_rossi()
    return table["week"].to_numpy(float), table["arrest"].to_numpy(bool), table["prio"].to_numpy(float)


def gbsg2() -> Data:
    table = load_gbsg2()
    return table["time"].to_numpy(float), table["cens"].to_numpy(bool), table["pnodes"].to_numpy(float)


def lung() -> Data:
    table = load_lung().dropna(subset=["ph.karno"])
    return table["time"].to_numpy(float), table["status"].to_numpy() == 1, -table["ph.karno"].to_numpy(float)


SETS = {"rossi": rossi, "gbsg2": gbsg2, "lung": lung}


@pytest.fixture(params=SETS, ids=str)
def data(request: pytest.FixtureRequest) -> Data:
    return SETS[request.param]()


def no_ties(data: Data) -> Data:
    """Times a little apart: then every convention on ties is the same."""
    time, event, risk = data
    rng = np.random.default_rng(0)
    return (
        time + np.linspace(0, 1e-3, len(time))[rng.permutation(len(time))],
        event,
        risk + rng.normal(0, 1e-3, len(risk)),
    )


def test_concordance_is_lifelines(data: Data) -> None:
    time, event, risk = data
    assert concordance(Followed.of(time, event), risk)[0] == pytest.approx(
        concordance_index(time, -risk, event), abs=1e-6
    )


def test_auc_is_torchsurv_weighted_by_censoring(data: Data) -> None:
    time, event, risk = no_ties(data)
    at = np.quantile(time[event], [0.3, 0.6])
    tensors = torch.tensor(event), torch.tensor(time)
    theirs = Auc()(
        torch.tensor(risk), *tensors, new_time=torch.tensor(at), weight=get_ipcw(*tensors),
        weight_new_time=get_ipcw(*tensors, torch.tensor(at)),
    )  # fmt: skip
    np.testing.assert_allclose(dynamic_auc(Followed.of(time, event), risk, at)[0], theirs.numpy(), atol=2e-5)


def test_brier_is_torchsurv_weighted_by_censoring(data: Data) -> None:
    time, event, _ = no_ties(data)
    at = np.quantile(time[event], [0.2, 0.5, 0.7])
    predicted = np.random.default_rng(1).random((len(time), 3))
    tensors = torch.tensor(event), torch.tensor(time)
    score = BrierScore()
    theirs = score(
        torch.tensor(predicted), *tensors, new_time=torch.tensor(at), weight=get_ipcw(*tensors),
        weight_new_time=get_ipcw(*tensors, torch.tensor(at)),
    )  # fmt: skip
    ours = brier(Followed.of(time, event), predicted, at)
    np.testing.assert_allclose(ours[0], theirs.numpy(), rtol=1e-5)
    assert integrated(ours, at)[0] == pytest.approx(float(score.integral()), rel=1e-5)


def slow_censoring(time: np.ndarray, event: np.ndarray, at: float, *, before: bool) -> float:
    free = 1.0
    for t in sorted(set(time)):
        if t > at or (before and t == at):
            break
        at_risk = sum(1 for u, e in zip(time, event, strict=True) if u > t or (u == t and not e))
        ended = sum(1 for u, e in zip(time, event, strict=True) if u == t and not e)
        free *= 1 - ended / at_risk if at_risk else 1
    return free


def test_with_ties_all_are_the_formulas_written_out() -> None:
    rng = np.random.default_rng(5)
    time, event = rng.integers(1, 8, 40).astype(float), rng.random(40) < 0.6
    risk, predicted = rng.integers(0, 5, 40).astype(float), rng.random(40)
    followed, t = Followed.of(time, event), 4.0
    weight = [1 / slow_censoring(time, event, u, before=True) if e else 0 for u, e in zip(time, event, strict=True)]
    above = below = pairs = right = 0.0
    for i, j in product(range(40), repeat=2):
        wins = 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
        if event[i] and time[i] <= t and time[j] > t:
            above, below = above + weight[i] * wins, below + weight[i]
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            pairs, right = pairs + 1, right + wins
    assert dynamic_auc(followed, risk, t)[0, 0] == pytest.approx(above / below, rel=1e-5)
    assert concordance(followed, risk)[0] == pytest.approx(right / pairs, rel=1e-5)
    late = slow_censoring(time, event, t, before=False)
    loss = sum(
        weight[i] * predicted[i] ** 2
        if time[i] <= t and event[i]
        else (1 - predicted[i]) ** 2 / late
        if time[i] > t
        else 0
        for i in range(40)
    )
    assert brier(followed, predicted[:, None], t)[0, 0] == pytest.approx(loss / 40)
    assert uncensored(followed, [t])[0] == pytest.approx(late)


def test_without_censoring_auc_is_the_ordinary_one() -> None:
    rng = np.random.default_rng(2)
    time, risk = rng.exponential(size=80), rng.normal(size=80)
    followed = Followed.of(time, np.ones(80, bool))
    assert dynamic_auc(followed, risk, 0.7)[0, 0] == pytest.approx(roc_auc_score(time <= 0.7, risk), abs=1e-6)


def test_a_wrong_sign_is_noticed_and_ties_are_a_half() -> None:
    time, event, risk = gbsg2()
    followed = Followed.of(time, event)
    assert concordance(followed, risk)[0] > 0.6
    assert concordance(followed, -risk)[0] == pytest.approx(1 - concordance(followed, risk)[0], abs=1e-6)
    assert concordance(followed, np.zeros(len(time)))[0] == 0.5
    assert dynamic_auc(followed, np.zeros(len(time)), 1000.0)[0, 0] == 0.5
    assert np.isnan(dynamic_auc(followed, risk, 1e9)[0, 0])
    assert np.isnan(concordance(Followed.of([1.0, 2.0], [False, False]), [0.0, 1.0])[0])


def test_only_patients_of_one_fold_are_compared() -> None:
    """A shift of a whole fold's risks must not count."""
    time, event, risk = gbsg2()
    fold = np.arange(len(time)) % 5
    followed = Followed.of(time, event, fold)
    np.testing.assert_allclose(concordance(followed, risk + 1000 * fold), concordance(followed, risk), rtol=1e-6)
    pairs = [concordance_index(time[fold == k], -risk[fold == k], event[fold == k]) for k in range(5)]
    assert min(pairs) < concordance(followed, risk)[0] < max(pairs)


def test_resamples_are_those_patients_again() -> None:
    time, event, risk = lung()
    followed = Followed.of(time, event)
    draws = draw_patients(followed, 3, seed=0)
    rows = np.repeat(np.arange(len(time)), draws[1].astype(int))
    # A patient drawn twice is compared with itself only where the pair could be: never, as times and events are equal
    again = concordance_index(time[rows], -risk[rows], event[rows])
    assert concordance(followed, risk, draws)[1] == pytest.approx(again, abs=1e-6)
    free = uncensored(followed, time, before=True)
    predicted = np.full((len(time), 1), 0.4)
    early, late = event & (time <= 300), time > 300
    loss = np.where(early, 0.16 / free, np.where(late, 0.36 / uncensored(followed, [300.0]), 0))
    assert brier(followed, predicted, 300.0, draws)[1, 0] == pytest.approx(loss[rows].mean())


def test_intervals_are_wider_with_folds() -> None:
    values = np.random.default_rng(0).normal(0.6, 0.02, 4000)
    plain, folds = widened_interval(0.6, values, n_folds=1), widened_interval(0.6, values, n_folds=5)
    assert plain == pytest.approx((0.56, 0.64), abs=0.003)
    assert folds == pytest.approx((0.54, 0.66), abs=0.004)
    skewed = np.append(np.full(3999, 0.6), np.nan) - np.random.default_rng(1).exponential(0.03, 4000)  # a tail below
    low, high = widened_interval(0.6, skewed, n_folds=1)
    assert (low, high) == pytest.approx((0.6 + 0.03 * np.log(0.025), 0.6 + 0.03 * np.log(0.975)), abs=0.01)
    # Three folds: 1 + 3/2 times the variance, on each side of the value
    assert widened_interval(0.6, skewed, n_folds=3) == pytest.approx(
        (0.6 - 2.5**0.5 * (0.6 - low), 0.6 + 2.5**0.5 * (high - 0.6))
    )


def test_predicted_survival_is_lifelines() -> None:
    table = load_gbsg2()[["time", "cens", "age", "pnodes"]]
    table["time"] += np.linspace(0, 0.4, len(table))  # lifelines' baseline is Efron's with ties, Breslow's is another
    fit = CoxPHFitter().fit(table, "time", "cens")
    risk = fit.predict_log_partial_hazard(table).to_numpy()
    # At times of events, as lifelines interpolates between them; and before the first
    times = np.append(5.0, table.loc[table["cens"] == 1, "time"].sort_values().iloc[[60, 200]])
    ours = predict_survival(risk, table["time"].to_numpy(float), table["cens"].to_numpy(bool), risk[:9], times)
    np.testing.assert_allclose(ours, fit.predict_survival_function(table[:9], times=times).to_numpy().T, atol=1e-5)
    assert (ours[:, 0] == 1.0).all()


def test_groups_are_lifelines() -> None:
    time, event, risk = gbsg2()
    high = risk > 3
    theirs = logrank_test(time[high], time[~high], event[high], event[~high])
    followed = Followed.of(time, event)
    assert logrank_p(followed, high) == pytest.approx(theirs.p_value)
    assert logrank_p(followed, high, n_folds=5) > logrank_p(followed, high)
    assert logrank_p(followed, np.zeros(len(time), bool)) == 1.0
    value, low, upper = kaplan_meier_at(time, event, 1000.0)
    curve = KaplanMeierFitter().fit(time, event)
    assert value == pytest.approx(float(curve.predict(1000.0)))
    assert low < value < upper
    assert kaplan_meier_at(np.array([5.0, 6.0]), np.array([False, False]), 5.5) == (1.0, 1.0, 1.0)


def test_observed_events_over_expected_ones_with_the_exact_interval_of_poisson() -> None:
    rng = np.random.default_rng(3)
    rate, times = rng.uniform(0.05, 0.4, 50), np.array([1.0, 2.0, 3.0])
    time, event = rng.exponential(3.0, 50), rng.random(50) < 0.8
    survival = np.exp(-rate[:, None] * times)
    nobody = np.zeros(50)
    held = HeldOut(nobody.astype(int), nobody, nobody > 0, survival, times, survival, (), ())
    ratio, low, high = observed_over_expected(held, Followed.of(time, event))
    expected = (rate * np.minimum(time, 3)).sum()
    observed = int((event & (time <= 3)).sum())
    assert ratio == pytest.approx(observed / expected)
    # So few, or so many, are seen once in forty times
    assert poisson.sf(observed - 1, low * expected) == pytest.approx(0.025)
    assert poisson.cdf(observed, high * expected) == pytest.approx(0.025)


def test_a_frame_of_folds_is_kept_in_resamples() -> None:
    followed = Followed.of(np.arange(1.0, 21), np.ones(20, bool), np.repeat([0, 1], 10))
    draws = draw_patients(followed, 50, seed=1)
    assert (pd.DataFrame(draws.T).groupby(np.repeat([0, 1], 10)).sum() == 10).all(axis=None)
