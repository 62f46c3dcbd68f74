"""Small slides and bundles of every method, made in a moment; the weights are random, the path is the real one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile
import torch
from scipy import sparse
from torch import nn

from hescribe import keys
from hescribe.encoders import Encoder, Extraction
from hescribe.encoders.record import IMAGENET_MEAN, IMAGENET_STD, Normalised, weights_identity
from hescribe.inference.bundle import Bundle
from hescribe.inference.trust import Novelty, Trust
from hescribe.methods import METHODS
from hescribe.methods.base import ClosedForm, JointModel, LearnsPrototypes, Origin, Shapes
from hescribe.methods.layers import Standardise
from hescribe.reference import Reference
from hescribe.types import Context

WIDTH, GENES, PANEL, SPOTS = 8, 40, 20, 60
MPP = 2.0


def tiny_encoder(width: int = WIDTH) -> Encoder:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, width, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    module = Normalised(backbone, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    return Encoder("tiny", module, width, 32, None, weights_identity("tiny", module), licence="none")


def make_bundle(
    method: str = "ridge",
    *,
    seed: int = 0,
    context: Context | None = None,
    views: int = 1,
    encoder: Encoder | None = None,
) -> Bundle:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    row = METHODS[method]
    config = row.config()
    context = context or getattr(config, "context", Context())
    encoder = encoder or tiny_encoder()
    width = context.width(encoder.width)
    features = rng.normal(size=(SPOTS, width)).astype("f")
    mixed = features @ rng.normal(size=(width, GENES)) / width**0.5
    expression = sparse.csr_matrix(np.maximum(mixed + 1, 0).astype("f"))
    origin = Origin(np.repeat(np.arange(3), 20), np.repeat(np.arange(3), 20))
    model = row.build(Standardise(width), Shapes(width, PANEL, GENES), config)
    if isinstance(model, ClosedForm):
        model.solve(features, expression, origin)
    if isinstance(model, LearnsPrototypes):
        model.learn_prototypes(expression[:, :PANEL], origin, seed=0)
    names = [f"G{i}" for i in range(GENES)]
    genes = pd.DataFrame(
        {keys.IN_PANEL: np.arange(GENES) < PANEL, keys.EXPECTED_PCC: np.linspace(0, 0.4, GENES), keys.INTERVAL: 1.0},
        index=names,
    )
    reference = None
    if isinstance(model, JointModel):
        with torch.inference_mode():
            embedding = model.eval().embed_images(torch.from_numpy(features)).numpy()
        obs = pd.DataFrame(index=[f"s{i}" for i in range(SPOTS)])
        reference = Reference(embedding, expression, tuple(names), obs)
    ones = np.ones(GENES)
    return Bundle(
        method, config, encoder, Extraction(112.0, views=views, context=context), model.eval(), reference, genes,  # type: ignore[arg-type]
        Novelty.fit(
            rng.normal(size=(SPOTS, encoder.width)).astype("f"), rng.normal(size=(SPOTS, 9)).astype("f"), origin.section
        ),
        Trust(np.linspace(0, 0.4, GENES), ones, np.array([30.0, 60.0]), np.array([1.0, 1.2, 1.5])),
        pd.DataFrame(), {"sections": {"A": "P1"}, "version": "0", "spots": SPOTS, "seed": seed}, hash=f"{method}{seed}",
    )  # fmt: skip


def draw_slide(side: int = 1200, seed: int = 0) -> np.ndarray:
    """Glass with a lobed piece of tissue on it, of uneven colour."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    tissue = np.hypot(x, y) < 0.38 + 0.06 * np.cos(5 * np.arctan2(y, x))
    share = cv2.resize(rng.random((side // 12, side // 12)).astype("f"), (side, side), interpolation=cv2.INTER_CUBIC)
    colour = np.array([228, 150, 190]) * (1 - share[..., None]) + np.array([110, 70, 150]) * share[..., None]
    image = np.where(tissue[..., None], colour, 245) + rng.normal(0, 2, (side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def write_slide(path: Path, image: np.ndarray, *, mpp: float | None = MPP, tile: int | None = 128) -> Path:
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    layout = {"tile": (tile, tile), "compression": "jpeg"} if tile else {"rowsperstrip": 32}
    tifffile.imwrite(path, image, photometric="rgb", metadata=None, **layout, **resolution)  # type: ignore[arg-type]
    return path
