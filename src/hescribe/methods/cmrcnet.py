"""CMRCNet: BLEEP's embedding, and a second task: rebuild the masked image's embedding with the help of the genes.

Liu et al., "Spatial Transcriptomics Expression Prediction from Histopathology Based on Cross-Modal Mask
Reconstruction and Contrastive Learning", arXiv 2506.08854 (Medical Image Analysis 2025).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hescribe.methods.base import (
    Batch,
    Depth,
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

_GENE_TOKENS = 8  #: tokens that the gene block makes of a spot's panel
_HEADS = 8
_FUSION_DROPOUT = 0.25


class CmrcnetConfig(MethodConfig):
    """Settings of CMRCNet; the defaults are those of its code."""

    dim: Width = Field(256, multiple_of=_HEADS, description="length of the embedding and of the fused tokens")
    dropout: float = Field(0.1, ge=0, lt=1)
    temperature: Temperature = Field(1.0, description="τ, fixed")
    tokens: bool = Field(
        default=False, description="of a frozen encoder too all its tokens, not their mean as the only one"
    )
    mask: Literal["elements", "tokens"] = Field(
        "elements", description="what is set to zero: single numbers (published), or whole tokens"
    )
    mask_ratio: float = Field(0.5, ge=0, lt=1, description="share that is masked")
    fusion_layers: Depth = 2
    shared_fusion: bool = Field(default=True, description="all fusion layers have one set of weights (published)")
    detach_target: bool = Field(
        default=False, description="the image embedding is not pulled towards what genes can rebuild (published: it is)"
    )
    optimisation: Optimisation = Optimisation(
        epochs=60, batch_size=64, learning_rate=1e-4, final_learning_rate=1e-5, weight_decay=1e-3
    )
    retrieval: Retrieval = Retrieval()


class FusionLayer(nn.Module):
    """Image tokens attend to themselves, pass an MLP, and take from the gene tokens.

    ``H ← H + SA(LN H);  H ← H + MLP(LN H);  H ← H + V₁ + softmax(Q Kᵀ / √d) V₂`` with
    ``Q = drop(relu(W_q H))``, ``K = drop(relu(W_k S))``, ``V₁ = W₁ Q``, ``V₂ = W₂ K``.
    """

    def __init__(self, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, _HEADS, batch_first=True)
        self.attention_dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value_image, self.value_gene = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(_FUSION_DROPOUT)

    def forward(self, image: Tensor, genes: Tensor) -> Tensor:
        """(n, t, dim) image tokens and (n, 8, dim) gene tokens → (n, t, dim)."""
        normed = self.norm_attention(image)
        image = image + self.attention_dropout(self.attention(normed, normed, normed, need_weights=False)[0])
        image = image + self.mlp(self.norm_mlp(image))
        query, key = self.dropout(F.relu(self.query(image))), self.dropout(F.relu(self.key(genes)))
        q, k, v = (_split_heads(x) for x in (query, key, self.value_gene(key)))
        taken = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return image + self.value_image(query) + taken


def _split_heads(tokens: Tensor) -> Tensor:
    """(n, t, dim) → (n, heads, t, dim / heads)."""
    return tokens.unflatten(2, (_HEADS, -1)).transpose(1, 2)


class Cmrcnet(JointModel):
    """Contrastive branch and cross-modal mask reconstruction.

    Parameters
    ----------
    tower
        Images, or what a frozen encoder made of them, → (n, t, features) tokens, or (n, features), taken as one.
    shapes
        Sizes.
    config
        Settings.
    """

    def __init__(self, tower: nn.Module, shapes: Shapes, config: CmrcnetConfig) -> None:
        super().__init__()
        self.tower = tower
        self.config = config
        dim = config.dim
        self.image_head = ProjectionHead(shapes.features, dim, dropout=config.dropout)
        self.expression_head = ProjectionHead(shapes.panel, dim, dropout=config.dropout)
        self.gene_block = nn.Sequential(
            nn.Linear(shapes.panel, _GENE_TOKENS * dim), nn.ELU(), nn.AlphaDropout(_FUSION_DROPOUT)
        )
        self.image_tokens = nn.Linear(shapes.features, dim)
        self.cross_attention = nn.MultiheadAttention(dim, 4, batch_first=True)
        distinct = 1 if config.shared_fusion else config.fusion_layers
        self.fusion = nn.ModuleList(FusionLayer(dim, dropout=config.dropout) for _ in range(distinct))

    def embed_images(self, images: Tensor) -> Tensor:
        """The mean of the tokens, projected; the reconstruction takes no part."""
        return self.image_head(_tokens(self.tower(images)).mean(dim=1))

    def embed_expression(self, expression: Tensor) -> Tensor:
        """Only a projection head, as in BLEEP."""
        return self.expression_head(expression)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``mean log(1 + ℓᵢ)`` of the contrastive terms and ``log(1 + MSE)`` of the reconstruction, weighted alike."""
        tokens = _tokens(self.tower(batch.images))
        images = self.image_head(tokens.mean(dim=1))
        expression = self.embed_expression(batch.expression)
        rebuilt = self.reconstruct(tokens, batch.expression)
        images, expression, rebuilt = self.rows_of_all(images, expression, rebuilt)
        contrast = contrastive_loss(images, expression, temperature=self.config.temperature)
        target = images.detach() if self.config.detach_target else images
        return {
            "contrastive": torch.log1p(contrast).mean(),
            "reconstruction": torch.log1p(F.mse_loss(rebuilt.float(), target.float())),
        }

    def reconstruct(self, tokens: Tensor, expression: Tensor) -> Tensor:
        """Masked (n, t, features) image tokens and (n, panel) expression → (n, dim), to be like the image embedding."""
        genes = self.gene_block(expression).unflatten(1, (_GENE_TOKENS, self.config.dim))
        fused = self.cross_attention(self.masked(self.image_tokens(tokens)), genes, genes, need_weights=False)[0]
        for i in range(self.config.fusion_layers):
            fused = self.fusion[i % len(self.fusion)](fused, genes)
        return fused.mean(dim=1)

    def masked(self, tokens: Tensor) -> Tensor:
        """Zero a random share of the numbers, or of the tokens; when validating too, as published."""
        shape = tokens.shape if self.config.mask == "elements" else (*tokens.shape[:2], 1)
        return tokens * (torch.rand(shape, device=tokens.device) >= self.config.mask_ratio)


def _tokens(features: Tensor) -> Tensor:
    return features if features.ndim == 3 else features[:, None, :]


def _build(tower: nn.Module, shapes: Shapes, config: MethodConfig) -> nn.Module:
    assert isinstance(config, CmrcnetConfig)  # noqa: S101 - the table pairs them
    return Cmrcnet(tower, shapes, config)


CMRCNET = Method(
    name="cmrcnet",
    summary="BLEEP's embedding with cross-modal mask reconstruction as a second task",
    source="Liu et al., Medical Image Analysis 2025, arXiv 2506.08854",
    config=CmrcnetConfig,
    build=_build,
    can_fine_tune=True,
    tokens=True,
)
