"""Transcriptomes without image: genes, scale, leaks, and genes carried over from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hescribe import keys
from hescribe.datasets.synthetic import make_synthetic
from hescribe.encoders import load_encoder
from hescribe.errors import HescribeWarning, InputError, LeakageError
from hescribe.inference import Bundle, load_bundle, predict
from hescribe.inference.evaluate import check_unseen
from hescribe.io.expression import log_normalise
from hescribe.io.manifest import ManifestRow
from hescribe.methods.base import Unpaired
from hescribe.methods.fusion.model import Fusion
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, train
from hescribe.training.fit import Fitter
from hescribe.training.inputs.data import TrainingData
from hescribe.training.inputs.unpaired import assemble_unpaired, ready_embedding


def cells(path: Path, counts: np.ndarray, genes: list[str], patient: str = "X", scgpt: int = 0) -> Section:
    """A suspension: counts without positions."""
    table = ad.AnnData(sparse.csr_matrix(counts.astype("f")), var=pd.DataFrame(index=genes))
    table.obs_names = [f"cell {i}" for i in range(len(counts))]
    if scgpt:
        table.obsm[keys.SCGPT] = np.arange(len(counts) * scgpt, dtype="f").reshape(len(counts), scgpt)
    table.write_h5ad(path)
    return Section(ManifestRow(path.stem, patient, None, path))


def paired(genes: list[str], expression: np.ndarray) -> TrainingData:
    table = pd.DataFrame({keys.IN_PANEL: True, keys.ENSEMBL: ""}, index=genes)
    n = len(expression)
    return TrainingData(
        (), sparse.csr_matrix(expression), table, np.zeros(n, np.intp), np.zeros((n, 2)), (*genes, "RARE")
    )


def test_genes_and_scale_by_hand(tmp_path: Path) -> None:
    # Two spots with totals 30 and 50 over A and B, and 5 and 15 over B
    data = paired(["A", "B"], np.log1p([[25.0, 5.0], [35.0, 15.0]]))
    data.genes[keys.IN_PANEL] = [False, True]
    whole = cells(
        tmp_path / "whole.h5ad", np.array([[2, 1, 1, 3], [0, 0, 4, 4], [4, 0, 0, 0]]), ["C", "B", "A", "RARE"]
    )
    part = cells(tmp_path / "part.h5ad", np.array([[5, 2]]), ["B", "D"], patient="Y")
    found = assemble_unpaired([whole, part], data, TrainConfig(min_detected=0))
    assert found is not None
    # The third cell has nothing that the spots have, so it cannot be placed
    assert found.source.tolist() == [0, 0, 1]
    np.testing.assert_allclose(found.shares.toarray(), [[0.5, 0.5], [1, 0], [0, 1]])
    assert found.measured.tolist() == [[True, True], [False, True]]
    scaled = np.expm1(found.on_scale_of(data.expression).toarray())
    np.testing.assert_allclose(scaled, [[20, 20], [40, 0], [0, 10]], rtol=1e-5)
    # Others: what no paired section measured, on the scale of the source's whole transcriptome
    assert list(found.extra_genes.index) == ["C", "D"]
    np.testing.assert_allclose(np.expm1(found.extra.toarray()), [[1e4 * 2 / 7, 0], [0, 0], [0, 1e4 * 2 / 7]], rtol=1e-4)
    assert found.extra_measured.tolist() == [[True, False], [False, True]]
    np.testing.assert_allclose(found.extra_genes["detected"], [2 / 3, 1.0])
    # Over the cells in which the gene was measured at all, also those that cannot be placed
    c = np.log1p([1e4 * 2 / 7, 0, 1e4])
    np.testing.assert_allclose(found.extra_genes["mean"], [c.mean(), np.log1p(1e4 * 2 / 7)], rtol=1e-5)
    np.testing.assert_allclose(found.extra_genes["variance"], [c.var(), 0], rtol=1e-4, atol=1e-4)


def test_a_held_out_patient_s_transcriptomes_stay_out(tmp_path: Path) -> None:
    data = paired(["A", "B"], np.ones((3, 2)))
    sources = [cells(tmp_path / f"{p}.h5ad", np.full((i, 2), i), ["A", "B"], p) for i, p in enumerate("PQR", start=1)]
    found = assemble_unpaired(sources, data, TrainConfig())
    assert found is not None
    rest = found.without({"q"})
    assert rest is not None
    assert [s.patient_id for s in rest.sections] == ["P", "R"]
    assert rest.source.tolist() == [0, 1, 1, 1]
    assert rest.shares.shape == (4, 2)
    assert found.without({"p", "q", "r"}) is None


def test_a_fold_s_prototypes_know_nothing_of_the_patient_left_out(tmp_path: Path) -> None:
    sections = tuple(Section(ManifestRow(p, p, tmp_path / "x.tiff", tmp_path / "x.h5ad")) for p in "PQ")
    whole = paired(["A", "B"], np.ones((4, 2)))
    data = replace(whole, sections=sections, section=np.array([0, 0, 1, 1]))
    sources = [cells(tmp_path / f"{p}.h5ad", np.ones((2, 2)), ["A", "B"], f" {p.lower()}") for p in "PR"]
    config = TrainConfig(method="carhe")
    fitter = Fitter(
        data, config, config.method_config(), load_encoder("stain"), "cpu", fewest=2,
        unpaired=assemble_unpaired(sources, data, config),
    )  # fmt: skip
    first, second = np.array([0, 1]), np.array([2, 3])
    for rows, held, expected in (
        (second, first, [" r"]),
        (first, second, [" p", " r"]),
        (first, first[:0], [" p", " r"]),
    ):
        others = fitter.prototypes(rows, held, panel=data.panel).without_image
        assert others is not None
        assert [s.patient_id for s in others.sections] == expected


def test_a_source_of_other_genes_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    data = paired(["A", "B"], np.ones((3, 2)))
    with pytest.warns(HescribeWarning, match="0 of the 2 genes of the panel"):
        assert assemble_unpaired([cells(tmp_path / "x.h5ad", np.ones((2, 1)), ["Z"])], data, TrainConfig()) is None


def test_scgpt_vectors_are_used_where_all_have_them(tmp_path: Path) -> None:
    genes = ["A", "B"]
    with_vectors = [cells(tmp_path / f"{i}.h5ad", np.ones((3, 2)), genes, scgpt=4) for i in range(2)]
    without = cells(tmp_path / "none.h5ad", np.ones((3, 2)), genes)
    data = TrainingData(
        (with_vectors[0],), sparse.csr_matrix(np.ones((3, 2))), paired(genes, np.ones((3, 2))).genes,
        np.zeros(3, np.intp), np.zeros((3, 2)), tuple(genes),
    )  # fmt: skip
    both = assemble_unpaired(with_vectors[1:], data, TrainConfig())
    found = ready_embedding(data, both, "auto")
    assert found is not None
    np.testing.assert_array_equal(found, np.arange(12).reshape(3, 4))
    assert ready_embedding(data, both, "learned") is None
    some = assemble_unpaired([with_vectors[1], without], data, TrainConfig())
    assert ready_embedding(data, some, "auto") is None
    with pytest.raises(InputError, match="section none has none"):
        ready_embedding(data, some, "scgpt")


def test_positions_are_needed_only_beside_an_image(tmp_path: Path) -> None:
    section = cells(tmp_path / "x.h5ad", np.ones((2, 2)), ["A", "B"])
    assert keys.SPATIAL not in section.adata.obsm
    row = ManifestRow("x", "X", tmp_path / "x.tiff", tmp_path / "x.h5ad")
    with pytest.raises(InputError, match="no obsm\\['spatial'\\]"):
        _ = Section(row).adata


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Section], list[str]]:
    """P1: image and 90 genes. P2: all genes, no image, no positions. P3: everything."""
    folder = tmp_path_factory.mktemp("cohort")
    made = make_synthetic(folder / "data", n_patients=3, n_sections=1, side_um=1000, mpp=1.0, n_genes=240, seed=3)
    first, second, third = read_sections(made)
    hidden = [g for i, g in enumerate(first.adata.var_names) if i % 8 > 2]
    small = first.adata[:, ~first.adata.var_names.isin(hidden)].copy()
    suspended = second.adata.copy()
    suspended.obsm.clear()
    rows = []
    for section, table, image in ((first, small, first.image), (second, suspended, None)):
        table.uns.clear()
        path = folder / f"{section.section_id}.h5ad"
        table.write_h5ad(path)
        rows.append(Section(ManifestRow(section.section_id, section.patient_id, image, path, mpp=1.0)))
    return [*rows, third], hidden


def fitted(sections: list[Section], output: Path, folds: int = 0, epochs: int = 2, **options: object) -> Bundle:
    config = TrainConfig(
        method="carhe", encoder="stain", genes="all", inner_folds=folds, epochs=epochs, device="cpu",
        options={"prototypes": 15, **options},
    )  # fmt: skip
    return train(sections, config, output=output)


@pytest.mark.slow
def test_hidden_genes_are_carried_over_from_cells(
    cohort: tuple[list[Section], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HESCRIBE_CACHE", str(tmp_path / "cache"))
    (first, second, third), hidden = cohort
    bundle = fitted([first, second], tmp_path / "bundle", folds=1, epochs=25)
    table = bundle.genes
    carried = table.index[table[keys.TRANSFERRED]]
    assert set(carried) <= set(hidden)
    assert len(carried) > 0.8 * len(hidden)
    assert table.loc[carried, [keys.EXPECTED_PCC, keys.INTERVAL]].isna().all(axis=None)
    assert table.loc[~table[keys.TRANSFERRED], keys.INTERVAL].notna().all()
    assert not table.loc[carried, keys.IN_PANEL].any()
    predicted = predict(bundle, third)
    assert list(predicted.var_names) == list(table.index)
    truth = log_normalise(third.adata.X)[:, third.adata.var_names.get_indexer(carried)].toarray()
    mine = predicted[:, carried].X
    reached = np.nanmean(pearson_per_gene(mine, truth))
    rng = np.random.default_rng(0)
    shuffled = [np.nanmean(pearson_per_gene(mine[:, rng.permutation(len(carried))], truth)) for _ in range(20)]
    assert reached > 0.15
    assert reached > max(shuffled) + 0.1
    np.testing.assert_array_equal(predict(load_bundle(tmp_path / "bundle"), third).X, predicted.X)
    # Whose transcriptomes were learned from cannot be tested on
    with pytest.raises(LeakageError, match=second.patient_id):
        check_unseen(bundle, [second], allow_same_patient=True)
    assert bundle.training_sections[second.section_id] == second.patient_id


def test_switched_off_nothing_is_used(
    cohort: tuple[list[Section], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HESCRIBE_CACHE", str(tmp_path / "cache"))
    (first, second, _), hidden = cohort
    alone = fitted([first, second], tmp_path / "alone", unpaired=False)
    assert second.section_id not in alone.training_sections
    assert not set(alone.genes.index) & set(hidden)
    kept = fitted([first, second], tmp_path / "kept", transfer=False)
    assert second.section_id in kept.training_sections
    assert list(kept.genes.index) == list(alone.genes.index)


def test_fusion_learns_from_spots_of_patients_that_are_not_left_out(
    cohort: tuple[list[Section], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HESCRIBE_CACHE", str(tmp_path / "cache"))
    (first, cells_of_second, third), _ = cohort
    spots = [
        Section(ManifestRow(f"{p}-without", p, None, third.row.expression)) for p in (first.patient_id.upper(), "P9")
    ]
    seen: list[list[int]] = []
    add = Fusion.add_unpaired

    def watched(model: Fusion, unpaired: Unpaired) -> None:
        seen.append([int((unpaired.source == s).sum()) for s in range(len(unpaired.measured))])
        assert unpaired.expression.shape[1] == unpaired.measured.shape[1] == len(model.get_buffer("intercept"))
        add(model, unpaired)

    monkeypatch.setattr(Fusion, "add_unpaired", watched)
    config = TrainConfig(
        method="fusion", encoder="stain", inner_folds=2, device="cpu", views=1,
        options={"context": {"scales": [1.0], "spreads_um": []}},
    )  # fmt: skip
    bundle = train([first, third, cells_of_second, *spots], config, output=tmp_path / "bundle")
    n = third.adata.n_obs
    # Either patient left out in turn, then nobody: the cells, which lie nowhere, take no part
    assert sorted(seen) == [[n], [n, n], [n, n]]
    assert bundle.provenance["unpaired"] == [s.section_id for s in spots]
