"""Real sections with image-free files outside the repository; skipped where they are not."""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hescribe.evaluation.scores import score_section
from hescribe.io.expression import log_normalise
from hescribe.metrics.ceiling import ceiling_per_gene
from hescribe.metrics.gene_sets import gene_moments, top_genes

SHARED = Path(os.environ.get("HESCRIBE_SHARED", Path(__file__).parents[3] / "shared"))
FOLDER = SHARED / "data" / "her2st" / "ST-cnts"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the real sections are not here (set HESCRIBE_SHARED)"),
]


def read(section_id):
    table = pd.read_csv(FOLDER / f"{section_id}.tsv.gz", sep="\t", index_col=0)
    out = ad.AnnData(
        sparse.csr_matrix(table.to_numpy(dtype=np.float32)),
        obs=pd.DataFrame(index=table.index),
        var=pd.DataFrame(index=table.columns),
    )
    out.obsm["spatial"] = np.array([name.split("x") for name in table.index], dtype=float)
    return out[np.asarray(out.X.sum(axis=1)).ravel() >= 100].copy()


def test_ceiling_of_a_shallow_section():
    """A changed ceiling changes every share of it that was ever reported."""
    section = read("B4")
    ceiling = ceiling_per_gene(section.X, log_normalise)
    moments = gene_moments(log_normalise(section.X))
    for value, stated in ((moments.mean, 0.53), (moments.variance, 0.58)):
        assert ceiling[top_genes(value, section.var_names)].mean() == pytest.approx(stated, abs=0.03)


def test_scores_of_a_deep_section():
    section = read("C2")
    truth = log_normalise(section.X).toarray()
    prediction = ad.AnnData(truth + np.float32(0.1), obs=section.obs.copy(), var=section.var.copy())
    scores = score_section(prediction, section, n_resamples=100)
    assert scores.summary.loc["heg50", "ceiling"] == pytest.approx(0.66, abs=0.03)
    assert scores.summary.loc["hvg50", "ceiling"] == pytest.approx(0.77, abs=0.03)
    # The measurement itself lies above what any predictor without its noise can reach
    np.testing.assert_allclose(scores.summary["pcc"][["all", "heg50", "hvg50"]].astype(float), 1, atol=1e-6)
    assert scores.per_gene["ceiling"].notna().equals(scores.per_gene["pcc"].notna())
