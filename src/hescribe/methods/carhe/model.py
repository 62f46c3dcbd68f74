"""CarHE as its paper describes it: a tile is a mixture of prototypes, clusters of transcriptomes.

Zou et al., bioRxiv 10.1101/2025.06.15.659438 (2025). The target of a tile is not a vector of counts but a cluster in a
space of transcriptomes; expression is the mean over the clusters, weighted by how alike the tile is to each.

The paper embeds transcriptomes by scGPT and clusters two million cells. Here transcriptomes without image join those of
the paired spots, and where no scGPT vectors are given, the embedding is learned from them all (the leading singular
vectors of their expression, each section less its mean).
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn

from hescribe.methods.axes import Centred, beside, leading_axes
from hescribe.methods.base import (
    Batch,
    Count,
    JointModel,
    Method,
    MethodConfig,
    Optimisation,
    Origin,
    Refinement,
    Retrieval,
    Shapes,
    Temperature,
    Unpaired,
    Width,
    only_key,
)
from hescribe.methods.carhe.prototypes import cluster, project_unpaired
from hescribe.methods.layers import ProjectionHead
from hescribe.methods.losses import aligned_loss
from hescribe.types import Features, SparseExpression


class CarheConfig(MethodConfig):
    """Settings of CarHE; where the paper is silent, ours."""

    prototypes: int = Field(100, ge=2, le=100_000, description="clusters of transcriptomes; fewer on few spots")
    components: Count = Field(50, description="length of a transcriptome's embedding")
    dim: Width = Field(256, description="length of the joint embedding")
    dropout: float = Field(0.1, ge=0, lt=1)
    temperature: Temperature = Field(
        0.1, description="τ of the alignment; that of the prediction is retrieval.temperature"
    )
    alpha: float = Field(0.0, ge=0, lt=1, description="target of a pair that does not belong together, before scaling")
    same_cluster: float = Field(1.0, ge=0, le=1, description="target of a pair of one cluster")
    target: Literal["prototype", "spot"] = Field(
        "prototype", description="a tile is aligned with its spot's prototype, or with the spot's own transcriptome"
    )
    unpaired: bool = Field(default=True, description="learn from transcriptomes without image too")
    transfer: bool = Field(default=True, description="predict genes that only transcriptomes without image have")
    gene_embedding: Literal["auto", "learned", "scgpt"] = Field(
        "auto", description="of transcriptomes; auto: scGPT's where every section and reference has obsm['X_scGPT']"
    )
    optimisation: Optimisation = Optimisation(epochs=100, batch_size=64, learning_rate=1e-4, weight_decay=2e-3)
    #: keys are prototypes, clusters of expression
    retrieval: Annotated[Retrieval, only_key("carhe", "expression")] = Retrieval(
        k=1000, imputation="softmax", temperature=0.1
    )
    refinement: Refinement | None = Field(
        None, description="Grad-CAM refinement of the prototypes' weights; needs an encoder with feature maps"
    )


class Carhe(JointModel):
    """Prototypes in buffers, and two projection heads.

    Parameters
    ----------
    tower
        Images → (n, features).
    shapes
        Sizes.
    config
        Settings.
    """

    def __init__(self, tower: nn.Module, shapes: Shapes, config: CarheConfig) -> None:
        super().__init__()
        self.tower = tower
        self.config = config
        self._embed_by(torch.zeros(shapes.panel, min(config.components, shapes.panel)))
        self.image_head = ProjectionHead(shapes.features, config.dim, dropout=config.dropout)
        self.register_buffer("prototypes", torch.zeros(2, self.get_buffer("axes").shape[1]))
        self._spread: float | None = None  # of the paired spots; none: vectors were made elsewhere

    def _embed_by(self, axes: Tensor) -> None:
        """Take (inputs, k) axes, and a projection head of their width."""
        self.register_buffer("centre", torch.zeros(len(axes)))
        self.register_buffer("axes", axes.float())
        head = ProjectionHead(axes.shape[1], self.config.dim, dropout=self.config.dropout)
        self.expression_head = head.train(self.training)

    def learn_prototypes(
        self,
        expression: SparseExpression,
        origin: Origin,
        *,
        seed: int,
        unpaired: Unpaired | None = None,
        embedded: bool = False,
    ) -> None:
        """Embedding and clusters of (n, panel) training transcriptomes, in closed form."""
        matrix = sparse.csr_matrix(expression, dtype=np.float64)
        if embedded:
            self._embed_by(torch.eye(matrix.shape[1]))
        else:
            wanted = min(self.config.components, matrix.shape[1])
            axes = leading_axes(beside(Centred(matrix, origin.section), unpaired), wanted).T
            self._embed_by(torch.from_numpy(np.pad(axes, ((0, 0), (0, wanted - axes.shape[1])))))
        self.get_buffer("centre").copy_(torch.from_numpy(np.asarray(matrix.mean(axis=0)).ravel()))
        axes = self.get_buffer("axes").double().numpy()
        places = matrix @ axes - np.asarray(matrix.mean(axis=0)) @ axes
        self._spread = None if embedded else float(np.sqrt((places**2).sum(axis=1).mean()))
        others = None if unpaired is None else self.locate_unpaired(unpaired)
        found = cluster(places, others, most=self.config.prototypes, seed=seed)
        self.register_buffer("prototypes", torch.tensor(found, dtype=torch.float32))

    def locate(self, expression: Tensor) -> Tensor:
        """(n, panel) → (n, k) places in the space of the prototypes."""
        return (expression - self.get_buffer("centre")) @ self.get_buffer("axes")

    def locate_unpaired(self, unpaired: Unpaired) -> Features:
        """(m, k); each source less its own mean, unless the vectors came ready-made."""
        if self._spread is None:
            return np.asarray(unpaired.expression.toarray() - self.get_buffer("centre").cpu().numpy())
        return project_unpaired(unpaired, self.get_buffer("axes").cpu().double().numpy(), self._spread)

    def centres(self) -> Features:
        """(prototypes, k)."""
        return self.get_buffer("prototypes").cpu().numpy()

    def assign(self, expression: Tensor) -> Tensor:
        """(n, panel) → (n,) the nearest prototype of each transcriptome."""
        return torch.cdist(self.locate(expression), self.get_buffer("prototypes")).argmin(dim=1)

    def embed_prototypes(self) -> Tensor:
        """(m, dim), of unit length."""
        return F.normalize(self.expression_head(self.get_buffer("prototypes")), dim=1)

    def embed_images(self, images: Tensor) -> Tensor:
        """(n, …) → (n, dim), of unit length."""
        return F.normalize(self.image_head(self.tower(images)), dim=1)

    def embed_expression(self, expression: Tensor) -> Tensor:
        """(n, panel) → (n, dim), of unit length."""
        return F.normalize(self.expression_head(self.locate(expression)), dim=1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``½ [CE(softmax(P Cᵀ / τ), T) + CE(softmax(C Pᵀ / τ), T)]``, T softened, rows scaled to 1."""
        cluster = self.assign(batch.expression)
        images = self.embed_images(batch.images)
        if self.config.target == "prototype":
            genes = self.embed_prototypes()[cluster]
        else:
            genes = self.embed_expression(batch.expression)
        images, genes, cluster = self.rows_of_all(images, genes, cluster)
        return {"alignment": aligned_loss(images, genes, self._targets(cluster), self.config.temperature)}

    def _targets(self, cluster: Tensor) -> Tensor:
        same = cluster[:, None] == cluster[None, :]
        targets = torch.where(same, self.config.same_cluster, self.config.alpha).fill_diagonal_(1.0)
        return targets / targets.sum(dim=1, keepdim=True)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # As many prototypes as the training data could bear, and axes of the embedding they were made with
        if f"{prefix}axes" in state_dict and state_dict[f"{prefix}axes"].shape != self.get_buffer("axes").shape:
            self._embed_by(torch.zeros_like(state_dict[f"{prefix}axes"]))
        if f"{prefix}prototypes" in state_dict:
            self.register_buffer("prototypes", torch.zeros_like(state_dict[f"{prefix}prototypes"]))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _build(tower: nn.Module, shapes: Shapes, config: MethodConfig) -> nn.Module:
    assert isinstance(config, CarheConfig)  # noqa: S101 - the table pairs them
    return Carhe(tower, shapes, config)


CARHE = Method(
    name="carhe",
    summary="tiles as mixtures of prototypes, clusters of transcriptomes",
    source="Zou et al., bioRxiv 10.1101/2025.06.15.659438",
    config=CarheConfig,
    build=_build,
    can_fine_tune=True,
    trainable=("blocks.-2", "blocks.-1"),
)
