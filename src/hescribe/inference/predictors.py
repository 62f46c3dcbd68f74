"""Adapters: a trained model of any kind becomes a Predictor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hescribe.encoders import Described, Encoder, Extraction, describe_tiles
from hescribe.errors import InputError
from hescribe.inference.refine import Refiner, wanted_refinement
from hescribe.methods.base import JointModel, KnowsPatients, MethodConfig, RegressionModel, Retrieval
from hescribe.predictor import TileSource
from hescribe.reference import Reference
from hescribe.types import Expression, Features, SparseExpression

_ROWS = 4096  #: features at once through a model's head


class Head(Protocol):
    """Features → expression; some heads look at the tiles once more."""

    def __call__(self, features: Features, tiles: TileSource | None = None) -> Expression:
        """(n, d), and the n tiles they describe → (n, g)."""
        ...


@dataclass(frozen=True)
class RegressionHead:
    """Expression straight from a regression model, its tower removed.

    Attributes
    ----------
    patient
        Number of the patient in the training's `Origin`; None for a new one.
    """

    model: RegressionModel
    device: str = "cpu"
    patient: int | None = None

    def __call__(self, features: Features, tiles: TileSource | None = None) -> Expression:
        """(n, d) → (n, g); tiles are not looked at."""
        if self.patient is not None and isinstance(self.model, KnowsPatients):
            known = partial(self.model.predict_known, patient=self.patient)
            return in_blocks(known, self.model, features, self.device)
        return in_blocks(self.model.predict_expression, self.model, features, self.device)


@dataclass(frozen=True)
class RetrievalHead:
    """Expression of the nearest reference spots of a joint model, its tower removed.

    Attributes
    ----------
    refiner
        Looks at the tiles once more, where the method's settings ask for it.
    """

    model: JointModel
    reference: Reference
    retrieval: Retrieval
    device: str = "cpu"
    refiner: Refiner | None = None

    def __call__(self, features: Features, tiles: TileSource | None = None) -> Expression:
        """(n, d), and for a refiner the n tiles → (n, g)."""
        return self.reference.blend_expression(self.weights(features, tiles), device=self.device)

    def weights(self, features: Features, tiles: TileSource | None = None) -> SparseExpression:
        """(n, d), and for a refiner the n tiles → (n, m) sparse weights of the reference's rows.

        What else the reference knows is blended by the same.

        Raises
        ------
        InputError
            There is a refiner and no tiles.
        """
        queries = in_blocks(self.model.embed_images, self.model, features, self.device)
        first = self.reference.weights(queries, self.retrieval, device=self.device)
        if self.refiner is None:
            return first
        if tiles is None:
            raise InputError("this bundle refines its predictions by the tiles", fix="give the tiles with the features")
        return self.refiner.refine(tiles, first)


def retrieval_head(
    model: JointModel,
    reference: Reference,
    config: MethodConfig,
    described_by: tuple[Encoder, Extraction],
    *,
    device: str,
) -> RetrievalHead:
    """The head of a joint model, with a refiner where its settings ask for one.

    Raises
    ------
    InputError
        A refinement that this encoder or these settings do not allow.
    """
    retrieval: Retrieval = config.retrieval  # type: ignore[attr-defined]
    how = wanted_refinement(config, *described_by)
    refiner = None
    if how is not None:
        refiner = Refiner(*described_by, model, reference.embedding, how, retrieval.temperature, device)
    return RetrievalHead(model, reference, retrieval, device, refiner)


@dataclass(frozen=True)
class TilePredictor:
    """Encoder and head: the Predictor of every method.

    Attributes
    ----------
    encoder, extraction
        Tiles → features, and how.
    head
        Features → expression.
    genes
        Columns of a prediction.
    """

    encoder: Encoder
    extraction: Extraction
    head: Head
    genes: tuple[str, ...]
    device: str = "cpu"
    use_cache: bool = True

    def describe(self, tiles: TileSource) -> Described:
        """Features of every tile of a slide, from the cache where they are known."""
        return describe_tiles(tiles, self.encoder, self.extraction, device=self.device, use_cache=self.use_cache)

    def predict(self, tiles: TileSource) -> Expression:
        """Predicted log1p expression, (len(tiles), len(genes)) float32."""
        return self.head(self.describe(tiles).full, tiles)


@torch.inference_mode()
def in_blocks(
    function: Callable[[Tensor], Tensor], model: torch.nn.Module, inputs: Features, device: str
) -> Expression:
    """Apply a model's function to rows of features, block by block, in evaluation mode."""
    model.to(device).eval()
    out: list[Tensor] = []
    for start in range(0, len(inputs), _ROWS):
        # Copied into aligned memory: the same numbers give the same bits
        block = torch.tensor(np.ascontiguousarray(inputs[start : start + _ROWS], dtype=np.float32))
        out.append(function(block.to(device)).float().cpu())
    return torch.cat(out).numpy()
