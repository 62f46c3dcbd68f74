"""What a benchmark is to run, and the record of it that decides whether a folder can be continued."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hescribe.encoders import load_encoder
from hescribe.errors import InputError, OutputError
from hescribe.evaluation.splits import PROTOCOLS, Split, leave_one_section_out
from hescribe.io.store import write_atomically
from hescribe.sections import Section
from hescribe.training.config import TrainConfig

RECORD = "benchmark.json"
#: settings that differ from run to run, or that do not decide an outcome
_NOT_SHARED = {"method", "encoder", "seed", "device", "devices", "nodes", "strategy"}


class Run(NamedTuple):
    """One method on all splits of a protocol; what tells runs apart.

    Attributes
    ----------
    method
        Name in the table of methods.
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
        names = [self.protocol, file_name(self.encoder), self.method, f"seed-{self.seed}", f"share-{self.share:g}"]
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
    config
        Settings that all share.
    """

    runs: tuple[Run, ...]
    splits: Mapping[str, list[Split]]
    encoders: Mapping[str, str]
    config: TrainConfig

    def settings(self, run: Run) -> TrainConfig:
        """Settings of one run."""
        changes = {"method": run.method, "encoder": self.encoders[run.encoder], "seed": run.seed}
        return self.config.model_copy(update=changes)


def make_plan(
    sections: Sequence[Section],
    config: TrainConfig,
    *,
    methods: Sequence[str],
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
        Nothing to compare, an unknown method or protocol, a share that is none, two encoders of one name.
    LeakageError
        A protocol would put a patient on both sides.
    """
    for what, names in (("method", methods), ("encoder", encoders), ("protocol", protocols), ("seed", seeds)):
        if not names:
            raise InputError(f"no {what} to compare", path=f"--{what}{'s' * (what == 'method')}")
    for name in methods:
        config.model_copy(update={"method": name}).method_config()
    if wrong := [s for s in shares if not 0 < s <= 1]:
        raise InputError(f"{wrong[0]:g} is no share of the spots", path="--learning-curve", fix="between 0 and 1")
    if below := [s for s in seeds if s < 0]:
        raise InputError(f"{below[0]} is no seed", path="--seed", fix="0 or more")
    labels = {encoder_label(name): name for name in dict.fromkeys(encoders)}
    if len(labels) < len(set(encoders)):
        raise InputError("two files of weights have one name", path="--encoder", fix="rename one of them")
    splits = {p: make_splits(sections, p, allow_same_patient=allow_same_patient) for p in dict.fromkeys(protocols)}
    runs = [
        Run(method, encoder, protocol, seed, float(share))
        # The whole spots first: the learning curve is the part one can do without
        for share, protocol, seed, encoder, method in itertools.product(
            sorted({1.0, *shares}, reverse=True), splits, dict.fromkeys(seeds), labels, dict.fromkeys(methods)
        )
    ]
    return Plan(tuple(runs), splits, labels, config)


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


def remember(folder: Path, plan: Plan, sections: Sequence[Section], *, recipe: str = "") -> tuple[Run, ...]:
    """Add a plan to the record of a folder, or refuse to mix it with what is there.

    Parameters
    ----------
    folder
        Of the benchmark.
    plan
        What is asked for now.
    sections
        The data.
    recipe
        Name of the recipe the data were prepared by, or "".

    Returns
    -------
    tuple of Run
        All that were ever asked for, the earliest first.

    Raises
    ------
    OutputError
        The folder holds a benchmark with other settings, sections, weights or another recipe.
    EncoderError
        An encoder is unknown or its weights cannot be had.
    """
    # Loaded here for what their weights are; nothing has been written if one cannot be had
    identities = {label: load_encoder(name).identity for label, name in plan.encoders.items()}
    facts: dict[str, Any] = {
        "settings": plan.config.model_dump(mode="json", exclude=_NOT_SHARED),
        "sections": {s.section_id: s.patient_id for s in sections if s.has_expression},
        "recipe": recipe,
        "encoders": identities,
        "protocols": {name: [_plain(s) for s in splits] for name, splits in plan.splits.items()},
    }
    record = folder / RECORD
    before = _read(record) if record.is_file() else {}
    runs = tuple(dict.fromkeys([*(Run(*run) for run in before.get("runs", [])), *plan.runs]))
    if before:
        _check_same(before, facts, folder)
        for name in ("encoders", "protocols"):
            facts[name] = {**before[name], **facts[name]}
        facts["recipe"] = recipe or before["recipe"]
    facts["runs"] = [list(run) for run in runs]
    with write_atomically(record) as path:
        path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return runs


def _plain(split: Split) -> Any:
    """As it reads back."""
    return json.loads(json.dumps(asdict(split)))


def recorded_splits(folder: Path, protocol: str) -> list[Split]:
    """Splits of a protocol as a benchmark's record has them."""
    made = _read(folder / RECORD)["protocols"][protocol]
    return [Split(**{**s, "train": tuple(s["train"]), "test": tuple(s["test"])}) for s in made]


def _read(record: Path) -> dict[str, Any]:
    try:
        facts = json.loads(record.read_text(encoding="utf-8"))
        if {"settings", "sections", "recipe", "encoders", "protocols", "runs"} <= facts.keys():
            return dict(facts)
    except (ValueError, AttributeError) as error:
        raise OutputError(f"{record} is damaged ({error}); choose another folder") from error
    raise OutputError(f"{record} was written by an older hescribe (choose another folder)")


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse what would stand in one table and cannot be compared."""
    changed = _differing(before["settings"], now["settings"])
    if changed:
        raise OutputError(f"{folder} holds a benchmark with other settings ({changed}); choose another folder")
    if before["sections"] != now["sections"]:
        raise OutputError(f"{folder} holds a benchmark of other sections or patients; choose another folder")
    if now["recipe"] and before["recipe"] and now["recipe"] != before["recipe"]:
        raise OutputError(f"{folder} holds a benchmark of the recipe {before['recipe']!r}; choose another folder")
    for name, what in (("encoders", "weights of"), ("protocols", "splits for")):
        for key in before[name].keys() & now[name].keys():
            if before[name][key] != now[name][key]:
                raise OutputError(f"{folder} holds a benchmark with other {what} {key}; choose another folder")


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names: Iterable[str] = dict.fromkeys([*before, *now])
    return ", ".join(f"{n} {before.get(n)}, now {now.get(n)}" for n in names if before.get(n) != now.get(n))
