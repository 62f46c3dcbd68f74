"""Settings of a training run; unknown keys are refused and the resolved form is saved with the bundle."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from hescribe.encoders import has_parts, is_trainable, train_only
from hescribe.errors import HescribeWarning, InputError
from hescribe.io.expression import USUAL_SUM
from hescribe.methods import METHODS
from hescribe.methods.base import Count, Method, MethodConfig
from hescribe.types import Views


class TrainConfig(BaseModel):
    """Everything a training run can be told.

    Settings of the method itself stand in ``options``, under the names of the method's own config.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str = "fusion"
    encoder: str = "resnet50"
    genes: str = Field("hvg:1000", description="hvg:N, all, or a file with one gene a line: the embedding's panel")
    min_detected: float = Field(0.03, ge=0, le=1, description="share of training spots in which an output gene is seen")
    target_sum: Literal["median", "counts"] | Annotated[float, Field(ge=1, le=1e9)] = Field(
        USUAL_SUM,
        description="counts per spot after scaling; median: each section's median library size; counts: as they are",
    )
    tile_um: float = Field(112.0, gt=0, le=10_000, description="side of a tile, µm")
    views: Views | None = Field(
        None, description="symmetries of a tile whose features are averaged; default: the method's"
    )
    fine_tune: bool = Field(default=False, description="train the encoder's weights too")
    trainable: str | None = Field(
        None,
        description="parts of the encoder that fine-tuning trains, with commas, such as blocks.-1,norm; all; "
        "default: the method's where the encoder has them, else all",
    )
    epochs: Count | None = Field(None, description="at most; default: the method's")
    batch_size: int | None = Field(
        None, ge=2, le=1_000_000, description="of all processes together; default: the method's"
    )
    learning_rate: float | None = Field(None, gt=0, le=1e30, description="default: the method's")
    inner_folds: int | None = Field(
        None, ge=0, le=1000, description="left-out folds for stopping and trust; default: 4 frozen, 1 fine-tuned"
    )
    stain_jitter: float = Field(0.0, ge=0, le=1, description="strength of stain augmentation when fine-tuning")
    precision: Literal["fp32", "bf16"] = "fp32"
    extraction_batch: int = Field(16, ge=1, le=65_536, description="tiles at once through the encoder")
    device: str = "auto"
    devices: int = Field(1, ge=1, le=1024, description="processes on each node, one a GPU; a batch is dealt out to all")
    nodes: int = Field(
        1, ge=1, le=65_536, description="machines, each started by torchrun or srun where there are several"
    )
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

    def method_row(self, *, where: str = "") -> Method:
        """Row of the table of methods.

        Parameters
        ----------
        where
            Where the settings were given, for a message.

        Raises
        ------
        InputError
            Unknown method, or fine-tuning asked of a method or an encoder that cannot.
        """
        method = METHODS.get(self.method)
        if method is None:
            raise InputError(f"unknown method {self.method!r}", path="--method", fix=f"one of {', '.join(METHODS)}")
        if self.fine_tune and not method.can_fine_tune:
            problem = f"method {self.method!r} works on frozen features"
            raise InputError(problem, path=where or "--fine-tune", fix="leave it out")
        if self.fine_tune and not is_trainable(self.encoder):
            problem = f"the encoder {self.encoder!r} cannot be fine-tuned"
            raise InputError(problem, path=where or "--fine-tune", fix="leave it out, or name another encoder")
        return method

    @property
    def idle(self) -> dict[str, str]:
        """Settings that this run has no use for, each with the reason."""
        out: dict[str, str] = {}
        if "optimisation" not in self.method_row().config.model_fields:
            solved = f"{self.method} is solved, not trained step by step"
            out |= dict.fromkeys(("epochs", "batch_size", "learning_rate", "strategy"), solved)
        if not self.fine_tune:
            frozen = "the encoder is trained with --fine-tune only"
            out |= dict.fromkeys(("trainable", "stain_jitter"), frozen)
        if self.devices * self.nodes == 1:
            out.setdefault("strategy", "it is of several processes (--devices, --nodes)")
        return out

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

    def method_config(self, *, where: str = "") -> MethodConfig:
        """The method's own settings, with this run's overrides.

        Parameters
        ----------
        where
            Where they were given, for a message.

        Raises
        ------
        InputError
            An unknown setting or a value out of range.
        """
        method = self.method_row(where=where)
        overrides = {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        overrides = {k: v for k, v in overrides.items() if v is not None}
        settings = _within(method.config().model_dump(), self.options)
        if "optimisation" in method.config.model_fields and isinstance(settings["optimisation"], dict):
            settings["optimisation"] |= overrides
        return validated(method.config, settings, where or f"settings of {self.method}")


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
        name, told, known = _problem(error, values, tuple(kind.model_fields))
        raise InputError(f"{name}: {told}" if name else told, path=where, fix=known) from error


def _problem(error: ValidationError, values: dict[str, Any], settings: tuple[str, ...]) -> tuple[str, str, str]:
    """The setting as a user writes it, what is wrong with it, and what there is instead of one that is unknown."""
    found = error.errors(include_url=False, include_context=False)
    places = [_place(one, values) for one in found]
    place = max(places, key=len)  # of several kinds that a setting may be of, the one that was meant
    reports = [one for one, other in zip(found, places, strict=True) if other == place]
    name, first = ".".join(place), reports[0]
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        group: Any = values
        for part in place[:-1]:
            group = group[part]
        there = settings if len(place) == 1 else tuple(k for k in group if k != place[-1])
        return name, "there is no such setting", f"known: {', '.join(there)}" if there else ""
    wanted = " or ".join(dict.fromkeys(one["msg"].removeprefix("Input should be ") for one in reports))
    if first["msg"].startswith("Input should be "):
        for long, short in (("greater than or equal to", "at least"), ("less than or equal to", "at most")):
            wanted = wanted.replace(long, short)
        wanted = f"should be {wanted}, not {reprlib.repr(first['input'])}"
    return name, wanted.removeprefix("Value error, "), ""


def _place(error: Mapping[str, Any], values: Any) -> tuple[str, ...]:
    """Names of groups and setting; pydantic's own also have the kinds that it tried."""
    parts, place = [], error["loc"]
    for part in place:
        inside = isinstance(values, Mapping) and part in values
        if inside or (isinstance(values, list | tuple) and isinstance(part, int)):
            values = values[part]
            parts.append(str(part))
    return (*parts, str(place[-1])) if error["type"] == "missing" else tuple(parts)
