"""From features and follow-up to a judged result: models compared on patients they have not seen, and what they look at."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from hescribe.errors import HescribeWarning, InputError
from hescribe.survival.clinical import EVENT, TIME, check_clinical, count_missing, describe_missing, encode_covariates
from hescribe.survival.crossval import (
    AttentionLearner,
    CoxLearner,
    Fitted,
    FittedCox,
    HeldOut,
    Learner,
    assign_folds,
    choose_setting,
    cross_validate,
)
from hescribe.survival.judge import auc_curve, calibration_table, compare, score_model
from hescribe.survival.models.attention import Bags
from hescribe.survival.scores import Draws, Followed, draw_patients

Values = npt.NDArray[np.float64]  #: (n,)
Kind = Literal["cox", "attention"]
MODELS = get_args(Kind)

CLINICAL, IMAGE, BOTH = "clinical", "image", "image + clinical"
_MOMENTS = 15  #: times at which AUC and Brier score are taken
_STILL = 0.1  #: share of patients still followed at the last of them
_LEAST = 5  #: patients with the event before the horizon, and free of it after


@dataclass(frozen=True)
class SurvivalResult:
    """What `survival` found; all risks are of patients the model had not seen.

    Attributes
    ----------
    horizon
        Time of the headline AUC, in the clinical table's unit.
    risks
        Indexed by patient: ``time``, ``event``, ``fold`` and for each model ``risk <model>``, ``group <model>``,
        ``free <model>`` (probability of being free of the event at the horizon).
    scores
        ``model``, ``metric``, ``value``, ``low``, ``high``.
    differences
        The same for differences between models, on the same resamples of patients.
    auc
        ``model``, ``time``, ``auc``, ``low``, ``high``.
    calibration
        ``model``, ``predicted``, ``observed``, ``low``, ``high``, ``patients``: at the horizon, by fifths.
    coefficients
        ``model``, ``feature``, ``coefficient`` (log hazard ratio for a standard deviation), ``low``, ``high``, ``chosen``
        (share of resamples with this feature), of models fitted on all patients. Empty for attention.
    contributions
        Patients × features: what each adds to the log hazard, by the model that had not seen the patient; of the
        richest Cox model. Empty for attention.
    final
        Model → that fitted on all patients, for new ones.
    held_out
        Model → what it said of patients held out.
    missing
        Covariate → patients without a value, who were given the mean of the patients a model was fitted on.
    """

    horizon: float
    risks: pd.DataFrame
    scores: pd.DataFrame
    differences: pd.DataFrame
    auc: pd.DataFrame
    calibration: pd.DataFrame
    coefficients: pd.DataFrame
    contributions: pd.DataFrame
    final: Mapping[str, Fitted]
    held_out: Mapping[str, HeldOut]
    missing: Mapping[str, int]


def survival(
    features: pd.DataFrame,
    clinical: pd.DataFrame,
    *,
    covariates: Sequence[str] = (),
    horizon: float | None = None,
    model: Kind = "cox",
    tiles: Mapping[str, npt.NDArray[np.float32]] | None = None,
    l1_ratio: float = 0.5,
    n_folds: int = 5,
    n_inner: int = 3,
    n_resamples: int = 500,
    seed: int = 0,
) -> SurvivalResult:
    """Predict outcome from slides, judged by nested cross-validation over patients.

    With covariates three models are compared on the same folds: ``clinical``, ``image`` and ``image + clinical``.

    Parameters
    ----------
    features
        Patients × features, such as `patient_features` gives.
    clinical
        ``patient_id`` (or as index), ``time``, ``event``, covariates.
    covariates
        Clinical columns to use.
    horizon
        Time of the headline AUC and of calibration; by default the median time of the events.
    model
        ``"cox"``: elastic-net Cox on features; ``"attention"``: attention over ``tiles``.
    tiles
        Patient → (tiles, d) features, for attention.
    l1_ratio
        0: ridge; 1: lasso.
    n_folds, n_inner
        Outer folds give the risks, inner ones choose the penalty.
    n_resamples
        Of patients, for intervals.
    seed
        Of folds, resamples and networks.

    Raises
    ------
    InputError
        The clinical table is wrong (`check_clinical`), patients are without features, or the horizon lies where nobody
        is followed.

    Examples
    --------
    >>> result = hs.tl.survival(features, clinical, covariates=["age"], horizon=36)  # doctest: +SKIP
    >>> result.scores  # doctest: +SKIP
    """
    table = check_clinical(clinical, covariates=covariates)
    _check_features(features, table)
    time, event = table[TIME].to_numpy(), table[EVENT].to_numpy(dtype=bool)
    when = choose_horizon(time, event, horizon)
    known, missing = encode_covariates(table, covariates), count_missing(table, covariates)
    if missing:
        warnings.warn(describe_missing(missing), HescribeWarning, stacklevel=2)
    learners = _learners(features.loc[table.index], known, time, event, kind=model, tiles=tiles, l1=l1_ratio, seed=seed)
    times = np.unique(np.append(moments(time, event), when))
    held = {
        name: cross_validate(learner, time, event, times=times, n_folds=n_folds, n_inner=n_inner, seed=seed)
        for name, learner in learners.items()
    }
    followed = Followed.of(time, event, next(iter(held.values())).fold)
    draws = draw_patients(followed, n_resamples, seed=seed)
    final = {name: _fit_all(learner, time, event, n_inner=n_inner, seed=seed) for name, learner in learners.items()}
    return SurvivalResult(
        horizon=when,
        risks=_risks(table, held, when),
        scores=pd.concat([score_model(n, h, followed, when, draws=draws) for n, h in held.items()], ignore_index=True),
        differences=compare(held, followed, when, draws=draws),
        auc=pd.concat([auc_curve(n, h, followed, draws=draws) for n, h in held.items()], ignore_index=True),
        calibration=pd.concat([calibration_table(n, h, followed, when) for n, h in held.items()], ignore_index=True),
        coefficients=_coefficients(learners, final, draws),
        contributions=_contributions(held, table.index),
        final=final,
        held_out=held,
        missing=missing,
    )


def _check_features(features: pd.DataFrame, table: pd.DataFrame) -> None:
    if missing := [p for p in table.index if p not in features.index]:
        raise InputError(f"{len(missing)} patients have no features, such as {missing[0]!r}", fix="leave them out")
    if not features.index.is_unique or not features.columns.is_unique:
        raise InputError("the features name a patient or a feature twice")
    if not all(pd.api.types.is_numeric_dtype(t) for t in features.dtypes):
        raise InputError("features must be numbers")
    if not features.shape[1]:
        raise InputError("there are no features")


def choose_horizon(time: Values, event: npt.NDArray[np.bool_], horizon: float | None) -> float:
    """The horizon, checked; by default the median time of the events.

    Raises
    ------
    InputError
        Fewer than 5 patients had the event before, or are free of it after.
    """
    when = float(np.median(time[event])) if horizon is None else float(horizon)
    cases, controls = int((event & (time <= when)).sum()), int((time > when).sum())
    if min(cases, controls) < _LEAST:
        raise InputError(
            f"horizon {when:g}: {cases} patients had the event before and {controls} are followed beyond",
            fix=f"times run from {time.min():g} to {time.max():g}; choose one with at least {_LEAST} of each",
        )
    return when


def moments(time: Values, event: npt.NDArray[np.bool_]) -> Values:
    """Times for curves: from where a tenth of the events have come to where a tenth of the patients are still followed."""
    first = float(np.quantile(time[event], 0.1))
    last = float(min(np.quantile(time, 1 - _STILL), np.quantile(time[event], 0.95)))
    return np.linspace(first, last, _MOMENTS) if last > first else np.array([float(np.median(time[event]))])


def _learners(
    features: pd.DataFrame,
    known: pd.DataFrame,
    time: Values,
    event: npt.NDArray[np.bool_],
    *,
    kind: Kind,
    tiles: Mapping[str, npt.NDArray[np.float32]] | None,
    l1: float,
    seed: int,
) -> dict[str, Learner]:
    names = tuple(map(str, known.columns))
    out: dict[str, Learner] = {}
    if names:
        out[CLINICAL] = CoxLearner(known, time, event, clinical=names, l1_ratio=l1)
    if kind == "cox":
        out[IMAGE] = CoxLearner(features, time, event, l1_ratio=l1)
        if names:
            both = pd.concat([known, features], axis=1)
            out[BOTH] = CoxLearner(both, time, event, clinical=names, l1_ratio=l1)
        return out
    if kind != "attention":
        raise InputError(f"unknown model {kind!r}", fix=f"known: {', '.join(MODELS)}")
    if tiles is None or any(p not in tiles for p in features.index):
        raise InputError("attention needs the tiles of every patient")
    bags = [np.asarray(tiles[p], dtype=np.float32) for p in features.index]
    out[IMAGE] = AttentionLearner(Bags(bags, np.zeros((len(bags), 0))), time, event, seed=seed)
    if names:
        out[BOTH] = AttentionLearner(Bags(bags, known.to_numpy(dtype=np.float64)), time, event, seed=seed)
    return out


def _fit_all(learner: Learner, time: Values, event: npt.NDArray[np.bool_], *, n_inner: int, seed: int) -> Fitted:
    rows = np.arange(len(time))
    setting = choose_setting(learner, rows, (time, event), folds=assign_folds(event, n_inner, seed=seed))
    return learner.fit(rows, [setting])[0]


def _risks(table: pd.DataFrame, held: Mapping[str, HeldOut], when: float) -> pd.DataFrame:
    out = table[[TIME, EVENT]].copy()
    for name, each in held.items():
        out["fold"] = each.fold
        out[f"risk {name}"] = each.risk
        out[f"group {name}"] = each.groups
        out[f"free {name}"] = each.survival[:, int(np.flatnonzero(each.times == when)[0])]
    return out


def _coefficients(learners: Mapping[str, Learner], final: Mapping[str, Fitted], draws: Draws) -> pd.DataFrame:
    """Of the models fitted on all patients, with percentiles over at most 100 resamples at the same penalty."""
    columns = ["model", "feature", "coefficient", "low", "high", "chosen"]
    rows = []
    for name, learner in learners.items():
        fitted = final[name]
        if not isinstance(learner, CoxLearner) or not isinstance(fitted, FittedCox):
            continue
        again = [_refit(learner, fitted, draw) for draw in draws[:100]]
        drawn = np.stack(again) if again else fitted.model.coefficients[None]
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        rows.append(
            pd.DataFrame(
                {
                    "model": name,
                    "feature": fitted.model.names,
                    "coefficient": fitted.model.coefficients,
                    "low": low,
                    "high": high,
                    "chosen": (drawn != 0).mean(axis=0),
                }
            )
        )
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)


def _refit(learner: CoxLearner, fitted: FittedCox, draw: Values) -> Values:
    rows = np.repeat(np.arange(len(draw)), draw.astype(np.intp))
    return learner.fit(rows, [fitted.model.penalty])[0].model.coefficients


def _contributions(held: Mapping[str, HeldOut], patients: pd.Index) -> pd.DataFrame:
    for name in (BOTH, IMAGE):
        parts = [
            fitted.model.contributions(fitted.features.iloc[np.flatnonzero(held[name].fold == fold)])
            for fold, fitted in enumerate(held[name].models if name in held else ())
            if isinstance(fitted, FittedCox)
        ]
        if parts:
            return pd.concat(parts).loc[patients]
    return pd.DataFrame(index=patients)
