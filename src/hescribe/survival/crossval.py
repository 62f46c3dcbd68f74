"""Nested cross-validation by patient: inner folds choose the penalty, outer folds give every patient an honest risk.

A `Learner` sees rows of training patients only; scaling, selection of features and the penalty all happen inside its
`fit`, so nothing of a held-out patient can reach the model. Baseline survival and the cut between risk groups are
learned on the training patients of each fold as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torchsurv.loss.cox import baseline_survival_function, survival_function_cox

from hescribe.errors import InputError
from hescribe.survival.models.attention import AttentionModel, Bags, train_attention
from hescribe.survival.models.cox import CoxModel, fit_path, partial_likelihood, penalty_path

Rows = npt.NDArray[np.intp]  #: patients, by position
Values = npt.NDArray[np.float64]  #: (n,) one a patient

GROUPS = ("low", "high")
#: least weight decay first: attention's settings
WEIGHT_DECAYS = (0.3, 0.03)
#: multiple of the penalty for clinical covariates: few, chosen by a clinician, and not to be drowned by image features
CLINICAL_FACTOR = 0.1


class Fitted(Protocol):
    """A model that was fitted on some patients."""

    def risk(self, rows: Rows) -> Values:
        """Log hazard of patients, (n,)."""
        ...


class Learner(Protocol):
    """What can be fitted on some of the patients it knows."""

    def settings(self, rows: Rows) -> Sequence[float]:
        """Penalties to choose among, for these training patients."""
        ...

    def fit(self, rows: Rows, settings: Sequence[float]) -> Sequence[Fitted]:
        """A model for each setting, fitted on these patients alone."""
        ...


@dataclass(frozen=True)
class FittedCox:
    """A Cox model with the table it reads its patients from."""

    model: CoxModel
    features: pd.DataFrame

    def risk(self, rows: Rows) -> Values:
        """Log hazard of patients, (n,)."""
        return self.model.risk(self.features.iloc[rows])


@dataclass(frozen=True)
class CoxLearner:
    """Elastic-net Cox regression on a table of features.

    Attributes
    ----------
    features
        (n, p) patients × features, all numbers.
    time, event
        (n,) follow-up.
    clinical
        Names of columns that are clinical covariates, and so less penalised.
    l1_ratio
        0: ridge; 1: lasso.
    """

    features: pd.DataFrame
    time: Values
    event: npt.NDArray[np.bool_]
    clinical: tuple[str, ...] = ()
    l1_ratio: float = 0.5

    def settings(self, rows: Rows) -> list[float]:
        """Penalties from the one that leaves nothing down to a hundredth of it."""
        return penalty_path(self.features.iloc[rows], self.time[rows], self.event[rows], l1_ratio=self.l1_ratio)

    def fit(self, rows: Rows, settings: Sequence[float]) -> list[FittedCox]:
        """A model for each penalty."""
        image = np.array([c not in self.clinical for c in self.features.columns])
        factors = np.where(image, 1.0, CLINICAL_FACTOR if image.any() else 1.0)
        models = fit_path(
            self.features.iloc[rows],
            self.time[rows],
            self.event[rows],
            settings,
            l1_ratio=self.l1_ratio,
            factors=factors,
        )
        return [FittedCox(m, self.features) for m in models]


@dataclass(frozen=True)
class FittedAttention:
    """An attention model with the tiles it reads its patients from."""

    model: AttentionModel
    bags: Bags

    def risk(self, rows: Rows) -> Values:
        """Log hazard of patients, (n,)."""
        return self.model.risk(self.bags.of(rows))


@dataclass(frozen=True)
class AttentionLearner:
    """Gated attention over tiles with Cox's loss.

    Attributes
    ----------
    bags
        Tiles of each patient, in the order of the outcome.
    time, event
        (n,) follow-up.
    seed
        Of weights and drawn tiles.
    """

    bags: Bags
    time: Values
    event: npt.NDArray[np.bool_]
    seed: int = 0

    def settings(self, rows: Rows) -> tuple[float, ...]:
        """Weight decays; the same for any patients."""
        return WEIGHT_DECAYS

    def fit(self, rows: Rows, settings: Sequence[float]) -> list[FittedAttention]:
        """A model for each weight decay."""
        bags = self.bags.of(rows)
        models = [
            train_attention(bags, self.time[rows], self.event[rows], weight_decay=s, seed=self.seed) for s in settings
        ]
        return [FittedAttention(m, self.bags) for m in models]


@dataclass(frozen=True)
class HeldOut:
    """What models said about patients they had not seen.

    Attributes
    ----------
    fold
        (n,) in which each patient was held out.
    risk
        (n,) log hazard; to be compared within a fold.
    high
        (n,) bool: above the training patients' median risk.
    survival
        (n, k) probability of being free of the event at each of ``times``.
    times
        (k,).
    reference
        (n, k) the same without any model: Kaplan–Meier of the training patients.
    settings
        The penalty chosen in each fold.
    models
        That of each fold.
    """

    fold: Rows
    risk: Values
    high: npt.NDArray[np.bool_]
    survival: npt.NDArray[np.float64]
    times: Values
    reference: npt.NDArray[np.float64]
    settings: tuple[float, ...]
    models: tuple[Fitted, ...]

    @property
    def groups(self) -> npt.NDArray[np.object_]:
        """(n,) ``"low"`` or ``"high"``."""
        return np.where(self.high, GROUPS[1], GROUPS[0]).astype(object)


def assign_folds(event: npt.ArrayLike, n_folds: int, *, seed: int) -> Rows:
    """A fold for each patient, by chance, with equal shares of events in all.

    Raises
    ------
    InputError
        There are not two events for every fold.
    """
    flags = np.asarray(event, dtype=bool)
    if n_folds < 2 or flags.sum() < 2 * n_folds:
        raise InputError(
            f"{int(flags.sum())} events cannot be split into {n_folds} folds", fix="fewer folds, at least 2"
        )
    rng = np.random.default_rng(seed)
    fold = np.empty(len(flags), dtype=np.intp)
    filled = 0
    for kind in (True, False):
        rows = rng.permutation(np.flatnonzero(flags == kind))
        fold[rows] = (filled + np.arange(len(rows))) % n_folds
        filled += len(rows)
    return fold


def choose_setting(
    learner: Learner, rows: Rows, follow_up: tuple[Values, npt.NDArray[np.bool_]], *, folds: Rows
) -> float:
    """The setting under which patients left out are most likely.

    The criterion is Verweij and van Houwelingen's: the partial likelihood of all patients less that of the training
    patients, both under the model fitted on the latter; so patients left out are judged against everybody at risk.

    Parameters
    ----------
    learner
        To be fitted.
    rows
        Patients that may be looked at.
    follow_up
        Time and event of all patients.
    folds
        (len(rows),) inner fold of each.

    References
    ----------
    Verweij & van Houwelingen, Stat Med 12:2305 (1993).
    """
    settings = list(learner.settings(rows))
    if len(settings) == 1:
        return settings[0]
    time, event = follow_up
    total = np.zeros(len(settings))
    for fold in np.unique(folds):
        inner = rows[folds != fold]
        for k, fitted in enumerate(learner.fit(inner, settings)):
            everyone = partial_likelihood(time[rows], event[rows], fitted.risk(rows))
            total[k] += everyone - partial_likelihood(time[inner], event[inner], fitted.risk(inner))
    return settings[int(np.argmax(total))]


def cross_validate(
    learner: Learner,
    time: Values,
    event: npt.NDArray[np.bool_],
    *,
    times: Values,
    n_folds: int = 5,
    n_inner: int = 3,
    seed: int = 0,
) -> HeldOut:
    """Risk and survival of every patient by a model that has not seen them.

    Parameters
    ----------
    learner
        Knows the patients by position.
    time, event
        (n,) follow-up.
    times
        (k,) at which survival is predicted.
    n_folds, n_inner
        Outer folds, and inner ones that choose the setting.
    seed
        Of the folds.

    Raises
    ------
    InputError
        Too few events for so many folds.
    """
    outer = assign_folds(event, n_folds, seed=seed)
    n = len(outer)
    risk, high = np.zeros(n), np.zeros(n, dtype=bool)
    survival, reference = np.ones((n, len(times))), np.ones((n, len(times)))
    settings, models = [], []
    for fold in range(n_folds):
        held, rows = np.flatnonzero(outer == fold), np.flatnonzero(outer != fold)
        inner = assign_folds(event[rows], n_inner, seed=seed + 1 + fold)
        setting = choose_setting(learner, rows, (time, event), folds=inner)
        (fitted,) = learner.fit(rows, [setting])
        seen = fitted.risk(rows)
        risk[held] = fitted.risk(held)
        high[held] = risk[held] > np.median(seen)
        survival[held] = predict_survival(seen, time[rows], event[rows], risk[held], times)
        reference[held] = predict_survival(np.zeros(len(rows)), time[rows], event[rows], np.zeros(len(held)), times)
        settings.append(setting)
        models.append(fitted)
    return HeldOut(outer, risk, high, survival, times, reference, tuple(settings), tuple(models))


def predict_survival(
    seen: Values, time: Values, event: npt.NDArray[np.bool_], risk: Values, times: Values
) -> npt.NDArray[np.float64]:
    """Probability of being free of the event at each time, by the training patients' baseline (Breslow).

    Parameters
    ----------
    seen, time, event
        (m,) risk and follow-up of the training patients.
    risk
        (n,) of those asked about.
    times
        (k,).

    Returns
    -------
    ndarray
        (n, k), falling with time.
    """
    baseline = baseline_survival_function(torch.from_numpy(seen), torch.from_numpy(event), torch.from_numpy(time))
    first = float(np.asarray(baseline["time"])[0])
    # torchsurv squeezes a single time away, and keeps times of events as float32: an event *at* a time is before it
    # only where both are rounded alike
    new_time = torch.from_numpy(np.append(times, times[-1] + 1)).to(baseline["time"].dtype)
    found = survival_function_cox(baseline, torch.from_numpy(np.append(risk, 0.0)), new_time).numpy()[:-1, :-1]
    # torchsurv answers with the first step where asked before it
    return np.where(times < first, 1.0, found)
