"""Scores under several seeds as those of one."""

from dataclasses import replace

import numpy as np
import pytest

from hescribe.errors import InputError
from hescribe.evaluation import compare_methods, mean_over_seeds, method_table
from hescribe.evaluation.crossval import predict_at_spots
from hescribe.evaluation.scores import score_section


@pytest.fixture(scope="module")
def seeds(sections, oracle, noisy):
    """One section as predicted under two seeds, far apart."""
    section = sections[0]
    return [
        score_section(predict_at_spots(p, section), section.adata, method="m", n_resamples=40, n_splits=1)
        for p in (oracle, noisy)
    ]


def test_the_mean_is_of_figures_and_of_resamples(seeds):
    mean = mean_over_seeds(seeds)
    for column in ("pcc", "ceiling", "rvd"):
        expected = np.mean([s.summary[column].to_numpy(float) for s in seeds], axis=0)
        np.testing.assert_allclose(mean.summary[column].to_numpy(float), expected)
    for name, values in mean.resamples.items():
        np.testing.assert_allclose(values, np.mean([s.resamples[name] for s in seeds], axis=0))
    np.testing.assert_allclose(mean.per_gene["pcc"], np.mean([s.per_gene["pcc"] for s in seeds], axis=0))
    assert list(mean.per_gene.index) == list(seeds[0].per_gene.index)
    assert mean.per_gene["heg50"].dtype == bool
    # The interval is that of the mean, and a mean takes part in a comparison as any scores do
    low, high = np.quantile(mean.resamples["all"], [0.025, 0.975])
    assert tuple(mean.summary.loc["all", ["pcc_low", "pcc_high"]]) == pytest.approx((low, high))
    row = compare_methods([seeds[0]], [mean], n_resamples=20).set_index("set").loc["all"]
    assert row["difference"] == pytest.approx((seeds[0].summary["pcc"] - seeds[1].summary["pcc"])["all"] / 2)
    assert row["same_genes"]
    (figure,) = method_table([mean], n_resamples=20).query("set == 'all'")["pcc"]
    assert figure == pytest.approx(mean.summary.loc["all", "pcc"])


def test_one_seed_is_itself(seeds):
    assert mean_over_seeds(seeds[:1]) is seeds[0]


def test_only_what_belongs_together_is_averaged(seeds):
    one, other = seeds
    for wrong in (
        replace(other, section_id="x"),
        replace(other, n_spots=3),
        replace(other, resamples={k: v[:5] for k, v in other.resamples.items()}),
    ):
        with pytest.raises(InputError):
            mean_over_seeds([one, wrong])
