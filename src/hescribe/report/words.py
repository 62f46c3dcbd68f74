"""The headline: figures in a row of cards, and in plain language how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hescribe import keys
from hescribe.plots.genes import SET_NAMES
from hescribe.plots.style import signed
from hescribe.report.contents import SETS, Content

CARDS = ("heg50", "hvg50", "all")
_SPOKEN = {
    SET_NAMES["hvg50"]: "Over the 50 most variable genes",
    SET_NAMES["heg50"]: "Over the 50 highest expressed genes",
    SET_NAMES["all"]: "Over all genes",
}
_NAMED = 6  #: sections named before "and more"
_GOOD, _FAIR = 0.7, 0.4  #: shares of the ceiling at which the wording changes
_FAMILIAR = 95.0  #: percentile of novelty beyond which a tile counts as unlike the training tiles


@dataclass(frozen=True)
class Figure:
    """Mean correlation of one gene set; numbers that are not known are None.

    Attributes
    ----------
    name, n_genes
        What it is the mean of.
    pcc, low, high
        With its interval.
    ceiling, share
        What is attainable, and the part of it that was reached.
    """

    name: str
    n_genes: int | None
    pcc: float
    low: float | None
    high: float | None
    ceiling: float | None
    share: float | None

    @property
    def start(self) -> float:
        """Left end of the bar: 0, or lower where the figures are."""
        return min(0.0, self.pcc, self.low if self.low is not None else 0.0)

    def place(self, value: float) -> float:
        """Where a value stands on the bar, in per cent."""
        return round(100 * (min(value, 1.0) - self.start) / (1 - self.start), 2)


def overall(contents: Sequence[Content], summary: pd.DataFrame | None) -> pd.DataFrame:
    """Figures of all sections together, a row a set.

    With one section they are its own. With several, ``summary`` (a row a set, as ``evaluation`` makes) has the
    intervals; without it the plain means over sections are shown, and no interval.
    """
    if summary is not None:
        return summary.set_index("set") if "set" in summary else summary
    tables = [c.summary for c in contents if not c.summary.empty]
    if len(tables) <= 1:
        return tables[0] if tables else pd.DataFrame()
    names = [s for s in SETS if any(s in t.index for t in tables)]
    rows = {n: _mean([t.loc[[n]] for t in tables if n in t.index]) for n in names}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.drop(columns=["pcc_low", "pcc_high"], errors="ignore")


def _mean(rows: Sequence[pd.DataFrame]) -> pd.Series:
    """Over sections with a correlation; what one of them does not know is not known of the mean either."""
    table = pd.concat(rows)
    return table[table["pcc"].notna()].astype(np.float64).mean(skipna=False)


def figures(table: pd.DataFrame, sets: Sequence[str] = SETS) -> list[Figure]:
    """Those sets of a summary that have a correlation."""
    rows = [(s, pd.Series(table.loc[s])) for s in sets if s in table.index]
    return [_figure(s, row) for s, row in rows if _number(row, "pcc") is not None]


def _figure(name: str, row: pd.Series) -> Figure:
    pcc, ceiling = _number(row, "pcc"), _number(row, "ceiling")
    assert pcc is not None  # noqa: S101 - figures() leaves the others out
    n = _number(row, "n_genes")
    share = pcc / ceiling if ceiling is not None and ceiling > 0 else None
    low, high = _number(row, "pcc_low"), _number(row, "pcc_high")
    return Figure(SET_NAMES.get(name, name), int(n) if n is not None else None, pcc, low, high, ceiling, share)


def _number(row: pd.Series, name: str) -> float | None:
    value = row.get(name)
    return float(value) if value is not None and np.isfinite(float(value)) else None


def what(contents: Sequence[Content]) -> str:
    """What was predicted on what, one sentence."""
    genes = {c.predicted.n_vars for c in contents}
    count = f"{max(genes):,}" if len(genes) == 1 else f"{min(genes):,} to {max(genes):,}"
    tiles = sum(c.predicted.n_obs for c in contents)
    names = _listed([c.name for c in contents])
    kind = "section" if any(c.measured is not None for c in contents) else "slide"
    where = f"the {kind} {names}" if len(contents) == 1 else f"{len(contents)} {kind}s ({names})"
    return f"Expression of {count} gene{'s' * (count != '1')}, predicted from the H&E image at {tiles:,} place{'s' * (tiles != 1)} of {where}."


@dataclass(frozen=True)
class Trust:
    """How far to trust the maps, in plain language.

    Attributes
    ----------
    verdict
        What to do with them, one sentence.
    reasons
        What that rests on.
    cautions
        What makes the figures look better than they are.
    """

    verdict: str
    reasons: list[str]
    cautions: list[str]


def trust(contents: Sequence[Content], table: pd.DataFrame) -> Trust:
    """Judge by the first set there is of HVG-50, HEG-50 and all genes."""
    shown = figures(table, ("hvg50", "heg50", "all"))
    verdict, reasons = _checked(shown[0]) if shown else _unchecked(contents)
    return Trust(verdict, [*reasons, *_genes(contents), *_strangers(contents, checked=bool(shown))], _leaks(contents))


def _leaks(contents: Sequence[Content]) -> list[str]:
    seen = [c.name for c in contents if c.told.get("seen_in_training")]
    same = [c.name for c in contents if c.told.get("patient_seen_in_training") and c.name not in seen]
    out = []
    if seen:
        out.append(f"The model was trained on {_listed(seen)}: agreement there says nothing about new tissue.")
    if same:
        out.append(
            f"The model was trained on other sections of the same patient as {_listed(same)}: expect less on a new patient."
        )
    return out


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _checked(figure: Figure) -> tuple[str, list[str]]:
    low, high = figure.low, figure.high
    interval = f" (95% interval {signed(low)} to {signed(high)})" if low is not None and high is not None else ""
    reasons = [
        f"{_SPOKEN.get(figure.name, figure.name)}, predicted and measured maps correlate at {signed(figure.pcc)} on "
        f"average{interval}."
    ]
    if figure.share is not None:
        reasons.append(
            f"Counts are noisy: even a perfect prediction would reach only {signed(figure.ceiling or 0)}, "
            f"so this is {figure.share:.0%} of what is attainable."
        )
    if figure.pcc <= 0 or (low is not None and low <= 0):
        return "Draw no conclusions: the agreement cannot be told from chance.", reasons
    if figure.share is None:
        return "Read the maps as broad patterns: how much was attainable here is not known.", reasons
    if figure.share >= _GOOD:
        return "The maps of well-measured genes can be read as they are; single spots remain uncertain.", reasons
    if figure.share >= _FAIR:
        return "Read the maps as broad patterns, not as the values of single spots.", reasons
    return "Rely only on genes that the table below shows to be well predicted.", reasons


def _unchecked(contents: Sequence[Content]) -> tuple[str, list[str]]:
    if any(c.measured is not None for c in contents):
        return "Nothing could be checked: the measurement is constant where it would be needed.", []
    return (
        "Not checked on this tissue: nothing was measured here.",
        ["What is known of each gene comes from training sections that were left out while the model was fitted."],
    )


def _genes(contents: Sequence[Content]) -> list[str]:
    """How many genes are well predicted, or expected to be."""
    for column, verb in (("pcc", "reach"), (keys.EXPECTED_PCC, "are expected to reach")):
        parts = [c.per_gene[column] for c in contents if column in c.per_gene]
        if parts and (known := pd.concat(parts, axis=1).mean(axis=1).dropna()).size:
            counts = {limit: int((known >= limit).sum()) for limit in (0.5, 0.3, 0.1)}
            return [
                f"{counts[0.5]:,} of {len(known):,} genes {verb} a correlation of 0.5 or more and {counts[0.3]:,} "
                f"one of 0.3 or more; {len(known) - counts[0.1]:,} stay below 0.1."
            ]
    return []


def _strangers(contents: Sequence[Content], *, checked: bool) -> list[str]:
    novelty = [c.predicted.obs[keys.NOVELTY] for c in contents if keys.NOVELTY in c.predicted.obs]
    if not novelty:
        return []
    far = float((pd.concat(novelty) > _FAMILIAR).mean())
    if far <= 2 * (1 - _FAMILIAR / 100):
        return [f"{far:.0%} of the tiles look unlike the training tiles, no more than usual."]
    told = f"{far:.0%} of the tiles look unlike the training tiles (5% would be usual)"
    if checked:  # what was measured counts for more than how tiles look
        return [f"{told}, as often with a new patient or scanner; the agreement above was reached in spite of it."]
    return [f"{told}: be careful where the novelty map is dark."]
