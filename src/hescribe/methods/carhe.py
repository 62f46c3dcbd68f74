"""CarHE as its paper describes it: a tile is a mixture of prototypes, clusters of transcriptomes.

Zou et al., bioRxiv 10.1101/2025.06.15.659438 (2025). The target of a tile is not a vector of counts but a cluster in a
space of transcriptomes; expression is the mean over the clusters, weighted by how alike the tile is to each.

The paper embeds transcriptomes by scGPT and clusters two million cells; here the embedding is learned from the training
transcriptomes themselves (the leading singular vectors of their expression, each section less its mean).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy import sparse
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from hescribe.methods.base import (
    Batch,
    JointModel,
    Method,
    MethodConfig,
    Optimisation,
    Origin,
    Refinement,
    Retrieval,
    Shapes,
)
from hescribe.methods.layers import ProjectionHead
from hescribe.methods.losses import aligned_loss
from hescribe.types import SparseExpression

_SPOTS_PER_PROTOTYPE = 5  #: fewer would make a prototype of noise


class CarheConfig(MethodConfig):
    """Settings of CarHE; where the paper is silent, ours."""

    prototypes: int = Field(100, ge=2, description="clusters of transcriptomes; fewer on few spots")
    components: int = Field(50, ge=1, description="length of a transcriptome's embedding")
    dim: int = Field(256, ge=2, description="length of the joint embedding")
    dropout: float = Field(0.1, ge=0, lt=1)
    temperature: float = Field(
        0.1, gt=0, description="τ of the alignment; that of the prediction is retrieval.temperature"
    )
    alpha: float = Field(0.0, ge=0, lt=1, description="target of a pair that does not belong together, before scaling")
    same_cluster: float = Field(1.0, ge=0, le=1, description="target of a pair of one cluster")
    target: Literal["prototype", "spot"] = Field(
        "prototype", description="a tile is aligned with its spot's prototype, or with the spot's own transcriptome"
    )
    optimisation: Optimisation = Optimisation(epochs=100, batch_size=64, learning_rate=1e-4, weight_decay=2e-3)
    retrieval: Retrieval = Retrieval(k=1000, imputation="softmax", temperature=0.1)
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
        width = min(config.components, shapes.panel)
        self.image_head = ProjectionHead(shapes.features, config.dim, dropout=config.dropout)
        self.expression_head = ProjectionHead(width, config.dim, dropout=config.dropout)
        self.register_buffer("centre", torch.zeros(shapes.panel))
        self.register_buffer("axes", torch.zeros(shapes.panel, width))
        self.register_buffer("prototypes", torch.zeros(2, width))

    def learn_prototypes(self, expression: SparseExpression, origin: Origin, *, seed: int) -> None:
        """Embedding and clusters of (n, panel) training transcriptomes, in closed form."""
        from sklearn.cluster import KMeans

        matrix = sparse.csr_matrix(expression, dtype=np.float64)
        axes = _principal_axes(matrix, origin.section, self.get_buffer("axes").shape[1])
        self.get_buffer("centre").copy_(torch.from_numpy(np.asarray(matrix.mean(axis=0)).ravel()))
        self.get_buffer("axes").zero_()[:, : axes.shape[1]] = torch.from_numpy(axes)
        embedded = matrix @ axes - np.asarray(matrix.mean(axis=0)) @ axes
        count = max(2, min(self.config.prototypes, len(embedded) // _SPOTS_PER_PROTOTYPE))
        means = KMeans(count, n_init=3, random_state=seed).fit(embedded).cluster_centers_
        padded = np.pad(means, ((0, 0), (0, self.get_buffer("axes").shape[1] - means.shape[1])))
        self.register_buffer("prototypes", torch.tensor(padded, dtype=torch.float32))

    def assign(self, expression: Tensor) -> Tensor:
        """(n, panel) → (n,) the nearest prototype of each transcriptome."""
        return torch.cdist(self._embedded(expression), self.get_buffer("prototypes")).argmin(dim=1)

    def embed_prototypes(self) -> Tensor:
        """(m, dim), of unit length."""
        return F.normalize(self.expression_head(self.get_buffer("prototypes")), dim=1)

    def embed_images(self, images: Tensor) -> Tensor:
        """(n, …) → (n, dim), of unit length."""
        return F.normalize(self.image_head(self.tower(images)), dim=1)

    def embed_expression(self, expression: Tensor) -> Tensor:
        """(n, panel) → (n, dim), of unit length."""
        return F.normalize(self.expression_head(self._embedded(expression)), dim=1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``½ [CE(softmax(P Cᵀ / τ), T) + CE(softmax(C Pᵀ / τ), T)]``, T softened, rows scaled to 1."""
        cluster = self.assign(batch.expression)
        images = self.embed_images(batch.images)
        if self.config.target == "prototype":
            genes = self.embed_prototypes()[cluster]
        else:
            genes = self.embed_expression(batch.expression)
        return {
            "alignment": aligned_loss(images.float(), genes.float(), self._targets(cluster), self.config.temperature)
        }

    def _embedded(self, expression: Tensor) -> Tensor:
        return (expression - self.get_buffer("centre")) @ self.get_buffer("axes")

    def _targets(self, cluster: Tensor) -> Tensor:
        same = cluster[:, None] == cluster[None, :]
        targets = torch.where(same, self.config.same_cluster, self.config.alpha).fill_diagonal_(1.0)
        return targets / targets.sum(dim=1, keepdim=True)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # As many prototypes as the training data could bear
        if f"{prefix}prototypes" in state_dict:
            self.register_buffer("prototypes", torch.zeros_like(state_dict[f"{prefix}prototypes"]))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _principal_axes(matrix: SparseExpression, section: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.float64]:
    """(panel, k) directions in which spots of one section differ."""
    _, rows = np.unique(section, return_inverse=True)
    member = sparse.csr_matrix((np.ones(len(rows)), (np.arange(len(rows)), rows)))
    means = sparse.diags(1.0 / np.bincount(rows)) @ member.T @ matrix
    centred = (matrix - member @ means).toarray() if matrix.shape[1] <= 5000 else None
    found = min(count, min(matrix.shape) - 1)
    start = np.ones(min(matrix.shape))
    _, singular, axes = svds(
        centred if centred is not None else sparse.csr_matrix(matrix - member @ means), found, v0=start
    )
    axes = axes[np.argsort(-singular)]
    return np.asarray((axes * np.sign(axes[np.arange(found), np.abs(axes).argmax(axis=1)])[:, None]).T)


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
)
