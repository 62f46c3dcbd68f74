"""What a method is: an abstract model of one of two kinds, a config beside it, a row in the table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hescribe.methods.layers import gather_rows
from hescribe.types import Features, SparseExpression, Views


class Batch(NamedTuple):
    """Spots for one step.

    Attributes
    ----------
    images
        What the tower takes: (n, 3, side, side) uint8 tiles, or (n, d) features of a frozen encoder.
    expression
        (n, g) float32 log-normalised expression of the gene panel.
    section
        (n,) int64, which section each spot is from.
    """

    images: Tensor
    expression: Tensor
    section: Tensor


class MethodConfig(BaseModel):
    """Settings every method has; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# Beyond these bounds a number is a slip: it would not fit in memory, or in what counts with 32 bits
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Width = Annotated[int, Field(ge=2, le=4096)]
Depth = Annotated[int, Field(ge=1, le=64)]
Temperature = Annotated[float, Field(ge=1e-4, le=1e4)]
Penalty = Annotated[float, Field(ge=1e-9, le=1e9)]


class Optimisation(MethodConfig):
    """How a method trained by gradient descent is trained."""

    epochs: Count = 100
    batch_size: int = Field(
        512, ge=2, le=1_000_000, description="spots a step; halved until an epoch has the fewest steps wanted"
    )
    fewest_steps: Count = Field(4, description="steps an epoch should have at least, on small data")
    learning_rate: float = Field(1e-3, gt=0, le=1e30)
    final_learning_rate: float | None = Field(
        None, gt=0, le=1e30, description="reached along a cosine over all epochs; none: the rate stays"
    )
    average: float | None = Field(
        None, gt=0, lt=1, description="decay of a running mean of the weights, which is then what is kept"
    )
    weight_decay: float = Field(1e-3, ge=0, le=1e30)
    patience: Count = Field(20, description="epochs without a better held-out loss before stopping")

    def batch_for(self, spots: int) -> int:
        """Batch size for a number of training spots.

        A few hundred spots in batches of 512 would give one step an epoch, and the published number of epochs
        would be a few dozen steps.
        """
        size = self.batch_size
        while size > 2 and spots // size < self.fewest_steps:
            size //= 2
        return max(size, min(32, self.batch_size))


class Retrieval(MethodConfig):
    """How expression is read off the reference."""

    k: Count = Field(50, description="neighbours")
    imputation: Literal["mean", "weighted", "top1", "softmax"] = "mean"
    temperature: Temperature = Field(1.0, description="of the softmax over similarities, where that is the imputation")
    key: Literal["expression", "image"] = Field(
        "expression", description="which embedding of a training spot is its key"
    )
    similarity: Literal["cosine", "euclidean"] = "cosine"


def only_key(method: str, key: str) -> AfterValidator:
    """Refuses a `Retrieval` by another key than the one that a method has."""

    def checked(value: Retrieval) -> Retrieval:
        if value.key != key:
            raise ValueError(f"{method} has no key {value.key!r}: leave retrieval.key at {key!r}")
        return value

    return AfterValidator(checked)


class Refinement(MethodConfig):
    """How the prototypes of a tile are looked at once more, each through what speaks for it in the tile."""

    rounds: int = Field(3, ge=0, le=100, description="at most; fewer once nothing changes, 0: not at all")
    candidates: Count = Field(5, description="prototypes looked at, the likeliest; all others get no weight")
    threshold: float = Field(
        0.4, ge=0, le=1, description="probability among the candidates below which one is dropped; the best stays"
    )
    floor: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="what a mask leaves of the least attended pixel; the rest is the tile's mean colour",
    )


class JointModel(nn.Module, ABC):
    """Image and expression in one embedding; predicts by retrieval from a reference."""

    tower: nn.Module  #: images → features; the identity when features were computed before

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms whose sum is minimised."""

    def rows_of_all(self, *own: Tensor) -> tuple[Tensor, ...]:
        """While training, rows of all processes, for a loss that compares spots: its batch is then the whole one."""
        return tuple(gather_rows(rows) for rows in own) if self.training else own

    @abstractmethod
    def embed_images(self, images: Tensor) -> Tensor:
        """(n, …) images or features → (n, dim)."""

    @abstractmethod
    def embed_expression(self, expression: Tensor) -> Tensor:
        """(n, g) expression → (n, dim)."""


class RegressionModel(nn.Module, ABC):
    """Expression straight from the image; there is no reference.

    One that is trained by gradient descent has ``losses`` as a JointModel has, on all genes of the output.
    """

    tower: nn.Module

    def start_from(self, mean: Tensor) -> None:
        """Told the (g,) mean expression of the training spots before training; most methods find it by themselves."""

    def add_unpaired(self, unpaired: Unpaired) -> None:
        """Told of transcriptomes of all g genes without image before it is solved, where its config has ``unpaired``."""

    @abstractmethod
    def predict_expression(self, images: Tensor) -> Tensor:
        """(n, …) images or features → (n, g) expression."""


class Origin(NamedTuple):
    """Where spots are from.

    Attributes
    ----------
    section, patient
        (n,) indices.
    """

    section: npt.NDArray[np.intp]
    patient: npt.NDArray[np.intp]

    @property
    def group(self) -> npt.NDArray[np.intp]:
        """(n,) what validation leaves out whole: the patient, or the section where there is one patient."""
        return self.patient if len(np.unique(self.patient)) > 1 else self.section

    def at(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Origin:
        """Of some spots."""
        return Origin(self.section[rows], self.patient[rows])


@runtime_checkable
class ClosedForm(Protocol):
    """A model that is solved, not trained by gradient descent."""

    def solve(self, features: Features, expression: SparseExpression, origin: Origin) -> None:
        """Fit to (n, d) features and (n, g) expression."""
        ...


class Unpaired(NamedTuple):
    """Transcriptomes without image: sections that were only sequenced, single cells.

    Attributes
    ----------
    expression
        (m, g) on the scale of the paired spots; zero where a source did not measure the gene. The genes are the panel
        for a method that learns prototypes, all of the output for a regression.
    source
        (m,) which source each is from.
    measured
        (sources, g) bool.
    """

    expression: SparseExpression
    source: npt.NDArray[np.intp]
    measured: npt.NDArray[np.bool_]


@runtime_checkable
class LearnsPrototypes(Protocol):
    """A joint model whose reference are not spots but clusters of them.

    Its config has ``unpaired`` (use transcriptomes without image), ``transfer`` (predict genes that only these have)
    and ``gene_embedding`` (what ``expression`` is in the methods below: the panel, or a vector made by scGPT).
    """

    def learn_prototypes(
        self,
        expression: SparseExpression,
        origin: Origin,
        *,
        seed: int,
        unpaired: Unpaired | None = None,
        embedded: bool = False,
    ) -> None:
        """From (n, panel) training transcriptomes, before any training by gradient descent.

        ``embedded``: these are no genes but vectors that are to be clustered as they are.
        """
        ...

    def locate(self, expression: Tensor) -> Tensor:
        """(n, panel) → (n, k), where each transcriptome lies among the prototypes."""
        ...

    def locate_unpaired(self, unpaired: Unpaired) -> Features:
        """(m, k), the same for transcriptomes without image."""
        ...

    def centres(self) -> Features:
        """(prototypes, k)."""
        ...

    def embed_prototypes(self) -> Tensor:
        """(prototypes, dim) keys."""
        ...


@runtime_checkable
class KnowsPatients(Protocol):
    """A regression that predicts otherwise for a patient it has learned from than for a new one."""

    def predict_known(self, images: Tensor, patient: int) -> Tensor:
        """(n, …) images or features of a patient, by his number in the training's `Origin` → (n, g) expression."""
        ...


@dataclass(frozen=True)
class Shapes:
    """Sizes a model must know to be built.

    Attributes
    ----------
    features
        Length of the tower's output.
    panel
        Genes of the embedding's panel.
    genes
        Genes of the output; the panel is part of them.
    """

    features: int
    panel: int
    genes: int


Build = Callable[[nn.Module, Shapes, MethodConfig], nn.Module]


@dataclass(frozen=True)
class Method:
    """A row of the table of methods.

    Attributes
    ----------
    name
        What a user types.
    summary
        One line for ``--help`` and the docs.
    source
        Paper or origin.
    config
        Its settings.
    build
        (tower, shapes, config) → an untrained model.
    can_fine_tune
        Whether the encoder's weights can be trained with it.
    views
        Symmetries of a tile whose features are averaged, 1, 4 or 8, unless a run says otherwise.
    tokens
        When fine-tuning, and where its setting ``tokens`` asks for them of a frozen encoder, it is trained on
        (n, t, features) tokens; in use, the model gets their mean.
    trainable
        Parts of the encoder that fine-tuning trains as published, by their names in a vision transformer (``blocks.-1``
        is the last block); none: all of it.
    knows_patients
        Its models implement `KnowsPatients`; what can be trusted is then learned for both kinds of patient.
    """

    name: str
    summary: str
    source: str
    config: type[MethodConfig]
    build: Build
    can_fine_tune: bool
    views: Views = 1
    tokens: bool = False
    trainable: tuple[str, ...] = ()
    knows_patients: bool = False
