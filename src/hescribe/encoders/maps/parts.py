"""Parts of an encoder by name, so that some are trained and the others stay as they came."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from hescribe.errors import InputError


def train_only(module: nn.Module, parts: Sequence[str]) -> list[nn.Module]:
    """Freeze all weights of an encoder but those of some parts.

    Parameters
    ----------
    module
        The encoder.
    parts
        Names of parameters or of what holds them, as the architecture calls them: ``blocks.10``, ``norm``. A number
        below zero counts from the end: ``blocks.-1`` is the last block.

    Returns
    -------
    list of Module
        What has weights of its own, none of them trained: to be kept in evaluation mode, or its batch statistics
        would still follow the tiles.

    Raises
    ------
    InputError
        The encoder has no such part.
    """
    backbone = _unwrapped(module)
    trained = {id(p) for part in parts for p in _parameters(backbone, part)}
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    own = [(m, list(m.parameters(recurse=False))) for m in module.modules()]
    return [m for m, weights in own if weights and not any(p.requires_grad for p in weights)]


def has_parts(module: nn.Module, parts: Sequence[str]) -> bool:
    """Whether an encoder has all of them."""
    backbone = _unwrapped(module)
    return all(_found(backbone, part) for part in parts)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The architecture itself, without what only scales its input or pools its output."""
    while len(children := list(module.children())) == 1 and not list(module.parameters(recurse=False)):
        module = children[0]
    return module


def _parameters(backbone: nn.Module, part: str) -> list[nn.Parameter]:
    found = _found(backbone, part)
    if not found:
        known = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in backbone.named_parameters()))
        raise InputError(
            f"the encoder has no part {part!r} to train", path="--trainable", fix=f"all, or parts of: {known}"
        )
    return found


def _found(backbone: nn.Module, part: str) -> list[nn.Parameter]:
    """What a name stands for, numbers below zero counted from the end."""
    parameters, start = dict(backbone.named_parameters()), ""
    for step in part.split("."):
        beneath = {name.removeprefix(start).split(".")[0] for name in parameters if name.startswith(start)}
        wanted = str(len(beneath) + int(step)) if re.fullmatch(r"-\d+", step) else step
        if wanted not in beneath:
            return []
        start += f"{wanted}."
    return [parameter for name, parameter in parameters.items() if f"{name}.".startswith(start)]
