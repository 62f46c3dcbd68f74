"""fusion, part by part, against slow or closed-form truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import nnls
from torch import nn

from hescribe.methods.base import Origin, Shapes, Unpaired
from hescribe.methods.baselines.ridge import mean_pcc
from hescribe.methods.depth import at_depth
from hescribe.methods.fusion.model import Fusion, FusionConfig
from hescribe.methods.fusion.programs import (
    COUNTS,
    PENALTIES,
    Strength,
    centre_sections,
    choose_strength,
    patient_folds,
    section_folds,
    solve_map,
    voting_genes,
)
from hescribe.methods.fusion.retrieval import cross_fit, non_negative, retrieve, stack

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


def described(model: Fusion, features: np.ndarray) -> np.ndarray:
    """Components of features, in float64."""
    mean, axes = (model.get_buffer(name).double().numpy() for name in ("mean", "axes"))
    return (features - mean) @ axes


def test_programs_are_the_svd_of_section_centred_expression() -> None:
    expression = planted()[1]
    dense = expression.toarray().astype(float)
    for s in range(4):
        dense[s == SECTION] -= dense[s == SECTION].mean(axis=0)
    _, singular, rows = np.linalg.svd(dense, full_matrices=False)
    spots = centre_sections(expression, SECTION, 5)
    np.testing.assert_allclose(np.abs((spots.programs * rows[:5]).sum(axis=1)), 1, atol=1e-6)
    np.testing.assert_allclose(spots.scores, dense @ spots.programs.T, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(spots.scores, axis=0), singular[:5], rtol=1e-6)
    np.testing.assert_allclose(spots.sections[2], expression[SECTION == 2].toarray().mean(axis=0), rtol=1e-5)


def test_the_map_is_the_ridge_of_its_equation() -> None:
    rng = np.random.default_rng(1)
    z, s = rng.normal(size=(50, 6)), rng.normal(size=(50, 4))
    found = solve_map(z, s, Strength(programs=3, penalty=0.1))
    # Gradient of ‖S − ZB‖² + λ n ‖B‖² is zero
    np.testing.assert_allclose(z.T @ (z @ found - s[:, :3]) + 0.1 * 50 * found, 0, atol=1e-9)


def test_folds_leave_whole_sections_out_and_keep_the_patient() -> None:
    folds = section_folds(Origin(SECTION, PATIENT))
    assert np.sum(folds, axis=0).tolist() == [1] * 120
    for held in folds:
        assert not set(SECTION[held]) & set(SECTION[~held])
        assert set(PATIENT[held]) <= set(PATIENT[~held])
    assert section_folds(Origin(SECTION, SECTION)) == []


def test_cross_fitted_scores_never_see_their_own_section() -> None:
    rng = np.random.default_rng(2)
    z, s = rng.normal(size=(120, 5)), rng.normal(size=(120, 3))
    folds = section_folds(Origin(SECTION, PATIENT))
    strength = Strength(programs=3, penalty=0.1)
    before = cross_fit(z, s, SECTION, folds, strength)
    changed = s.copy()
    changed[SECTION == 1] += 100 * rng.normal(size=(30, 3))
    np.testing.assert_array_equal(cross_fit(z, changed, SECTION, folds, strength)[SECTION == 1], before[SECTION == 1])


def test_correlation_within_sections_by_a_slow_loop() -> None:
    rng = np.random.default_rng(3)
    p, t = rng.normal(size=(120, 6)), rng.normal(size=(120, 6)) + SECTION[:, None]
    expected = [
        np.mean([np.corrcoef(p[s == SECTION, g], t[s == SECTION, g])[0, 1] for s in range(4)]) for g in range(6)
    ]
    np.testing.assert_allclose(mean_pcc(p, t, SECTION), expected)


def test_the_settings_follow_the_noise() -> None:
    """Where there is much to learn it is bold; where most of what it sees is noise it is not."""
    origin = Origin(SECTION, PATIENT)
    features, expression = planted(noise=0.1)
    spots = centre_sections(expression, SECTION, 20)
    clear = choose_strength(features.astype(float), spots, section_folds(origin), SECTION).strength
    assert clear.programs == 2
    more = np.random.default_rng(0).normal(size=(120, 100))
    noisy = choose_strength(np.hstack([features, more]), spots, section_folds(origin), SECTION).strength
    assert clear.penalty < noisy.penalty


def five_and_one(seed: int) -> tuple[np.ndarray, sparse.csr_matrix, np.ndarray]:
    """Five sections of one patient and a single one of another, best predicted with unlike penalties."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(180, 120))
    score = features[:, :20] @ rng.normal(size=(20, 1))
    expression = score @ rng.normal(size=(1, 40)) + 15 + 3 * rng.normal(size=(180, 40))
    return features, sparse.csr_matrix(np.maximum(expression, 0)), np.repeat(np.arange(6), 30)


def test_a_patient_of_many_sections_does_not_outvote_another() -> None:
    features, expression, section = five_and_one(10)
    folds = [section == 5, section < 5]
    spots = centre_sections(expression, section, 10)
    dense = spots.expression.toarray()

    def judge(strength: Strength) -> np.ndarray:
        """Mean correlation within each section, predicted without its patient."""
        guess = np.zeros((180, 40))
        for held in folds:
            fitted = solve_map(features[~held], spots.scores[~held], strength)
            guess[held] = features[held] @ fitted @ spots.programs[: strength.programs]
        return np.array(
            [
                np.mean([np.corrcoef(guess[section == s, g], dense[section == s, g])[0, 1] for g in range(40)])
                for s in range(6)
            ]
        )

    options = [Strength(programs=c, penalty=p) for p in PENALTIES for c in COUNTS if c <= 10]
    values = np.array([judge(option) for option in options])
    by_patient = (values[:, :5].mean(axis=1) + values[:, 5]) / 2
    assert by_patient.argmax() != values.mean(axis=1).argmax()
    patient = (section == 5).astype(int)
    assert choose_strength(features, spots, folds, patient).strength == options[by_patient.argmax()]


def test_a_new_patient_s_map_is_chosen_by_patients_not_sections() -> None:
    features, expression, section = five_and_one(21)
    patient = (section == 5).astype(int)
    fixed = Strength(programs=1, penalty=1.0)
    config = FusionConfig(known=fixed, own=False, retrieval=False, shallow=0, programs=10)
    model = Fusion(nn.Identity(), Shapes(120, 0, 40), config)
    model.solve(features.astype("f"), expression, Origin(section, patient))
    z, spots = described(model, features), centre_sections(expression, section, 10)
    by_patient, by_section = (
        choose_strength(z, spots, patient_folds(Origin(section, patient)), unit).strength for unit in (patient, section)
    )
    assert by_patient != by_section
    found = model.get_buffer("map_new").numpy()
    np.testing.assert_allclose(found[:, : by_patient.programs], solve_map(z, spots.scores, by_patient), atol=1e-4)
    assert not found[:, by_patient.programs :].any()


def test_the_unit_of_a_feature_does_not_matter() -> None:
    features, expression = planted()
    unit = 10.0 ** np.array([0, 2, -1, 1, -2, 0, 1, 2], dtype="f")
    strength = Strength(programs=2, penalty=0.1)
    found = []
    for factor in (np.ones(8, "f"), unit):
        model = Fusion(nn.Identity(), Shapes(8, 0, 40), FusionConfig(known=strength, new=strength, retrieval=False))
        model.solve(features * factor, expression, Origin(SECTION, PATIENT))
        found.append(model.eval().predict_expression(torch.from_numpy(features * factor)))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)


def test_retrieval_by_a_slow_loop() -> None:
    rng = np.random.default_rng(4)
    queries, keys, payload = (torch.from_numpy(rng.normal(size=s)) for s in ((7, 3), (25, 3), (25, 4)))
    expected = []
    for q in queries.numpy():
        cosine = [q @ k / np.linalg.norm(q) / np.linalg.norm(k) for k in keys.numpy()]
        expected.append(payload.numpy()[np.argsort(cosine)[-5:]].mean(axis=0))
    np.testing.assert_allclose(retrieve(queries, keys, payload, 5), expected)


def test_weights_are_non_negative_least_squares() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        a, b, y = rng.normal(size=(3, 10))
        b = b + rng.choice([0, 2]) * a
        expected = nnls(np.column_stack([a, b]), y)[0]
        found = non_negative(*(np.array([v]) for v in (a @ a, b @ b, a @ b, a @ y, b @ y)))
        np.testing.assert_allclose(np.ravel(found), expected, atol=1e-8)


def test_stacking_by_dense_least_squares() -> None:
    """With one gene, drawing towards all genes together changes nothing, so it is plain least squares."""
    rng = np.random.default_rng(6)
    expression = sparse.csr_matrix(np.abs(rng.normal(size=(120, 1))))
    spots = centre_sections(sparse.hstack([expression, expression * 0]).tocsr(), SECTION, 1)
    truth = expression.toarray().ravel() - spots.sections[SECTION, 0]
    a, b = truth[:, None] * 0.5 + rng.normal(size=(120, 1)), truth[:, None] * 0.3 + rng.normal(size=(120, 1))
    sign = spots.programs[0, 0]
    u, v = stack(a * sign, b * sign, spots)
    np.testing.assert_allclose([u[0], v[0]], nnls(np.column_stack([a, b]), truth)[0], rtol=1e-6)


def test_it_finds_what_was_planted_and_loses_it_when_shuffled() -> None:
    features, expression = planted(seed=7)

    def pcc(model: Fusion, x: np.ndarray) -> float:
        predicted = model.predict_known(torch.from_numpy(x), 0).numpy()
        return float(np.median(mean_pcc(predicted, expression.toarray().astype(float), SECTION)))

    model = fitted()
    assert pcc(model, features) > 0.8
    assert abs(pcc(model, np.random.default_rng(0).permutation(features))) < 0.2


def test_a_new_patient_is_treated_with_more_care() -> None:
    model = fitted(one_patient={"programs": 1, "penalty": 1.0}, new={"programs": 1, "penalty": 1.0})
    x = torch.from_numpy(planted(seed=8)[0])
    known, new = model.predict_known(x, 0), model.predict_expression(x)
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
    between = centre_sections((expression + at_depth(expression, SECTION, 1000)) / 2, SECTION, 1)
    np.testing.assert_allclose(both.get_buffer("programs_new")[0], between.programs[0], atol=1e-5)
    np.testing.assert_array_equal(deep.get_buffer("programs_new"), deep.get_buffer("known.all.programs"))
    np.testing.assert_array_equal(both.get_buffer("known.all.map"), deep.get_buffer("known.all.map"))
    # Below the limit nothing is thinned
    most = COUNTS[-1]  # no choice takes more
    unthinned, plain = (model.get_buffer("programs_new")[:most] for model in (fit(10**6), deep))
    np.testing.assert_allclose(unthinned, plain, atol=1e-6)

    # What the driving feature moves in another, shallower section is more like the program between two depths
    other, few = counted(1, depth=300)
    truth = normalised(few).toarray()
    moved = (truth - truth.mean(axis=0)).T @ other[:, 0]

    def likeness(model: Fusion) -> float:
        program = model.get_buffer("programs_new")[0].numpy()
        return float(abs(program @ moved) / np.linalg.norm(moved))

    assert likeness(both) > likeness(deep)


def test_spots_without_image_shape_the_programs_for_new_patients_alone() -> None:
    features, counts = counted(0, depth=2_000)
    expression = normalised(counts)
    beside = np.vstack([counted(5, depth=1_500)[1], counted(6, depth=900)[1][:40]])
    source = np.repeat([0, 1], [120, 40])
    others = Unpaired(normalised(beside), source, np.ones((2, 200), bool))
    # A source of half the genes has no say
    lacking = Unpaired(
        sparse.vstack([others.expression, normalised(beside[:9] * (np.arange(200) < 100))]).tocsr(),
        np.append(source, np.full(9, 2)),
        np.vstack([others.measured, np.arange(200) < 100]),
    )
    strength = Strength(programs=2, penalty=0.1)

    def fit(unpaired: Unpaired | None) -> Fusion:
        model = Fusion(nn.Identity(), Shapes(8, 0, 200), FusionConfig(one_patient=strength))
        if unpaired is not None:
            model.add_unpaired(unpaired)
        model.solve(features, expression, Origin(SECTION, np.zeros_like(SECTION)))
        return model.eval()

    def between(matrix: sparse.csr_matrix, section: np.ndarray) -> np.ndarray:
        dense = ((matrix + at_depth(matrix, section, 1000)) / 2).toarray()
        return np.vstack([dense[section == s] - dense[section == s].mean(axis=0) for s in np.unique(section)])

    alone, together = fit(None), fit(lacking)
    own, more = between(expression, SECTION), between(others.expression, source)
    weight = np.sqrt(min(1, (own**2).sum() / (more**2).sum()))
    assert weight < 1
    rows = np.linalg.svd(np.vstack([own, weight * more]), full_matrices=False)[2][:2]
    found = together.get_buffer("programs_new")[:2].numpy()
    np.testing.assert_allclose(np.abs((found * rows).sum(axis=1)), 1, atol=1e-5)
    expected = solve_map(described(together, features), own @ found.T, strength)
    np.testing.assert_allclose(together.get_buffer("map_new")[:, :2], expected, atol=1e-4)
    for name, buffer in alone.named_buffers():
        if name not in ("programs_new", "map_new"):
            torch.testing.assert_close(buffer, together.get_buffer(name), rtol=0, atol=0, msg=name)


def test_few_shallow_spots_predict_a_new_patient_better_with_others_beside_them() -> None:
    features, counts = counted(0, depth=300)
    origin = Origin(np.zeros(40, dtype=int), np.zeros(40, dtype=int))
    others = Unpaired(normalised(counted(5, depth=2_000)[1]), SECTION, np.ones((4, 200), bool))
    truth = normalised(counted(7, depth=20_000)[1]).toarray()
    reached = []
    for unpaired in (None, others):
        model = Fusion(nn.Identity(), Shapes(8, 0, 200), FusionConfig(one_patient=Strength(programs=1, penalty=0.1)))
        if unpaired is not None:
            model.add_unpaired(unpaired)
        model.solve(features[:40], normalised(counts[:40]), origin)
        mine = model.predict_expression(torch.from_numpy(counted(7, depth=20_000)[0])).numpy()
        moved = np.arange(200) % 3 == 0
        # Of genes one program moves, only the sign of the loading counts
        reached.append(np.mean(mean_pcc(mine[:, moved], truth[:, moved], np.zeros(120, dtype=int))))
    assert reached[1] > reached[0] + 0.05


@pytest.mark.parametrize("retrieval", [True, False])
def test_retrieval_can_be_left_out(retrieval: bool) -> None:
    model = fitted(retrieval=retrieval)
    assert bool(len(model.get_buffer("known.all.keys"))) == retrieval


def test_weights_are_the_whole_state() -> None:
    model = fitted()
    other = Fusion(nn.Identity(), Shapes(8, 0, 40), FusionConfig())
    other.load_state_dict(model.state_dict(), strict=True)
    x = torch.from_numpy(planted(seed=9)[0])
    assert torch.equal(other.predict_known(x, 0), model.predict_known(x, 0))
    assert torch.equal(other.predict_expression(x), model.predict_expression(x))


def test_one_section_is_enough() -> None:
    features, expression = planted()
    model = Fusion(nn.Identity(), Shapes(8, 0, 40), FusionConfig())
    one = np.zeros(30, dtype=int)
    model.solve(features[:30], expression[:30], Origin(one, one))
    assert np.isfinite(model.predict_known(torch.from_numpy(features), 0).numpy()).all()


def test_seven_patients_have_a_vote_each_in_five_folds() -> None:
    """Where folds hold two patients or one, those of the pairs used to count half."""
    rng = np.random.default_rng(11)
    section = np.repeat(np.arange(7), 20)
    folds = patient_folds(Origin(section, section))
    assert [len(np.unique(section[f])) for f in folds] == [2, 2, 1, 1, 1]
    features, expression = rng.normal(size=(140, 30)), rng.gamma(2.0, size=(140, 25))
    spots = centre_sections(sparse.csr_matrix(expression), section, 3)
    chosen = choose_strength(features, spots, folds, section)
    guess = np.zeros((140, 25))
    for held in folds:
        scores = features[held] @ solve_map(features[~held], spots.scores[~held], chosen.strength)
        guess[held] = scores @ spots.programs[: chosen.strength.programs]
    reached = [
        np.mean([np.corrcoef(guess[section == p, g], expression[section == p, g])[0, 1] for g in range(25)])
        for p in range(7)
    ]
    assert chosen.correlation == pytest.approx(np.mean(reached))


def test_keys_of_a_patients_only_section_are_cross_fitted_too() -> None:
    """They used to come from a map fitted to that very section, and lay nearer to the truth than any query can."""
    rng = np.random.default_rng(12)
    z, s = rng.normal(size=(120, 5)), rng.normal(size=(120, 3))
    patient = np.array([0, 0, 0, 1])[SECTION]
    folds, strength = section_folds(Origin(SECTION, patient)), Strength(programs=3, penalty=0.1)
    assert not np.any(folds, axis=0)[SECTION == 3].any()
    alone = SECTION == 3
    expected = z[alone] @ solve_map(z[~alone], s[~alone], strength)
    np.testing.assert_allclose(cross_fit(z, s, SECTION, folds, strength)[alone], expected)


def two_patients(*, alike: bool) -> tuple[np.ndarray, sparse.csr_matrix, Origin]:
    """Three sections of one patient, three of another, whose features mean the same or the opposite."""
    rng = np.random.default_rng(13)
    section = np.repeat(np.arange(6), 40)
    patient = section // 3
    features = rng.normal(size=(240, 30)).astype("f")
    loadings = rng.normal(size=(2, 40))
    sign = np.where((patient == 1) & (not alike), -1.0, 1.0)[:, None]
    expression = sign * features[:, :2] @ loadings + 6 + 2 * rng.normal(size=(240, 40))
    return features, sparse.csr_matrix(np.maximum(expression, 0).astype("f")), Origin(section, patient)


def test_a_known_patient_is_predicted_by_his_own_sections_where_that_is_better() -> None:
    features, expression, origin = two_patients(alike=False)
    model, pooled = (Fusion(nn.Identity(), Shapes(30, 0, 40), FusionConfig(own=own)) for own in (True, False))
    for one in (model, pooled):
        one.solve(features, expression, origin)
    assert set(model.known) == {"all", "0", "1"}
    assert set(pooled.known) == {"all"}
    truth = expression.toarray().astype(float)
    for patient in (0, 1):
        rows = origin.patient == patient
        x = torch.from_numpy(features[rows])
        reached = [
            mean_pcc(m.eval().predict_known(x, patient).numpy().astype(float), truth[rows], origin.section[rows]).mean()
            for m in (model, pooled)
        ]
        assert reached[0] > reached[1] + 0.2
        # The level too is his own
        own = np.mean([truth[origin.section == s].mean(axis=0) for s in np.unique(origin.section[rows])], axis=0)
        np.testing.assert_allclose(model.known[str(patient)].get_buffer("intercept").numpy(), own, rtol=1e-5)
    # A patient it does not know by number gets everybody's map
    x = torch.from_numpy(features[:5])
    assert torch.equal(model.predict_known(x, 7), pooled.predict_known(x, 0))


def test_what_patients_share_is_learned_from_all() -> None:
    features, expression, origin = two_patients(alike=True)
    model = Fusion(nn.Identity(), Shapes(30, 0, 40), FusionConfig())
    model.solve(features, expression, origin)
    assert set(model.known) == {"all"}


def test_own_maps_are_part_of_the_weights() -> None:
    features, expression, origin = two_patients(alike=False)
    model = Fusion(nn.Identity(), Shapes(30, 0, 40), FusionConfig())
    model.solve(features, expression, origin)
    other = Fusion(nn.Identity(), Shapes(30, 0, 40), FusionConfig())
    other.load_state_dict(model.state_dict(), strict=True)
    x = torch.from_numpy(features[:50])
    for patient in (0, 1, 2):
        assert torch.equal(model.eval().predict_known(x, patient), other.eval().predict_known(x, patient))


@pytest.mark.parametrize(
    ("section", "expression"),
    [
        (np.arange(120), np.random.default_rng(0).gamma(2.0, size=(120, 40))),  # one spot a section
        (SECTION, np.zeros((120, 40))),
        (SECTION, np.full((120, 40), 3.0)),
        (SECTION, np.random.default_rng(0).gamma(2.0, size=(120, 1))),  # one gene
        (SECTION, np.random.default_rng(0).gamma(2.0, size=(120, 2))),
    ],
)
def test_data_without_variation_give_the_mean_and_no_traceback(section: np.ndarray, expression: np.ndarray) -> None:
    features = np.random.default_rng(1).normal(size=(120, 8)).astype("f")
    model = Fusion(nn.Identity(), Shapes(8, 0, expression.shape[1]), FusionConfig())
    model.solve(features, sparse.csr_matrix(expression), Origin(section, np.zeros(120, dtype=int)))
    x = torch.from_numpy(features)
    found = model.eval().predict_expression(x).numpy(), model.predict_known(x, 0).numpy()
    assert all(np.isfinite(f).all() for f in found)
    if expression.shape[1] == 40:
        for f in found:
            np.testing.assert_allclose(f, np.broadcast_to(expression.mean(axis=0), f.shape), rtol=1e-4, atol=1e-6)


def test_stacking_draws_each_gene_to_all_by_dense_least_squares() -> None:
    """The squares of all genes together, scaled to five average genes, stand below each gene's own."""
    rng = np.random.default_rng(14)
    loadings = rng.normal(size=(2, 12))
    scores = rng.normal(size=(120, 2))
    expression = np.maximum(scores @ loadings + 6 + rng.normal(size=(120, 12)), 0)
    spots = centre_sections(sparse.csr_matrix(expression), SECTION, 2)
    first, second = 0.7 * spots.scores, 0.2 * spots.scores + rng.normal(size=(120, 2))
    a, b = first @ spots.programs, second @ spots.programs
    truth = expression - spots.sections[SECTION]
    both = np.column_stack([a.ravel(), b.ravel()])
    common = nnls(both, truth.ravel())[0]
    few = np.sqrt(5 / 12)
    expected = [
        nnls(
            np.vstack([np.column_stack([a[:, g], b[:, g]]), few * both]),
            np.concatenate([truth[:, g], few * both @ common]),
        )[0]
        for g in range(12)
    ]
    assert abs(common[0] - common[1]) > 0.3
    np.testing.assert_allclose(np.transpose(stack(first, second, spots)), expected, rtol=1e-5, atol=1e-8)


def test_retrieval_is_judged_and_kept_as_queries_will_meet_it() -> None:
    """Every key is predicted without its own section; for a section left out, without that one as well."""
    features = planted(seed=15)[0]
    # In steps, which a linear map does not have and neighbours do
    loadings, noise = np.random.default_rng(16).normal(size=(2, 40)), np.random.default_rng(17).normal(size=(120, 40))
    expression = sparse.csr_matrix(np.maximum(2 * np.sign(features[:, :2]) @ loadings + 8 + 0.3 * noise, 0))
    strength = Strength(programs=2, penalty=0.1)
    config = FusionConfig(known=strength, new=strength, own=False, neighbours=9, programs=5)
    model = Fusion(nn.Identity(), Shapes(8, 0, 40), config)
    model.solve(features, expression, Origin(SECTION, PATIENT))
    z, spots = described(model, features), centre_sections(expression, SECTION, 5)
    s = spots.scores

    def without(held: np.ndarray, among: np.ndarray) -> np.ndarray:
        fit = among & ~held
        return z[held] @ solve_map(z[fit], s[fit], strength)

    everywhere = np.ones(120, dtype=bool)
    regression, retrieval, kept = np.zeros((120, 5)), np.zeros((120, 5)), np.zeros((120, 5))
    for one in range(4):
        held, rest = one == SECTION, one != SECTION
        regression[held, :2] = kept[held, :2] = without(held, everywhere)
        keys = np.zeros((120, 2))
        for other in set(range(4)) - {one}:
            keys[other == SECTION] = without(other == SECTION, rest)
        for i in np.flatnonzero(held):
            cosine = keys[rest] @ regression[i, :2] / np.linalg.norm(keys[rest], axis=1)
            retrieval[i] = s[rest][np.argsort(-cosine)[:9]].mean(axis=0)
    weights = stack(regression, retrieval, spots)
    np.testing.assert_allclose(model.get_buffer("known.all.keys"), kept, atol=1e-4)
    np.testing.assert_allclose(model.get_buffer("known.all.weight_regression"), weights[0], atol=1e-3)
    np.testing.assert_allclose(model.get_buffer("known.all.weight_retrieval"), weights[1], atol=1e-3)
    assert weights[1].max() > 0.05


def test_the_genes_that_vote_are_those_of_highest_mean_and_of_highest_variance() -> None:
    rng = np.random.default_rng(16)
    level, spread = rng.permutation(np.linspace(5, 50, 1200)), rng.permutation(np.linspace(0.1, 1, 1200))
    expression = level + spread * rng.normal(size=(120, 1200)) + 5 * SECTION[:, None]
    expression[:, :100] += 10 * SECTION[:, None]  # how sections differ is no variance
    within = np.mean([expression[s == SECTION].var(axis=0) for s in range(4)], axis=0)
    found = voting_genes(centre_sections(sparse.csr_matrix(expression), SECTION, 3))
    for genes, value, count in zip(found, (expression.mean(axis=0), within, within), (50, 50, 1000), strict=True):
        assert set(genes) == set(np.argsort(value)[-count:])
