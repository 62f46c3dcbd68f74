"""All recipes. To add one, write a file in the folder ``sets`` and one line in the table here."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hescribe import keys
from hescribe.datasets.recipes.record import Figure, Recipe, RecipeSection
from hescribe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

#: files of ``sets``, in the order of the list; each holds one recipe or several with something in common
_FILES = (
    "hest_bench",
    "cmrcnet",
    "her2st",
    "cscc",
    "human_liver",
)

#: what a recipe has that is ``like`` another: the same sections for another protocol
_SHARED = ("sections", "patients", "markers", "unverified")


def list_recipes() -> list[Recipe]:
    """Every recipe, in the table's order.

    Examples
    --------
    >>> [r.name for r in list_recipes()][:2]
    ['hest-idc', 'hest-prad']
    """
    return list(_recipes().values())


def find_recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises
    ------
    InputError
        There is none of that name; says which there are.
    """
    recipes = _recipes()
    if name not in recipes:
        raise InputError(f"no recipe {name!r}", fix=f"one of {', '.join(recipes)}")
    return recipes[name]


def published_figures(recipe_name: str) -> pd.DataFrame:
    """Published figures on a recipe's data, a row each.

    Parameters
    ----------
    recipe_name
        A name in `list_recipes`.

    Returns
    -------
    DataFrame
        ``method`` (ours where we have it), ``figure``, ``set`` (ours where it is the same: `all`, `panel`, `heg50` …),
        ``pcc``, ``protocol``, ``source``, ``comparable``, ``differs``, ``encoder`` (empty: not told apart). Only where ``comparable`` is true may a figure
        stand in one column with ours; elsewhere ``differs`` says why not.

    Raises
    ------
    InputError
        There is no such recipe.
    """
    import pandas as pd

    columns = (*keys.PUBLISHED, keys.PUBLISHED_ENCODER)
    rows = [
        {**{c: getattr(figure, c) for c in columns}, "differs": "; ".join(figure.differs)}
        for figure in find_recipe(recipe_name).figures
    ]
    return pd.DataFrame(rows, columns=list(columns)).astype({"pcc": "float64", "comparable": "bool"})


@cache
def _recipes() -> dict[str, Recipe]:
    found: dict[str, dict[str, Any]] = {}
    for name in _FILES:
        facts = tomllib.loads((files(__package__) / "sets" / f"{name}.toml").read_text(encoding="utf-8"))
        common = facts.get("common", {})
        for own in facts["recipe"]:
            liked = found[own["like"]] if "like" in own else {}
            found[own["name"]] = {
                **{k: v for k, v in common.items() if k != "published"},
                **{k: liked[k] for k in _SHARED if k in liked},
                **{k: v for k, v in own.items() if k != "like"},
                "published": [_joined(common.get("published", {}), p) for p in own.get("published", [])],
            }
    return {name: _recipe(facts) for name, facts in found.items()}


def _joined(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What figures of several recipes have in common, and their own; differences add up."""
    return {**common, **own, "differs": [*common.get("differs", []), *own.get("differs", [])]}


def _recipe(facts: dict[str, Any]) -> Recipe:
    facts = dict(facts)
    task = facts.pop("task", "")
    sections = tuple(_section(s) for s in facts.pop("sections"))
    figures = tuple(f for p in facts.pop("published") for f in _figures(p))
    includes = " ".join(f'--include "*/{s.section_id}.*"' for s in sections)
    download = tuple(line.format(task=task, includes=includes) for line in facts.pop("download"))
    gene_list = facts.pop("gene_list", "").format(task=task)
    lists: dict[str, Any] = {k: tuple(facts.pop(k, ())) for k in ("methods", "protocols", "markers", "unverified")}
    return Recipe(sections=sections, figures=figures, download=download, gene_list=gene_list, **lists | facts)


def _section(facts: dict[str, str]) -> RecipeSection:
    names = {k: v for k, v in facts.items() if k not in ("id", "patient")}
    return RecipeSection(facts["id"], facts["patient"], names)


def _figures(block: dict[str, Any]) -> Iterable[Figure]:
    """Rows of a block: method, figure, correlation and, where it is not the block's, the gene set."""
    told = {"protocol": block["protocol"], "source": block["source"], "differs": tuple(block["differs"])}
    for method, figure, pcc, *own_set in block["rows"]:
        encoder = figure.lower() if block.get("encoders") else ""
        yield Figure(method, figure, own_set[0] if own_set else block["set"], float(pcc), **told, encoder=encoder)
