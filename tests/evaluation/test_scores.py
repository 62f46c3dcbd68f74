import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hescribe.errors import InputError, LeakageError
from hescribe.evaluation.alignment import align, training_stats
from hescribe.evaluation.crossval import predict_at_spots
from hescribe.evaluation.scores import SETS, score_section
from hescribe.io.expression import log_normalise
from hescribe.metrics.correlation import pearson_per_gene


def score(predictor, section, **options):
    return score_section(predict_at_spots(predictor, section), section.adata, n_resamples=50, **options)


def test_a_perfect_predictor_reaches_the_ceiling(sections, oracle):
    scores = score(oracle, sections[0], method="oracle")
    row = scores.summary.loc["hvg50"]
    # 144 spots: the ceiling itself is an estimate
    assert row["share_of_ceiling"] == pytest.approx(1, abs=0.1)
    assert row["pcc_low"] < row["pcc"] < row["pcc_high"]
    assert row["n_genes"] == 50
    assert row["gene_gene_pcc"] > 0.7
    assert row["morans_pcc"] > 0.3
    assert (scores.section_id, scores.patient_id, scores.method) == ("A1", "A", "oracle")
    assert scores.n_spots == 144
    assert not scores.same_patient


def test_every_figure_is_known_and_json_takes_it(sections, noisy):
    section = sections[0]
    prediction = predict_at_spots(noisy, section)
    prediction.var["interval"] = 1.645
    prediction.var["in_panel"] = np.arange(120) < 30
    prediction.obs["interval_scale"] = wider = np.linspace(0.4, 1.4, 144)
    stats = training_stats(s.adata for s in sections[2:])
    truth = log_normalise(section.adata.X)
    prediction.var["expected_pcc"] = pearson_per_gene(prediction.X, truth)
    scores = score_section(
        prediction, section.adata, training_stats=stats, markers=["G000", "G001", "G002", "absent"], n_resamples=50
    )
    assert scores.summary.drop(columns="ssim").notna().all().all()
    assert scores.summary["ssim"].drop(["all", "detected10"]).notna().all()
    np.testing.assert_allclose(scores.summary["expected_pcc_spearman"], 1)
    inside = np.abs(prediction.X - truth.toarray()) <= 1.645 * wider[:, None]
    assert scores.summary.loc["all", "coverage"] == pytest.approx(inside.mean())
    assert scores.summary["n_genes"][["panel", "marker", "heg50_train"]].tolist() == [30, 3, 50]
    np.testing.assert_allclose(scores.per_gene["pcc"], prediction.var["expected_pcc"])
    for name, value in (("heg50_train", "mean"), ("hvg50_train", "variance")):
        assert set(scores.per_gene.index[scores.per_gene[name]]) == set(stats[value].nlargest(50).index)
    spotwise = [np.corrcoef(p, t)[0, 1] for p, t in zip(prediction.X[:, :30], truth[:, :30].toarray(), strict=True)]
    assert scores.summary.loc["panel", "spotwise_pcc"] == pytest.approx(np.mean(spotwise), abs=1e-5)
    again = json.loads(json.dumps(scores.to_dict()))
    assert list(again["sets"]) == list(SETS)


def test_the_training_mean_scores_zero(sections):
    section = sections[0]
    mean = log_normalise(section.adata.X).toarray().mean(axis=0)
    prediction = ad.AnnData(
        np.tile(mean, (144, 1)).astype(np.float32),
        obs=pd.DataFrame(index=section.adata.obs_names),
        var=pd.DataFrame(index=section.adata.var_names),
    )
    scores = score_section(prediction, section.adata, n_resamples=20)
    assert scores.summary.loc["all", ["pcc", "spearman", "pcc_low", "pcc_high"]].tolist() == [0, 0, 0, 0]
    assert scores.summary.loc["all", "rvd"] == pytest.approx(1)
    assert scores.summary.loc["marker"].drop("n_genes").isna().all()
    assert scores.to_dict()["sets"]["marker"]["pcc"] is None


def test_alignment_is_by_name(sections, noisy):
    section = sections[0]
    prediction = predict_at_spots(noisy, section)
    rng = np.random.default_rng(0)
    shuffled = prediction[rng.permutation(144), rng.permutation(120)].copy()
    shuffled.X = sparse.csr_matrix(shuffled.X)
    a, b = (score_section(p, section.adata, n_resamples=20) for p in (prediction, shuffled))
    pd.testing.assert_frame_equal(a.per_gene, b.per_gene)
    pd.testing.assert_frame_equal(a.summary, b.summary)


def test_genes_and_spots_of_one_side_only_are_left_out(sections, noisy):
    section = sections[0]
    prediction = predict_at_spots(noisy, section)[10:, :100].copy()
    prediction.var_names = [*prediction.var_names[:-1], "not measured"]
    data = align(prediction, section.adata)
    assert (len(data.genes), len(data.spots), data.n_unmatched) == (99, 134, 10)
    # Normalised with all genes, not with the shared ones
    obs = section.adata.obs.iloc[10:]
    assert data.spots == tuple(obs.index)
    np.testing.assert_array_equal(data.centres, section.adata.obsm["spatial"][10:])
    np.testing.assert_array_equal(data.pixels, obs[["array_row", "array_col"]] - obs[["array_row", "array_col"]].min())
    whole = log_normalise(section.adata.X)[10:, :99].toarray()
    np.testing.assert_array_equal(data.truth.toarray(), whole)
    scores = score_section(prediction, section.adata, genes=["G000", "G005"], n_resamples=5)
    assert scores.per_gene.index.tolist() == ["G000", "G005"]


def test_a_median_library_is_that_of_the_whole_section(sections, noisy):
    section = sections[0]
    library = np.asarray(section.adata.X.sum(axis=1)).ravel()
    prediction = predict_at_spots(noisy, section)[np.argsort(library)[:100]].copy()
    prediction.uns["hescribe"] = {"target_sum": "median"}
    data = align(prediction, section.adata)
    assert data.target_sum == np.median(library)
    whole = log_normalise(section.adata.X, target_sum="median").toarray()
    np.testing.assert_array_equal(data.truth.toarray(), whole[section.adata.obs_names.get_indexer(data.spots)])


def test_what_cannot_be_aligned_is_refused(sections, noisy):
    section = sections[0].adata
    good = predict_at_spots(noisy, sections[0])
    other_spots, other_genes, twice, no_place = good.copy(), good.copy(), good.copy(), section.copy()
    other_spots.obs_names = [f"x{i}" for i in range(144)]
    other_genes.var_names = [f"x{i}" for i in range(120)]
    twice.obs_names = ["1x1"] * 144
    del no_place.obsm["spatial"]
    logs = section.copy()
    logs.X = log_normalise(section.X)
    nan = good.copy()
    nan.X[3, 3] = np.nan
    for predicted, measured in (
        (other_spots, section),
        (other_genes, section),
        (twice, section),
        (good, no_place),
        (good, logs),
        (nan, section),
    ):
        with pytest.raises(InputError):
            score_section(predicted, measured, n_resamples=5)


def test_predictions_of_a_model_that_has_seen_the_answer_are_refused(sections, noisy):
    prediction = predict_at_spots(noisy, sections[0])
    prediction.uns["hescribe"] |= {"seen_in_training": True, "patient_seen_in_training": True}
    for allowed in (False, True):
        with pytest.raises(LeakageError, match="section 'A1'"):
            score_section(prediction, sections[0].adata, allow_same_patient=allowed, n_resamples=5)
    prediction.uns["hescribe"]["seen_in_training"] = False
    with pytest.raises(LeakageError, match="patient 'A'"):
        score_section(prediction, sections[0].adata, n_resamples=5)
    assert score_section(prediction, sections[0].adata, allow_same_patient=True, n_resamples=5).same_patient


def test_one_spot_gives_no_figure_and_no_crash(sections, noisy):
    section = sections[0].adata[:1].copy()
    scores = score_section(predict_at_spots(noisy, sections[0])[:1].copy(), section, n_resamples=5)
    assert scores.summary["pcc"].isna().all()


def test_training_stats_average_sections(sections):
    stats = training_stats(s.adata for s in sections[:2])
    means = [log_normalise(s.adata.X).toarray().mean(axis=0) for s in sections[:2]]
    np.testing.assert_allclose(stats["mean"], np.mean(means, axis=0), rtol=1e-5)
    with pytest.raises(InputError):
        training_stats([])
