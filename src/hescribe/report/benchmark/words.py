"""How a benchmark's page names and writes things."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hescribe.plots.genes import SET_NAMES

SETS = ("heg50", "hvg50", "detected10", "all", "marker")  #: shown on the page; all sets are in the tables
#: set → how the heads of wide tables name it
SHORT = {"heg50": "HEG-50", "hvg50": "HVG-50", "detected10": "Detected", "all": "All genes", "marker": "Markers"}
CONTROLS = ("ridge", "knn")  #: what a method must beat to count as better
RUN = ["encoder", "protocol"]  #: columns beside the method that tell lines of the tables apart

_HEADINGS = {
    "method": "Method",
    "encoder": "Encoder",
    "protocol": "Protocol",
    "seed": "Seed",
    "share": "Share of spots",
    "training_spots": "Training spots",
    "n_sections": "Sections",
    "n_seeds": "Seeds",
    "split": "Left out",
    "reason": "Reason",
    "cell_type": "Cell type",
    "set": "Genes",
    "source": "Source",
    "figure": "Named there",
    "differs": "How the protocol differs",
    "published_protocol": "Its protocol",
    "published_pcc": "Published PCC",
}


def keys_of(table: pd.DataFrame) -> list[str]:
    """The columns of a table that tell lines of one method apart."""
    return [c for c in RUN if c in table]


def short_encoders(names: Iterable[str]) -> dict[str, str]:
    """Encoder → a name as short as the others allow."""
    all_names = list(dict.fromkeys(names))
    short = [n.removeprefix("timm:").partition("@")[0] for n in all_names]
    return {n: s if short.count(s) == 1 else n.removeprefix("timm:") for n, s in zip(all_names, short, strict=True)}


def with_short_encoders(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its encoders' names shortened."""
    return table.assign(encoder=table["encoder"].map(short_encoders(table["encoder"]))) if "encoder" in table else table


def headed(table: pd.DataFrame) -> pd.DataFrame:
    """The table under headings for people, without what is the same of all runs: the page's first line says that."""
    same = [c for c in RUN if c in table and len(set(table[c])) == 1]
    named = with_short_encoders(table).drop(columns=same)
    if "set" in named:
        named = named.assign(set=[SET_NAMES.get(s, s) for s in named["set"]])
    return named.rename(columns=_HEADINGS)


def runs_of(table: pd.DataFrame, *more: str) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Rows of one encoder and protocol (and of ``more`` columns) at a time, with what they have in common."""
    names = [*more, *keys_of(table)]
    for key, part in table.groupby(names, sort=False):
        yield dict(zip(names, key, strict=True)), part


def place(told: Mapping[str, Any], encoders: Mapping[str, str]) -> str:
    """Where a figure holds: ``leave-one-patient-out, stain``."""
    return f"{told['protocol']}, {encoders[str(told['encoder'])]}"


def chosen(table: pd.DataFrame, told: Mapping[str, Any]) -> pd.DataFrame:
    """The rows that have these values."""
    for name, value in told.items():
        table = table[table[name] == value]
    return table


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The table of one protocol with ``method`` made a label that is a line's own: ``fusion · stain``."""
    short = with_short_encoders(table)
    if "encoder" not in short or len(set(short["encoder"])) == 1:
        return short
    return short.assign(method=short["method"].astype(str) + " · " + short["encoder"])


def interval(value: float, low: float, high: float) -> str:
    """``0.410 [0.35, 0.46]``; a dash where nothing is known."""
    return _with_bounds(value, low, high, digits=2)


def gap(value: float, low: float, high: float) -> str:
    """``0.041 [0.004, 0.078]``: of a difference, whose bounds must show on which side of zero they lie."""
    return _with_bounds(value, low, high, digits=3)


def _with_bounds(value: float, low: float, high: float, *, digits: int) -> str:
    if np.isnan(value) or not np.isfinite(low):
        return three(value)
    return f"{three(value)} [{_decimals(low, digits)}, {_decimals(high, digits)}]"


def three(value: float) -> str:
    """Three decimals, with a minus sign as long as a plus; a dash where nothing is known."""
    return _decimals(value, 3)


def _decimals(value: float, digits: int) -> str:
    return "–" if np.isnan(value) else f"{value:z.{digits}f}".replace("-", "−")


def listed(items: Iterable[object]) -> str:
    """``a, b and c``."""
    texts = [str(i) for i in items]
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else "".join(texts)


def not_run(names: Sequence[str]) -> str:
    """``ridge and knn were not run``."""
    return f"{listed(names)} {'was' if len(names) == 1 else 'were'} not run"


def many(number: int, what: str) -> str:
    """``3 sections``, ``1 section``."""
    return f"{number:,} {what}{'s' * (number != 1)}"
