from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from hescribe import keys


def make(n_genes: int = 60, *, seed: int = 0) -> tuple[ad.AnnData, ad.AnnData]:
    """Measured and predicted tissue of two halves: even genes are high on the left, and the prediction knows."""
    rng = np.random.default_rng(seed)
    y, x = (a.ravel() for a in np.mgrid[0:8, 0:12])
    # Off the grid by a little, as the spots of an array are
    centres = np.stack([x, y], axis=1) * 200.0 + 1000 + rng.uniform(-15, 15, (96, 2))
    left = (x < 6)[:, None].astype(float)
    pattern = np.where(np.arange(n_genes) % 2 == 0, left, 1 - left) * rng.uniform(0.5, 2, n_genes)
    truth = np.clip(pattern + rng.normal(0.5, 0.4, pattern.shape), 0, None).astype(np.float32)
    guess = (0.5 * pattern + rng.normal(0.5, 0.1, pattern.shape)).astype(np.float32)
    spots = pd.DataFrame(index=[f"s{i}" for i in range(96)])
    genes = pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    out = []
    for values in (truth, guess):
        table = ad.AnnData(values, obs=spots.copy(), var=genes.copy())
        table.obsm[keys.SPATIAL] = centres.copy()
        out.append(table)
    out[1].uns[keys.PROVENANCE] = {"slide": "A1", "mpp": 0.5}
    out[1].obs[keys.NOVELTY] = np.linspace(0, 100, 96).astype(np.float32)
    return out[0], out[1]


@pytest.fixture
def pair() -> tuple[ad.AnnData, ad.AnnData]:
    return make()


@pytest.fixture
def thumbnail() -> tuple[np.ndarray, float]:
    return np.random.default_rng(0).integers(120, 255, (270, 360, 3), dtype=np.uint8), 10.0
