"""The record of a benchmark's folder, which decides whether a plan may be mixed with what is there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from hescribe import keys
from hescribe.encoders import load_encoder
from hescribe.errors import LeakageError, OutputError
from hescribe.evaluation.splits import Split, is_paired
from hescribe.inference.slides.plan import Stamp, alone
from hescribe.io.store import remove, write_atomically
from hescribe.sections import Section
from hescribe.training.benchmark.plan import Plan, Run, shared_settings
from hescribe.training.train import hash_arrays

RECORD = "benchmark.json"
_FACTS = {"settings", "sections", "recipe", "encoders", "protocols", "variants", "runs"}


class Asked(NamedTuple):
    """What was ever asked for in a folder.

    Attributes
    ----------
    runs
        The earliest first.
    variants
        Name → how it differs from the settings that all share.
    """

    runs: tuple[Run, ...]
    variants: Mapping[str, Mapping[str, Any]]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other benchmarks off a folder: of two at once each would lose the other's runs from its tables.

    Raises
    ------
    OutputError
        It is a file, or another process is at it.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, where a folder is to be made (choose another output)")
    new, record = not folder.exists(), folder / RECORD
    try:
        with alone(record):
            yield
    finally:
        if new and not record.exists():  # refused before anything was written
            remove(folder)


def remember(folder: Path, plan: Plan, sections: Sequence[Section], *, recipe: str = "") -> Asked:
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

    Raises
    ------
    OutputError
        It holds a benchmark with other settings, data, weights or another recipe.
    LeakageError
        A split has the same data on both sides, under two names.
    EncoderError
        An encoder is unknown or its weights cannot be had.
    InputError
        A section cannot be read.
    """
    record = folder / RECORD
    before = _read(record) if record.is_file() else {}
    earlier = before.get("sections", {})
    facts: dict[str, Any] = {
        "settings": shared_settings(plan.config),
        "sections": {s.section_id: _describe(s, earlier.get(s.section_id, {})) for s in sections if s.has_expression},
        "recipe": recipe,
        # Loaded here for what their weights are; nothing has been written if one cannot be had
        "encoders": {label: load_encoder(name).identity for label, name in plan.encoders.items()},
        "protocols": {name: [_plain(s) for s in splits] for name, splits in plan.splits.items()},
        "variants": plan.variants,
    }
    _check_copies(plan, facts["sections"])
    runs = tuple(dict.fromkeys([*(Run(*run) for run in before.get("runs", [])), *plan.runs]))
    if before:
        _check_same(before, facts, folder)
        for name in ("encoders", "protocols", "variants"):
            facts[name] = {**before[name], **facts[name]}
        facts["recipe"] = recipe or before["recipe"]
    facts["runs"] = [list(run) for run in runs]
    with write_atomically(record) as path:
        path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Asked(runs, facts["variants"])


def recorded_splits(folder: Path, protocol: str) -> list[Split]:
    """Splits of a protocol as a benchmark's record has them."""
    made = _read(folder / RECORD)["protocols"][protocol]
    return [Split(**{**s, "train": tuple(s["train"]), "test": tuple(s["test"])}) for s in made]


def _describe(section: Section, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What a section's data are; an image is read whole only where its file is not that of ``earlier``."""
    adata, types = section.adata, section.cell_types
    counts = sparse.csr_matrix(adata.X)
    facts: dict[str, Any] = {
        "patient": section.patient_id,
        "counts": hash_arrays(
            _joined(adata.obs_names), _joined(adata.var_names), counts.indptr, counts.indices, counts.data,
            None if keys.SCGPT not in adata.obsm else np.asarray(adata.obsm[keys.SCGPT]),
        ),
        "cell_types": None if types is None else hash_arrays(_joined(types.columns), types.to_numpy(np.float64)),
    }  # fmt: skip
    if is_paired(section):
        assert section.image is not None  # noqa: S101 - a paired section has one
        facts["image"] = asdict(Stamp.of(section.image, Stamp(**earlier["image"]) if "image" in earlier else None))
        facts["mpp"] = float(section.mpp)
        facts["positions"] = hash_arrays(np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64))
    return facts


def _check_copies(plan: Plan, sections: Mapping[str, Any]) -> None:
    """Refuse a split whose sides share counts, or spots of one image, whatever their sections and patients are called.

    Raises
    ------
    LeakageError
        Names the sections.
    """
    for split in (split for splits in plan.splits.values() for split in splits):
        for one, other in product(split.train, split.test):
            a, b = sections[one], sections[other]
            if a["counts"] == b["counts"]:
                what = "have the same counts"
            elif "image" in a and "image" in b and _places_of(a) == _places_of(b):
                what = "are the same spots of one image"
            else:
                continue
            raise LeakageError(f"sections {one!r} and {other!r} {what}, and stand in training and in test")


def _places_of(facts: Mapping[str, Any]) -> tuple[str, str]:
    return facts["image"]["content"], facts["positions"]


def _joined(names: Iterable[str]) -> np.ndarray:
    return np.frombuffer("\0".join(names).encode(), dtype=np.uint8)


def _plain(split: Split) -> Any:
    """As it reads back."""
    return json.loads(json.dumps(asdict(split)))


def _read(record: Path) -> dict[str, Any]:
    try:
        facts = json.loads(record.read_text(encoding="utf-8"))
        if facts.keys() >= _FACTS:
            return dict(facts)
    except (ValueError, AttributeError) as error:
        raise OutputError(f"{record} is damaged ({error}); choose another folder") from error
    raise OutputError(f"{record} was written by an older hescribe (choose another folder)")


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse what would stand in one table and cannot be compared."""
    changed = _differing(before["settings"], now["settings"])
    if changed:
        raise OutputError(f"{folder} holds a benchmark with other settings ({changed}); choose another folder")
    _check_data(before["sections"], now["sections"], folder)
    if now["recipe"] and before["recipe"] and now["recipe"] != before["recipe"]:
        raise OutputError(f"{folder} holds a benchmark of the recipe {before['recipe']!r}; choose another folder")
    for name, what in (("encoders", "weights of"), ("protocols", "splits for")):
        for key in before[name].keys() & now[name].keys():
            if before[name][key] != now[name][key]:
                raise OutputError(f"{folder} holds a benchmark with other {what} {key}; choose another folder")
    for key in before["variants"].keys() & now["variants"].keys():
        if changed := _differing(before["variants"][key], now["variants"][key]):
            raise OutputError(f"{folder} holds another variant {key!r} ({changed}); choose another name")


def _check_data(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse sections that are others, or the same by their names alone."""
    if apart := sorted(before.keys() ^ now.keys()):
        raise OutputError(f"{folder} holds a benchmark of other sections ({', '.join(apart)}); choose another folder")
    for name, facts in now.items():
        there = before[name]
        # A file that was copied or touched is the same one
        told = [{**f, "image": f["image"]["content"]} if "image" in f else f for f in (there, facts)]
        if changed := [w for w in dict.fromkeys([*there, *facts]) if told[0].get(w) != told[1].get(w)]:
            what = ", ".join(changed).replace("_", " ")
            raise OutputError(
                f"{folder} holds a benchmark of section {name!r} with other {what}; choose another folder"
            )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names: Iterable[str] = dict.fromkeys([*before, *now])
    return ", ".join(f"{n} {before.get(n)}, now {now.get(n)}" for n in names if before.get(n) != now.get(n))
