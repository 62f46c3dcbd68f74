"""How good a predicted risk is: concordance, time-dependent AUC, Brier score, calibration; intervals by drawing patients.

Patients are compared *within* strata, which are the folds of a cross-validation: risks of two folds come from two
models, and each of the two was fitted on the other's patients, so a comparison across folds is biased downwards.
Every figure is a ratio of sums over patients or pairs, so a bootstrap resample is a vector of counts and costs one
product of matrices. With one stratum the figures are those of lifelines and torchsurv.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hescribe.metrics.resampling import percentile_interval

Values = npt.NDArray[np.float64]  #: (n,) one a patient, or (resamples,)
Labels = npt.NDArray[np.intp]  #: (n,)
Draws = npt.NDArray[np.float64]  #: (resamples, n) how often each patient is drawn


@dataclass(frozen=True)
class Followed:
    """What was observed of each patient.

    Attributes
    ----------
    time
        (n,) until the event or the end of follow-up; any unit.
    event
        (n,) bool; False: censored.
    strata
        (n,) patients are compared within; all 0 where it does not matter.
    """

    time: Values
    event: npt.NDArray[np.bool_]
    strata: Labels

    @classmethod
    def of(cls, time: npt.ArrayLike, event: npt.ArrayLike, strata: npt.ArrayLike | None = None) -> Followed:
        """From anything array-like."""
        times = np.asarray(time, dtype=np.float64)
        labels = np.zeros(len(times), dtype=np.intp) if strata is None else np.asarray(strata, dtype=np.intp)
        return cls(times, np.asarray(event, dtype=bool), labels)

    def parts(self) -> list[Labels]:
        """Rows of each stratum."""
        return [np.flatnonzero(self.strata == s) for s in np.unique(self.strata)]


def draw_patients(followed: Followed, n_resamples: int, *, seed: int) -> Draws:
    """How often each patient is drawn in each resample; each stratum keeps its number of patients."""
    rng = np.random.default_rng(seed)
    draws = np.zeros((n_resamples, len(followed.time)))
    for rows in followed.parts():
        draws[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=n_resamples)
    return draws


def _once(followed: Followed) -> Draws:
    return np.ones((1, len(followed.time)))


def _higher(risk: Values) -> npt.NDArray[np.float64]:
    """(n, n): 1 where the row's risk is higher than the column's, ½ where they tie."""
    difference = risk[:, None] - risk[None, :]
    return np.asarray(0.5 * (np.sign(difference) + 1))


def _ratio(above: Values, below: Values) -> Values:
    # Rounded, so that risks that all tie give a half and not a half and a bit
    return np.round(np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0), 12)


def concordance(followed: Followed, risk: npt.ArrayLike, draws: Draws | None = None) -> Values:
    """Harrell's C in each resample: share of comparable pairs in which who fell ill first had the higher risk.

    A pair can be compared where the earlier time is an event; a censored patient at the same time counts as later.
    Ties of risk count half. 0.5: no better than chance; below: the wrong sign.

    Parameters
    ----------
    followed
        n patients.
    risk
        (n,) higher means earlier.
    draws
        (r, n); by default every patient once.

    Returns
    -------
    ndarray
        (r,); NaN where no pair can be compared.

    References
    ----------
    Harrell et al., JAMA 247:2543 (1982).
    """
    risk = np.asarray(risk, dtype=np.float64)
    draws = _once(followed) if draws is None else draws
    above, below = np.zeros(len(draws)), np.zeros(len(draws))
    for rows in followed.parts():
        time, event = followed.time[rows], followed.event[rows]
        later = (time[:, None] < time[None, :]) | ((time[:, None] == time[None, :]) & ~event[None, :])
        pairs = (event[:, None] & later).astype(np.float64)
        drawn = draws[:, rows]
        below += np.einsum("rj,rj->r", drawn @ pairs, drawn)
        above += np.einsum("rj,rj->r", drawn @ (pairs * _higher(risk[rows])), drawn)
    return _ratio(above, below)


def uncensored(followed: Followed, at: npt.ArrayLike, *, before: bool = False) -> Values:
    """Kaplan–Meier estimate of the probability of not being censored until ``at`` (``before``: just before it).

    At equal times events come first, so whoever has the event at t is not at risk of being censored at t.

    Parameters
    ----------
    followed
        Patients; strata are pooled, as censoring has nothing to do with the model.
    at
        Times.
    before
        G(t−) rather than G(t).
    """
    times, where = np.unique(followed.time, return_inverse=True)
    censored = np.bincount(where, weights=~followed.event, minlength=len(times))
    events = np.bincount(where, weights=followed.event, minlength=len(times))
    at_risk = np.cumsum((censored + events)[::-1])[::-1] - events
    curve = np.cumprod(1 - np.divide(censored, at_risk, out=np.zeros(len(times)), where=at_risk > 0))
    found = np.searchsorted(times, np.asarray(at, dtype=np.float64), side="left" if before else "right")
    return np.concatenate([[1.0], curve])[found]


def dynamic_auc(
    followed: Followed, risk: npt.ArrayLike, at: npt.ArrayLike, draws: Draws | None = None
) -> npt.NDArray[np.float64]:
    """Cumulative/dynamic AUC at each time: a patient with the event by t against one still free of it after t.

    Cases are weighted by the inverse probability of not having been censored before (Uno 2007), so that it estimates
    the AUC without censoring.

    Parameters
    ----------
    followed, risk, draws
        As of `concordance`.
    at
        (k,) times.

    Returns
    -------
    ndarray
        (r, k); NaN where there is no case or no control.

    References
    ----------
    Uno et al., J Am Stat Assoc 102:527 (2007).
    """
    risk = np.asarray(risk, dtype=np.float64)
    moments = np.atleast_1d(np.asarray(at, dtype=np.float64))
    draws = _once(followed) if draws is None else draws
    free = uncensored(followed, followed.time, before=True)
    weight = np.divide(1.0, free, out=np.zeros(len(free)), where=(free > 0) & followed.event)
    above, below = np.zeros((len(draws), len(moments))), np.zeros((len(draws), len(moments)))
    for rows in followed.parts():
        higher, drawn = _higher(risk[rows]), draws[:, rows]
        for k, moment in enumerate(moments):
            early = followed.time[rows] <= moment
            cases = drawn[:, early] * weight[rows][early]
            controls = drawn[:, ~early]
            above[:, k] += np.einsum("rj,rj->r", cases @ higher[np.ix_(early, ~early)], controls)
            below[:, k] += cases.sum(axis=1) * controls.sum(axis=1)
    return np.stack([_ratio(above[:, k], below[:, k]) for k in range(len(moments))], axis=1)


def brier(
    followed: Followed, survival: npt.ArrayLike, at: npt.ArrayLike, draws: Draws | None = None
) -> npt.NDArray[np.float64]:
    """Brier score at each time: squared distance of the predicted probability from what came, censoring weighted out.

    Parameters
    ----------
    followed, draws
        As of `concordance`.
    survival
        (n, k) predicted probability of being free of the event at each time.
    at
        (k,) times.

    Returns
    -------
    ndarray
        (r, k); 0 is perfect, 0.25 is what a coin deserves.

    References
    ----------
    Graf et al., Stat Med 18:2529 (1999).
    """
    moments = np.atleast_1d(np.asarray(at, dtype=np.float64))
    predicted = np.asarray(survival, dtype=np.float64).reshape(len(followed.time), len(moments))
    draws = _once(followed) if draws is None else draws
    free = uncensored(followed, followed.time, before=True)[:, None]
    early = followed.time[:, None] <= moments
    case = np.divide(1.0, free, out=np.zeros_like(free), where=free > 0) * (early & followed.event[:, None])
    still = uncensored(followed, moments)
    control = np.divide(1.0, still, out=np.zeros_like(still), where=still > 0) * ~early
    loss = case * predicted**2 + control * (1 - predicted) ** 2
    return np.asarray((draws @ loss) / draws.sum(axis=1, keepdims=True))


def integrated(values: npt.NDArray[np.float64], at: npt.ArrayLike) -> Values:
    """Mean over time of (r, k) values by the trapezoidal rule, (r,)."""
    moments = np.asarray(at, dtype=np.float64)
    if len(moments) == 1:
        return np.asarray(values[:, 0])
    return np.asarray(np.trapezoid(values, moments, axis=1) / (moments[-1] - moments[0]))


def widened_interval(value: float, resampled: Values, *, n_folds: int) -> tuple[float, float]:
    """95 % bootstrap interval, widened for what folds have in common.

    Drawing patients with their out-of-fold risks leaves out that the folds' models share training patients, and that
    each patient is tested once and trained on often. The variance is therefore multiplied by 1 + K · 1/(K − 1), the
    correction of Nadeau and Bengio for K folds; without folds (K = 1) it is the plain percentile interval.

    Parameters
    ----------
    value
        The estimate.
    resampled
        Its values in the resamples; NaN are left out.
    n_folds
        K.

    References
    ----------
    Nadeau & Bengio, Mach Learn 52:239 (2003).
    """
    low, high = percentile_interval(resampled)
    factor = np.sqrt(1 + n_folds / (n_folds - 1)) if n_folds > 1 else 1.0
    return float(value - factor * (value - low)), float(value + factor * (high - value))
