"""What a benchmark is to run."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hescribe.errors import InputError
from hescribe.evaluation.splits import PROTOCOLS, Split, leave_one_section_out
from hescribe.methods import METHODS
from hescribe.sections import Section
from hescribe.slides.slide import hash_file
from hescribe.training.config import TrainConfig, validated

#: settings of a run that no variant has for itself
_OF_A_RUN = ("seed", "device", "devices", "nodes", "strategy")
#: settings that differ from run to run, or that do not decide an outcome
_NOT_SHARED = {"method", "encoder", *_OF_A_RUN}


class Run(NamedTuple):
    """One method on all splits of a protocol; what tells runs apart.

    Attributes
    ----------
    method
        Name in the table of methods, or of a variant.
    encoder
        As tables name it; see `encoder_label`.
    protocol
        Name in `hescribe.evaluation.PROTOCOLS`.
    seed
        Of the training, and of the choice of spots.
    share
        Of the training spots that are learned from.
    """

    method: str
    encoder: str
    protocol: str
    seed: int
    share: float

    def folder(self, root: Path) -> Path:
        """Where everything of the run is kept."""
        names = [
            self.protocol,
            file_name(self.encoder),
            file_name(self.method),
            f"seed-{self.seed}",
            f"share-{self.share:g}",
        ]
        return root.joinpath("runs", *names)

    def __str__(self) -> str:
        part = "" if self.share == 1 else f", {self.share:g} of the spots"
        return f"{self.method} on {self.encoder}, {self.protocol}, seed {self.seed}{part}"


@dataclass(frozen=True)
class Plan:
    """What a benchmark is to run.

    Attributes
    ----------
    runs
        In the order in which they are made.
    splits
        Protocol → its splits.
    encoders
        Label → the name an encoder is loaded by.
    methods
        Method or variant → its settings, but for encoder and seed.
    variants
        Variant → how it differs from the settings that all share.
    config
        Settings that all share.
    """

    runs: tuple[Run, ...]
    splits: Mapping[str, list[Split]]
    encoders: Mapping[str, str]
    methods: Mapping[str, TrainConfig]
    variants: Mapping[str, Mapping[str, Any]]
    config: TrainConfig

    def settings(self, run: Run) -> TrainConfig:
        """Settings of one run."""
        return self.methods[run.method].model_copy(update={"encoder": self.encoders[run.encoder], "seed": run.seed})


def make_plan(
    sections: Sequence[Section],
    config: TrainConfig,
    *,
    methods: Mapping[str, Mapping[str, Any]],
    encoders: Sequence[str],
    protocols: Sequence[str],
    seeds: Sequence[int],
    shares: Sequence[float],
    allow_same_patient: bool,
) -> Plan:
    """Every combination; whatever is wrong with a name is found before the first hour is spent.

    Raises
    ------
    InputError
        Nothing to compare, an unknown method or protocol, a wrong variant, a share that is none, two encoders of one
        name.
    LeakageError
        A protocol would put a patient on both sides.
    """
    asked = (("method", methods), ("encoder", encoders), ("protocol", protocols), ("seed", seeds))
    for what, names in asked:
        if not names:
            raise InputError(f"no {what} to compare", path=f"--{what}{'s' * (what == 'method')}")
    variants = {_checked(name): changes for name, changes in methods.items() if changes}
    settings = {name: config.model_copy(update={"method": name}) for name, changes in methods.items() if not changes}
    settings |= {name: _vary(name, changes, config) for name, changes in variants.items()}
    for name, one in settings.items():
        one.method_config(where=_where(name, variants))
    _check_numbers(shares, seeds)
    own = {name: settings[name].encoder for name, changes in variants.items() if "encoder" in changes}
    wanted = dict.fromkeys([*(encoders if settings.keys() - own.keys() else ()), *own.values()])
    labels = {encoder_label(name): name for name in wanted}
    if len(labels) < len(wanted):
        raise InputError("two files of weights have one name", path="--encoder", fix="rename one of them")
    splits = {p: make_splits(sections, p, allow_same_patient=allow_same_patient) for p in dict.fromkeys(protocols)}
    runs = [
        Run(method, encoder, protocol, seed, float(share))
        # The whole spots first: the learning curve is the part one can do without
        for share, protocol, seed, encoder, method in itertools.product(
            sorted({1.0, *shares}, reverse=True), splits, dict.fromkeys(seeds), labels, settings
        )
        if labels[encoder] in ([own[method]] if method in own else encoders)
    ]
    told = {name: _differences(settings[name], config, changes) for name, changes in variants.items()}
    plan = Plan(tuple(runs), splits, labels, settings, told, config)
    for run in runs:
        plan.settings(run).method_row(where=_where(run.method, variants))
    return plan


def _where(name: str, variants: Mapping[str, Any]) -> str:
    return f"--variant {name!r}" if name in variants else ""


def _check_numbers(shares: Iterable[float], seeds: Iterable[int]) -> None:
    if wrong := [s for s in shares if not 0 < s <= 1]:
        raise InputError(f"{wrong[0]:g} is no share of the spots", path="--learning-curve", fix="between 0 and 1")
    if beyond := [s for s in seeds if not 0 <= s < 2**32]:
        raise InputError(f"{beyond[0]} is no seed", path="--seed", fix="0 to 4294967295")


def _checked(name: str) -> str:
    """A variant's name as tables have it."""
    plain = " ".join(name.split())
    # Underscores at the start and dollar signs mean something in figures
    if not plain[:1].isalnum() or "$" in plain or plain in METHODS:
        problem = "is a method's own name" if plain in METHODS else "is no name of a variant"
        raise InputError(f"{name!r} {problem}", path="--variant", fix="such as 'bleep, fine-tuned'")
    return plain


def _vary(name: str, changes: Mapping[str, Any], config: TrainConfig) -> TrainConfig:
    """The shared settings with those of a variant in their places.

    Raises
    ------
    InputError
        No method, a setting that is unknown or not a variant's, a value out of range.
    """
    where = f"--variant {name!r}"
    if "method" not in changes:
        raise InputError("which method it is of is not said", path=where, fix=f"method: one of {', '.join(METHODS)}")
    if beyond := [n for n in changes if n in _OF_A_RUN]:
        raise InputError(f"{beyond[0]} is the same for all variants", path=where, fix="give it to the benchmark")
    settings: TrainConfig = validated(TrainConfig, {**config.model_dump(), **changes}, where)
    return settings


def shared_settings(config: TrainConfig) -> dict[str, Any]:
    """Settings that do not differ from run to run, as they read back from JSON."""
    told = config.model_dump(mode="json", exclude=_NOT_SHARED)
    file = Path(config.genes)
    # A file of genes is what it holds, wherever it lies
    return told | ({"genes": f"{file.name} ({hash_file(file)[:8]})"} if file.is_file() else {})


def _differences(settings: TrainConfig, config: TrainConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's method, its encoder where it has one for itself, and what it does not share."""
    shared = shared_settings(config)
    own = {"encoder": encoder_label(settings.encoder)} if "encoder" in changes else {}
    return {"method": settings.method, **own} | {k: v for k, v in shared_settings(settings).items() if v != shared[k]}


def make_splits(sections: Sequence[Section], protocol: str, *, allow_same_patient: bool) -> list[Split]:
    """Splits of a protocol by its name.

    Raises
    ------
    InputError
        Unknown protocol, or too few patients or sections.
    LeakageError
        A patient would be on both sides.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}", path="--protocol", fix=f"one of {', '.join(PROTOCOLS)}")
    if protocol == "leave-one-section-out":
        return leave_one_section_out(sections, allow_same_patient=allow_same_patient)
    return PROTOCOLS[protocol](sections)


def encoder_label(name: str) -> str:
    """How tables name an encoder: weights from a file by the file's name, not by where it lies."""
    model, at, file = name.partition("@")
    return f"{model}@{Path(file).stem}" if at else name


def file_name(text: str) -> str:
    """A name that any file system takes, and that differs where the texts do."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".")
    if safe == text:
        return text
    return f"{safe}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}"
