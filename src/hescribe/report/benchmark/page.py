"""One HTML file about a benchmark."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hescribe.io.store import publish, remove
from hescribe.report.benchmark import details, results
from hescribe.report.benchmark.cautions import cautions
from hescribe.report.benchmark.words import listed, many, short_encoders
from hescribe.report.tools import FIGURES, PAGE, Chapter, write_tool_page
from hescribe.version import __version__


def write_benchmark_page(
    folder: str | Path,
    tables: Mapping[str, pd.DataFrame],
    *,
    settings: Mapping[str, str],
    recipe: str = "",
    unfinished: Mapping[str, int] | None = None,
) -> Path:
    """Write ``folder/index.html``, which needs no network, and its figures; nothing else in the folder is touched.

    Parameters
    ----------
    folder
        Of the benchmark.
    tables
        As `hescribe.training.benchmark` makes them.
    settings
        What all runs have in common.
    recipe
        Name of the recipe that prepared the data, or "".
    unfinished
        Method → how many of its runs were asked for in this folder and stand in no table.

    Returns
    -------
    Path
        The page.
    """
    target = Path(folder)
    temporary = target / f".page.{uuid.uuid4().hex[:8]}.partial"
    try:
        temporary.mkdir(parents=True)
        methods = tables["methods"]
        write_tool_page(
            temporary,
            _chapters(tables),
            title="Benchmark" + (f": {recipe}" if recipe else ""),
            lead=_lead(methods),
            cautions=cautions(tables, unfinished or {}),
            cards=_cards(tables),
            provenance={**settings, **({"Recipe": recipe} if recipe else {}), "hescribe": __version__},
        )
        # The page last: it stands for the whole
        publish(temporary / FIGURES, target / FIGURES)
        publish(temporary / PAGE, target / PAGE)
    finally:
        remove(temporary)
    return target / PAGE


def _chapters(tables: Mapping[str, pd.DataFrame]) -> list[Chapter]:
    methods = tables["methods"]
    chapters = [
        results.headline(methods),
        results.paired(methods, tables["comparisons"]),
        details.failed(tables["failed"]),
        details.genes(tables["genes"], methods),
        details.structure(methods),
        details.learning_curve(tables["learning_curve"]),
        details.cell_types(tables["cell_types"]),
        details.cost(tables["cost"]),
        details.published(tables["published"], tables["published_elsewhere"]),
    ]
    return [c for c in chapters if c is not None]


def _lead(methods: pd.DataFrame) -> str:
    encoders = short_encoders(methods["encoder"])
    seeds = ""
    if "n_seeds" in methods:
        fewest, most = int(methods["n_seeds"].min()), int(methods["n_seeds"].max())
        seeds = f", means over {most if fewest == most else f'{fewest} to {most}'} seeds"
    return (
        f"{many(methods['method'].nunique(), 'method')} on {listed(encoders.values())}; "
        f"{listed(dict.fromkeys(methods['protocol']))}, {many(int(methods['n_sections'].max()), 'section')}{seeds}."
    )


def _cards(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    methods = tables["methods"]
    cards = {"Runs": str(len(tables["cost"].groupby([c for c in tables["cost"] if c in _APART]).size()))}
    for name, heading in (("heg50", "Highest, HEG-50"), ("hvg50", "Highest, HVG-50")):
        rows = methods[methods["set"] == name]
        if len(rows):
            best = rows.sort_values("pcc").iloc[-1]
            encoder = short_encoders(methods["encoder"])[str(best["encoder"])]
            cards[heading] = f"{best['pcc']:.2f} ({best['method']}, {encoder})"
    return cards


_APART = {"method", "encoder", "protocol", "seed", "share"}
