"""A small simulated cohort, made once."""

from __future__ import annotations

import pandas as pd
import pytest

from hescribe.survival.features import TILES, patient_features, slide_features
from hescribe.survival.simulate import SETS, TISSUES, Cohort, Hazard, simulate_cohort


def table_of_slides(cohort: Cohort) -> pd.DataFrame:
    rows = {}
    for name, tiles in cohort.each_slide():
        scores = pd.DataFrame({k: tiles[:, v].X.mean(axis=1) for k, v in SETS.items()}, index=tiles.obs_names)
        row = slide_features(tiles, scores, tiles.obs["region"], region_names=TISSUES)
        rows[name] = pd.concat([row, pd.Series({TILES: float(tiles.n_obs)})])
    return pd.DataFrame(rows).T


@pytest.fixture(scope="session")
def cohort() -> Cohort:
    return simulate_cohort(240, hazard=Hazard(lymphoid=-1.2, age=0.5), side=8, seed=3)


@pytest.fixture(scope="session")
def slides(cohort: Cohort) -> pd.DataFrame:
    return table_of_slides(cohort)


@pytest.fixture(scope="session")
def features(cohort: Cohort, slides: pd.DataFrame) -> pd.DataFrame:
    owner = dict(zip(cohort.slides["slide_id"], cohort.slides["patient_id"], strict=True))
    return patient_features(slides, owner)
