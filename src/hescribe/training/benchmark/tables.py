"""What the runs of a benchmark found, as tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from hescribe.evaluation.published import beside_published
from hescribe.evaluation.scores import SectionScores
from hescribe.evaluation.seeds import mean_over_seeds
from hescribe.evaluation.tables import compare_methods, gene_table, method_table, section_table, write_table
from hescribe.io.store import remove
from hescribe.training.benchmark.execute import Finished
from hescribe.training.benchmark.plan import Run

#: columns of the table people read; all others stand in the CSV
HEADLINE = ["method", "encoder", "protocol", "set", "same_patient", "n_sections", "n_seeds", "pcc", "pcc_low",
            "pcc_high", "seed_spread", "spearman", "rmse", "ceiling", "share_of_ceiling", "gene_gene_pcc", "rvd",
            "morans_pcc", "coverage"]  # fmt: skip
_CURVE = ["method", "encoder", "protocol", "share", "training_spots", "set", "same_patient", "n_sections", "n_patients",
          "n_seeds", "pcc", "pcc_low", "pcc_high", "ceiling", "gene_gene_pcc", "rvd", "morans_pcc"]  # fmt: skip
#: what tells lines of the main tables apart, and runs; the latter without a seed where there is one only
_LINE = ("method", "encoder", "protocol")
_RUN = (*_LINE, "seed")
#: tables that are written as Markdown too
_READ = {"methods", "comparisons"}


@dataclass(frozen=True)
class Line:
    """A method on an encoder under a protocol, of some share of the spots: the mean over its seeds.

    Attributes
    ----------
    seeds
        Its runs.
    """

    seeds: Sequence[Finished]

    @property
    def run(self) -> Run:
        """The first of its runs, which has all in common with the others but the seed."""
        return self.seeds[0].run

    @cached_property
    def scores(self) -> list[SectionScores]:
        """Of every test section."""
        return [mean_over_seeds(own) for own in zip(*(f.scores for f in self.seeds), strict=True)]

    @cached_property
    def means(self) -> pd.DataFrame:
        """A row a gene set."""
        table = method_table(self.scores).assign(n_seeds=len(self.seeds), seed_spread=np.nan)
        if len(self.seeds) > 1:
            own = pd.concat([method_table(f.scores).set_index("set")["pcc"] for f in self.seeds], axis=1)
            table["seed_spread"] = table["set"].map(own.max(axis=1) - own.min(axis=1))
        return table

    @property
    def training_spots(self) -> float:
        """Mean over splits and seeds."""
        return sum(f.training_spots for f in self.seeds) / len(self.seeds)


def make_tables(
    finished: Sequence[Finished],
    failed: pd.DataFrame,
    published: pd.DataFrame | None,
    *,
    variants: Mapping[str, str],
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
    variants
        Variant → the method it is of.
    """
    by_line: dict[Run, list[Finished]] = {}
    for one in finished:
        by_line.setdefault(one.run._replace(seed=0), []).append(one)
    lines = [Line(seeds) for seeds in by_line.values()]
    whole, runs = [x for x in lines if x.run.share == 1], [f for f in finished if f.run.share == 1]
    several = any(len(x.seeds) > 1 for x in lines)
    tables = {
        "methods": _labelled((x.run, x.means) for x in whole),
        "seeds": _labelled(((f.run, method_table(f.scores)) for f in finished if several), (*_RUN, "share")),
        "sections": _labelled(((f.run, _sections(f.scores)) for f in runs), _RUN),
        "genes": _labelled((x.run, gene_table(x.scores)) for x in whole),
        "comparisons": _comparisons(whole),
        "learning_curve": _learning_curve(lines),
        "cell_types": _labelled((x.run, _cell_types(x.scores)) for x in whole),
        "cost": _labelled(((f.run, pd.DataFrame(f.costs)) for f in finished), (*_RUN, "share")),
        "failed": failed,
    }
    nothing = [] if several else ["n_seeds", "seed_spread"]
    if len({f.run.seed for f in finished} | set(failed.get("seed", ()))) == 1:  # it tells nothing apart
        nothing.append("seed")
    tables = {name: table.drop(columns=nothing, errors="ignore") for name, table in tables.items()}
    same, other = beside_published(tables["methods"], published, variants=variants)
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


def _labelled(parts: Iterable[tuple[Run, pd.DataFrame]], columns: Sequence[str] = _LINE) -> pd.DataFrame:
    """The table of each run, one below the other, with the columns that tell runs apart."""
    known = [_with_run(table, run, columns) for run, table in parts if len(table)]
    return pd.concat(known, ignore_index=True) if known else pd.DataFrame()


def _with_run(table: pd.DataFrame, run: Run, columns: Sequence[str]) -> pd.DataFrame:
    labels = pd.DataFrame({name: getattr(run, name) for name in columns}, index=table.index)
    return pd.concat([labels, table.drop(columns="method", errors="ignore")], axis=1)


def _comparisons(lines: Sequence[Line]) -> pd.DataFrame:
    """Each two methods on one encoder and protocol."""
    return _labelled(
        (
            (a.run, compare_methods(a.scores, b.scores))
            for a, b in itertools.combinations(lines, 2)
            if (a.run.encoder, a.run.protocol) == (b.run.encoder, b.run.protocol)
        ),
        _LINE[1:],
    )


def _learning_curve(lines: Sequence[Line]) -> pd.DataFrame:
    """Scores over the number of training spots, of the methods that were trained with fewer as well."""
    several = list(dict.fromkeys(x.run[:3] for x in lines if x.run.share < 1))
    chosen = sorted((x for x in lines if x.run[:3] in several), key=lambda x: (several.index(x.run[:3]), x.run.share))
    table = _labelled(((x.run, x.means.assign(training_spots=x.training_spots)) for x in chosen), (*_LINE, "share"))
    return table[_CURVE] if len(table) else table


def _sections(scores: Sequence[SectionScores]) -> pd.DataFrame:
    """A row a test section and gene set, with the number of spots that the figures are of."""
    table = section_table(scores)
    spots = table["section_id"].map({s.section_id: s.n_spots for s in scores})
    table.insert(list(table).index("set") + 1, "n_spots", spots)
    return table


def _cell_types(scores: Sequence[SectionScores]) -> pd.DataFrame:
    """Each type's concordance, averaged over the sections where it makes up at least 1 %."""
    known = [s.cell_types[s.cell_types["counted"].astype(bool)] for s in scores if s.cell_types is not None]
    if not any(map(len, known)):
        return pd.DataFrame()
    groups = pd.concat(known).groupby(level=0, sort=True)
    table = groups[["pcc", "measured", "predicted"]].mean()
    table.insert(0, "n_sections", groups.size())
    return table.rename_axis("cell_type").reset_index()
