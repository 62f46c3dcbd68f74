"""Whether a known hazard is found again in simulated cohorts, and whether nothing is found where there is nothing.

    OMP_NUM_THREADS=1 python benchmarks/survival.py -o DIR [--patients 1600] [--repetitions 200]

Signal: 1,600 patients whose log hazard is −0.7 per standard deviation of the true lymphoid fraction and +0.3 of age;
features come from noisy slides. Compared with the AUC of the true log hazard on the same patients (attainable).
Null: the same features with outcomes that depend on nothing, 200 times, with elastic net and with ridge. Writes
``signal.csv``, ``null.csv``, ``summary.csv`` and the figures; about 6 CPU-minutes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from lifelines.statistics import logrank_test

from hescribe import pl
from hescribe.survival.clinical import check_clinical
from hescribe.survival.crossval import CoxLearner, cross_validate
from hescribe.survival.features import TILES, patient_features, slide_features
from hescribe.survival.judge import LOGRANK, auc_name, logrank_p
from hescribe.survival.outcome import BOTH, survival
from hescribe.survival.scores import Followed, draw_patients, dynamic_auc, widened_interval
from hescribe.survival.simulate import SETS, TISSUES, Cohort, simulate_cohort

HORIZON = 36.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=1600)
    parser.add_argument("--repetitions", type=int, default=200)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    cohort = simulate_cohort(args.patients, seed=0)
    features = read_off(cohort)
    print(f"features of {len(cohort.slides)} slides: {time.process_time() - began:.0f} s of CPU", flush=True)
    rows = signal(cohort, features, args.output)
    for name, l1_ratio in (("elastic net", 0.5), ("ridge", 0.0)):
        rows |= null(cohort, features, args, name=name, l1_ratio=l1_ratio)
    rows["CPU seconds"] = time.process_time() - began
    summary = pd.Series(rows).rename_axis("what").rename("value").reset_index()
    summary.to_csv(args.output / "summary.csv", index=False)
    print(summary.to_string(index=False))


def read_off(cohort: Cohort) -> pd.DataFrame:
    rows = {}
    for name, tiles in cohort.each_slide():
        scores = pd.DataFrame({k: tiles[:, v].X.mean(axis=1) for k, v in SETS.items()}, index=tiles.obs_names)
        row = slide_features(tiles, scores, tiles.obs["region"], region_names=TISSUES)
        row[TILES] = float(tiles.n_obs)
        rows[name] = row
    owner = dict(zip(cohort.slides["slide_id"], cohort.slides["patient_id"], strict=True))
    return patient_features(pd.DataFrame(rows).T, owner)


def signal(cohort: Cohort, features: pd.DataFrame, output: Path) -> dict[str, float]:
    began = time.process_time()
    result = survival(features, cohort.clinical, covariates=["age"], horizon=HORIZON)
    seconds = time.process_time() - began
    truth = check_clinical(cohort.clinical, covariates=["true_risk"])
    followed = Followed.of(truth["time"], truth["event"], result.risks["fold"])
    attainable = dynamic_auc(followed, truth["true_risk"], HORIZON)[0, 0]
    found = result.scores.set_index(["model", "metric"]).loc[(BOTH, auc_name(HORIZON))]
    effects = result.coefficients.query("model == @BOTH").set_index("feature")
    result.scores.to_csv(output / "signal.csv", index=False)
    risks = result.risks
    pl.save_figure(
        pl.kaplan_meier(
            risks["time"], risks["event"], risks[f"group {BOTH}"], title="Simulated cohort",
            p_value=result.scores.set_index(["model", "metric"]).loc[(BOTH, LOGRANK), "value"],
        ),
        output / "kaplan_meier.png",
    )  # fmt: skip
    pl.save_figure(pl.auc_over_time(result.auc, horizon=HORIZON), output / "auc.png")
    pl.save_figure(pl.calibration(result.calibration, when="at 36 months"), output / "calibration.png")
    pl.save_figure(pl.hazard_ratios(effects.reset_index()), output / "hazard_ratios.png")
    return {
        "signal: attainable AUC at 36": attainable,
        "signal: AUC at 36": found["value"],
        "signal: low": found["low"],
        "signal: high": found["high"],
        "signal: attainable AUC within the interval": float(found["low"] <= attainable <= found["high"]),
        "signal: sum of lymphoid coefficients": effects.filter(regex="^(mean|fraction):lymphoid", axis=0)[
            "coefficient"
        ].sum(),
        "signal: coefficient of age": effects.loc["age", "coefficient"],
        "signal: CPU seconds": seconds,
    }


def null(
    cohort: Cohort, features: pd.DataFrame, args: argparse.Namespace, *, name: str, l1_ratio: float
) -> dict[str, float]:
    rows = []
    for k in range(args.repetitions):
        table = check_clinical(cohort.redrawn(seed=k))
        at, event = table["time"].to_numpy(), table["event"].to_numpy()
        learner = CoxLearner(features.loc[table.index], at, event, l1_ratio=l1_ratio)
        held = cross_validate(learner, at, event, times=np.array([HORIZON]), seed=k)
        followed = Followed.of(at, event, held.fold)
        drawn = dynamic_auc(followed, held.risk, HORIZON, draw_patients(followed, 200, seed=k))[:, 0]
        value = dynamic_auc(followed, held.risk, HORIZON)[0, 0]
        low, high = widened_interval(value, drawn, n_folds=5)
        plain = widened_interval(value, drawn, n_folds=1)
        high_risk = held.high
        one = high_risk.all() or not high_risk.any()
        test = 1.0 if one else logrank_test(at[high_risk], at[~high_risk], event[high_risk], event[~high_risk]).p_value
        rows.append(
            {
                "auc": value,
                "inside": low <= 0.5 <= high,
                "inside, not widened": plain[0] <= 0.5 <= plain[1],
                "nothing chosen": float(np.ptp(held.risk) == 0),
                "log-rank p < 0.05": logrank_p(followed, high_risk, n_folds=5) < 0.05,
                "log-rank p < 0.05, not corrected": test < 0.05,
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(args.output / f"null_{name.replace(' ', '_')}.csv", index=False)
    error = table["auc"].std() / np.sqrt(len(table))
    out = {"mean AUC": table["auc"].mean(), "1.96 standard errors": 1.96 * error}
    out |= {c: table[c].mean() for c in table.columns if c != "auc"}
    return {f"null, {name}: {k}": float(v) for k, v in out.items()}


if __name__ == "__main__":
    main()
