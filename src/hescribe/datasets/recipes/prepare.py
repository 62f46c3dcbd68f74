"""From a folder of downloads to a manifest and the options of a benchmark."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hescribe.datasets.recipes.assemble import Cells, assemble
from hescribe.datasets.recipes.layouts import LAYOUTS, Files, Found, find_files, list_files, match_file
from hescribe.datasets.recipes.record import Recipe, RecipeSection
from hescribe.datasets.recipes.table import find_recipe
from hescribe.errors import InputError, OutputError
from hescribe.io.store import write_atomically

#: methods that look around a tile, which stored tiles of the spots alone do not show
NEED_SLIDES = frozenset({"fusion", "triplex"})
_COLUMNS = ("section_id", "patient_id", "image", "expression", "technology", "positions")
_MANIFEST, _GENES = "sections.csv", "genes.txt"


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes
    ----------
    manifest
        The sections.
    configs
        Options of a benchmark, a file a protocol, the headline first.
    notes
        What the user should know, a sentence each.
    """

    manifest: Path
    configs: tuple[Path, ...]
    notes: tuple[str, ...]


def prepare(
    name: str, folder: str | Path, output: str | Path, *, only: Collection[str] = (), overwrite: bool = False
) -> Prepared:
    """Find the exact sections of a recipe in a folder of downloads, and make them ready for a benchmark.

    Writes ``sections.csv``, ``benchmark.toml`` (and one such file for each further protocol), ``genes.txt`` where the
    data set brings a list of genes; images that lie gzipped are unpacked, and spaceranger folders put together.

    Parameters
    ----------
    name
        Of a recipe in `hescribe.datasets.recipes.list_recipes`.
    folder
        Where the data lie, downloaded and, if they come in an archive, unpacked.
    output
        Folder of the results.
    only
        Prepare these sections alone, by id.
    overwrite
        Replace a manifest of something else.

    Raises
    ------
    InputError
        No such recipe or section, or files are missing: one line that says which, and how to get them.
    OutputError
        The output cannot be written, or holds another manifest.
    """
    recipe, source, target = find_recipe(name), Path(folder).expanduser(), Path(output).expanduser()
    sections = _choose(recipe, only)
    layout = LAYOUTS[recipe.layout]
    files = list_files(source)
    found = find_files(layout, sections, files)
    if found.missing:
        raise InputError(_missing(recipe, sections, found), path=source, fix=_how_to_get(recipe))
    if not overwrite:
        _check_free(target, name)
    rows = []
    for section in sections:
        cells = assemble(layout.technology, section.section_id, found.parts[section.section_id], target)
        rows.append(_row(section, layout.technology, cells, target))
    _write(target / _MANIFEST, _table(rows))
    genes = _write_genes(recipe, files, target)
    methods = [m for m in recipe.methods if found.variant.whole_slides or m not in NEED_SLIDES]
    configs = []
    for i, protocol in enumerate(recipe.protocols):
        configs.append(target / ("benchmark.toml" if i == 0 else f"benchmark.{protocol}.toml"))
        _write(configs[-1], _options(recipe, protocol, genes=genes, methods=methods))
    return Prepared(target / _MANIFEST, tuple(configs), _notes(recipe, methods, genes, len(sections)))


def _choose(recipe: Recipe, only: Collection[str]) -> list[RecipeSection]:
    known = {s.section_id: s for s in recipe.sections}
    if unknown := [i for i in only if i not in known]:
        raise InputError(
            f"{recipe.name} has no section {unknown[0]!r}", path="--only", fix=f"it has {', '.join(known)}"
        )
    return [s for i, s in known.items() if not only or i in only]


def _missing(recipe: Recipe, sections: Sequence[RecipeSection], found: Found) -> str:
    """Sections that lack the same parts stand together."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    for section, parts in found.missing.items():
        lacking.setdefault(parts, []).append(section)
    told = "; ".join(f"{', '.join(parts)} of {', '.join(ids)}" for parts, ids in lacking.items())
    return f"files of {len(found.missing)} of {len(sections)} sections of {recipe.name} are missing: {told}"


def _how_to_get(recipe: Recipe) -> str:
    return f"from {recipe.source}: {recipe.download[0]}; --only takes those sections that are there"


def _check_free(target: Path, name: str) -> None:
    """A manifest that this recipe did not write is not replaced."""
    config = target / "benchmark.toml"
    ours = config.is_file() and f"recipe = {json.dumps(name)}" in config.read_text(encoding="utf-8", errors="replace")
    if (target / _MANIFEST).exists() and not ours:
        raise OutputError(f"{target} holds another {_MANIFEST} (choose another folder, or pass --overwrite)")


def _row(section: RecipeSection, technology: str, cells: Cells, target: Path) -> dict[str, str]:
    """What lies in the manifest's own folder is named relative to it, so that the folder may be moved."""
    inside = target.absolute()
    paths = {
        column: (path.relative_to(inside) if path.is_relative_to(inside) else path).as_posix()
        for column, path in ((c, p.absolute()) for c, p in cells.items())
    }
    return {
        "section_id": section.section_id,
        "patient_id": section.patient_id,
        "technology": technology,
        **paths,
    }


def _table(rows: Sequence[dict[str, str]]) -> str:
    text = io.StringIO()
    columns = [c for c in _COLUMNS if any(c in row for row in rows)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_genes(recipe: Recipe, files: Files, target: Path) -> Path | None:
    """The data set's own list of genes as the option ``--genes`` takes it; None where its download has none."""
    file = match_file([recipe.gene_list], files) if recipe.gene_list else None
    if file is None:
        return None
    try:
        genes = json.loads(file.read_text())["genes"]
        text = "".join(f"{gene.strip()}\n" for gene in genes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"no list of genes ({error!r})", path=file, fix='{"genes": ["A", "B"]}') from error
    _write(target / _GENES, text)
    return target / _GENES


def _options(recipe: Recipe, protocol: str, *, genes: Path | None, methods: Sequence[str]) -> str:
    options: dict[str, Any] = {
        "recipe": recipe.name,
        "methods": ",".join(methods),
        "protocol": protocol,
        "encoder": recipe.encoder,
        "tile_um": recipe.tile_um,
        "genes": str(genes.absolute()) if genes else recipe.genes,
        "target_sum": recipe.target_sum,
        "markers": ",".join(recipe.markers),
    }
    if recipe.shares_patients(protocol):
        options["allow_same_patient"] = True
    lines = [f"# {recipe.summary}", *(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in options.items())]
    return "\n".join(lines) + "\n"


def _notes(recipe: Recipe, methods: Sequence[str], genes: Path | None, n_sections: int) -> tuple[str, ...]:
    notes = [f"not verified: {fact}" for fact in recipe.unverified]
    if left := [m for m in recipe.methods if m not in methods]:
        notes.append(f"left out: {', '.join(left)}, which look around a tile; they need the whole-slide images")
    if recipe.gene_list and genes is None:
        notes.append(f"{recipe.gene_list} is not there, so the panel is {recipe.genes}, not the data set's own")
    if n_sections < len(recipe.sections):
        notes.append(f"{n_sections} of the {len(recipe.sections)} sections: a figure of part of the data set")
    return tuple(notes)


def _write(path: Path, text: str) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
