"""Settings of a training run; unknown keys are refused and the resolved form is saved with the bundle."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from hescribe.encoders import has_parts, train_only
from hescribe.errors import HescribeWarning, InputError
from hescribe.io.expression import TargetSum
from hescribe.methods import METHODS
from hescribe.methods.base import Method, MethodConfig


class TrainConfig(BaseModel):
    """Everything a training run can be told.

    Settings of the method itself stand in ``options``, under the names of the method's own config.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "fusion"
    encoder: str = "resnet50"
    genes: str = Field("hvg:1000", description="hvg:N, all, or a file with one gene a line: the embedding's panel")
    min_detected: float = Field(0.03, ge=0, le=1, description="share of training spots in which an output gene is seen")
    target_sum: TargetSum = Field(1e4, description="counts per spot after scaling, or 'median'")
    tile_um: float = Field(112.0, gt=0, le=10_000, description="side of a tile, µm")
    views: Literal[1, 4, 8] | None = Field(
        None, description="symmetries of a tile whose features are averaged; default: the method's"
    )
    fine_tune: bool = Field(default=False, description="train the encoder's weights too")
    trainable: str | None = Field(
        None,
        description="parts of the encoder that fine-tuning trains, with commas, such as blocks.-1,norm; all; "
        "default: the method's where the encoder has them, else all",
    )
    epochs: int | None = Field(None, ge=1, description="at most; default: the method's")
    batch_size: int | None = Field(None, ge=2, description="of all processes together; default: the method's")
    learning_rate: float | None = Field(None, gt=0, description="default: the method's")
    inner_folds: int | None = Field(
        None, ge=0, description="left-out folds for stopping and trust; default: 4 frozen, 1 fine-tuned"
    )
    stain_jitter: float = Field(0.0, ge=0, le=1, description="strength of stain augmentation when fine-tuning")
    precision: Literal["fp32", "bf16"] = "fp32"
    extraction_batch: int = Field(16, ge=1, description="tiles at once through the encoder")
    device: str = "auto"
    devices: int = Field(1, ge=1, description="processes on each node, one a GPU; a batch is dealt out to all")
    nodes: int = Field(1, ge=1, description="machines, each started by torchrun or srun where there are several")
    strategy: Literal["auto", "ddp"] = Field(
        "auto",
        description="of several processes; ddp: no search for weights of the encoder that the loss does not reach",
    )
    seed: int = Field(0, ge=0, lt=2**32)
    options: dict[str, Any] = Field(default_factory=dict, description="settings of the method")

    @property
    def folds(self) -> int:
        """Inner folds, with the default filled in."""
        if self.inner_folds is not None:
            return self.inner_folds
        return 1 if self.fine_tune else 4

    def method_row(self) -> Method:
        """Row of the table of methods.

        Raises
        ------
        InputError
            Unknown method, or fine-tuning asked of one that cannot.
        """
        method = METHODS.get(self.method)
        if method is None:
            raise InputError(f"unknown method {self.method!r}", path="--method", fix=f"one of {', '.join(METHODS)}")
        if self.fine_tune and not method.can_fine_tune:
            raise InputError(f"method {self.method!r} works on frozen features", path="--fine-tune", fix="leave it out")
        return method

    def freeze(self, encoder: nn.Module) -> list[nn.Module]:
        """Leave only what this run trains of an encoder trainable; returns what stays frozen.

        Raises
        ------
        InputError
            A part was asked for that the encoder does not have.
        """
        parts = self.method_row().trainable
        if self.trainable is not None:
            parts = tuple(part.strip() for part in self.trainable.split(",") if part.strip() != "all")
        elif parts and not has_parts(encoder, parts):
            told = f"{self.method} as published trains {' and '.join(parts)}, which this encoder does not have"
            warnings.warn(f"{told}: all of it is trained", HescribeWarning, stacklevel=2)
            parts = ()
        return train_only(encoder, parts) if parts else []

    def method_config(self) -> MethodConfig:
        """The method's own settings, with this run's overrides.

        Raises
        ------
        InputError
            An unknown setting or a value out of range.
        """
        method = self.method_row()
        overrides = {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        overrides = {k: v for k, v in overrides.items() if v is not None}
        settings = _within(method.config().model_dump(), self.options)
        if "optimisation" in method.config.model_fields and isinstance(settings["optimisation"], dict):
            settings["optimisation"] |= overrides
        return validated(method.config, settings, f"settings of {self.method}")


def _within(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The defaults with what was given in their places: one setting of a group leaves its others as the method has them."""
    merged = dict(defaults)
    for name, value in given.items():
        default = defaults.get(name)
        merged[name] = _within(default, value) if isinstance(default, dict) and isinstance(value, dict) else value
    return merged


def validated(kind: type[BaseModel], values: dict[str, Any], where: str) -> Any:
    """Build a config, turning pydantic's report into one line.

    Raises
    ------
    InputError
        Names the first wrong setting.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "?"
        known = f"known: {', '.join(kind.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise InputError(f"{name}: {first['msg']}", path=where, fix=known) from error
