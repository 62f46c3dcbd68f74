"""Cox against lifelines, and what must hold for any data; attention finds the tiles that matter."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from lifelines.datasets import load_gbsg2, load_rossi

from hescribe.errors import InputError
from hescribe.survival.models.attention import Bags, GatedAttention, _drawn, train_attention
from hescribe.survival.models.cox import RiskSets, Scaling, fit_path, partial_likelihood, penalty_path


def rossi() -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    table = load_rossi()
    x = table.drop(columns=["week", "arrest"]).astype(float)
    x["prio"] = x["prio"].clip(upper=12)  # nothing beyond five standard deviations, where ours holds
    return x, table["week"].to_numpy(float), table["arrest"].to_numpy(bool)


@pytest.mark.parametrize(("l1_ratio", "tolerance"), [(0.0, 1e-4), (0.5, 2e-3)])
def test_coefficients_are_lifelines(l1_ratio: float, tolerance: float) -> None:
    """Ties included: Rossi's times are weeks. With l1 lifelines is approximate."""
    x, time, event = rossi()
    theirs = CoxPHFitter(penalizer=0.03, l1_ratio=l1_ratio).fit(
        x.assign(time=time, event=event), "time", "event", fit_options={"precision": 1e-10}
    )
    (ours,) = fit_path(x, time, event, [0.03], l1_ratio=l1_ratio)
    np.testing.assert_allclose(ours.per_unit, theirs.params_, atol=tolerance)
    assert (np.abs(ours.coefficients) > 0).sum() == (theirs.params_.abs() > 1e-4).sum()


def test_likelihood_is_lifelines_with_ties() -> None:
    x, time, event = rossi()
    fit = CoxPHFitter().fit(x.assign(time=time, event=event), "time", "event")
    risk = x.to_numpy() @ fit.params_.to_numpy()
    assert partial_likelihood(time, event, risk) == pytest.approx(fit.log_likelihood_, abs=1e-6)
    assert partial_likelihood(time, event, risk + 700) == pytest.approx(fit.log_likelihood_, abs=1e-6)


def test_efron_by_hand() -> None:
    """Two of three fall ill at once: the second meets a risk set with half of both."""
    h = np.exp([0.3, -0.2, 0.9])
    wanted = 0.3 - 0.2 - np.log(h.sum()) - np.log(h.sum() - 0.5 * (h[0] + h[1]))
    assert partial_likelihood([1, 1, 2], [True, True, False], [0.3, -0.2, 0.9]) == pytest.approx(wanted)
    assert list(RiskSets.of(np.array([1.0, 1.0, 2.0]), np.array([True, True, False])).share) == [0.0, 0.5, 0.0]


def test_the_path_begins_at_nothing_and_ends_with_more() -> None:
    x, time, event = rossi()
    path = penalty_path(x, time, event)
    models = fit_path(x, time, event, path)
    chosen = [int((m.coefficients != 0).sum()) for m in models]
    assert chosen[0] == 0
    assert chosen == sorted(chosen)
    assert chosen[-1] >= 5
    assert [m.penalty for m in models] == path


def test_constant_copied_and_missing_features() -> None:
    x, time, event = rossi()
    odd = x.assign(constant=3.0, copy=2 * x["age"] + 1, opposite=-x["age"])
    (plain,) = fit_path(x, time, event, [0.02])
    (model,) = fit_path(odd, time, event, [0.02])
    np.testing.assert_allclose(model.coefficients[:7], plain.coefficients, atol=1e-6)
    assert (model.coefficients[7:] == 0).all()
    holes = x.copy()
    holes.iloc[:100, 1] = np.nan
    (with_holes,) = fit_path(holes, time, event, [0.02])
    assert np.isfinite(with_holes.risk(holes)).all()
    assert with_holes.contributions(holes).iloc[:100, 1].eq(0).all()
    with pytest.raises(InputError, match="age"):
        model.risk(odd.drop(columns="age"))
    assert fit_path(odd[["constant"]], time, event, [0.02])[0].risk(odd).tolist() == [0.0] * len(odd)


def test_more_features_than_patients() -> None:
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(40, 120)))
    time, event = rng.exponential(size=40), rng.random(40) < 0.7
    for l1_ratio in (0.0, 1.0):
        path = penalty_path(x, time, event, l1_ratio=l1_ratio)
        assert all(
            np.isfinite(m.risk(x.set_axis(map(str, range(120)), axis=1))).all()
            for m in fit_path(x, time, event, path, l1_ratio=l1_ratio)
        )


def test_contributions_sum_to_the_risk_and_an_odd_patient_is_held() -> None:
    table = load_gbsg2()
    x = table[["age", "pnodes", "progrec"]].astype(float)
    (model,) = fit_path(x, table["time"], table["cens"], [0.01], l1_ratio=0.0)
    np.testing.assert_allclose(model.contributions(x).sum(axis=1), model.risk(x))
    assert model.coefficients[1] > 0 > model.coefficients[2]
    strange = x.iloc[:1].assign(pnodes=1e6)
    assert model.risk(strange)[0] <= 5 * np.abs(model.coefficients).sum()


def test_scaling_knows_only_its_own_rows() -> None:
    values = np.random.default_rng(0).normal(3, 2, (50, 2))
    scaling = Scaling.learn(values)
    z = scaling.apply(values)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(axis=0, ddof=1), 1)


def bags(n: int, *, seed: int) -> tuple[Bags, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Patients whose hazard is the mark of a few tiles, which another mark tells apart; the mean over tiles hides it."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    tiles, marked = [], []
    for r in risk:
        each = rng.normal(size=(30, 3))
        few = np.zeros(30, dtype=bool)
        few[:3] = True
        each[:, 0] = np.where(few, 4.0, 0.0) + rng.normal(0, 0.3, 30)
        each[:, 1] = np.where(few, 2 * r, 2 * rng.normal(size=30))
        tiles.append(each.astype(np.float32))
        marked.append(few)
    time = rng.exponential(np.exp(-1.5 * risk))
    return Bags(tiles, np.zeros((n, 0))), np.minimum(time, 3.0), time < 3.0, marked


def test_gated_attention_by_its_equations() -> None:
    """One patient at a time; the second has but one tile, and tiles of a patient need not lie together."""
    import torch

    torch.manual_seed(0)
    network, rng = GatedAttention(4, 2), np.random.default_rng(0)
    tiles, covariates = rng.normal(0, 2, (9, 4)), rng.normal(size=(3, 2))
    owner = np.array([0, 0, 2, 1, 2, 2, 0, 2, 0])
    given = (torch.from_numpy(a).float() for a in (tiles, covariates))
    with torch.inference_mode():
        risk, attention = (r.numpy() for r in network(next(given), torch.from_numpy(owner), next(given)))
    numbers = {name: value.detach().numpy().astype(float) for name, value in network.named_parameters()}
    for patient in range(3):
        h = tiles[owner == patient]
        what = np.tanh(h @ numbers["what.weight"].T + numbers["what.bias"])
        gate = 1 / (1 + np.exp(-(h @ numbers["gate.weight"].T + numbers["gate.bias"])))
        score = np.exp((what * gate) @ numbers["weigh.weight"][0])
        a = score / score.sum()
        np.testing.assert_allclose(attention[owner == patient], a, rtol=1e-4)
        expected = np.append(a @ h, covariates[patient]) @ numbers["hazard.weight"][0]
        assert risk[patient] == pytest.approx(expected, rel=1e-4)


def test_of_a_patient_with_many_tiles_as_many_as_fit_are_drawn_anew() -> None:
    few, many = np.arange(256.0)[:, None], np.arange(400.0)[:, None]
    rng = np.random.default_rng(0)
    drawn = [_drawn(Bags([few, many], np.zeros((2, 0))), rng).tiles for _ in range(20)]
    assert all((d[0] == few).all() for d in drawn)
    assert all(len(np.unique(d[1])) == 256 for d in drawn)
    assert len(np.unique([d[1] for d in drawn])) == 400


def test_attention_is_given_out_by_patients_and_covariates_are_scaled() -> None:
    train, time, event, _ = bags(60, seed=0)
    rng = np.random.default_rng(1)
    train = Bags([t[: 5 + i % 20] for i, t in enumerate(train.tiles)], rng.normal(50, 10, (60, 1)))
    model = train_attention(train, time, event, seed=0)
    given = model.attention(train)
    assert [len(a) for a in given] == [len(t) for t in train.tiles]
    for i in (0, 7):  # as of a patient alone
        alone = train.of(np.array([i]))
        np.testing.assert_allclose(model.attention(alone)[0], given[i], rtol=1e-4)
        assert model.risk(alone)[0] == pytest.approx(model.risk(train)[i], rel=1e-4, abs=1e-5)
    # Years or months: the unit makes no difference
    months = train_attention(Bags(train.tiles, 12 * train.covariates), time, event, seed=0)
    assert model.network.hazard.weight[0, -1].abs() > 1e-3
    np.testing.assert_allclose(
        months.risk(Bags(train.tiles, 12 * train.covariates)), model.risk(train), rtol=1e-3, atol=1e-4
    )


def test_attention_finds_the_tiles_that_matter() -> None:
    train, time, event, _ = bags(250, seed=0)
    model = train_attention(train, time, event, weight_decay=0.03, seed=0)
    test, later, ended, marked = bags(150, seed=1)
    from lifelines.utils import concordance_index

    mean = np.array([t[:, 1].mean() for t in test.tiles])
    found, plain = (concordance_index(later, -r, ended) for r in (model.risk(test), mean))
    assert found > plain + 0.07
    weights = model.attention(test)
    assert all(w.sum() == pytest.approx(1, abs=1e-4) for w in weights)
    assert np.mean([w[m].sum() for w, m in zip(weights, marked, strict=True)]) > 0.3


def test_attention_is_the_same_by_seed_and_leaves_torch_as_it_was() -> None:
    import torch

    train, time, event, _ = bags(40, seed=0)
    before = torch.random.get_rng_state()
    first, second, other = (train_attention(train, time, event, seed=s).risk(train) for s in (1, 1, 2))
    assert (first == second).all()
    assert not (first == other).all()
    assert torch.equal(before, torch.random.get_rng_state())
