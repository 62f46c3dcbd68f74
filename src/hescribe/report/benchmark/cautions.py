"""What the reader of a benchmark must know before believing its figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from hescribe.report.benchmark.words import CONTROLS, listed, many, not_run, runs_of, short_encoders

_FEW_SPOTS = 30  #: of so many, chance alone brings one gene in twenty to a correlation beyond ±0.36
_NAMED = 3  #: as many small sections are named
_RULE = (
    "A method counts as better only where it beats both ridge and knn on the same encoder, by an interval of the paired "
    "difference that lies above zero. A difference between two encoders is none between methods."
)


def cautions(tables: Mapping[str, pd.DataFrame], unfinished: Mapping[str, int]) -> list[str]:
    """Sentences, the rule of what counts as better first; ``unfinished`` as `write_benchmark_page` has it."""
    methods, comparisons = tables["methods"], tables["comparisons"]
    out = [_RULE, *_without_controls(methods)]
    if methods["same_patient"].astype(bool).any():
        names = listed(dict.fromkeys(methods.loc[methods["same_patient"].astype(bool), "protocol"]))
        out.append(
            f"{names}: sections of the test patient were in training. Such figures say little about a new patient."
        )
    if (fewest := int(methods["n_patients"].min())) < 5:
        out.append(f"The intervals are of {many(fewest, 'patient')}: with so few they can be too narrow.")
    out += _small_sections(tables["sections"])
    if len(comparisons) and not comparisons["same_genes"].astype(bool).all():
        out.append("Some methods predict different genes; their rows in comparisons.csv say same_genes = False.")
    if len(tables["failed"]):
        out.append(f"{many(len(tables['failed']), 'run')} failed and cannot be judged; see “Failed runs”.")
    return out + _not_finished(unfinished, known=_methods(tables["cost"]) | _methods(tables["failed"]))


def _small_sections(sections: pd.DataFrame) -> list[str]:
    """Test sections of so few spots that what stands for them is mostly noise."""
    if sections.empty:
        return []
    spots = sections.groupby("section_id", sort=False)["n_spots"].min()
    few = spots[spots < _FEW_SPOTS].sort_values()
    if few.empty:
        return []
    if len(few) == 1:
        fact = f"{few.index[0]} has {many(int(few.iloc[0]), 'spot')}: its correlations are"
        return [f"{fact} mostly noise, and it counts as much as any other section."]
    names = listed(f"{name} ({many(int(n), 'spot')})" for name, n in few.iloc[:_NAMED].items())
    fact = f"{len(few)} of {len(spots)} test sections have fewer than {_FEW_SPOTS} spots, the fewest {names}"
    if len(few) <= _NAMED:
        fact = f"{names} have fewer than {_FEW_SPOTS} spots"
    return [f"{fact}: their correlations are mostly noise, and each counts as much as any other section."]


def _methods(table: pd.DataFrame) -> set[str]:
    return set(table["method"]) if len(table) else set()


def _not_finished(unfinished: Mapping[str, int], known: Collection[str]) -> list[str]:
    """Methods without any run in the tables by name; of the others how many runs."""
    whole = [method for method in unfinished if method not in known]
    part = {method: n for method, n in unfinished.items() if method in known}
    out = [(listed(whole), len(whole)), (f"{many(sum(part.values()), 'run')} of {listed(part)}", sum(part.values()))]
    return [
        f"{what} was asked for and is not finished: it stands in no table."
        if number == 1
        else f"{what} were asked for and are not finished: they stand in no table."
        for what, number in out
        if number
    ]


def _without_controls(methods: pd.DataFrame) -> list[str]:
    """On which encoders and under which protocols nothing can be called better."""
    short = short_encoders(methods["encoder"])
    several = {name: len(set(methods[name])) > 1 for name in ("encoder", "protocol")}
    places: dict[tuple[str, ...], list[str]] = {}
    for told, part in runs_of(methods):
        where = (
            f" on {short[told['encoder']]}" * several["encoder"] + f" under {told['protocol']}" * several["protocol"]
        )
        absent = tuple(c for c in CONTROLS if c not in set(part["method"]))
        places.setdefault(absent, []).append(where.strip())
    if len(places) == 1:
        return [f"{not_run(absent)}: no method can be called better here." for absent in places if absent]
    return [
        f"{not_run(absent)} {listed(where)}: no method can be called better there."
        for absent, where in places.items()
        if absent
    ]
