"""The recipes as text: what docs/recipes/README.md says of each, made from the records."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby

from hescribe.datasets.recipes.record import Figure, Recipe
from hescribe.datasets.recipes.table import list_recipes


def recipes_markdown() -> str:
    """A table of all recipes, then a part on each; printed by ``python -m hescribe.datasets.recipes.page``."""
    recipes = list_recipes()
    lines = [
        "| recipe | data | sections | patients | headline protocol | tile | figures that may be compared |",
        "|---|---|---:|---:|---|---:|---:|",
        *(_row(recipe) for recipe in recipes),
    ]
    for recipe in recipes:
        lines += ["", *_part(recipe)]
    return "\n".join(lines) + "\n"


def _row(recipe: Recipe) -> str:
    comparable = sum(f.comparable for f in recipe.figures)
    cells = (
        f"[`{recipe.name}`](#{recipe.name})",
        recipe.summary,
        len(recipe.sections),
        recipe.n_patients,
        recipe.protocols[0],
        f"{recipe.tile_um:g} µm",
        f"{comparable} of {len(recipe.figures)}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _part(recipe: Recipe) -> Iterator[str]:
    yield f"### {recipe.name}"
    yield ""
    yield f"{recipe.summary}. {recipe.citation}. Licence: {recipe.licence}. From: {recipe.source}."
    yield ""
    yield from _commands(recipe)
    yield ""
    yield f"- Sections: {_sections(recipe)}."
    yield f"- Patients: {recipe.patients}."
    yield f"- Folds: {recipe.folds}"
    yield f"- Run here: {', '.join(recipe.protocols)}; {', '.join(f'`{m}`' for m in recipe.methods)}; markers {', '.join(recipe.markers)}."
    for fact in recipe.unverified:
        yield f"- Not verified: {fact}."
    for (protocol, source, differs), figures in groupby(recipe.figures, lambda f: (f.protocol, f.source, f.differs)):
        yield ""
        yield f"Published: {protocol}. Source: {source}. {_verdict(differs)}"
        yield ""
        yield from _figures(figures)


def _commands(recipe: Recipe) -> Iterator[str]:
    yield "```"
    if len(recipe.download) > 1:
        yield "# one of"
    yield from recipe.download
    yield f"hescribe datasets prepare {recipe.name} FOLDER -o DIR"
    for i, protocol in enumerate(recipe.protocols):
        config, results = ("benchmark", "RESULTS") if i == 0 else (f"benchmark.{protocol}", f"RESULTS-{protocol}")
        yield f"hescribe benchmark DIR --config DIR/{config}.toml -o {results}"
    yield "```"


def _sections(recipe: Recipe) -> str:
    of: dict[str, list[str]] = {}
    for section in recipe.sections:
        of.setdefault(section.patient_id, []).append(section.section_id)
    return "; ".join(f"{', '.join(ids)} ({patient})" for patient, ids in of.items())


def _verdict(differs: tuple[str, ...]) -> str:
    return f"Not comparable with ours: {'; '.join(differs)}." if differs else "The same as ours: may be compared."


def _figures(figures: Iterable[Figure]) -> Iterator[str]:
    yield "| method | what | gene set | PCC |"
    yield "|---|---|---|---:|"
    for figure in figures:
        pcc = "–" if math.isnan(figure.pcc) else f"{figure.pcc:g}"
        yield f"| `{figure.method}` | {figure.figure} | {figure.set} | {pcc} |"


if __name__ == "__main__":
    sys.stdout.write(recipes_markdown())
