"""ST-Net: an encoder and a linear layer, trained by squared error.

He et al., "Integrating spatial gene expression and breast tumour morphology via deep learning", Nature Biomedical
Engineering 2020. The paper fine-tunes DenseNet-121; any encoder does, frozen too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hescribe.methods.base import Batch, Method, MethodConfig, Optimisation, RegressionModel, Shapes


class StnetConfig(MethodConfig):
    """Settings of ST-Net."""

    optimisation: Optimisation = Optimisation(epochs=50, batch_size=32, learning_rate=1e-3, weight_decay=1e-3)


class Stnet(RegressionModel):
    """One linear layer over the encoder.

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
        self.output = nn.Linear(shapes.features, shapes.genes)

    def start_from(self, mean: Tensor) -> None:
        """Predict the mean before anything is learned, as the code does: features that are scaled cannot tell it."""
        self.output.load_state_dict({"weight": torch.zeros_like(self.output.weight), "bias": mean})

    def predict_expression(self, images: Tensor) -> Tensor:
        """(n, …) → (n, g); not below zero, since log-normalised expression is not."""
        return self.output(self.tower(images)).clamp_min(0.0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error over spots and genes, before anything is cut off at zero."""
        return {"squared_error": F.mse_loss(self.output(self.tower(batch.images)).float(), batch.expression)}


STNET = Method(
    name="stnet",
    summary="encoder and linear layer by squared error",
    source="He et al., Nature Biomedical Engineering 2020",
    config=StnetConfig,
    build=lambda tower, shapes, config: Stnet(tower, shapes),
    can_fine_tune=True,
)
