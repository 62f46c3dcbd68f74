"""The planted truth can be recovered, and is lost when it is shuffled."""

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import tifffile
from scipy.spatial import cKDTree
from sklearn.metrics import roc_auc_score

from hescribe.datasets.synthetic import attainable_pcc, make_synthetic
from hescribe.datasets.synthetic.block import BACKGROUND, cut_section, sample, smooth_noise
from hescribe.datasets.synthetic.cells import CELL_TYPES, TUMOUR_CELL, keep_apart, rim_distance
from hescribe.datasets.synthetic.make import Cohort, plan_section
from hescribe.datasets.synthetic.patients import make_patient
from hescribe.datasets.synthetic.signatures import CONTENT, list_genes, make_signatures
from hescribe.errors import InputError
from hescribe.io.expression import log_normalise
from hescribe.metrics.ceiling import binomial_halves
from hescribe.sections import read_sections
from tests.datasets.conftest import TINY

PLANTED = [("tumour", "EPCAM"), ("stroma", "COL1A1"), ("lymphoid", "CD3E"), ("fat", "PLIN1")]


@pytest.fixture(scope="session")
def measured(tiny: Path) -> dict[str, tuple[ad.AnnData, ad.AnnData]]:
    """Section id → (measured, truth)."""
    sections = read_sections(tiny / "sections.csv")
    return {s.section_id: (s.adata, ad.read_h5ad(tiny / "truth" / f"{s.section_id}.h5ad")) for s in sections}


def pooled(measured: dict[str, tuple[ad.AnnData, ad.AnnData]], gene: str) -> tuple[np.ndarray, np.ndarray]:
    values = [
        np.asarray(log_normalise(a.X)[:, a.var_names.get_loc(gene)].todense()).ravel() for a, _ in measured.values()
    ]
    labels = [a.obs["annotation"].astype(str).to_numpy() for a, _ in measured.values()]
    return np.concatenate(values), np.concatenate(labels)


@pytest.mark.parametrize(("region", "gene"), PLANTED)
def test_markers_are_higher_in_their_region_and_not_when_shuffled(measured, region: str, gene: str) -> None:
    values, labels = pooled(measured, gene)
    inside = labels == region
    assert inside.sum() >= 5, f"the cohort has no {region}"
    assert roc_auc_score(inside, values) > 0.72
    shuffled = [roc_auc_score(np.random.default_rng(i).permutation(inside), values) for i in range(30)]
    assert abs(np.mean(shuffled) - 0.5) < 0.06


def test_counts_are_what_the_expected_mean_says(measured) -> None:
    for adata, truth in measured.values():
        expected = np.asarray(truth.X, dtype=float)
        deviation = (np.asarray(adata.X.sum(axis=1)).ravel() - expected.sum(axis=1)) / np.sqrt(expected.sum(axis=1))
        assert np.abs(deviation).max() < 5
        assert deviation.std() == pytest.approx(1, abs=0.35)
        per_gene = (np.asarray(adata.X.sum(axis=0)).ravel() - expected.sum(axis=0)) / np.sqrt(expected.sum(axis=0))
        assert np.abs(per_gene).max() < 5.5


def test_proportions_of_cells_explain_their_markers(measured) -> None:
    adata, truth = measured["P1_S1"]
    share = truth.obsm["cell_types"]["tumour"].to_numpy()
    epcam = np.asarray(log_normalise(adata.X)[:, adata.var_names.get_loc("EPCAM")].todense()).ravel()
    assert np.corrcoef(share, epcam)[0, 1] > 0.6


def test_median_depth_is_about_what_was_asked_for(measured) -> None:
    for adata, _ in measured.values():
        assert 1500 < np.median(np.asarray(adata.X.sum(axis=1))) < 6000


def test_same_seed_same_counts_and_pixels_another_seed_others(tmp_path: Path) -> None:
    small = {"n_patients": 1, "n_sections": 1, "side_um": 500.0, "mpp": 1.0, "n_genes": 60}
    made = [make_synthetic(tmp_path / str(i), seed=seed, **small).parent for i, seed in enumerate((3, 3, 4))]
    images = [tifffile.imread(folder / "slides" / "P1_S1.tiff") for folder in made]
    counts = [read_sections(folder / "sections.csv")[0].adata for folder in made]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    assert counts[0].obs_names.equals(counts[1].obs_names)
    assert (counts[0].X != counts[1].X).nnz == 0
    assert counts[0].shape != counts[2].shape or (counts[0].X != counts[2].X).nnz > 0
    tables = [(folder / "tables" / "P1_S1_cell_types.csv").read_bytes() for folder in made]
    assert tables[0] == tables[1]


def test_a_section_does_not_depend_on_how_many_others_are_made() -> None:
    few, many = Cohort(n_patients=1, n_sections=1, side_um=500.0), Cohort(n_patients=9, n_sections=5, side_um=500.0)
    a, b = (plan_section(cohort, 0, 0) for cohort in (few, many))
    assert np.array_equal(a.cells.xy_um, b.cells.xy_um)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the tissue common to both that has the same label."""
    both = (a != BACKGROUND) & (b != BACKGROUND)
    return float((a == b)[both].mean())


def test_consecutive_sections_are_alike_and_patients_are_not() -> None:
    maps = {}
    for person in range(3):
        for section in range(3):
            tissue = cut_section(make_patient(person, 0), 20.0 * section, 1600.0, section=section)
            maps[person, section] = tissue.regions()
    same = [overlap(maps[p, 0], maps[p, s]) for p in range(3) for s in (1, 2)]
    other = [overlap(maps[p, 0], maps[q, 0]) for p in range(3) for q in range(p)]
    assert min(same) > max(other) + 0.1
    assert np.mean(same) > 0.7


def test_patients_differ_in_composition_expression_and_stain(tiny: Path, measured) -> None:
    first, second = measured["P1_S1"], measured["P2_S1"]
    erbb2, esr1 = (
        {s: measured[s][1].to_df()[gene].mean() / measured[s][1].to_df()["KRT8"].mean() for s in ("P1_S1", "P2_S1")}
        for gene in ("ERBB2", "ESR1")
    )
    assert erbb2["P1_S1"] > 3 * erbb2["P2_S1"]
    assert esr1["P2_S1"] > 3 * esr1["P1_S1"]
    shares = [truth.obsm["cell_types"].mean() for _, truth in (first, second)]
    assert np.abs(shares[0] - shares[1]).max() > 0.03
    colours = [tifffile.imread(tiny / "slides" / f"{s}.tiff", key=1) for s in ("P1_S1", "P2_S1")]
    tissue = [image[image.mean(axis=2) < 220].mean(axis=0) for image in colours]
    assert np.abs(tissue[0] - tissue[1]).max() > 3


def test_attainable_pcc_is_below_one_and_falls_with_depth(measured) -> None:
    adata, truth = measured["P1_S1"]
    rng = np.random.default_rng(0)
    thin = binomial_halves(binomial_halves(adata.X.astype(int), rng)[0], rng)[0]
    full, less = (attainable_pcc(np.asarray(truth.X, dtype=float), counts) for counts in (adata.X, thin))
    markers = [adata.var_names.get_loc(gene) for _, gene in PLANTED]
    assert full.shape == (adata.n_vars,)
    assert np.nanmax(full) <= 1
    assert (full[markers] > 0.3).all()
    assert 0 < np.nanmean(less) < np.nanmean(full) - 0.05


def test_attainable_pcc_is_lost_when_spots_are_shuffled(measured) -> None:
    adata, truth = measured["P1_S1"]
    order = np.random.default_rng(1).permutation(adata.n_obs)
    assert abs(np.nanmean(attainable_pcc(np.asarray(truth.X, dtype=float)[order], adata.X))) < 0.06


def test_the_program_can_be_seen_and_measured(tiny: Path) -> None:
    """Where tumour proliferates, nuclei are darker and MKI67 is higher."""
    planned = plan_section(Cohort(side_um=TINY["side_um"]), 0, 0)
    image = tifffile.imread(tiny / "slides" / "P1_S1.tiff", key=0).mean(axis=2)
    cells = planned.cells.of(TUMOUR_CELL)
    x, y = (cells.xy_um / TINY["mpp"]).astype(int).T
    grey = np.mean([image[y + dy, x + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)
    assert np.corrcoef(grey, cells.program)[0, 1] < -0.4
    genes = make_signatures(150, 0)
    mki67 = genes.genes.index("MKI67")
    assert genes.high[TUMOUR_CELL, mki67] > 4 * genes.low[TUMOUR_CELL, mki67]


def test_cells_keep_their_distance_and_choice_is_maximal() -> None:
    rng = np.random.default_rng(0)
    xy, radius = rng.uniform(0, 100, (800, 2)), np.full(800, 3.0)
    kept = keep_apart(xy, radius, rng)
    assert cKDTree(xy[kept]).query(xy[kept], k=2)[0][:, 1].min() >= 6
    assert cKDTree(xy[kept]).query(xy[~kept])[0].max() < 6
    assert not len(keep_apart(np.empty((0, 2)), np.empty(0), rng))
    assert keep_apart(np.zeros((1, 2)), np.ones(1), rng).tolist() == [True]


def test_rim_distance_of_none_one_and_two_vacuoles() -> None:
    points = np.array([[0.0, 0.0], [500.0, 0.0]])
    assert (rim_distance(points, np.empty((0, 2))) == -np.inf).all()
    assert rim_distance(points, np.zeros((1, 2)))[0] > 0 > rim_distance(points, np.zeros((1, 2)))[1]
    between = rim_distance(np.array([[20.0, 0.0]]), np.array([[0.0, 0.0], [40.0, 0.0]]))
    assert between[0] == pytest.approx(0, abs=0.1)


def test_smooth_noise_and_sampling() -> None:
    field = smooth_noise(np.random.default_rng(0), 300, 8.0)
    assert abs(field.std() - 1) < 0.25
    assert np.corrcoef(field[:, :-1].ravel(), field[:, 1:].ravel())[0, 1] > 0.97
    centre_of_pixel = np.array([[(10 + 0.5) * 4.0, (20 + 0.5) * 4.0]])
    assert sample(field, centre_of_pixel)[0] == pytest.approx(field[20, 10], abs=1e-4)


def test_signatures_hold_the_types_content() -> None:
    signatures = make_signatures(400, 0)
    assert np.allclose(signatures.low.sum(axis=1), CONTENT)
    assert np.allclose(signatures.high.sum(axis=1), CONTENT)
    assert len(signatures.low) == len(CELL_TYPES)


@pytest.mark.parametrize("n", [30, 150, 1000])
def test_genes_are_unique_and_as_many_as_asked_for(n: int) -> None:
    genes = list_genes(n)
    assert len(genes) == len(set(genes)) == n
    assert {"EPCAM", "COL1A1", "CD3E", "MS4A1", "PLIN1", "MKI67"} <= set(genes)


@pytest.mark.parametrize(
    ("name", "value"), [("n_patients", 0), ("side_um", 10.0), ("n_genes", 3), ("seed", -1), ("depth", float("nan"))]
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        make_synthetic(tmp_path / "x", **{name: value})
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError):
        replace(Cohort(), **{name: value}).check()
