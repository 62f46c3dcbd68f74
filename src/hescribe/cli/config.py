"""Options from a file, and the resolved options written back beside the output."""

from __future__ import annotations

import json
import os
import tomllib
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import typer
import yaml

from hescribe.errors import HescribeWarning, InputError, OutputError
from hescribe.io.store import without_secrets, write_atomically

_VARIANT = "bleep, tuned: {method: bleep, fine_tune: true}"


def read_options(path: Path) -> dict[str, Any]:
    """Options of a TOML or YAML file, names with hyphens or underscores.

    Raises
    ------
    InputError
        No such file, not TOML or YAML, or not a table of options.
    """
    if not path.is_file():
        raise InputError("no such configuration file", path=path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # TOML's own, no text, a date that is none
        raise InputError(f"cannot be read: {error}", path=path, fix="TOML (.toml) or YAML") from error
    if not isinstance(values, dict):
        raise InputError("does not hold a table of options", path=path, fix="for example 'method: ridge'")
    return {str(k).replace("-", "_"): v for k, v in values.items()}


def load_config(context: typer.Context, value: Path | None) -> Path | None:
    """Callback of ``--config``: the file's options become defaults, so that flags override them."""
    if value is None or context.resilient_parsing:
        return value
    options = read_options(value)
    known = {p.name: p for p in context.command.params if p.name}
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise InputError(
            f"unknown option {unknown[0]!r}", path=value, fix=f"known: {', '.join(k for k in known if k != 'config')}"
        )
    context.default_map = {**(context.default_map or {}), **{k: _as_default(known[k], v) for k, v in options.items()}}
    return value


def _as_default(parameter: Any, value: Any) -> Any:
    """What is one text on the command line may be a list or, for settings of a method and for variants, a table in the file."""
    if parameter.name == "option" and isinstance(value, dict):
        return [f"{k}={v}" for k, v in _flatten(value)]
    if parameter.name == "variant" and isinstance(value, dict):
        return [json.dumps({name: settings}, ensure_ascii=False) for name, settings in value.items()]
    if isinstance(value, list) and not parameter.multiple and parameter.nargs == 1:
        return ",".join(map(str, value))
    return value


def _flatten(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in table.items():
        pairs += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """``["retrieval.k=100", "dropout=0.2"]`` → nested settings of a method."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise InputError(f"{pair!r} is no setting", path="--option", fix="write name=value, e.g. retrieval.k=100")
        *folders, leaf = name.strip().split(".")
        target = settings
        for folder in folders:
            target = target.setdefault(folder, {})
            if not isinstance(target, dict):
                raise InputError(f"{folder!r} has a value and settings of its own", path="--option", fix="give one")
        try:
            target[leaf] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # a number of thousands of digits, a date that is none
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{pair!r} cannot be read ({reason})", path="--option", fix="quote it") from error
    return settings


def check_idle(context: typer.Context, idle: Mapping[str, str]) -> None:
    """Refuse options that have no effect in this run; those of a file, which may serve other runs too, are only told.

    Parameters
    ----------
    context
        Of the command.
    idle
        Options without effect, by the names of the command's parameters, each with the reason.

    Raises
    ------
    InputError
        One was given on the command line.
    """
    parameters = {p.name: p for p in context.command.params}
    for name, why in idle.items():
        source, parameter = context.get_parameter_source(name), parameters[name]
        given = source.name if source is not None else ""
        if given == "COMMANDLINE":
            raise InputError(f"has no effect here: {why}", path=parameter.opts[0], fix="leave it out")
        if given == "DEFAULT_MAP" and context.params[name] != parameter.default:
            told = f"{context.params.get('config')}: {name} has no effect here: {why}"
            warnings.warn(told, HescribeWarning, stacklevel=2)


def parse_variants(texts: list[str]) -> dict[str, dict[str, Any]]:
    """``["bleep, tuned: {method: bleep, fine_tune: true}"]`` → name → settings."""
    variants: dict[str, dict[str, Any]] = {}
    for text in texts:
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(v, dict) and v for v in found.values()):
            raise InputError(f"{text!r} is no variant", path="--variant", fix=f"write it as '{_VARIANT}'")
        for name, settings in found.items():
            if str(name) in variants:
                raise InputError(f"{name!r} is given twice", path="--variant", fix="give each a name of its own")
            variants[str(name)] = {str(k).replace("-", "_"): v for k, v in settings.items()}
    return variants


def write_resolved(context: typer.Context, output: Path) -> None:
    """Write every option of this run, resolved, beside its output; the file can be given to ``--config``."""
    values = {k: _plain(v) for k, v in context.params.items() if k != "config" and v is not None}
    output = Path(os.path.abspath(output))  # "." has no name; a link keeps its own
    text = f"# hescribe {context.info_name}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    try:
        with write_atomically(output.with_name(f"{output.name}.config.yaml")) as path:
            path.write_text(text)
    except OutputError as error:  # the work itself is done, and was allowed: only the folder above may be locked
        warnings.warn(f"the options of this run were not kept: {error}", HescribeWarning, stacklevel=2)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Enum):  # a choice; YAML writes plain text only
        return value.value
    return without_secrets(str(value)) if isinstance(value, (Path, str)) else value
