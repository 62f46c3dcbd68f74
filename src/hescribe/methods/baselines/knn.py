"""knn: the mean over the training spots whose frozen features are nearest; retrieval without any learning."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from hescribe.errors import InputError
from hescribe.methods.base import Batch, JointModel, Method, MethodConfig, Origin, Retrieval, Shapes, only_key
from hescribe.methods.layers import Standardise
from hescribe.types import Features, SparseExpression


class KnnConfig(MethodConfig):
    """Settings of the control."""

    retrieval: Annotated[Retrieval, only_key("knn", "image")] = Retrieval(key="image")


class Knn(JointModel):
    """Standardised features are the embedding of images; expression has none.

    Parameters
    ----------
    tower
        Images → (n, features).
    shapes
        Sizes.
    """

    def __init__(self, tower: nn.Module, shapes: Shapes) -> None:
        super().__init__()
        self.tower = tower
        self.standardise = Standardise(shapes.features)

    def embed_images(self, images: Tensor) -> Tensor:
        """Standardised features."""
        return self.standardise(self.tower(images))

    def embed_expression(self, expression: Tensor) -> Tensor:
        """There is no embedding of expression: keys are images."""
        raise InputError("knn has image keys only", path="settings of knn", fix="leave retrieval.key at 'image'")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing is minimised."""
        return {}

    def solve(self, features: Features, expression: SparseExpression, origin: Origin) -> None:
        """Learn the features' mean and spread."""
        self.standardise.learn(torch.from_numpy(features).double())


KNN = Method(
    name="knn",
    summary="the mean of the 50 training spots with the nearest frozen features",
    source="control",
    config=KnnConfig,
    build=lambda tower, shapes, config: Knn(tower, shapes),
    can_fine_tune=False,
)
