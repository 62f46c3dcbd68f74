"""The house's rules, read off the source: levels, bans and sizes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hescribe"
FILES = sorted(PACKAGE.rglob("*.py"))
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def table_of_levels() -> tuple[dict[str, int], set[str]]:
    """Room → level, and the rooms that may import torch, from the table in docs/architecture.md."""
    levels, torch_rooms = {}, set()
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        row = re.fullmatch(r"\| (\d) \| (.+) \| (yes|no) \|", line)
        if row:
            for room in re.findall(r"`(\w+)`", row[2]):
                levels[room] = int(row[1])
                if row[3] == "yes":
                    torch_rooms.add(room)
    return levels, torch_rooms


LEVELS, TORCH_ROOMS = table_of_levels()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            if node.module == "hescribe":
                yield from (f"hescribe.{alias.name}" for alias in node.names)
            else:
                yield node.module


def functions(tree: ast.AST) -> Iterator[FUNCTION]:
    for node in ast.walk(tree):
        if isinstance(node, FUNCTION):
            yield node


def body_lines(function: FUNCTION) -> int:
    """Lines of the body without its docstring."""
    body = function.body
    if (
        isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    ):
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def test_every_room_has_a_level() -> None:
    rooms = {room_of(f) for f in FILES} - {"__init__"}
    assert rooms == set(LEVELS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for module in imports(ast.parse(path.read_text())):
        if not module.startswith("hescribe"):
            continue
        parts = module.split(".")
        assert len(parts) > 1, "nobody imports the root"
        target = parts[1]
        assert target in LEVELS, f"{module}: nobody imports the root"
        allowed = target == room or LEVELS[target] < LEVELS[room] or LEVELS[target] == 0
        assert allowed, f"{room} (level {LEVELS[room]}) must not import {target} (level {LEVELS[target]})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_stays_in_its_wing(path: Path) -> None:
    if room_of(path) in TORCH_ROOMS or room_of(path) == "__init__":
        return
    heavy = {"torch", "lightning", "timm", "torchvision"}
    # doctor reports on the installed torch, which is its job
    if path.name == "doctor.py":
        return
    assert not heavy & {m.split(".")[0] for m in imports(ast.parse(path.read_text()))}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_training_knows_lightning_and_methods_know_no_files(path: Path) -> None:
    found = {m.split(".")[0] for m in imports(ast.parse(path.read_text()))}
    if room_of(path) not in {"training", "cli"}:
        assert "lightning" not in found
    if room_of(path) == "methods":
        assert not found & {"anndata", "pathlib", "zarr", "lightning"}
    assert "pickle" not in found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path: Path) -> None:
    text = path.read_text()
    limit = 60 if path.name == "__init__.py" else 400
    assert len(text.splitlines()) <= limit, f"{path.name} is longer than {limit} lines"
    for function in functions(ast.parse(text)):
        assert body_lines(function) <= 60, f"{path.name}:{function.name} has {body_lines(function)} lines"
        positional = [a.arg for a in [*function.args.posonlyargs, *function.args.args] if a.arg not in {"self", "cls"}]
        # A command's parameters are its options; typer needs them in the signature
        if "commands" not in path.parts and path.name != "main.py":
            assert len(positional) <= 5, f"{path.name}:{function.name} takes {len(positional)} positional parameters"


def test_nearly_all_functions_are_short() -> None:
    lengths = [body_lines(f) for path in FILES for f in functions(ast.parse(path.read_text()))]
    assert sum(length <= 40 for length in lengths) / len(lengths) >= 0.97


def test_folders_are_small() -> None:
    for folder in {f.parent for f in FILES} - {PACKAGE}:
        count = len([f for f in folder.glob("*.py") if f.name != "__init__.py"])
        assert count <= 8, f"{folder.relative_to(PACKAGE)} has {count} files"


def test_rooms_hold_no_logic_in_init() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert not list(functions(ast.parse(path.read_text()))), path


def test_the_contrastive_formula_has_one_home() -> None:
    for path in FILES:
        if path.name != "losses.py" and room_of(path) in {"methods", "training"}:
            assert "log_softmax" not in path.read_text(), f"{path.name}: the formula lives in methods/losses.py"


def test_nothing_unsafe_is_loaded() -> None:
    for path in FILES:
        text = path.read_text()
        assert "allow_pickle=True" not in text
        for call in re.findall(r"torch\.load\((.*)\)", text):
            assert "weights_only=True" in call, path


def test_input_is_never_checked_by_assert() -> None:
    """An assert may state what the code guarantees; what a user gives raises an error of the tree."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                line = path.read_text().splitlines()[node.lineno - 1]
                assert "# noqa: S101 - " in line, f"{path.name}:{node.lineno} asserts without saying why"
