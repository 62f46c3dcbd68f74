"""Sections made in memory, with a pattern that can be predicted from position."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hescribe.io.expression import log_normalise

GENES = [f"G{i:03d}" for i in range(120)]


@dataclass(frozen=True)
class Positions:
    """A tile source that knows where its tiles are and has no image."""

    slide_id: str
    centres: np.ndarray
    mpp: float = 0.5

    def __len__(self):
        return len(self.centres)

    def fingerprint(self):
        return self.slide_id

    def read(self, indices, *, tile_um, size_px):
        return np.zeros((len(indices), size_px, size_px, 3), dtype=np.uint8)


@dataclass(frozen=True)
class MadeSection:
    section_id: str
    patient_id: str
    seed: int = 0
    image: Path | None = Path("image.jpg")
    has_expression: bool = True

    @cached_property
    def adata(self):
        side = 12
        rng = np.random.default_rng(self.seed)
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(float)
        counts = sparse.csr_matrix(rng.poisson(expected(grid)).astype(np.float32))
        obs = pd.DataFrame(
            {
                "array_row": grid[:, 1],
                "array_col": grid[:, 0],
                "section_id": self.section_id,
                "patient_id": self.patient_id,
            },
            index=[f"{int(x)}x{int(y)}" for x, y in grid],
        )
        out = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES))
        out.obsm["spatial"] = grid * 100
        return out

    def tiles(self):
        return Positions(self.section_id, np.asarray(self.adata.obsm["spatial"]))


def expected(grid):
    """Means of the counts, (n, genes)."""
    rng = np.random.default_rng(99)
    direction = rng.normal(size=(2, len(GENES))) / 6
    return rng.gamma(1, 4, len(GENES)) * np.exp((grid - 5.5) @ direction * 0.7)


@dataclass(frozen=True)
class Oracle:
    """Knows the means; ``genes`` and noise can be chosen."""

    genes: tuple = tuple(GENES)
    noise: float = 0.0

    def predict(self, tiles):
        mean = log_normalise(sparse.csr_matrix(expected(tiles.centres / 100))).toarray()
        mean = mean + np.random.default_rng(0).normal(0, self.noise, mean.shape) if self.noise else mean
        return mean[:, : len(self.genes)].astype(np.float32)


@pytest.fixture(scope="session")
def sections():
    return [MadeSection(f"{p}{i}", p, seed=10 * j + i) for j, p in enumerate("ABC") for i in (1, 2)]


@pytest.fixture(scope="session")
def oracle():
    return Oracle()


@pytest.fixture(scope="session")
def noisy():
    return Oracle(noise=1.0)
