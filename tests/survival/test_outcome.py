"""The whole on a simulated cohort: what was planted is found, lost when shuffled, and nothing leaks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

import hescribe as hs
from hescribe.errors import InputError
from hescribe.survival.clinical import check_clinical
from hescribe.survival.crossval import CoxLearner, FittedCox, assign_folds, choose_setting, cross_validate
from hescribe.survival.judge import C_INDEX, HAZARD, IBS, IBS_NONE, LOGRANK, RATIO, SLOPE
from hescribe.survival.models.cox import Scaling, partial_likelihood
from hescribe.survival.outcome import BOTH, CLINICAL, IMAGE, SurvivalResult, _refit, survival
from hescribe.survival.scores import Followed, concordance, dynamic_auc
from hescribe.survival.simulate import Cohort


@pytest.fixture(scope="module")
def result(cohort: Cohort, features: pd.DataFrame) -> SurvivalResult:
    return survival(features, cohort.clinical, covariates=["age"], horizon=36, n_resamples=40)


def score(result: SurvivalResult, model: str, metric: str) -> pd.Series:
    table = result.scores.set_index(["model", "metric"])
    return table.loc[(model, metric)]


def test_what_was_planted_is_found(result: SurvivalResult, cohort: Cohort) -> None:
    truth = check_clinical(cohort.clinical, covariates=["true_risk"])
    followed = Followed.of(truth["time"], truth["event"], result.risks["fold"])
    attainable = dynamic_auc(followed, truth["true_risk"], 36.0)[0, 0]
    both = score(result, BOTH, "AUC at 36")
    assert both["low"] < attainable < both["high"]
    assert both["value"] > 0.7
    assert score(result, BOTH, C_INDEX)["value"] > score(result, CLINICAL, C_INDEX)["value"]
    effects = result.coefficients.query("model == @BOTH").set_index("feature")
    assert effects.loc["age", "low"] > 0
    planted = effects.loc[["mean:lymphoid", "fraction:lymphoid"], "coefficient"]
    assert planted.sum() < -0.4


def test_the_figures_agree_with_each_other(result: SurvivalResult) -> None:
    assert score(result, BOTH, IBS)["value"] < score(result, BOTH, IBS_NONE)["value"]
    assert 0.5 < score(result, BOTH, SLOPE)["value"] < 1.6
    assert score(result, BOTH, RATIO)["value"] == pytest.approx(1, abs=0.12)
    assert score(result, BOTH, HAZARD)["low"] > 1.2
    assert score(result, BOTH, LOGRANK)["value"] < 0.001
    gain = result.differences.set_index(["models", "metric"]).loc[(f"{BOTH} − {CLINICAL}", C_INDEX)]
    assert gain["value"] == pytest.approx(
        score(result, BOTH, C_INDEX)["value"] - score(result, CLINICAL, C_INDEX)["value"]
    )
    at = result.auc.query("model == @BOTH and time == 36")["auc"].item()
    assert at == pytest.approx(score(result, BOTH, "AUC at 36")["value"])
    steps = result.calibration.query("model == @BOTH")
    assert steps["predicted"].is_monotonic_increasing
    assert (steps["predicted"] - steps["observed"]).abs().max() < 0.2
    assert steps["patients"].sum() == len(result.risks)
    np.testing.assert_allclose(result.contributions.sum(axis=1), result.risks[f"risk {BOTH}"], atol=1e-9)
    high = result.risks[f"group {BOTH}"] == "high"
    assert result.risks.loc[high, f"free {BOTH}"].mean() < result.risks.loc[~high, f"free {BOTH}"].mean()


def test_it_is_lost_when_outcomes_are_shuffled(cohort: Cohort, features: pd.DataFrame) -> None:
    clinical = cohort.clinical.copy()
    order = np.random.default_rng(0).permutation(len(clinical))
    clinical[["time", "event"]] = clinical[["time", "event"]].to_numpy()[order]
    lost = survival(features, clinical, horizon=36, n_resamples=40)
    auc = score(lost, IMAGE, "AUC at 36")
    assert auc["low"] <= 0.5 <= auc["high"]
    assert score(lost, IMAGE, LOGRANK)["value"] > 0.05


def test_a_model_never_sees_whom_it_judges(cohort: Cohort, features: pd.DataFrame) -> None:
    """Held-out patients' features and outcomes are made absurd: what was fitted without them stays to the bit."""
    truth = check_clinical(cohort.clinical)
    table, time, event = features.loc[truth.index], truth["time"].to_numpy(), truth["event"].to_numpy()
    times = np.array([12.0, 36.0])
    first = cross_validate(CoxLearner(table, time, event), time, event, times=times, n_folds=4)
    held = first.fold == 0
    absurd = table.copy()
    absurd[held] = absurd[held] * 100 - 7
    later = time.copy()
    later[held] = later[held][::-1]
    same = cross_validate(CoxLearner(absurd, later, event), later, event, times=times, n_folds=4)
    a, b = first.models[0], same.models[0]
    assert isinstance(a, FittedCox)
    assert isinstance(b, FittedCox)
    assert (a.model.coefficients == b.model.coefficients).all()
    assert a.model.penalty == b.model.penalty
    assert (a.model.scaling.mean == b.model.scaling.mean).all()
    assert first.reference[held].tolist() == same.reference[held].tolist()
    # High is above the median of those it has learned from, not of those held out
    for k, each in enumerate(first.models):
        rows, rest = np.flatnonzero(first.fold == k), np.flatnonzero(first.fold != k)
        np.testing.assert_array_equal(first.high[rows], each.risk(rows) > np.median(each.risk(rest)))
    # And it would have been noticed: scaled with everybody, the fold is another
    assert not np.allclose(Scaling.learn(absurd.to_numpy()).mean, a.model.scaling.mean)


def test_slides_of_one_patient_stay_together(cohort: Cohort, slides: pd.DataFrame, features: pd.DataFrame) -> None:
    """Patients are the rows: a patient with two slides has one risk, in one fold."""
    assert slides.index.str.endswith("-B").sum() > 20
    assert features.index.is_unique
    assert len(features) == len(cohort.clinical)


def test_folds_share_the_events() -> None:
    event = np.random.default_rng(0).random(103) < 0.2
    fold = assign_folds(event, 5, seed=0)
    assert np.ptp(np.bincount(fold[event])) <= 1
    assert np.ptp(np.bincount(fold)) <= 1
    assert (fold == assign_folds(event, 5, seed=0)).all()
    assert not (fold == assign_folds(event, 5, seed=1)).all()
    with pytest.raises(InputError, match="9 events cannot be split into 5 folds"):
        assign_folds(np.arange(40) < 9, 5, seed=0)


class Memory:
    """Setting 0 knows something of everybody; setting 1 knows its training patients by heart and nobody else."""

    def __init__(self, time: np.ndarray, hint: np.ndarray) -> None:
        self.time, self.hint = time, hint

    def settings(self, rows: np.ndarray) -> list[float]:
        return [0.0, 1.0]

    def fit(self, rows: np.ndarray, settings: list[float]) -> list[Remembered]:
        return [Remembered(self, rows, s) for s in settings]


@dataclass
class Remembered:
    memory: Memory
    learned: np.ndarray
    setting: float

    def risk(self, rows: np.ndarray) -> np.ndarray:
        early = 0.5 - np.argsort(np.argsort(self.memory.time)) / len(self.memory.time)
        by_heart = np.where(np.isin(rows, self.learned), 8 * early[rows], 0.0)
        return by_heart if self.setting else self.memory.hint[rows]


def test_a_setting_is_judged_by_those_left_out() -> None:
    """By all less by the training patients: what is known by heart cancels."""
    rng = np.random.default_rng(0)
    hint = rng.normal(size=60)
    time = rng.exponential(np.exp(-hint))
    event = np.ones(60, dtype=bool)
    memory, rows = Memory(time, hint), np.arange(60)
    folds = assign_folds(event, 3, seed=0)
    assert partial_likelihood(time, event, memory.fit(rows[folds > 0], [1.0])[0].risk(rows)) > partial_likelihood(
        time, event, hint
    )
    assert choose_setting(memory, rows, (time, event), folds=folds) == 0.0


def test_everybody_drawn_once_gives_the_same_coefficients() -> None:
    """Clinical covariates are penalised less in resamples too."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.normal(size=(120, 4)), columns=["age", "a", "b", "c"])
    time = rng.exponential(np.exp(-table["age"].to_numpy() - table["a"].to_numpy()))
    learner = CoxLearner(table, time, time < 2, clinical=("age",))
    (fitted,) = learner.fit(np.arange(120), [0.1])
    np.testing.assert_allclose(_refit(learner, fitted, np.ones(120)), fitted.model.coefficients, atol=1e-9)
    (alike,) = replace(learner, clinical=()).fit(np.arange(120), [0.1])
    assert abs(alike.model.coefficients[0]) < 0.9 * abs(fitted.model.coefficients[0])


def test_attention_over_tiles(cohort: Cohort, features: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hescribe.survival.models.attention._EPOCHS", 15)
    monkeypatch.setattr("hescribe.survival.models.attention._MOST_TILES", 32)
    monkeypatch.setattr("hescribe.survival.models.attention._RATE", 0.05)
    tiles: dict[str, np.ndarray] = {}
    for (name, slide), patient in zip(cohort.each_slide(), cohort.slides["patient_id"], strict=True):
        assert name.startswith(patient)
        tiles[patient] = np.concatenate([tiles[patient], slide.X]) if patient in tiles else slide.X
    found = hs.tl.survival(
        features, cohort.clinical, covariates=["age"], tiles=tiles, model="attention", horizon=36, n_folds=3,
        n_inner=2, n_resamples=40,
    )  # fmt: skip
    assert score(found, IMAGE, "AUC at 36")["low"] > 0.5
    assert score(found, BOTH, C_INDEX)["value"] > score(found, CLINICAL, C_INDEX)["value"]
    assert set(found.coefficients["model"]) == {CLINICAL}
    with pytest.raises(InputError, match="attention needs the tiles"):
        survival(features, cohort.clinical, model="attention")


def test_what_cannot_be_asked(cohort: Cohort, features: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="horizon 5000"):
        survival(features, cohort.clinical, horizon=5000)
    with pytest.raises(InputError, match="1 patients have no features, such as 'P0000'"):
        survival(features.drop(index="P0000"), cohort.clinical)
    with pytest.raises(InputError, match="unknown model 'magic'"):
        survival(features, cohort.clinical, model="magic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be numbers"):
        survival(features.assign(word="a"), cohort.clinical)


def test_features_that_say_nothing_give_a_half(cohort: Cohort, features: pd.DataFrame) -> None:
    """Constant features: every risk is equal, and no test nor picture may fail on it."""
    flat = pd.DataFrame({"mean:a": 1.0}, index=features.index)
    nothing = survival(flat, cohort.clinical, horizon=36, n_resamples=20)
    assert score(nothing, IMAGE, C_INDEX)["value"] == 0.5
    assert score(nothing, IMAGE, LOGRANK)["value"] == 1.0
    assert np.isnan(score(nothing, IMAGE, HAZARD)["value"])


def test_the_simulation_is_what_it_says() -> None:
    from hescribe.survival.simulate import Hazard, simulate_cohort

    first, again = (simulate_cohort(120, side=6, seed=4) for _ in range(2))
    pd.testing.assert_frame_equal(first.clinical, again.clinical)
    name, tiles = next(first.each_slide())
    assert (tiles.X == next(again.each_slide())[1].X).all()
    lymphoid = tiles.obs["region"] == "lymphoid"
    stroma = tiles.obs["region"] == "stroma"
    assert tiles[stroma, "STROMA1"].X.mean() > tiles[~stroma, "STROMA1"].X.mean() + 0.5
    assert len(lymphoid) == 36
    strong = simulate_cohort(400, hazard=Hazard(lymphoid=-1.5, age=0.0), side=6, seed=1).clinical
    assert concordance(Followed.of(strong["time"], strong["event"]), strong["true_risk"])[0] > 0.65
    shuffled = replace(first).redrawn(seed=1)
    assert not np.allclose(shuffled["time"], first.clinical["time"])
    assert name == "P0000-A"
