"""Scores of one method under several seeds as those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from hescribe.errors import InputError
from hescribe.evaluation.scores import SectionScores
from hescribe.metrics.resampling import percentile_interval


def mean_over_seeds(scores: Sequence[SectionScores]) -> SectionScores:
    """One section's scores under several seeds: every figure averaged, resample by resample.

    Seeds are no patients: ten of them say nothing of the next patient. So an interval made of such means is one over
    sections and blocks of tissue alone, for a method whose figure is its mean over seeds.

    Parameters
    ----------
    scores
        One a seed, all made with the same resamples.

    Returns
    -------
    SectionScores
        A gene is in a set where it is under any seed.

    Raises
    ------
    InputError
        Scores of several sections, or of different spots or numbers of resamples.
    """
    first = scores[0]
    if len({s.section_id for s in scores}) > 1:
        raise InputError("scores of several sections are not those of several seeds")
    if len({(s.n_spots, *(len(r) for r in s.resamples.values())) for s in scores}) > 1:
        raise InputError("scores of different spots or resamples cannot be averaged", fix="score all in one way")
    if len(scores) == 1:
        return first
    resamples = {name: np.mean([s.resamples[name] for s in scores], axis=0) for name in first.resamples}
    summary = _mean_of_tables([s.summary for s in scores])
    # Of the mean itself, not the mean of the bounds
    summary[["pcc_low", "pcc_high"]] = [percentile_interval(resamples[str(name)]) for name in summary.index]
    types = [s.cell_types for s in scores if s.cell_types is not None]
    return replace(
        first,
        per_gene=_mean_of_tables([s.per_gene for s in scores]),
        summary=summary,
        resamples=resamples,
        cell_types=_mean_of_tables(types) if types else None,
    )


def _mean_of_tables(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Row by row; of flags, whether any has it."""
    stacked = pd.concat(tables)
    flags = [c for c in stacked if pd.api.types.is_bool_dtype(stacked[c])]
    return stacked.groupby(level=0, sort=False).mean().astype(dict.fromkeys(flags, bool))
