"""A drawn tissue, cut into sections that are turned, flipped, stretched and shifted by known maps."""

from __future__ import annotations

import anndata as ad
import cv2
import numpy as np
import pandas as pd
import pytest

from hescribe.downstream.volume.placement import Placement
from hescribe.downstream.volume.planes import Picture

UM = 12.0  #: a pixel of a thumbnail
SPOT_UM = 100.0
GLASS = (238, 236, 240)


def draw_tissue(seed: int = 0, side: int = 210) -> np.ndarray:
    """An uneven outline with dark islands in it, RGB on glass; the right half differs from the left."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    radius = side * (0.26 + 0.05 * np.cos(angle) + 0.045 * np.sin(2 * angle + 1) + 0.03 * np.cos(3 * angle))
    outline = np.column_stack([side / 2 + radius * np.cos(angle), side / 2 + 0.8 * radius * np.sin(angle)])
    mask = cv2.fillPoly(np.zeros((side, side), np.uint8), [outline.astype(np.int32)], 1).astype(bool)
    islands = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), 5)
    dark = np.clip(islands / islands.std(), 0, 2)[..., None] / 2
    stained = np.array([214, 160, 205]) * (1 - dark) + np.array([105, 75, 150]) * dark
    stained += rng.normal(0, 6, (side, side, 1))
    return np.where(mask[..., None], np.clip(stained, 0, 255), GLASS).astype(np.uint8)


def place(
    angle: float,
    *,
    flip: bool = False,
    stretch: float = 1.0,
    shift: tuple[float, float] = (0, 0),
    middle: float = 105 * UM,
) -> np.ndarray:
    """Block's µm → section's µm, (2, 3), about the middle of the picture; written out apart from the library's own."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    matrix = np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if flip else 1.0, 1.0]) @ np.diag([stretch, 1.0])
    about = np.full(2, middle)
    return np.column_stack([matrix, about + shift - matrix @ about])


def apply_map(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Written out apart from the library's own."""
    return np.array([affine[:, :2] @ p + affine[:, 2] for p in points])


def cut(block: np.ndarray, to_section: np.ndarray, name: str, seed: int) -> Picture:
    """The section as it lies on its slide, with its own noise and stain."""
    pixels = to_section.copy()
    # Pixel i has its centre at (i + ½) UM
    pixels[:, 2] = to_section[:, 2] / UM + to_section[:, :2] @ np.full(2, 0.5) - 0.5
    image = cv2.warpAffine(block, pixels, block.shape[1::-1], borderValue=GLASS).astype(float)
    rng = np.random.default_rng(seed)
    image = image * rng.uniform(0.94, 1.0, 3) + rng.normal(0, 3, image.shape)
    return Picture(name, np.clip(image, 0, 255).astype(np.uint8), UM)


def block_points(block: np.ndarray) -> np.ndarray:
    """Spots on a square grid over the block's tissue, µm."""
    x, y = np.meshgrid(np.arange(3, 210, 8), np.arange(3, 210, 8))
    inside = block[y, x, 1] < 200
    return np.column_stack([x[inside] + 0.5, y[inside] + 0.5]) * UM


def error_um(
    found: Placement, reference: Placement, truth: np.ndarray, truth_reference: np.ndarray, points: np.ndarray
) -> float:
    """Mean distance between where a block's points come to lie in common coordinates by two sections."""
    there = found.to_common(apply_map(truth, points))
    here = reference.to_common(apply_map(truth_reference, points))
    return float(np.linalg.norm(there - here, axis=1).mean())


@pytest.fixture(scope="session")
def block() -> np.ndarray:
    return draw_tissue()


@pytest.fixture(scope="session")
def truths() -> list[np.ndarray]:
    """Block → section, of three sections: turned, flipped, stretched, shifted."""
    return [place(0), place(137, flip=True, shift=(180, -90)), place(-62, stretch=1.04, shift=(-120, 60))]


@pytest.fixture(scope="session")
def pictures(block: np.ndarray, truths: list[np.ndarray]) -> list[Picture]:
    return [cut(block, t, f"S{i + 1}", i) for i, t in enumerate(truths)]


def measured(points: np.ndarray, to_section: np.ndarray, seed: int) -> ad.AnnData:
    """Counts of three genes whose means depend on the place in the block; positions are full-resolution pixels."""
    rng = np.random.default_rng(seed)
    x, y = (points / points.max(axis=0)).T
    mean = np.column_stack([40 * x, 40 * y, 20 + 0 * x, np.full(len(x), 100)])
    table = ad.AnnData(
        rng.poisson(mean).astype(np.float32),
        obs=pd.DataFrame(index=[f"s{i}" for i in range(len(points))]),
        var=pd.DataFrame(index=["EAST", "SOUTH", "FLAT", "REST"]),
    )
    table.obsm["spatial"] = apply_map(to_section, points) / MPP
    return table


MPP = 3.0  #: of the full-resolution picture
