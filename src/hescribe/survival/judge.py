"""A cross-validated model judged: one table of scores with intervals, curves over time, calibration, risk groups."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.exceptions import ConvergenceError
from lifelines.statistics import logrank_test
from scipy import stats

from hescribe.survival.crossval import HeldOut
from hescribe.survival.scores import (
    Draws,
    Followed,
    Values,
    brier,
    concordance,
    dynamic_auc,
    integrated,
    widened_interval,
)

_FIFTHS = 5
C_INDEX, MEAN_AUC, IBS, IBS_NONE = "C-index", "mean AUC", "integrated Brier score", "the same of Kaplan–Meier"
SLOPE, RATIO, LOGRANK, HAZARD = (
    "calibration slope",
    "observed / expected events",
    "log-rank p",
    "hazard ratio high / low",
)


def auc_name(horizon: float) -> str:
    """Of the metric at the horizon."""
    return f"AUC at {horizon:g}"


def score_model(name: str, held: HeldOut, followed: Followed, horizon: float, *, draws: Draws) -> pd.DataFrame:
    """All scores of one model: ``model``, ``metric``, ``value``, ``low``, ``high`` (95 %).

    Parameters
    ----------
    name
        Of the model.
    held
        What it said.
    followed
        What came, with the folds as strata.
    horizon
        Of the headline AUC.
    draws
        Resamples of patients.
    """
    folds = len(held.models)
    rows: list[tuple[str, float, float, float]] = []
    for metric, values, resampled in _resampled(held, followed, horizon, draws):
        low, high = widened_interval(values, resampled, n_folds=folds)
        rows.append((metric, values, max(low, 0.0), min(high, 1.0)))
    rows.append((SLOPE, *_stratified_cox(followed, held.risk, folds)))
    rows.append((RATIO, *observed_over_expected(held, followed)))
    ratio, low, high = _stratified_cox(followed, held.high.astype(np.float64), folds)
    rows.append((HAZARD, float(np.exp(ratio)), float(np.exp(low)), float(np.exp(high))))
    rows.append((LOGRANK, logrank_p(followed, held.high, n_folds=folds), float("nan"), float("nan")))
    table = pd.DataFrame(rows, columns=["metric", "value", "low", "high"])
    table.insert(0, "model", name)
    return table


def _resampled(held: HeldOut, followed: Followed, horizon: float, draws: Draws) -> list[tuple[str, float, Values]]:
    """Each metric's value and its values in the resamples."""
    everyone = np.ones((1, len(followed.time)))
    both = np.concatenate([everyone, draws])
    curve = dynamic_auc(followed, held.risk, held.times, both)
    known = np.isfinite(curve).all(axis=1)
    whole = np.where(known, integrated(np.nan_to_num(curve), held.times), np.nan)
    found = [
        (C_INDEX, concordance(followed, held.risk, both)),
        (auc_name(horizon), dynamic_auc(followed, held.risk, [horizon], both)[:, 0]),
        (MEAN_AUC, whole),
        (IBS, integrated(brier(followed, held.survival, held.times, both), held.times)),
        (IBS_NONE, integrated(brier(followed, held.reference, held.times, both), held.times)),
    ]
    return [(metric, float(values[0]), values[1:]) for metric, values in found]


def compare(held: Mapping[str, HeldOut], followed: Followed, horizon: float, *, draws: Draws) -> pd.DataFrame:
    """Differences of C and AUC between each two models, on the same resamples: ``models``, ``metric``, ``value``, ``low``, ``high``."""
    rows = []
    scored = {name: _resampled(h, followed, horizon, draws)[:2] for name, h in held.items()}
    for earlier, later in combinations(held, 2):
        for (metric, a, drawn_a), (_, b, drawn_b) in zip(scored[later], scored[earlier], strict=True):
            low, high = widened_interval(a - b, drawn_a - drawn_b, n_folds=len(held[later].models))
            rows.append((f"{later} − {earlier}", metric, a - b, low, high))
    return pd.DataFrame(rows, columns=["models", "metric", "value", "low", "high"])


def auc_curve(name: str, held: HeldOut, followed: Followed, *, draws: Draws) -> pd.DataFrame:
    """AUC over time: ``model``, ``time``, ``auc``, ``low``, ``high``."""
    value = dynamic_auc(followed, held.risk, held.times)[0]
    drawn = dynamic_auc(followed, held.risk, held.times, draws)
    folds = len(held.models)
    pairs = [widened_interval(v, drawn[:, k], n_folds=folds) for k, v in enumerate(value)]
    low, high = np.clip(np.array(pairs).T, 0.0, 1.0)
    return pd.DataFrame({"model": name, "time": held.times, "auc": value, "low": low, "high": high})


def calibration_table(name: str, held: HeldOut, followed: Followed, horizon: float) -> pd.DataFrame:
    """Predicted and observed probability of being free of the event at the horizon, by fifths of the prediction.

    Observed is Kaplan–Meier's, with its 95 % interval.
    """
    at = int(np.argmin(np.abs(held.times - horizon)))
    predicted = held.survival[:, at]
    rank = stats.rankdata(predicted, method="ordinal") - 1
    fifth = (rank * _FIFTHS // len(rank)).astype(int)
    rows = []
    for k in range(_FIFTHS):
        inside = fifth == k
        observed, low, high = kaplan_meier_at(followed.time[inside], followed.event[inside], horizon)
        rows.append((name, float(predicted[inside].mean()), observed, low, high, int(inside.sum())))
    return pd.DataFrame(rows, columns=["model", "predicted", "observed", "low", "high", "patients"])


def kaplan_meier_at(time: Values, event: np.ndarray, when: float) -> tuple[float, float, float]:
    """Kaplan–Meier's probability of being free of the event at a time, and its 95 % interval."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of groups without events
        curve = KaplanMeierFitter().fit(time, event)
    table = curve.confidence_interval_survival_function_
    row = table.index.get_indexer(pd.Index([when]), method="ffill")[0]
    low, high = table.iloc[row]
    value = float(curve.predict(when))
    # Without an event so far lifelines gives no interval
    return value, float(low) if np.isfinite(low) else value, float(high) if np.isfinite(high) else value


def logrank_p(followed: Followed, high: np.ndarray, *, n_folds: int = 1) -> float:
    """Log-rank test between two risk groups; 1 where one of them is empty.

    With folds the statistic is divided by 1 + K/(K − 1), as `widened_interval` widens: groups made by
    cross-validation are not independent of the outcomes they are tested on (each patient helped to place the
    others), and the plain test finds far more than 5 % of pure noise significant at 5 %.
    """
    if high.all() or not high.any():
        return 1.0
    test = logrank_test(followed.time[high], followed.time[~high], followed.event[high], followed.event[~high])
    factor = 1 + n_folds / (n_folds - 1) if n_folds > 1 else 1.0
    return float(stats.chi2.sf(test.test_statistic / factor, df=1))


def observed_over_expected(held: HeldOut, followed: Followed) -> tuple[float, float, float]:
    """Events until the last of the times, over those that the predicted survival expects; with its 95 % interval.

    Expected is the cumulative hazard −log S at the end of each patient's follow-up; the interval is Poisson's.
    """
    last = held.times[-1]
    until = np.minimum(followed.time, last)
    padded = np.concatenate([np.ones((len(until), 1)), held.survival], axis=1)
    grid = np.concatenate([[0.0], held.times])
    log_free = np.log(np.clip(padded, 1e-12, 1.0))
    expected = -sum(float(np.interp(t, grid, row)) for t, row in zip(until, log_free, strict=True))
    observed = int((followed.event & (followed.time <= last)).sum())
    if expected <= 0:
        return float("nan"), float("nan"), float("nan")
    low, high = stats.chi2.ppf(0.025, 2 * observed) / 2, stats.chi2.ppf(0.975, 2 * observed + 2) / 2
    return observed / expected, float(low / expected), float(high / expected)


def _stratified_cox(followed: Followed, values: Values, n_folds: int) -> tuple[float, float, float]:
    """Coefficient of one number in a Cox model with a baseline for each fold, and its widened 95 % interval."""
    nothing = (float("nan"), float("nan"), float("nan"))
    if np.ptp(values) == 0:
        return nothing
    table = pd.DataFrame({"x": values, "t": followed.time, "e": followed.event, "fold": followed.strata})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of groups that hardly vary; the interval says it
            fit = CoxPHFitter().fit(table, "t", "e", strata="fold")
    except ConvergenceError:
        return nothing
    value, error = float(fit.params_["x"]), float(fit.standard_errors_["x"])
    spread = 1.96 * error * np.sqrt(1 + n_folds / (n_folds - 1) if n_folds > 1 else 1.0)
    return value, value - spread, value + spread
