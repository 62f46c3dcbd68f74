"""coordinate-knn: a control that never looks at the image.

A spot gets the mean expression of the training spots at the same place of *their* sections, places being measured from
0 to 1 between a section's outermost spots. On serial sections, which lie alike on their slides, it tells how much of a
correlation is layout alone.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from torch import Tensor, nn

from hescribe.errors import InputError
from hescribe.methods.base import Batch, JointModel, Method, MethodConfig, Origin, Retrieval, only_key
from hescribe.types import Context, Features, SparseExpression


class CoordinateConfig(MethodConfig):
    """Settings of coordinate-knn."""

    context: Context = Field(Context(position=True), description="the position is all that is used")
    retrieval: Annotated[Retrieval, only_key("coordinate-knn", "image")] = Retrieval(
        k=10, key="image", similarity="euclidean"
    )

    @field_validator("context")
    @classmethod
    def _the_position_is_described(cls, value: Context) -> Context:
        if not value.position:
            raise ValueError("coordinate-knn knows nothing but the position: leave context.position on")
        return value


class CoordinateKnn(JointModel):
    """The last two numbers of a description are the position; they are the embedding.

    Parameters
    ----------
    tower
        Is not used: scaling would make the two axes uneven.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def embed_images(self, images: Tensor) -> Tensor:
        """(n, …) → (n, 2)."""
        return images[:, -2:]

    def embed_expression(self, expression: Tensor) -> Tensor:
        """There is no embedding of expression: keys are positions."""
        raise InputError("has position keys only", path="settings of coordinate-knn", fix="leave retrieval.key alone")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing is minimised."""
        return {}

    def solve(self, features: Features, expression: SparseExpression, origin: Origin) -> None:
        """There is nothing to learn."""


COORDINATE_KNN = Method(
    name="coordinate-knn",
    summary="the mean of the training spots at the same place of their sections; sees no image",
    source="control",
    config=CoordinateConfig,
    build=lambda tower, shapes, config: CoordinateKnn(tower),
    can_fine_tune=False,
)
