"""Regions: a planted layout is found and lost when shuffled; neighbours count; refusals; the command."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from typer.testing import CliRunner

from hescribe import keys
from hescribe.applications.regions import find_regions
from hescribe.downstream.regions import RegionSettings, adjacency, name_cluster, neighbourhood, regions, relax
from hescribe.errors import HescribeWarning, InputError

SETS = {"tumour": ["T0", "T1", "T2"], "fat": ["F0", "F1", "F2"]}
GENES = [f"{k}{i}" for k in "TFN" for i in range(3)] + [f"B{i}" for i in range(11)]


def planted(seed: int = 0, *, side: int = 14) -> tuple[ad.AnnData, np.ndarray]:
    """Tumour left, fat right, nothing in the middle; counts of some depth."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side]
    truth = np.digitize(x.ravel(), [side // 3, 2 * side // 3])
    rate = np.full((side * side, len(GENES)), 4.0)
    rate[truth == 0, :3] = 12.0
    rate[truth == 2, 3:6] = 12.0
    rate[truth == 1, 6:9] = 12.0
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype("f")), var=pd.DataFrame(index=GENES))
    adata.obsm[keys.SPATIAL] = np.stack([x.ravel(), y.ravel()], axis=1) * 100.0
    adata.uns[keys.PROVENANCE] = {"mpp": 0.5, "section_id": "S"}
    return adata, truth


def test_a_planted_layout_is_found_and_named() -> None:
    adata, truth = planted()
    found = regions(adata, SETS, RegionSettings(n_clusters=3))
    assert adjusted_rand_score(truth, found.obs[keys.REGION_CLUSTER]) > 0.85
    named = found.obs[keys.REGION].astype(str).to_numpy()
    assert (named[truth == 0] == "tumour").mean() > 0.9
    assert (named[truth == 2] == "fat").mean() > 0.9
    assert (named[truth == 1] == "unclear").mean() > 0.9
    assert found.obs["score_tumour"][truth == 0].mean() > found.obs["score_tumour"][truth == 2].mean()
    assert keys.REGION not in adata.obs  # a copy


def test_shuffled_spots_have_no_layout() -> None:
    adata, truth = planted()
    order = np.random.default_rng(1).permutation(adata.n_obs)
    places = adata.obsm[keys.SPATIAL].copy()
    shuffled = adata[order].copy()
    shuffled.obsm[keys.SPATIAL] = places
    found = regions(shuffled, SETS, RegionSettings(n_clusters=3))
    assert adjusted_rand_score(truth, found.obs[keys.REGION_CLUSTER]) < 0.1


def test_without_a_number_the_same_seed_gives_the_same() -> None:
    adata, _ = planted()
    first, second = (regions(adata, SETS).obs[keys.REGION_CLUSTER].to_numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    sizes = np.bincount(first)
    assert (np.diff(sizes) <= 0).all()  # the largest is number 0


def test_a_lone_spot_follows_its_neighbours_and_without_cohesion_does_not() -> None:
    y, x = np.mgrid[0:5, 0:5]
    near = adjacency(np.stack([x.ravel(), y.ravel()], axis=1).astype(float))
    components = np.array([[-1.0]] * 12 + [[0.1]] + [[-1.0]] * 7 + [[1.0]] * 5)
    labels = np.array([0] * 12 + [1] + [0] * 7 + [1] * 5)
    assert relax(components, labels, near, 100.0)[12] == 0
    assert relax(components, labels, near, 0.0)[12] == 1


def test_spots_take_the_cluster_of_the_least_cost_by_a_slow_loop() -> None:
    """‖z − c‖² / 2 s², s² the mean squared distance to the own centre, less the share of neighbours in the cluster."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:8, 0:8]
    near = adjacency(np.stack([x.ravel(), y.ravel()], axis=1).astype(float))
    labels = rng.integers(0, 3, 64)
    components = np.eye(3)[labels] + 0.8 * rng.normal(size=(64, 3))
    centres = [components[labels == k].mean(axis=0) for k in range(3)]
    spread = np.mean([((z - centres[k]) ** 2).sum() for z, k in zip(components, labels, strict=True)])
    current = labels
    for _ in range(15):
        new = []
        for i in range(64):
            beside = current[near[i].indices]
            cost = [
                ((components[i] - centres[k]) ** 2).sum() / (2 * spread) - 0.3 * np.mean(beside == k) for k in range(3)
            ]
            new.append(int(np.argmin(cost)))
        settled = new == list(current)
        current = np.array(new)
    assert settled
    assert (current != labels).sum() > 5
    np.testing.assert_array_equal(relax(components, labels, near, 0.3), current)


def test_the_genes_that_vary_most_are_looked_at() -> None:
    adata, truth = planted()
    adata.X = 1 + 0.01 * np.random.default_rng(2).random(adata.shape, dtype="f")
    adata.X[:, :9] += np.repeat(truth[:, None] == [0, 2, 1], 3, axis=1)
    found = regions(adata, SETS, RegionSettings(n_clusters=3, n_genes=9))
    assert adjusted_rand_score(truth, found.obs[keys.REGION_CLUSTER]) > 0.85


def test_neighbourhood_means_against_a_loop() -> None:
    centres = np.random.default_rng(0).random((20, 2)) * 5
    weights = neighbourhood(centres, 0.8).toarray()
    for i in range(20):
        distance = np.linalg.norm(centres - centres[i], axis=1)
        kernel = np.where(distance <= 2.4, np.exp(-0.5 * (distance / 0.8) ** 2), 0.0)
        np.testing.assert_allclose(weights[i], kernel / kernel.sum(), atol=1e-12)


def test_a_cluster_is_named_only_above_the_mean() -> None:
    assert name_cluster(pd.Series({"a": 0.4, "b": -1.0}), 0.1) == "a"
    assert name_cluster(pd.Series({"a": 0.05, "b": -1.0}), 0.1) == "unclear"
    assert name_cluster(pd.Series(dtype=float), 0.1) == "unclear"


def test_a_set_that_cannot_be_trusted_names_nothing() -> None:
    adata, _ = planted()
    adata.X = np.log1p(adata.X.toarray())
    adata.var[keys.EXPECTED_PCC] = [0.0 if g.startswith("F") and g != "F0" else 0.5 for g in GENES]
    with pytest.warns(match="fat: 2 of 3 genes are below the trust threshold"):
        found = regions(adata, SETS, RegionSettings(n_clusters=3))
    assert set(found.obs[keys.REGION].astype(str)) <= {"tumour", "unclear"}


def test_of_our_own_sets_those_that_are_there() -> None:
    adata, _ = planted()
    adata.var_names = ["EPCAM", "KRT8", "KRT18", *GENES[3:]]
    with pytest.warns(HescribeWarning, match="the data have no gene of: "):
        found = regions(adata, settings=RegionSettings(n_clusters=3))
    assert "score_tumour" in found.obs
    assert "score_fat" not in found.obs


def test_nonsense_is_refused() -> None:
    adata, _ = planted()
    with pytest.raises(InputError, match="6 spots are too few for 4 regions"):
        regions(adata[:6], SETS)
    with pytest.raises(InputError, match="1 spot is too few"):
        regions(adata[:1], SETS)
    with pytest.raises(InputError, match="196 of 392 spots lie where another does; are these several sections"):
        regions(ad.concat([adata, adata], merge="same", uns_merge="first"), SETS)
    with pytest.raises(InputError, match="no gene varies"):
        flat = adata.copy()
        flat.X = sparse.csr_matrix(np.ones(adata.shape, dtype="f"))
        regions(flat, SETS)
    with pytest.raises(InputError, match="no positions"):
        regions(ad.AnnData(np.ones((20, 20)), var=pd.DataFrame(index=GENES)), SETS)


def test_the_command(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from hescribe.cli.main import app
    from hescribe.io.store import write_anndata

    adata, _ = planted()
    adata.X = np.log1p(adata.X.toarray())
    adata.var[keys.EXPECTED_PCC] = 0.5
    write_anndata(adata, tmp_path / "pred" / "S.zarr")
    sets = tmp_path / "sets.csv"
    sets.write_text("set,gene\n" + "".join(f"{s},{g}\n" for s, genes in SETS.items() for g in genes))
    arguments = ["regions", str(tmp_path / "pred"), "-o", str(tmp_path / "out"), "--gene-sets", str(sets)]
    run = CliRunner().invoke(app, [*arguments, "--clusters", "3"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    table = pd.read_csv(tmp_path / "out" / "S.regions.csv", index_col="spot")
    assert {"region", "region_cluster", "score_tumour", "score_fat"} <= set(table)
    shapes = json.loads((tmp_path / "out" / "S.regions.geojson").read_text())
    assert {f["properties"]["name"] for f in shapes["features"]} == set(table["region"])
    assert ad.read_zarr(tmp_path / "out" / "S.regions.zarr").obs["region"].tolist() == table["region"].tolist()
    assert "tumour" in (tmp_path / "out" / "index.html").read_text()
    with pytest.raises(Exception, match="already exists"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    # A set without genes and a section of too few spots are left out, and it is said; nothing else is lost by them
    with sets.open("a") as file:
        file.write("bone,NOPE\n")
    write_anndata(adata[:1].copy(), tmp_path / "pred" / "T.zarr")
    caplog.clear()
    run = CliRunner().invoke(app, [*arguments, "--clusters", "3", "--overwrite"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert "S: the data have no gene of: bone" in caplog.text
    assert "T: 1 spot is too few for 3 regions (at least 2 spots a region); left out" in caplog.text
    assert "T: 1 spot is too few" in (tmp_path / "out" / "index.html").read_text()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "S.regions.csv", index_col="spot"), table)
    with pytest.raises(InputError, match="T: 1 spot is too few"):
        find_regions(tmp_path / "pred" / "T.zarr", tmp_path / "alone", gene_sets=sets)
    assert not (tmp_path / "alone").exists()
