"""carhe-clip: the variant in CarHE's public code, a CLIP of tile features and a panel of genes.

github.com/Jwzouchenlab/CarHE (2025). The code trains the encoder's last block but one and its last normalisation
(``--fine-tune``); without that the features are frozen. Its evaluations had the answer in the retrieval gallery; here keys are training
spots alone.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hescribe.methods.base import (
    Batch,
    JointModel,
    Method,
    MethodConfig,
    Optimisation,
    Retrieval,
    Shapes,
    Temperature,
)
from hescribe.methods.layers import ProjectionHead
from hescribe.methods.losses import contrastive_loss

_COLDEST = 0.01
_EPS = 1e-6  #: of the head's LayerNorm, as the code has it


class CarheClipConfig(MethodConfig):
    """Settings of carhe-clip; the defaults are those of the code."""

    dropout: float = Field(0.1, ge=0, lt=1)
    temperature: Temperature = Field(1.0, description="where τ starts; it is learned, and never below 0.01")
    off_diagonal: float = Field(
        1.1, ge=0.1, le=100, description="similarities of different spots are divided by this in the targets"
    )
    gene_embedding: Literal["auto", "learned", "scgpt"] = Field(
        "auto", description="of transcriptomes; auto: scGPT's where every section has obsm['X_scGPT'], else the panel"
    )
    augmentation: Literal["any turn", "symmetries"] = Field(
        "any turn",
        description="of tiles when fine-tuning: flips, any turn and crops on every other tile (published), or the "
        "symmetries of the square as for the other methods",
    )
    optimisation: Optimisation = Optimisation(epochs=100, batch_size=32, learning_rate=1e-4, weight_decay=2e-3)
    retrieval: Retrieval = Retrieval(k=5, similarity="euclidean")


class CarheClip(JointModel):
    """Only the gene side has a projection head, whose output is as long as the encoder's features.

    Parameters
    ----------
    tower
        Images → (n, features).
    shapes
        Sizes.
    config
        Settings.
    """

    def __init__(self, tower: nn.Module, shapes: Shapes, config: CarheClipConfig) -> None:
        super().__init__()
        self.tower = tower
        self.config = config
        self._features = shapes.features
        self._take(shapes.panel)
        self.log_temperature = nn.Parameter(torch.tensor(config.temperature).log())

    def _take(self, inputs: int) -> None:
        """A projection head for transcriptomes of that many numbers: genes, or scGPT's."""
        self.expression_head = ProjectionHead(inputs, self._features, dropout=self.config.dropout, eps=_EPS)

    def embed_images(self, images: Tensor) -> Tensor:
        """The features themselves."""
        return self.tower(images)

    def embed_expression(self, expression: Tensor) -> Tensor:
        """(n, panel), or vectors by scGPT → (n, features)."""
        return self.expression_head(expression)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss on unit vectors."""
        images, expression = self.rows_of_all(
            F.normalize(self.embed_images(batch.images).float(), dim=1),
            F.normalize(self.embed_expression(batch.expression).float(), dim=1),
        )
        temperature = self.log_temperature.exp().clamp_min(_COLDEST)
        contrast = contrastive_loss(images, expression, temperature=temperature, off_diagonal=self.config.off_diagonal)
        return {"contrastive": contrast.mean()}

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # A bundle tells how many genes the panel has, not how long the vectors were that took its place
        weight = state_dict.get(f"{prefix}expression_head.project.weight")
        if weight is not None and weight.shape[1] != self.expression_head.project.in_features:
            self._take(weight.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)


def _build(tower: nn.Module, shapes: Shapes, config: MethodConfig) -> nn.Module:
    assert isinstance(config, CarheClipConfig)  # noqa: S101 - the table pairs them
    return CarheClip(tower, shapes, config)


CARHE_CLIP = Method(
    name="carhe-clip",
    summary="the CLIP of CarHE's public code: gene panel aligned with tile features, five nearest spots",
    source="github.com/Jwzouchenlab/CarHE",
    config=CarheClipConfig,
    build=_build,
    can_fine_tune=True,
    trainable=("blocks.-2", "norm"),
)
