"""fusion, part by part, against slow or closed-form truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import nnls
from torch import nn

from hescribe.methods.base import Origin, Shapes
from hescribe.methods.depth import at_depth
from hescribe.methods.fusion import (
    _COUNTS,
    _PENALTIES,
    Fusion,
    FusionConfig,
    Strength,
    _centre_sections,
    _choose,
    _cross_fitted,
    _mean_pcc,
    _non_negative,
    _retrieve,
    _section_folds,
    _solve,
    _stack,
)

SECTION = np.repeat(np.arange(4), 30)
PATIENT = SECTION // 2


def planted(seed: int = 0, *, noise: float = 0.5) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Two programs that the first two features decide; the other features and genes are noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(120, 8)).astype("f")
    loadings = np.random.default_rng(99).normal(size=(2, 40))
    expression = features[:, :2] @ loadings + 4 + noise * rng.normal(size=(120, 40)) + SECTION[:, None]
    return features, sparse.csr_matrix(np.maximum(expression, 0).astype("f"))


def fitted(**config: object) -> Fusion:
    features, expression = planted()
    model = Fusion(nn.Identity(), Shapes(8, 0, 40), FusionConfig(**config))  # type: ignore[arg-type]
    model.solve(features, expression, Origin(SECTION, PATIENT))
    return model.eval()


def test_programs_are_the_svd_of_section_centred_expression() -> None:
    expression = planted()[1]
    dense = expression.toarray().astype(float)
    for s in range(4):
        dense[s == SECTION] -= dense[s == SECTION].mean(axis=0)
    _, singular, rows = np.linalg.svd(dense, full_matrices=False)
    spots = _centre_sections(expression, SECTION, 5)
    np.testing.assert_allclose(np.abs((spots.programs * rows[:5]).sum(axis=1)), 1, atol=1e-6)
    np.testing.assert_allclose(spots.scores, dense @ spots.programs.T, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(spots.scores, axis=0), singular[:5], rtol=1e-6)
    np.testing.assert_allclose(spots.sections[2], expression[SECTION == 2].toarray().mean(axis=0), rtol=1e-5)


def test_the_map_is_the_ridge_of_its_equation() -> None:
    rng = np.random.default_rng(1)
    z, s = rng.normal(size=(50, 6)), rng.normal(size=(50, 4))
    found = _solve(z, s, Strength(programs=3, penalty=0.1))
    # Gradient of ‖S − ZB‖² + λ n ‖B‖² is zero
    np.testing.assert_allclose(z.T @ (z @ found - s[:, :3]) + 0.1 * 50 * found, 0, atol=1e-9)


def test_folds_leave_whole_sections_out_and_keep_the_patient() -> None:
    folds = _section_folds(Origin(SECTION, PATIENT))
    assert np.sum(folds, axis=0).tolist() == [1] * 120
    for held in folds:
        assert not set(SECTION[held]) & set(SECTION[~held])
        assert set(PATIENT[held]) <= set(PATIENT[~held])
    assert _section_folds(Origin(SECTION, SECTION)) == []


def test_cross_fitted_scores_never_see_their_own_section() -> None:
    rng = np.random.default_rng(2)
    z, s = rng.normal(size=(120, 5)), rng.normal(size=(120, 3))
    folds = _section_folds(Origin(SECTION, PATIENT))
    strength = Strength(programs=3, penalty=0.1)
    before = _cross_fitted(z, s, folds, strength)
    changed = s.copy()
    changed[SECTION == 1] += 100 * rng.normal(size=(30, 3))
    np.testing.assert_array_equal(_cross_fitted(z, changed, folds, strength)[SECTION == 1], before[SECTION == 1])


def test_correlation_within_sections_by_a_slow_loop() -> None:
    rng = np.random.default_rng(3)
    p, t = rng.normal(size=(120, 6)), rng.normal(size=(120, 6)) + SECTION[:, None]
    expected = [
        np.mean([np.corrcoef(p[s == SECTION, g], t[s == SECTION, g])[0, 1] for s in range(4)]) for g in range(6)
    ]
    np.testing.assert_allclose(_mean_pcc(p, t, SECTION), expected)


def test_the_settings_follow_the_noise() -> None:
    """Where there is much to learn it is bold; where most of what it sees is noise it is not."""
    origin = Origin(SECTION, PATIENT)
    features, expression = planted(noise=0.1)
    spots = _centre_sections(expression, SECTION, 20)
    clear = _choose(features.astype(float), spots, _section_folds(origin))
    assert clear.programs == 2
    more = np.random.default_rng(0).normal(size=(120, 100))
    noisy = _choose(np.hstack([features, more]), spots, _section_folds(origin))
    assert clear.penalty < noisy.penalty


def test_a_patient_of_many_sections_does_not_outvote_another() -> None:
    """The five sections of one patient and the single one of another are best predicted with unlike penalties."""
    rng = np.random.default_rng(10)
    section = np.repeat(np.arange(6), 30)
    folds = [section == 5, section < 5]
    features = rng.normal(size=(180, 120))
    score = features[:, :20] @ rng.normal(size=(20, 1))
    expression = score @ rng.normal(size=(1, 40)) + 15 + 3 * rng.normal(size=(180, 40))
    spots = _centre_sections(sparse.csr_matrix(np.maximum(expression, 0)), section, 10)
    dense = spots.expression.toarray()

    def judge(strength: Strength) -> np.ndarray:
        """Mean correlation within each section, predicted without its patient."""
        guess = np.zeros((180, 40))
        for held in folds:
            fitted = _solve(features[~held], spots.scores[~held], strength)
            guess[held] = features[held] @ fitted @ spots.programs[: strength.programs]
        return np.array(
            [
                np.mean([np.corrcoef(guess[section == s, g], dense[section == s, g])[0, 1] for g in range(40)])
                for s in range(6)
            ]
        )

    options = [Strength(programs=c, penalty=p) for p in _PENALTIES for c in _COUNTS if c <= 10]
    values = np.array([judge(option) for option in options])
    by_patient = (values[:, :5].mean(axis=1) + values[:, 5]) / 2
    assert by_patient.argmax() != values.mean(axis=1).argmax()
    assert _choose(features, spots, folds) == options[by_patient.argmax()]


def test_retrieval_by_a_slow_loop() -> None:
    rng = np.random.default_rng(4)
    queries, keys, payload = (torch.from_numpy(rng.normal(size=s)) for s in ((7, 3), (25, 3), (25, 4)))
    expected = []
    for q in queries.numpy():
        cosine = [q @ k / np.linalg.norm(q) / np.linalg.norm(k) for k in keys.numpy()]
        expected.append(payload.numpy()[np.argsort(cosine)[-5:]].mean(axis=0))
    np.testing.assert_allclose(_retrieve(queries, keys, payload, 5), expected)


def test_weights_are_non_negative_least_squares() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        a, b, y = rng.normal(size=(3, 10))
        b = b + rng.choice([0, 2]) * a
        expected = nnls(np.column_stack([a, b]), y)[0]
        found = _non_negative(*(np.array([v]) for v in (a @ a, b @ b, a @ b, a @ y, b @ y)))
        np.testing.assert_allclose(np.ravel(found), expected, atol=1e-8)


def test_stacking_by_dense_least_squares() -> None:
    """With one gene, drawing towards all genes together changes nothing, so it is plain least squares."""
    rng = np.random.default_rng(6)
    expression = sparse.csr_matrix(np.abs(rng.normal(size=(120, 1))))
    spots = _centre_sections(sparse.hstack([expression, expression * 0]).tocsr(), SECTION, 1)
    truth = expression.toarray().ravel() - spots.sections[SECTION, 0]
    a, b = truth[:, None] * 0.5 + rng.normal(size=(120, 1)), truth[:, None] * 0.3 + rng.normal(size=(120, 1))
    sign = spots.programs[0, 0]
    u, v = _stack(a * sign, b * sign, spots)
    np.testing.assert_allclose([u[0], v[0]], nnls(np.column_stack([a, b]), truth)[0], rtol=1e-6)


def test_it_finds_what_was_planted_and_loses_it_when_shuffled() -> None:
    features, expression = planted(seed=7)

    def pcc(model: Fusion, x: np.ndarray) -> float:
        predicted = model.predict_known(torch.from_numpy(x)).numpy()
        return float(np.median(_mean_pcc(predicted, expression.toarray().astype(float), SECTION)))

    model = fitted()
    assert pcc(model, features) > 0.8
    assert abs(pcc(model, np.random.default_rng(0).permutation(features))) < 0.2


def test_a_new_patient_is_treated_with_more_care() -> None:
    model = fitted(one_patient={"programs": 1, "penalty": 1.0}, new={"programs": 1, "penalty": 1.0})
    x = torch.from_numpy(planted(seed=8)[0])
    known, new = model.predict_known(x), model.predict_expression(x)
    assert new.std(dim=0).mean() < known.std(dim=0).mean()
    assert torch.linalg.matrix_rank(new - new.mean(0), atol=1e-3) == 1


def counted(seed: int, *, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts of 120 spots over 200 genes that differ in level; one program, decided by the first feature, moves a third."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(120, 8)).astype("f")
    fixed = np.random.default_rng(98)
    level, loading = fixed.lognormal(0, 2, 200), np.where(np.arange(200) % 3 == 0, fixed.normal(size=200), 0)
    rates = level * np.exp(features[:, :1] * loading)
    return features, rng.poisson(depth * rates / rates.sum(axis=1, keepdims=True))


def normalised(counts: np.ndarray) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)))


def test_programs_for_new_patients_are_those_between_two_depths() -> None:
    features, counts = counted(0, depth=20_000)
    expression, origin = normalised(counts), Origin(SECTION, np.zeros_like(SECTION))
    strength = {"programs": 1, "penalty": 0.1}

    def fit(shallow: int) -> Fusion:
        config = FusionConfig(shallow=shallow, one_patient=strength, known=strength, retrieval=False)  # type: ignore[arg-type]
        model = Fusion(nn.Identity(), Shapes(8, 0, 200), config)
        model.solve(features, expression, origin)
        return model.eval()

    both, deep = fit(1000), fit(0)
    between = _centre_sections((expression + at_depth(expression, SECTION, 1000)) / 2, SECTION, 1)
    np.testing.assert_allclose(both.get_buffer("programs_new")[0], between.programs[0], atol=1e-5)
    np.testing.assert_array_equal(deep.get_buffer("programs_new"), deep.get_buffer("programs"))
    np.testing.assert_array_equal(both.get_buffer("map_known"), deep.get_buffer("map_known"))
    # Below the limit nothing is thinned
    np.testing.assert_allclose(fit(10**6).get_buffer("programs_new"), deep.get_buffer("programs_new"), atol=1e-6)

    # What the driving feature moves in another, shallower section is more like the program between two depths
    other, few = counted(1, depth=300)
    truth = normalised(few).toarray()
    moved = (truth - truth.mean(axis=0)).T @ other[:, 0]

    def likeness(model: Fusion) -> float:
        program = model.get_buffer("programs_new")[0].numpy()
        return float(abs(program @ moved) / np.linalg.norm(moved))

    assert likeness(both) > likeness(deep)


@pytest.mark.parametrize("retrieval", [True, False])
def test_retrieval_can_be_left_out(retrieval: bool) -> None:
    model = fitted(retrieval=retrieval)
    assert bool(len(model.get_buffer("keys"))) == retrieval


def test_weights_are_the_whole_state() -> None:
    model = fitted()
    other = Fusion(nn.Identity(), Shapes(8, 0, 40), FusionConfig())
    other.load_state_dict(model.state_dict(), strict=True)
    x = torch.from_numpy(planted(seed=9)[0])
    assert torch.equal(other.predict_known(x), model.predict_known(x))
    assert torch.equal(other.predict_expression(x), model.predict_expression(x))


def test_one_section_is_enough() -> None:
    features, expression = planted()
    model = Fusion(nn.Identity(), Shapes(8, 0, 40), FusionConfig())
    one = np.zeros(30, dtype=int)
    model.solve(features[:30], expression[:30], Origin(one, one))
    assert np.isfinite(model.predict_known(torch.from_numpy(features)).numpy()).all()
