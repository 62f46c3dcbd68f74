"""mean: every tile gets the training mean. Its correlation is 0 by definition, its error the yardstick."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hescribe.methods.base import Method, MethodConfig, Origin, RegressionModel, Shapes
from hescribe.types import Features, SparseExpression


class MeanConfig(MethodConfig):
    """There is nothing to set."""


class Mean(RegressionModel):
    """The training mean of each gene.

    Parameters
    ----------
    tower
        Not looked at.
    shapes
        Sizes.
    """

    mean: Tensor

    def __init__(self, tower: nn.Module, shapes: Shapes) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("mean", torch.zeros(shapes.genes))

    def predict_expression(self, images: Tensor) -> Tensor:
        """(n, …) → (n, g), all rows the same."""
        return self.mean.expand(len(images), -1)

    def solve(self, features: Features, expression: SparseExpression, origin: Origin) -> None:
        """Take the mean."""
        self.mean.copy_(torch.from_numpy(np.asarray(expression.mean(axis=0), dtype=np.float32).ravel()))


MEAN = Method(
    name="mean",
    summary="the training mean of each gene, the yardstick for errors",
    source="control",
    config=MeanConfig,
    build=lambda tower, shapes, config: Mean(tower, shapes),
    can_fine_tune=False,
)
