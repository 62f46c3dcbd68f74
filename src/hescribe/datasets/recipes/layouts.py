"""How the files of a data set lie in the folder to which they were downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from hescribe.datasets.recipes.record import RecipeSection
from hescribe.errors import InputError

#: part of a section (a column of the manifest, or a file of a spaceranger folder) → its file
Parts = Mapping[str, Path]


def _zipped(*patterns: str) -> tuple[str, ...]:
    """Each pattern as it is, and gzipped."""
    return tuple(p + end for p in patterns for end in ("", ".gz"))


@dataclass(frozen=True)
class Variant:
    """One way in which the files may lie.

    Attributes
    ----------
    parts
        Part → patterns of its file, the last parts of its path; the first that is there counts.
    optional
        Parts that may be missing.
    whole_slides
        Whether the images show more than the spots' own tiles.
    """

    parts: Mapping[str, tuple[str, ...]]
    optional: frozenset[str] = frozenset()
    whole_slides: bool = True


@dataclass(frozen=True)
class Layout:
    """The ways in which one kind of download may lie, the most complete first.

    Attributes
    ----------
    technology
        Of the manifest.
    variants
        Tried in order.
    """

    technology: str
    variants: tuple[Variant, ...]


_LIVER_IMAGE = _zipped("*GEX_{id}_Merged.tif", "*GEX_{id}_Merged.tiff")


def _visium(before: Sequence[str], positions: Sequence[str]) -> Variant:
    """Files of a spaceranger folder by what stands before their names."""
    named = {
        "matrix": ("matrix.mtx",),
        "barcodes": ("barcodes.tsv",),
        "features": ("features.tsv", "genes.tsv"),
    }
    parts = {part: _zipped(*(b + n for b in before for n in names)) for part, names in named.items()}
    scale = _zipped(*(b + "scalefactors_json.json" for b in before))
    return Variant(
        {**parts, "positions": _zipped(*positions), "scalefactors": scale, "image": _LIVER_IMAGE},
        optional=frozenset({"scalefactors"}),
    )


_GEO_NAMES = ("*{id}_", "*{id}_VISIUM_", "*{alias}_", "*{alias}_VISIUM_")

LAYOUTS: dict[str, Layout] = {
    "hest": Layout(
        "hest",
        (
            Variant({"expression": ("st/{id}.h5ad",), "image": ("wsis/{id}.tif",)}),
            Variant({"expression": ("adata/{id}.h5ad",), "image": ("patches/{id}.h5",)}, whole_slides=False),
            Variant({"expression": ("st/{id}.h5ad",), "image": ("patches/{id}.h5",)}, whole_slides=False),
        ),
    ),
    "her2st": Layout(
        "st",
        (
            Variant(
                {
                    "expression": _zipped("ST-cnts/{id}.tsv"),
                    "positions": _zipped("ST-spotfiles/{id}_selection.tsv"),
                    "image": _zipped("ST-imgs/{patient}/{id}/*.jpg"),
                }
            ),
            Variant(
                {
                    "expression": _zipped("count-matrices/{id}.tsv"),
                    "positions": _zipped("spot-selections/{id}_selection.tsv"),
                    "image": _zipped("images/HE/{id}.jpg", "images/{id}.jpg"),
                }
            ),
        ),
    ),
    "geo-st": Layout(
        "st",
        (
            Variant(
                {
                    "expression": _zipped("{id}_stdata.tsv", "*_{id}_stdata.tsv"),
                    "positions": _zipped("*spot_data-selection-{id}.tsv"),
                    "image": _zipped("{id}.jpg", "*_{id}.jpg"),
                }
            ),
        ),
    ),
    "geo-visium": Layout(
        "visium",
        (
            _visium(_GEO_NAMES, [n + "tissue_positions_list.csv" for n in _GEO_NAMES]),
            _visium(
                ("filtered_expression_matrices/{slice}/",),
                ("tissue_pos_matrices/tissue_positions_list_{slice}.csv",),
            ),
        ),
    ),
}


@dataclass(frozen=True)
class Found:
    """What was found of the sections.

    Attributes
    ----------
    variant
        The one that fits best.
    parts
        Section id → its files.
    missing
        Section id → parts without a file.
    """

    variant: Variant
    parts: Mapping[str, Parts]
    missing: Mapping[str, tuple[str, ...]]


#: files by their path as patterns are matched with it
Files = Mapping[PurePosixPath, Path]


def find_files(layout: Layout, sections: Sequence[RecipeSection], files: Files) -> Found:
    """The files of each section, in the first way of the layout that lacks nothing, or else the least.

    Raises
    ------
    InputError
        Two files equally fit one part of a section.
    """
    found = [_find(variant, sections, files) for variant in layout.variants]
    return min(found, key=lambda f: sum(len(m) for m in f.missing.values()))


def list_files(folder: Path) -> Files:
    """All files below a folder by their whole path, links followed, without those of hidden folders.

    Raises
    ------
    InputError
        It is not there.
    """
    if not folder.is_dir():
        raise InputError("no such folder", path=folder, fix="give the folder to which the data were downloaded")
    found: dict[PurePosixPath, Path] = {}
    seen = set()
    for parent, inner, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        # a link may lead back to a folder above it
        inner[:] = [n for n in inner if not n.startswith(".") and os.path.realpath(Path(parent, n)) not in seen]
        here = (Path(parent, n).absolute() for n in names if not n.startswith("."))
        # whole paths: the folder given may be the very one that a pattern begins with
        found.update({PurePosixPath(path.as_posix()): path for path in here})
    return found


def match_file(patterns: Sequence[str], files: Files) -> Path | None:
    """The file that fits the first pattern that any fits; of several the one that lies least deep.

    Raises
    ------
    InputError
        Two lie equally deep.
    """
    for pattern in patterns:
        name = PurePosixPath(pattern).name
        # by name first: matching whole paths is slow among the files of a large data set
        fitting = [p for p in files if fnmatchcase(p.name, name) and p.match(pattern)]
        fitting.sort(key=lambda p: (len(p.parts), str(p)))
        if len(fitting) > 1 and len(fitting[0].parts) == len(fitting[1].parts):
            raise InputError(
                f"{fitting[0]} and {fitting[1]} both fit {pattern!r}", fix="keep one of them in the folder"
            )
        if fitting:
            return files[fitting[0]]
    return None


def _find(variant: Variant, sections: Sequence[RecipeSection], files: Files) -> Found:
    parts, missing = {}, {}
    for section in sections:
        found = {
            part: match_file([section.fill(p) for p in patterns], files) for part, patterns in variant.parts.items()
        }
        parts[section.section_id] = {part: path for part, path in found.items() if path is not None}
        lacking = tuple(p for p, path in found.items() if path is None and p not in variant.optional)
        if lacking:
            missing[section.section_id] = lacking
    return Found(variant, parts, missing)
