"""A panel of 300 genes beside images, and single cells with all of them: more than 10,000 genes on a slide."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hescribe import keys
from hescribe.datasets.synthetic import make_synthetic
from hescribe.datasets.synthetic.cells import CELL_TYPES
from hescribe.datasets.synthetic.signatures import make_signatures
from hescribe.inference import predict
from hescribe.io.expression import log_normalise
from hescribe.io.manifest import ManifestRow
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, train

GENES, PANEL, SEED = 12_000, 300, 3


def single_cells(path: Path) -> Section:
    """Cells of each type from the cohort's signatures, with their types and without places."""
    signatures = make_signatures(GENES, SEED)
    rng = np.random.default_rng(0)
    kind, program = np.repeat(np.arange(len(CELL_TYPES)), 50), rng.random((50 * len(CELL_TYPES), 1))
    mean = (1 - program) * signatures.low[kind] + program * signatures.high[kind]
    counts = sparse.csr_matrix(rng.poisson(12_000 * mean).astype("f"))
    obs = pd.DataFrame({keys.CELL_TYPE: np.array(CELL_TYPES)[kind]}, index=[f"cell {i}" for i in range(len(kind))])
    ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=signatures.genes)).write_h5ad(path)
    return Section(ManifestRow("cells", "atlas", None, path))


def panel_only(section: Section, folder: Path) -> Section:
    """The section as if 300 of its genes had been measured."""
    table = section.adata[:, :PANEL].copy()
    table.uns.clear()
    path = folder / f"{section.section_id}.h5ad"
    table.write_h5ad(path)
    return Section(ManifestRow(section.section_id, section.patient_id, section.image, path, mpp=section.mpp))


@pytest.mark.slow
def test_ten_thousand_genes_from_a_panel_of_three_hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HESCRIBE_CACHE", str(tmp_path / "cache"))
    made = make_synthetic(
        tmp_path / "data", n_patients=3, n_sections=1, side_um=1000, mpp=1.0, n_genes=GENES, depth=30_000, seed=SEED
    )
    *paired, tested = read_sections(made)
    fitting = [*(panel_only(s, tmp_path) for s in paired), single_cells(tmp_path / "cells.h5ad")]
    config = TrainConfig(
        method="carhe", encoder="stain", genes="all", inner_folds=0, epochs=25, device="cpu",
        options={"prototypes": 15},
    )  # fmt: skip
    bundle = train(fitting, config, output=tmp_path / "bundle")
    predicted = predict(bundle, tested)
    hidden = predicted.var_names[predicted.var[keys.TRANSFERRED]]
    assert predicted.n_vars > 10_000
    assert set(hidden) == set(predicted.var_names) - set(tested.adata.var_names[:PANEL])
    assert len(hidden) > 9_700
    # The genes whose truth is least noise: hidden from the pairs, measured where it is tested
    truth = log_normalise(tested.adata.X)[:, tested.adata.var_names.get_indexer(hidden)].toarray()
    most = np.argsort(-truth.var(axis=0))[:500]
    mine, truth = np.asarray(predicted[:, hidden].X), truth[:, most]
    reached = np.nanmean(pearson_per_gene(mine[:, most], truth))
    rng = np.random.default_rng(0)
    shuffled = [np.nanmean(pearson_per_gene(mine[:, rng.permutation(len(hidden))[:500]], truth)) for _ in range(20)]
    assert reached > 0.1
    assert reached > max(shuffled) + 0.05
