"""Scores of many sections and methods as tables: means over genes, then over sections, with intervals.

Sections are never pooled: a correlation over the spots of several would measure how sections differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hescribe.errors import InputError
from hescribe.evaluation.scores import SETS, SectionScores, set_mask
from hescribe.evaluation.splits import patient_key
from hescribe.io.store import write_atomically
from hescribe.metrics.resampling import percentile_interval

N_RESAMPLES = 1000
_LABELS = ["method", "section_id", "patient_id", "same_patient", "set"]


def section_table(scores: Iterable[SectionScores]) -> pd.DataFrame:
    """A row for each method, section and gene set, with every figure of the section's summary."""
    parts = []
    for score in scores:
        part = score.summary.reset_index()
        for name in ("same_patient", "patient_id", "section_id", "method"):
            part.insert(0, name, getattr(score, name))
        parts.append(part)
    if not parts:
        return pd.DataFrame(columns=_LABELS)
    table = pd.concat(parts, ignore_index=True)
    return table[_LABELS + [c for c in table.columns if c not in _LABELS]]


def gene_table(scores: Iterable[SectionScores]) -> pd.DataFrame:
    """Each gene's correlation and ceiling averaged over sections: columns method, gene, pcc, ceiling, n_sections."""
    parts = [s.per_gene[["pcc", "ceiling"]].assign(method=s.method).reset_index() for s in scores]
    if not parts:
        return pd.DataFrame(columns=["method", "gene", "pcc", "ceiling", "n_sections"])
    groups = pd.concat(parts, ignore_index=True).groupby(["method", "gene"], sort=True)
    return groups.agg(pcc=("pcc", "mean"), ceiling=("ceiling", "mean"), n_sections=("pcc", "count")).reset_index()


def method_table(scores: Sequence[SectionScores], *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """A row for each method and gene set: means over sections, and a 95 % interval of the correlation.

    Parameters
    ----------
    scores
        Of any methods and sections.
    n_resamples, seed
        Of the bootstrap. Whole patients are drawn where there are three or more, else sections, where there are
        two or more; then one resample of the blocks of tissue of each section drawn. The column ``resampled`` says
        which. Four to eight that differ much make it somewhat too narrow (0.86 to 0.92 of such intervals hold, by
        simulation); where they hardly differ it is up to a third too wide, as the blocks' noise is in it twice.

    Returns
    -------
    DataFrame
        ``method``, ``set``, ``same_patient`` (any section's), ``n_sections``, ``n_patients``, the means over sections
        of all figures, ``pcc_low``, ``pcc_high``, ``resampled``. A section where the set is empty does not count.
    """
    rows = []
    for method in dict.fromkeys(s.method for s in scores):
        own = [s for s in scores if s.method == method]
        _check_once(own)
        for name in SETS:
            known = [s for s in own if np.isfinite(_pcc(s, name))]
            if known:
                rows.append({"method": method, "set": name, **_means(known, name, n_resamples=n_resamples, seed=seed)})
    return pd.DataFrame(rows)


def compare_methods(
    first: Sequence[SectionScores], second: Sequence[SectionScores], *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Paired difference in mean correlation, first minus second, on the sections that both predicted.

    Both methods are resampled together: same patients or sections, same blocks of tissue. So what makes a section
    easy or hard for both cancels.

    Returns
    -------
    DataFrame
        A row a set: ``first``, ``second`` (methods), ``set``, ``n_sections``, ``difference`` with ``low`` and ``high``
        (95 %; if both are above 0 the first is better), ``n_better`` sections where the first is ahead,
        ``same_genes``: False where the sets differ, since the two predict different genes; then score both with
        ``genes=`` before believing the row.

    Raises
    ------
    InputError
        No common section, a section scored twice, or scores whose resamples do not belong together.
    """
    _check_once(first)
    _check_once(second)
    other = {s.section_id: s for s in second}
    pairs = [(a, other[a.section_id]) for a in first if a.section_id in other]
    if not pairs:
        raise InputError("the two methods have no section in common")
    rows = []
    for name in SETS:
        both = [p for p in pairs if all(np.isfinite(_pcc(s, name)) for s in p)]
        if both:
            rows.append(_difference(both, name, n_resamples=n_resamples, seed=seed))
    return pd.DataFrame(rows)


def write_table(table: pd.DataFrame, path: str | Path, *, digits: int = 4) -> Path:
    """Write a table whole or not at all, as CSV (``.csv``) or Markdown (``.md``).

    Parameters
    ----------
    table
        Its index is not written.
    digits
        Decimals.
    """
    path = Path(path)
    writers = {
        ".csv": lambda: table.to_csv(index=False, float_format=f"%.{digits}f"),
        ".md": lambda: markdown(table, digits=digits),
    }
    if path.suffix not in writers:
        raise InputError(f"tables are written as {' or '.join(writers)}, not {path.suffix!r}", path=path)
    with write_atomically(path) as temporary:
        temporary.write_text(writers[path.suffix](), encoding="utf-8")
    return path


def markdown(table: pd.DataFrame, *, digits: int = 3) -> str:
    """The table in Markdown, numbers right-aligned, empty where nothing is known."""
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in table.dtypes]
    lines = [[str(c) for c in table.columns], ["---:" if number else "---" for number in numeric]]
    lines += [[_cell(v, digits) for v in row] for row in table.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: object, digits: int) -> str:
    if isinstance(value, float | np.floating):
        number = float(value)
        if np.isnan(number):
            return ""
        is_count = abs(number) >= 10 and number.is_integer()  # a mean of counts, such as of genes in a set
        return f"{number:.0f}" if is_count else f"{number:.{digits}f}"
    return str(value).replace("|", "\\|")


def _means(scores: Sequence[SectionScores], name: str, *, n_resamples: int, seed: int) -> dict[str, object]:
    figures = pd.DataFrame([s.summary.loc[name] for s in scores]).drop(columns=["pcc_low", "pcc_high"])
    if not _alike(scores):
        raise InputError("scores with different numbers of resamples", fix="score all sections with one n_resamples")
    draws = np.stack([s.resamples[name] for s in scores])
    patients = [patient_key(s.patient_id) for s in scores]
    values = bootstrap_mean(draws, patients, n_resamples=n_resamples, seed=seed)
    low, high = percentile_interval(values)
    return {
        "same_patient": any(s.same_patient for s in scores),
        "n_sections": len(scores),
        "n_patients": len(set(patients)),
        "pcc": figures["pcc"].mean(),
        "pcc_low": low,
        "pcc_high": high,
        **{str(k): float(v) for k, v in figures.drop(columns="pcc").mean().items()},
        "resampled": _unit(patients),
    }


def _difference(
    pairs: Sequence[tuple[SectionScores, SectionScores]], name: str, *, n_resamples: int, seed: int
) -> dict[str, object]:
    if not _alike([s for pair in pairs for s in pair]) or any(a.n_spots != b.n_spots for a, b in pairs):
        raise InputError("scores of different spots or resamples cannot be paired", fix="score both in one way")
    by_section = np.array([_pcc(a, name) - _pcc(b, name) for a, b in pairs])
    draws = np.stack([a.resamples[name] - b.resamples[name] for a, b in pairs])
    patients = [patient_key(a.patient_id) for a, _ in pairs]
    values = bootstrap_mean(draws, patients, n_resamples=n_resamples, seed=seed)
    low, high = percentile_interval(values)
    return {
        "first": pairs[0][0].method,
        "second": pairs[0][1].method,
        "set": name,
        "same_patient": any(a.same_patient for a, _ in pairs),
        "n_sections": len(pairs),
        "difference": float(by_section.mean()),
        "low": low,
        "high": high,
        "n_better": int((by_section > 0).sum()),
        "same_genes": all(_genes(a, name) == _genes(b, name) for a, b in pairs),
    }


def bootstrap_mean(
    draws: npt.NDArray[np.float64], patients: Sequence[str], *, n_resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Bootstrap distribution of the mean over sections.

    Parameters
    ----------
    draws
        (sections, r) each section's figure in its own resamples of blocks of tissue.
    patients
        Patient of each section; three or more patients are drawn whole.

    Returns
    -------
    ndarray
        (n_resamples,).
    """
    rng = np.random.default_rng(seed)
    keys = list(patients) if _unit(patients) == "patients, blocks" else list(range(len(patients)))
    units = [np.flatnonzero([k == key for k in keys]) for key in dict.fromkeys(keys)]
    out = np.empty(n_resamples)
    for i in range(n_resamples):
        chosen = np.concatenate([units[j] for j in rng.integers(len(units), size=len(units))])
        # A column each: the same section drawn twice need not bring the same blocks
        values = draws[chosen, rng.integers(draws.shape[1], size=len(chosen))]
        known = values[np.isfinite(values)]
        out[i] = known.mean() if len(known) else np.nan
    return out


def _pcc(score: SectionScores, name: str) -> float:
    return float(np.asarray(score.summary.loc[name, "pcc"], dtype=np.float64))


def _unit(patients: Sequence[str]) -> str:
    if len(set(patients)) >= 3:
        return "patients, blocks"
    return "sections, blocks" if len(patients) > 1 else "blocks"


def _genes(score: SectionScores, name: str) -> frozenset[str]:
    return frozenset(score.per_gene.index[set_mask(score.per_gene, name)])


def _alike(scores: Sequence[SectionScores]) -> bool:
    return len({len(s.resamples["all"]) for s in scores}) == 1


def _check_once(scores: Sequence[SectionScores]) -> None:
    ids = [s.section_id for s in scores]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise InputError(f"section {', '.join(twice)} was scored twice for one method")
