from __future__ import annotations

import os
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

from hescribe.downstream.tls.call import TLSSettings, tls
from hescribe.downstream.tls.components import Chances, find_structures, neighbours
from hescribe.downstream.tls.nulls import arrangements, correlogram
from hescribe.downstream.tls.scores import b_and_t, model_score, read_coefficients, tls_gene_sets, tls_scores
from hescribe.downstream.tls.smoothing import smoothing_weights, standing_out
from hescribe.errors import HescribeWarning, InputError
from hescribe.sections import read_sections

SHARED = Path(os.environ.get("HESCRIBE_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "her2st"

PITCH = 200.0
FEW = TLSSettings(permutations=99)


def square(width: int = 20, height: int = 15) -> np.ndarray:
    """(n, 2) centres of a square array, µm."""
    y, x = np.mgrid[0:height, 0:width]
    return np.column_stack([x.ravel(), y.ravel()]) * PITCH


def hexagonal(width: int = 20, height: int = 15, pitch: float = 100.0) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.column_stack([(x + 0.5 * (y % 2)).ravel(), y.ravel() * np.sqrt(3) / 2]) * pitch


def table(centres: np.ndarray, *, mpp: float = 0.5) -> ad.AnnData:
    out = ad.AnnData(np.zeros((len(centres), 1), dtype=np.float32))
    out.obsm["spatial"] = centres / mpp
    out.uns["hescribe"] = {"mpp": mpp}
    return out


def smooth_field(centres: np.ndarray, length: float) -> np.ndarray:
    """Root of a Gaussian covariance: times noise it is a field that varies over ``length`` µm."""
    squared = ((centres[:, None] - centres[None]) ** 2).sum(axis=-1)
    return np.linalg.cholesky(np.exp(-squared / (2 * length**2)) + 1e-6 * np.eye(len(centres)))


# --- smoothing


@pytest.mark.parametrize("smooth_um", [0.0, 90.0, 150.0, 400.0])
def test_smoothing_is_the_gaussian_mean_of_the_spots_that_are_there(smooth_um):
    rng = np.random.default_rng(0)
    centres, values = rng.uniform(0, 2000, (60, 2)), rng.normal(size=60)
    slow = np.empty(60)
    for i in range(60):
        total = weight = 0.0
        for j in range(60):
            d = float(np.hypot(*(centres[i] - centres[j])))
            w = 1.0 if i == j else (np.exp(-(d**2) / (2 * smooth_um**2)) if smooth_um > 0 and d <= 3 * smooth_um else 0)
            total, weight = total + w * values[j], weight + w
        slow[i] = total / weight
    np.testing.assert_allclose(smoothing_weights(centres, smooth_um) @ values, slow, rtol=1e-10)


def test_the_edge_of_the_tissue_pulls_no_score_down():
    assert smoothing_weights(square(), 300) @ np.ones(300) == pytest.approx(1)


def test_standing_out_has_the_moments_of_all_permutations():
    """Mean and variance of a weighted mean over permutations, counted out on six spots."""
    from itertools import permutations

    rng = np.random.default_rng(1)
    centres, scores = rng.uniform(0, 500, (6, 2)), rng.exponential(size=6)
    every = np.array(list(permutations(scores))).T
    z = standing_out(every, smoothing_weights(centres, 150))
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(z.var(axis=1), 1, rtol=1e-10)


@pytest.mark.parametrize("scores", [np.zeros(300), np.full(300, 0.1), np.full(300, 1e6)])
def test_a_constant_score_stands_out_nowhere(scores):
    assert not standing_out(scores, smoothing_weights(square(), 150)).any()


def test_a_mean_over_everything_stands_out_nowhere():
    z = standing_out(np.arange(9.0), smoothing_weights(square(3, 3), 1e9))
    assert np.isfinite(z).all()
    assert np.abs(z).max() < 1e-3


@pytest.mark.parametrize("smooth_um", [-1.0, float("nan")])
def test_nonsense_of_smoothing_is_refused(smooth_um):
    with pytest.raises(InputError, match="smoothing"):
        smoothing_weights(square(), smooth_um)


# --- structures


def test_structures_by_hand():
    """Two touching by a corner, one apart, one too small; the heaviest is the first."""
    z = np.zeros((5, 6))
    z[0, 0] = z[1, 1] = 3
    z[3, 4] = z[4, 4] = z[4, 5] = 5
    z[0, 5] = 9
    labels, masses = find_structures(z.ravel(), 2.0, neighbours(square(6, 5), PITCH), 2)
    expected = np.zeros((5, 6), dtype=int)
    expected[0, 0] = expected[1, 1] = 2
    expected[3, 4] = expected[4, 4] = expected[4, 5] = 1
    np.testing.assert_array_equal(labels.reshape(5, 6), expected)
    np.testing.assert_allclose(masses, [9, 2])


def test_neighbours_of_both_arrays():
    def most(centres: np.ndarray, pitch: float) -> int:
        return int(neighbours(centres, pitch).sum(axis=1).max())

    assert most(square(), PITCH) == 8
    assert most(hexagonal(), 100.0) == 6


def plant(rng: np.random.Generator, *, height: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with two lumps of 3 × 3 spots; the scores and where they are."""
    where = np.zeros((15, 20), dtype=int)
    where[3:6, 4:7] = 1
    where[9:12, 13:16] = 2
    return rng.exponential(size=300) + height * (where.ravel() > 0), where.ravel()


@pytest.mark.parametrize("null", ["spots", "field"])
def test_planted_structures_are_found(null):
    scores, where = plant(np.random.default_rng(2))
    section = table(square())
    found = tls(section, scores, settings=TLSSettings(permutations=199, null=null, control="fdr"))
    assert len(found) == 2
    inside = section.obs["tls"].to_numpy() > 0
    assert inside[where > 0].mean() > (0.9 if null == "spots" else 0.5)
    assert inside[where == 0].mean() < 0.01
    for number, row in found.set_index("tls").iterrows():
        names, counts = np.unique(where[section.obs["tls"] == number], return_counts=True)
        centre = square()[where == names[counts.argmax()]].mean(axis=0) / 0.5
        assert np.hypot(*(row[["x", "y"]].to_numpy(dtype=float) - centre)) < PITCH / 0.5 / 2
    assert (found["p_value"] <= 0.05).all()
    assert found["mass"].is_monotonic_decreasing


def test_planted_structures_are_lost_when_shuffled():
    scores, _ = plant(np.random.default_rng(0))
    found = [len(tls(table(square()), np.random.default_rng(k).permutation(scores), settings=FEW)) for k in range(10)]
    assert sum(f > 0 for f in found) <= 2


def test_low_places_are_no_structures():
    """A wrong sign would find the two holes."""
    scores, _ = plant(np.random.default_rng(0))
    assert tls(table(square()), -scores, settings=FEW).empty


def rate(draw, null: str, n: int = 200) -> float:
    centres = square(14, 12)
    settings = [TLSSettings(permutations=59, null=null, min_spots=1, alpha=0.1, seed=k) for k in range(n)]
    return float(np.mean([len(tls(table(centres), draw(centres), settings=s)) > 0 for s in settings]))


def test_false_positives_under_the_null_of_spots():
    """alpha = 0.1 over 200 maps: a standard error of 0.02."""
    rng = np.random.default_rng(3)
    assert rate(lambda c: rng.exponential(size=len(c)), "spots") == pytest.approx(0.1, abs=0.055)


def test_false_positives_in_patchy_tissue():
    """What the null of spots cannot do, and the null of a field can: tissue that is patchy and has no structure."""
    rng, root = np.random.default_rng(4), smooth_field(square(14, 12), 350)

    def draw(centres: np.ndarray) -> np.ndarray:
        return np.exp(0.7 * (root @ rng.standard_normal(len(centres)) + 0.5 * rng.standard_normal(len(centres))))

    assert rate(draw, "spots", 30) > 0.8
    assert rate(draw, "field", 60) < 0.25


def chances(permutations: int) -> tuple[Chances, np.ndarray]:
    """Of a map of noise with one high place, and its z."""
    centres, scores = square(8, 6), np.random.default_rng(6).exponential(size=48)
    scores[[20, 21, 28]] += 4
    weights = smoothing_weights(centres, 150.0)
    arrange = arrangements("spots", centres, scores, PITCH)
    made = Chances(scores, weights, neighbours(centres, PITCH), arrange, permutations, seed=0)
    return made, standing_out(scores, weights)


@pytest.mark.parametrize(("permutations", "above"), [(19, 0), (38, 0), (39, 1), (99, 4)])
def test_no_more_than_alpha_of_the_maps_pass_the_threshold(permutations: int, above: int):
    """At 0.05 the section's own map and those above are at most a twentieth of all."""
    made, z = chances(permutations)
    highest = made.maps(np.arange(permutations)).max(axis=0)
    chance = made.weigh(z, alpha=0.05, control="max", min_spots=1)
    assert chance.threshold == np.sort(highest)[-1 - above]
    assert (chance.heaviest > 0).sum() == above
    # As heavy counts as well: a structure that chance has made just so is no less likely for it
    assert chance.p_value(chance.heaviest.max() + 1) == 1 / (permutations + 1)
    if above:
        assert chance.p_value(float(np.sort(chance.heaviest)[-above])) == (1 + above) / (permutations + 1)


def test_fdr_is_benjamini_and_hochbergs():
    made, z = chances(30)
    maps = made.maps(np.arange(30)).ravel()
    p = np.array([(1 + (maps >= value).sum()) / (1 + len(maps)) for value in z])
    passing = false_discovery_control(p, method="bh") <= 0.05
    threshold = made.weigh(z, alpha=0.05, control="fdr", min_spots=1).threshold
    assert 0 < passing.sum() < 48
    np.testing.assert_array_equal(z > threshold, passing)


def test_fdr_finds_no_less_and_keeps_only_what_is_heavy():
    scores, _where = plant(np.random.default_rng(5), height=2.5)
    most, fdr = table(square()), table(square())
    tls(most, scores, settings=TLSSettings(permutations=199))
    found = tls(fdr, scores, settings=TLSSettings(permutations=199, control="fdr"))
    assert (fdr.obs["tls"] > 0).sum() >= (most.obs["tls"] > 0).sum()
    assert (found["p_value"] <= 0.05).all()
    assert fdr.uns["tls"]["threshold_z"] <= most.uns["tls"]["threshold_z"]
    noise = table(square())
    assert tls(
        noise, np.random.default_rng(9).normal(size=300), settings=TLSSettings(permutations=199, control="fdr")
    ).empty


def test_sizes_are_of_the_array():
    """A spot stands for a square of the pitch, or for √3/2 of it on a hexagonal array."""
    scores, _ = plant(np.random.default_rng(0))
    for centres, cell in ((square(), 0.04), (hexagonal(), 0.01 * np.sqrt(3) / 2)):
        found = tls(table(centres), scores, settings=TLSSettings(permutations=99, smooth_um=centres[1, 0] * 0.75))
        np.testing.assert_allclose(found["area_mm2"], found["n_spots"] * cell, rtol=1e-6)
        assert len(found)


def test_the_same_seed_gives_the_same_bits_and_moving_the_slide_changes_nothing():
    scores, _ = plant(np.random.default_rng(6))
    first, second, moved = table(square()), table(square()), table(square() + 5000, mpp=0.25)
    tables = [tls(t, scores, settings=FEW) for t in (first, second, moved)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    np.testing.assert_array_equal(first.obs["tls_z"], second.obs["tls_z"])
    np.testing.assert_array_equal(first.obs["tls"], moved.obs["tls"])
    other = tls(table(square()), scores, settings=TLSSettings(permutations=99, seed=1))
    assert not np.allclose(other["mass"], tables[0]["mass"])


@pytest.mark.parametrize(
    ("centres", "scores"),
    [
        (square(), np.full(300, 2.5)),
        (square(), np.full(300, np.nan)),
        (square(1, 1), np.array([1.0])),
        (square(2, 1), np.array([1.0, 2.0])),
    ],
    ids=["constant", "nothing known", "one spot", "two spots"],
)
@pytest.mark.parametrize("null", ["spots", "field"])
def test_where_nothing_can_be_found_nothing_is(centres, scores, null):
    section = table(centres)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tls(section, scores, settings=TLSSettings(permutations=19, null=null))
    assert found.empty
    assert list(found.columns)[:3] == ["tls", "n_spots", "area_mm2"]
    assert not section.obs["tls"].any()
    assert section.obs["tls_z"].notna().sum() == np.isfinite(scores).sum()


def test_spots_without_a_score_take_no_part():
    scores, _where = plant(np.random.default_rng(0))
    scores[::7] = np.nan
    section = table(square())
    assert len(tls(section, scores, settings=FEW)) == 2
    assert not section.obs["tls"].to_numpy()[::7].any()
    assert section.obs["tls_score"].isna().to_numpy()[::7].all()


def test_the_correlogram_finds_how_far_tissue_is_alike():
    centres = square(30, 30)
    rng = np.random.default_rng(2)
    noise = correlogram(centres, rng.normal(size=900), PITCH)
    assert noise[0] > 0.9
    root = smooth_field(centres, 400)
    at = [
        sum(
            a * np.exp(-(400.0**2) / (2 * r**2)) for r, a in correlogram(centres, root @ rng.normal(size=900), PITCH)[1]
        )
        for _ in range(6)
    ]
    assert np.mean(at) == pytest.approx(np.exp(-0.5), abs=0.12)


def test_both_ways_of_drawing_a_field_give_its_correlation(monkeypatch):
    from hescribe.downstream.tls import nulls

    centres = square(8, 8)
    scores = smooth_field(centres, 400) @ np.random.default_rng(0).normal(size=64)
    found = []
    for limit in (2000, 0):
        monkeypatch.setattr(nulls, "_EXACT", limit)
        arrange = arrangements("field", centres, scores, PITCH)
        ranks = np.array([arrange(np.random.default_rng(k)) for k in range(300)])
        assert (np.sort(ranks, axis=1) == np.arange(64)).all()
        found.append(np.corrcoef(ranks[:, 0], ranks[:, 1])[0, 1])
    assert found[0] > 0.4
    assert found[0] == pytest.approx(found[1], abs=0.15)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"permutations": 10}, "at least 19"),
        ({"null": "wild"}, "spots, field"),
        ({"control": "none"}, "max, fdr"),
        ({"min_spots": 0}, "1 or more"),
        ({"smooth_um": -5.0}, "0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        TLSSettings(**change)


def test_a_section_without_scale_or_positions_is_refused():
    section = table(square())
    del section.uns["hescribe"]
    with pytest.raises(InputError, match="mpp"):
        tls(section, np.arange(300.0))
    del section.obsm["spatial"]
    with pytest.raises(InputError, match="positions"):
        tls(section, np.arange(300.0), mpp=1)
    with pytest.raises(InputError, match="shape"):
        tls(table(square()), np.arange(3.0))


# --- scores


def expression(values: np.ndarray, genes: list[str]) -> ad.AnnData:
    """A prediction: log1p of counts per 10,000."""
    out = ad.AnnData(np.asarray(values, dtype=np.float32), var=pd.DataFrame(index=genes))
    out.obs_names = [f"s{i}" for i in range(len(values))]
    out.uns["hescribe"] = {"mpp": 0.5}
    return out


def test_the_published_gene_sets():
    sets = tls_gene_sets()
    assert {name: len(genes) for name, genes in sets.items()} == {
        "signature": 22, "chemokine": 12, "B cells": 9, "T cells": 6,
    }  # fmt: skip
    assert all(len(set(g)) == len(g) for g in sets.values())


def test_the_signature_is_the_mean_of_its_genes():
    genes = [*tls_gene_sets()["signature"], "ACTB", "GAPDH"]
    values = np.random.default_rng(0).uniform(0, 3, (7, 24))
    found = tls_scores(expression(values, genes), ["signature"])["signature"]
    np.testing.assert_allclose(found, values[:, :22].mean(axis=1), rtol=1e-5)


def test_the_model_on_measured_counts_is_what_its_authors_compute():
    rng = np.random.default_rng(1)
    counts = rng.poisson(3.0, (30, 6)).astype(np.float32)
    counts[:, 4] = 0
    measured = ad.AnnData(counts, var=pd.DataFrame(index=list("ABCDEF")))
    beta = {"A": 0.5, "C": -0.2, "E": 9.0, "missing": 0.1, "intercept": -0.3}
    share = counts / counts.sum(axis=1, keepdims=True)
    slow = [0.5 * share[i, 0] / share[:, 0].std() - 0.2 * share[i, 2] / share[:, 2].std() - 0.3 for i in range(30)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model_score(measured, read_coefficients(beta))
    np.testing.assert_allclose(found, slow, rtol=1e-4)


def test_the_model_is_the_same_on_counts_and_on_their_logarithms():
    counts = np.random.default_rng(2).poisson(3.0, (20, 5)).astype(np.float32)
    measured = ad.AnnData(counts, var=pd.DataFrame(index=list("ABCDE")))
    logs = expression(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4), list("ABCDE"))
    beta = read_coefficients({"A": 1.0, "D": -2.0})
    np.testing.assert_allclose(model_score(measured, beta), model_score(logs, beta), rtol=1e-4)


def test_a_model_mostly_absent_is_announced_and_wholly_absent_refused():
    data = expression(np.random.default_rng(0).uniform(size=(5, 2)), ["A", "B"])
    with pytest.warns(HescribeWarning, match="10%"):
        model_score(data, read_coefficients({"A": 0.1, "X": 0.9}))
    with pytest.raises(InputError, match="none of the model's genes"):
        model_score(data, read_coefficients({"X": 0.9}))


def test_the_model_leaves_out_genes_that_are_not_trusted():
    values = np.random.default_rng(0).uniform(size=(5, 2))
    data = expression(values, ["A", "B"])
    data.var["expected_pcc"] = [0.5, 0.01]
    with pytest.warns(HescribeWarning, match=r"1 of 2 genes .* left out: B"):
        found = model_score(data, read_coefficients({"A": 1.0, "B": 0.2}), min_pcc=0.1)
    np.testing.assert_allclose(found, model_score(data[:, ["A"]].copy(), read_coefficients({"A": 1.0})), rtol=1e-6)


@pytest.mark.parametrize("sep", ["\t", ","])
def test_coefficients_are_read(tmp_path, sep):
    file = tmp_path / {",": "c.csv", "\t": "c.tsv"}[sep]
    file.write_text(f"gene{sep}beta\nCD4{sep}0.5\nintercept{sep}-1e-3\n")
    assert read_coefficients(file).to_dict() == {"CD4": 0.5, "intercept": -1e-3}


@pytest.mark.parametrize(
    ("text", "said"),
    [("g\tb\nA\tx\n", "'A' is no number"), ("g\tb\tc\nA\t1\t2\n", "3 columns"), ("g\tb\nA\t1\nA\t2\n", "two coefficients"),
     ("g\tb\n", "none"), ("", "readable")],
)  # fmt: skip
def test_coefficients_that_are_none_are_refused(tmp_path, text, said):
    file = tmp_path / "c.tsv"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        read_coefficients(file)
    with pytest.raises(InputError, match="no such file"):
        read_coefficients(tmp_path / "other.tsv")


def test_b_times_t_from_proportions():
    data = expression(np.ones((3, 1)), ["A"])
    shares = pd.DataFrame(
        {
            "B-cells": [0.5, 0.0],
            "T-cells": [0.2, 0.9],
            "CD8 T cell": [0.1, 0.1],
            "NKT cells": [0.5, 0.5],
            "CAFs": [1.0, 1.0],
        },
        index=["s2", "s1"],
    )
    np.testing.assert_allclose(b_and_t(data, shares), [np.nan, 0.0, 0.15])
    data.obsm["cell_types"] = shares.reindex(data.obs_names)
    np.testing.assert_allclose(tls_scores(data, ["bxt"])["bxt"], [np.nan, 0.0, 0.15])
    with pytest.raises(InputError, match="no T cells"):
        b_and_t(data, shares[["B-cells", "CAFs"]])
    with pytest.raises(InputError, match="no spot"):
        b_and_t(data, shares.set_axis(["a", "b"]))


def test_b_times_t_from_markers_needs_both():
    sets = tls_gene_sets()
    genes = sets["B cells"] + sets["T cells"]
    values = np.zeros((3, len(genes)))
    values[0, :9] = values[1, 9:] = values[2] = 2.5
    np.testing.assert_allclose(tls_scores(expression(values, genes), ["bxt"])["bxt"], [0, 0, 6.25])


def test_scores_that_cannot_be_are_refused():
    data = expression(np.ones((3, 1)), ["A"])
    with pytest.raises(InputError, match="no score 'magic'"):
        tls_scores(data, ["magic"])
    with pytest.raises(InputError, match="coefficients"):
        tls_scores(data, ["model"])
    with pytest.raises(InputError, match="no gene of the set"):
        tls_scores(data, ["signature"])


# --- a real section


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real sections are not here (set HESCRIBE_SHARED)")
def test_structures_of_a_real_section_are_where_a_pathologist_saw_infiltrate(tmp_path):
    (tmp_path / "sections.csv").write_text(
        "section_id,patient_id,image,expression,positions,technology\n"
        f"H1,H,,{SHARED}/ST-cnts/H1.tsv.gz,{SHARED}/ST-spotfiles/H1_selection.tsv,st\n"
    )
    (section,) = read_sections(tmp_path)
    seen = pd.read_csv(SHARED / "ST-pat" / "H1_labeled_coordinates.tsv", sep="\t").dropna()
    seen.index = pd.Index([f"{round(x)}x{round(y)}" for x, y in zip(seen["x"], seen["y"], strict=True)])
    infiltrate = seen["label"].reindex(section.adata.obs_names) == "immune infiltrate"
    found = tls(section.adata, mpp=section.mpp, settings=TLSSettings(permutations=199))
    inside = section.adata.obs["tls"] > 0
    assert len(found) >= 1
    assert infiltrate[inside].mean() > 5 * infiltrate.mean()
