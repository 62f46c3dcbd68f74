from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from hescribe import keys
from hescribe.report import PlainScores, build_report

EVIL = "<script>alert(1)</script>"
TITLE = "<img src=x onerror=alert(2)> & <b>bold</b>"


def make(n_genes: int = 60, *, name: str = "A1") -> tuple[ad.AnnData, ad.AnnData]:
    """A prediction and the raw counts of its section; one gene's name is an attack."""
    rng = np.random.default_rng(0)
    y, x = (a.ravel() for a in np.mgrid[0:8, 0:10])
    centres = np.stack([x, y], axis=1) * 200.0 + 500 + rng.uniform(-15, 15, (80, 2))
    left = (x < 5)[:, None].astype(float)
    rate = 20 * np.where(np.arange(n_genes) % 2 == 0, left, 1 - left) * rng.uniform(0.2, 1, n_genes) + 3
    counts = rng.poisson(rate).astype(np.float32)
    names = [EVIL, "A/B", "a/b", *(f"G{i}" for i in range(3, n_genes))]
    spots = [f"s{i}" for i in range(80)]
    measured = ad.AnnData(counts, obs=pd.DataFrame(index=spots), var=pd.DataFrame(index=names))
    guess = np.log1p(rate / rate.sum(axis=1, keepdims=True) * 1e4) + rng.normal(0, 0.2, rate.shape)
    predicted = ad.AnnData(guess.astype(np.float32), obs=pd.DataFrame(index=spots), var=pd.DataFrame(index=names))
    for table in (measured, predicted):
        table.obsm[keys.SPATIAL] = centres.copy()
    predicted.obs[keys.NOVELTY] = np.linspace(0, 100, 80).astype(np.float32)
    predicted.var[keys.EXPECTED_PCC] = np.linspace(0.9, -0.1, n_genes)
    predicted.var[keys.INTERVAL] = 0.5
    told = {"slide": name, "mpp": 0.5, "method": "fusion", "encoder": "resnet50", "bundle": "abc123", "version": "9.9"}
    predicted.uns[keys.PROVENANCE] = {**told, "seen_in_training": False, "patient_seen_in_training": False}
    return predicted, measured


def score(predicted: ad.AnnData, *, pcc: float = 0.5) -> PlainScores:
    n = predicted.n_vars
    per_gene = pd.DataFrame(
        {"pcc": np.linspace(0.9, -0.2, n), "ceiling": 0.95, "mean": 1.0, "variance": 0.5, "detected": 0.8},
        index=predicted.var_names,
    )
    per_gene["heg50"] = np.arange(n) < 50
    per_gene["hvg50"] = np.arange(n) >= n - 50
    per_gene["detected10"] = True
    row = {"pcc": pcc, "pcc_low": pcc - 0.1, "pcc_high": pcc + 0.1, "ceiling": 0.8, "n_genes": 50}
    return PlainScores(per_gene, dict.fromkeys(("heg50", "hvg50", "all", "detected10"), row))


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One full report of 12,060 genes, with names and a title that try to break out."""
    predicted, measured = make()
    image = np.random.default_rng(0).integers(120, 255, (210, 260, 3), dtype=np.uint8)
    curves = pd.DataFrame({"epoch": [0, 1, 2], "split": "train", "metric": "loss", "value": [3.0, 2.0, 1.0]})
    plain = score(predicted)
    copies = [plain.per_gene.rename(f"{{}}_{i}".format) for i in range(200)]
    return build_report(
        [(predicted, measured, (image, 10.0))],
        [PlainScores(pd.concat([plain.per_gene, *copies]), plain.summary)],
        curves,
        {"seed": 7, "sections": {"B1": "B"}, "note": EVIL, "date": "2024-01-01"},
        tmp_path_factory.mktemp("report") / "out",
        genes=[EVIL, "A/B", "a/b"],
        title=TITLE,
    )
