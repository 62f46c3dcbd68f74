"""Chapters about who is ahead, and by how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from hescribe import plots
from hescribe.report.benchmark.words import (
    CONTROLS,
    SETS,
    SHORT,
    chosen,
    gap,
    headed,
    interval,
    labelled,
    not_run,
    place,
    runs_of,
    short_encoders,
    three,
)
from hescribe.report.tools import Chapter, Plate

_JUDGED = ("heg50", "hvg50", "all")
_COUNTS = ("n_sections", "n_seeds")


def headline(methods: pd.DataFrame) -> Chapter:
    """Correlations with intervals, beside the ceiling."""
    plates = []
    for protocol, part in methods.groupby("protocol", sort=False):
        figure = plots.method_comparison(labelled(part), sets=SETS)
        caption = f"{protocol}: mean correlation with its 95% interval; the broken line is what a perfect prediction would reach."
        plates.append(
            Plate(figure, f"methods_{protocol}", f"Methods against each other, {caption}", caption, vector=True)
        )
    text = [
        "PCC: Pearson's correlation per gene across the spots of one section, averaged over the genes of a set, then over "
        "the test sections. In brackets the 95% interval of a bootstrap over patients (or sections, where there are fewer "
        "than three patients) and blocks of tissue. Ceiling: the PCC that a perfect prediction would reach against counts "
        "this noisy; it is the last row of each encoder and protocol, a range where not all methods predict the same genes."
    ]
    if "n_seeds" in methods:
        spread = three(float(methods.loc[methods["set"].isin(SETS), "seed_spread"].max()))
        text.append(
            "Figures are means over seeds, resample by resample: the intervals are of tissue, not of seeds. Two seeds of "
            f"one method differ by {spread} at most here; each seed's own figures are in seeds.csv."
        )
    return Chapter("Results", text, plates, [("PCC [95% interval]", headed(_wide(methods)))])


def _wide(methods: pd.DataFrame) -> pd.DataFrame:
    """A row a method, encoder and protocol, below each encoder's and protocol's its ceiling; a column a gene set."""
    rows: list[dict[str, Any]] = []
    for told, part in runs_of(methods):
        for method, own in part.groupby("method", sort=False):
            counts = {c: int(own[c].max()) for c in _COUNTS if c in own}
            figures = own.set_index("set")[["pcc", "pcc_low", "pcc_high"]]
            reached = {SHORT[name]: interval(*figures.loc[name]) for name in SETS if name in figures.index}
            rows.append({"method": method, **told, **counts, **reached})
        ceilings = part.groupby("set")["ceiling"]
        rows.append({"method": "ceiling", **told, **{SHORT[str(n)]: _range(c) for n, c in ceilings if n in SETS}})
    # Counts stay numbers; where all are the same the first line of the page says it
    same = [c for c in _COUNTS if len({row[c] for row in rows if c in row}) == 1]
    table = pd.DataFrame(rows).drop(columns=same)
    heads = [SHORT[name] for name in SETS if SHORT[name] in table]
    return table.assign(**{h: table[h].fillna("–") for h in heads})[[c for c in table if c not in heads] + heads]


def _range(values: pd.Series) -> str:
    """``0.704``, or ``0.641 to 0.674`` where not all are the same."""
    lowest, highest = three(float(values.min())), three(float(values.max()))
    return lowest if lowest == highest else f"{lowest} to {highest}"


def paired(methods: pd.DataFrame, comparisons: pd.DataFrame) -> Chapter | None:
    """Which method is ahead, and whether it beats the controls."""
    if comparisons.empty:
        return None
    text = [
        "Differences are paired: both methods on the same sections and in the same resamples of tissue, so what makes a "
        "section hard for both cancels. A method is ahead where the whole 95% interval of the difference is above zero."
    ]
    text += [sentence for name in _JUDGED[:2] for sentence in _leaders(methods, comparisons, name)]
    tables = [("Against the controls on the same encoder", headed(_against_controls(methods, comparisons)))]
    return Chapter("Who is ahead", text, tables=[t for t in tables if len(t[1])])


def difference(comparisons: pd.DataFrame, first: str, second: str) -> tuple[float, float, float]:
    """``first`` minus ``second`` with its interval, of rows of one run and set; NaN where they were not compared."""
    for a, b, sign in ((first, second, 1), (second, first, -1)):
        rows = comparisons[(comparisons["first"] == a) & (comparisons["second"] == b)]
        if len(rows):
            value, low, high = (float(rows.iloc[0][c]) * sign for c in ("difference", "low", "high"))
            return value, min(low, high), max(low, high)
    return float("nan"), float("nan"), float("nan")


def _leaders(methods: pd.DataFrame, comparisons: pd.DataFrame, name: str) -> list[str]:
    """A sentence for each encoder and protocol: the best method and the next."""
    out, short = [], short_encoders(methods["encoder"])
    for told, part in runs_of(methods[methods["set"] == name]):
        ranked = list(part.sort_values("pcc", ascending=False)["method"])
        if len(ranked) < 2:
            continue
        apart = difference(chosen(comparisons, {**told, "set": name}), ranked[0], ranked[1])
        if apart[1] > 0:
            said = f"{ranked[0]} is ahead of {ranked[1]}, the next, by {gap(*apart)}"
        else:
            said = f"{ranked[0]} has the highest figure, but cannot be told from {ranked[1]}, the next: {gap(*apart)}"
        out.append(f"{SHORT[name]}, {place(told, short)}: {said}.")
    return out


def _against_controls(methods: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for told, part in runs_of(methods, "method"):
        method = told["method"]
        if method in CONTROLS:
            continue
        run = {k: v for k, v in told.items() if k != "method"}
        for name in _JUDGED:
            if not (part["set"] == name).any():
                continue
            own = chosen(comparisons, {**run, "set": name})
            gaps = {c: difference(own, method, c) for c in CONTROLS}
            row = {**told, "set": name} | {f"minus {c}": gap(*apart) for c, apart in gaps.items()}
            rows.append(row | {"Verdict": verdict(gaps)})
    return pd.DataFrame(rows)


def verdict(gaps: dict[str, tuple[float, float, float]]) -> str:
    """What the paired differences from the controls allow to say."""
    if absent := [c for c, apart in gaps.items() if np.isnan(apart[0])]:
        return f"open: {not_run(absent)}"
    if all(low > 0 for _, low, _ in gaps.values()):
        return "better than both"
    if behind := [c for c, (_, _, high) in gaps.items() if high < 0]:
        return f"behind {', '.join(behind)}"
    return "not shown to be better than " + ", ".join(c for c, (_, low, _) in gaps.items() if not low > 0)
