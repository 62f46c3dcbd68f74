"""BLEEP: image and expression in one embedding, expression by averaging the nearest spots.

Xie et al., "Spatially Resolved Gene Expression Prediction from H&E Histology Images via Bi-modal
Contrastive Learning", NeurIPS 2023 (arXiv 2306.01859).
"""

from __future__ import annotations

import torch
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
    Width,
)
from hescribe.methods.layers import ProjectionHead
from hescribe.methods.losses import contrastive_loss
from hescribe.types import Context


class BleepConfig(MethodConfig):
    """Settings of BLEEP; the defaults are the paper's where it has one."""

    dim: Width = Field(256, description="length of the embedding")
    dropout: float = Field(0.1, ge=0, lt=1)
    temperature: Temperature = Field(1.0, description="τ, fixed")
    smooth_targets: bool = Field(default=True, description="softened targets; off: plain CLIP")
    renormalise_targets: bool = Field(
        default=False, description="rows of the transposed targets sum to 1 (published: no)"
    )
    replica_batch: int = Field(
        128, ge=2, le=1_000_000, description="spots per independent loss, as one GPU of the published four"
    )
    gather: bool = Field(
        default=False, description="one loss over the embeddings of all replicas, and all processes, instead"
    )
    harmony: bool = Field(
        default=False, description="correct the panel's expression between training sections by Harmony"
    )
    context: Context = Field(Context(), description="what of a tile is described, with a frozen encoder")
    optimisation: Optimisation = Optimisation(epochs=150, batch_size=512, fewest_steps=8)
    retrieval: Retrieval = Retrieval()


class Bleep(JointModel):
    """The two projection heads and the loss.

    Parameters
    ----------
    tower
        Images → (n, features).
    shapes
        Sizes.
    config
        Settings.
    """

    def __init__(self, tower: nn.Module, shapes: Shapes, config: BleepConfig) -> None:
        super().__init__()
        self.tower = tower
        self.config = config
        self.image_head = ProjectionHead(shapes.features, config.dim, dropout=config.dropout)
        self.expression_head = ProjectionHead(shapes.panel, config.dim, dropout=config.dropout)

    def embed_images(self, images: Tensor) -> Tensor:
        """Tower, then projection head."""
        return self.image_head(self.tower(images))

    def embed_expression(self, expression: Tensor) -> Tensor:
        """Only a projection head: the published method has no other expression encoder."""
        return self.expression_head(expression)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss, averaged over independent replicas of the batch.

        The published figures come from four processes of 128 spots that did not exchange their
        embeddings. A batch is therefore cut into such replicas, each with its own forward pass
        (so that batch statistics are the replica's own) and its own loss; a remainder too small
        to contrast anything joins the replica before it. Several processes cut each its own part.
        """
        embedded = [
            (self.embed_images(images), self.embed_expression(expression))
            for images, expression in zip(
                _replicas(batch.images, self.config.replica_batch),
                _replicas(batch.expression, self.config.replica_batch),
                strict=True,
            )
        ]
        if self.config.gather:
            images, expression = (torch.cat(side) for side in zip(*embedded, strict=True))
            images, expression = self.rows_of_all(images, expression)
            embedded = [(images, expression)]
        per_replica = [self._contrast(images, expression).mean() for images, expression in embedded]
        return {"contrastive": torch.stack(per_replica).mean()}

    def _contrast(self, images: Tensor, expression: Tensor) -> Tensor:
        return contrastive_loss(
            images,
            expression,
            temperature=self.config.temperature,
            smooth=self.config.smooth_targets,
            renormalise=self.config.renormalise_targets,
        )


def _replicas(values: Tensor, size: int) -> list[Tensor]:
    parts = list(values.split(size))
    if len(parts) > 1 and len(parts[-1]) < max(2, size // 2):
        last = parts.pop()
        parts[-1] = torch.cat([parts[-1], last])
    return parts


def _build(tower: nn.Module, shapes: Shapes, config: MethodConfig) -> nn.Module:
    assert isinstance(config, BleepConfig)  # noqa: S101 - the table pairs them
    return Bleep(tower, shapes, config)


BLEEP = Method(
    name="bleep",
    summary="contrastive embedding, expression as the mean of the 50 nearest training spots",
    source="Xie et al., NeurIPS 2023, arXiv 2306.01859",
    config=BleepConfig,
    build=_build,
    can_fine_tune=True,
)
