"""A small prediction on a grid with its slide; the names in it are attacks, the values are known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import cv2
import numpy as np
import pandas as pd
import pytest

from hescribe import keys
from hescribe.io.store import write_anndata
from hescribe.report.viewer import Viewer, view

EVIL = '<img src=x onerror="window.owned=1"></script><script>window.owned=1</script>'
WIDTH, HEIGHT, STEP = 1240, 1000, 40
PINK, PALE = (230, 150, 190), (240, 240, 250)
GENES = ["RAMP", EVIL, "FLAT", "HOLES", "WORST"]


def make(folder: Path, *, moved: bool = False) -> Path:
    """Prediction in ``folder``; ``moved``: its slide is not where it was."""
    folder.mkdir(parents=True, exist_ok=True)
    slide = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    slide[:, : WIDTH // 2], slide[:, WIDTH // 2 :] = PINK, PALE
    if not moved:
        cv2.imwrite(str(folder / "slide.png"), slide[:, :, ::-1])
    row, column = (a.ravel() for a in np.mgrid[0:24, 0:30])
    kept = np.hypot(column - 14.5, row - 11.5) < 12
    row, column = row[kept], column[kept]
    n = len(row)
    values = np.zeros((n, len(GENES)), dtype=np.float32)
    values[:, 0], values[:, 1], values[:, 2] = column / 10, row / 8, 1.5
    values[:, 3] = np.where(column % 2 == 0, np.nan, 1 + row / 10)
    values[:, 4] = 0.1 * column
    obs = pd.DataFrame(
        {keys.NOVELTY: np.where(row < 8, 99.0, 20.0).astype("f4"), keys.INTERVAL_SCALE: 2.0},
        index=[f"tile_{i}" for i in range(n)],
    )
    var = pd.DataFrame(
        {keys.EXPECTED_PCC: [0.8, 0.6, np.nan, 0.3, -0.05], keys.INTERVAL: [0.25, 0.5, np.nan, 0.5, 0.5]}, index=GENES
    )
    prediction = ad.AnnData(values, obs=obs, var=var)
    prediction.obsm[keys.SPATIAL] = np.stack([column, row], axis=1) * float(STEP) + STEP / 2
    prediction.uns[keys.PROVENANCE] = {
        "slide": EVIL, "image": "slide.png", "image_path": str(folder / "slide.png"), "mpp": 0.5, "tile_um": 40.0,
        "stride_um": 20.0, "method": "ridge", "encoder": EVIL, "unit": "log1p of counts per 10,000",
        "seen_in_training": False, "patient_seen_in_training": True,
    }  # fmt: skip
    write_anndata(prediction, folder / "slide.zarr")
    return folder / "slide.zarr"


@pytest.fixture(scope="session")
def prediction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("viewer"))


@pytest.fixture
def viewer(prediction: Path) -> Iterator[Viewer]:
    with view(prediction, port=0, browser=False) as shown:
        yield shown
