"""What the runs of a benchmark found, as tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from hescribe.evaluation.published import beside_published
from hescribe.evaluation.scores import SectionScores
from hescribe.evaluation.tables import compare_methods, gene_table, method_table, section_table, write_table
from hescribe.io.store import remove
from hescribe.training.benchmark.execute import Finished
from hescribe.training.benchmark.plan import Run

#: columns of the table people read; all others stand in the CSV
HEADLINE = ["method", "encoder", "protocol", "seed", "set", "same_patient", "n_sections", "pcc", "pcc_low", "pcc_high",
            "spearman", "rmse", "ceiling", "share_of_ceiling", "gene_gene_pcc", "rvd", "morans_pcc", "coverage"]  # fmt: skip
_CURVE = ["method", "encoder", "protocol", "seed", "share", "training_spots", "set", "same_patient", "n_sections",
          "n_patients", "pcc", "pcc_low", "pcc_high", "ceiling", "gene_gene_pcc", "rvd", "morans_pcc"]  # fmt: skip
#: tables that are written as Markdown too
_READ = {"methods", "comparisons"}


def make_tables(
    finished: Sequence[Finished], failed: pd.DataFrame, published: pd.DataFrame | None
) -> dict[str, pd.DataFrame]:
    """Table by the name of its file; some may be empty.

    Parameters
    ----------
    finished
        Runs, of the whole training spots and of shares of them.
    failed
        A row a run that could not be made.
    published
        Figures of the literature, columns as `hescribe.evaluation.published.beside_published` wants them.
    """
    whole = [f for f in finished if f.run.share == 1]
    means = {f.run: method_table(f.scores) for f in finished}
    tables = {
        "methods": _labelled(whole, lambda f: means[f.run]),
        "sections": _labelled(whole, lambda f: section_table(f.scores)),
        "genes": _labelled(whole, lambda f: gene_table(f.scores)),
        "comparisons": _comparisons(whole),
        "learning_curve": _learning_curve(finished, means),
        "cell_types": _labelled(whole, lambda f: _cell_types(f.scores)),
        "cost": pd.concat([_with_run(pd.DataFrame(f.costs), f, share=True) for f in finished], ignore_index=True),
        "failed": failed,
    }
    if len({f.run.seed for f in finished} | set(failed.get("seed", ()))) == 1:  # it tells nothing apart
        tables = {name: table.drop(columns="seed", errors="ignore") for name, table in tables.items()}
    same, other = beside_published(tables["methods"], published)
    return {**tables, "published": same, "published_elsewhere": other}


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write each table; the file of one that is empty now is removed."""
    for name, table in tables.items():
        for path in (folder / f"{name}.csv", folder / f"{name}.md"):
            if table.empty:
                remove(path)
        if table.empty:
            continue
        write_table(table, folder / f"{name}.csv")
        if name in _READ:
            shown = table[[c for c in HEADLINE if c in table]] if name == "methods" else table
            write_table(shown, folder / f"{name}.md", digits=3)


def _labelled(finished: Sequence[Finished], make: Callable[[Finished], pd.DataFrame]) -> pd.DataFrame:
    """The table of each run, one below the other, with the columns that tell runs apart."""
    parts = [_with_run(make(f), f) for f in finished]
    return pd.concat([p for p in parts if len(p)], ignore_index=True) if any(map(len, parts)) else pd.DataFrame()


def _with_run(table: pd.DataFrame, finished: Finished, *, share: bool = False) -> pd.DataFrame:
    run = finished.run
    table = table.drop(columns="method", errors="ignore")
    columns: dict[str, str | int | float] = {
        "method": run.method,
        "encoder": run.encoder,
        "protocol": run.protocol,
        "seed": run.seed,
    }
    if share:
        columns["share"] = run.share
    for i, (name, value) in enumerate(columns.items()):
        table.insert(i, name, value)
    return table


def _comparisons(finished: Sequence[Finished]) -> pd.DataFrame:
    """Each two methods on one encoder, protocol and seed."""
    parts = []
    for a, b in itertools.combinations(finished, 2):
        if a.run[1:] == b.run[1:]:
            table = compare_methods(a.scores, b.scores)
            for i, name in enumerate(("encoder", "protocol", "seed")):
                table.insert(i, name, getattr(a.run, name))
            parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _learning_curve(finished: Sequence[Finished], means: Mapping[Run, pd.DataFrame]) -> pd.DataFrame:
    """Scores over the number of training spots, of the runs that were made with fewer as well."""
    several = list(dict.fromkeys(f.run[:4] for f in finished if f.run.share < 1))
    chosen = [f for f in finished if f.run[:4] in several]
    parts = []
    for one in sorted(chosen, key=lambda f: (several.index(f.run[:4]), f.run.share)):
        table = _with_run(means[one.run], one, share=True)
        table.insert(5, "training_spots", one.training_spots)
        parts.append(table[_CURVE])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _cell_types(scores: Sequence[SectionScores]) -> pd.DataFrame:
    """Each type's concordance, averaged over the sections where it makes up at least 1 %."""
    known = [s.cell_types[s.cell_types["counted"].astype(bool)] for s in scores if s.cell_types is not None]
    if not any(map(len, known)):
        return pd.DataFrame()
    groups = pd.concat(known).groupby(level=0, sort=True)
    table = groups[["pcc", "measured", "predicted"]].mean()
    table.insert(0, "n_sections", groups.size())
    return table.rename_axis("cell_type").reset_index()
