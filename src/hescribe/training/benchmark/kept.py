"""Scores on disk, so that a benchmark that goes on does not compute them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hescribe.evaluation.scores import SectionScores
from hescribe.io.store import write_atomically
from hescribe.version import __version__

_FACTS = ("section_id", "patient_id", "method", "same_patient", "n_spots", "n_unmatched")


def write_scores(scores: SectionScores, folder: Path, *, markers: Sequence[str]) -> None:
    """Keep the scores of one section; they hold for these markers and this version."""
    with write_atomically(folder) as path:
        path.mkdir()
        scores.per_gene.to_parquet(path / "genes.parquet")
        scores.summary.to_parquet(path / "sets.parquet")
        pd.DataFrame(dict(scores.resamples)).to_parquet(path / "resamples.parquet")
        if scores.cell_types is not None:
            scores.cell_types.to_parquet(path / "cell_types.parquet")
        facts = {name: getattr(scores, name) for name in _FACTS}
        (path / "scores.json").write_text(json.dumps({"scores": facts, "made": _made(markers)}))


def read_scores(folder: Path, *, markers: Sequence[str]) -> SectionScores | None:
    """Scores that were kept; None where there are none, or none for these markers and this version."""
    try:
        facts = json.loads((folder / "scores.json").read_text())
        if facts["made"] != _made(markers):
            return None
        resamples = pd.read_parquet(folder / "resamples.parquet")
        types = folder / "cell_types.parquet"
        return SectionScores(
            **facts["scores"],
            per_gene=pd.read_parquet(folder / "genes.parquet"),
            summary=pd.read_parquet(folder / "sets.parquet"),
            resamples={str(name): resamples[name].to_numpy(dtype=np.float64) for name in resamples},
            cell_types=pd.read_parquet(types) if types.is_file() else None,
        )
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: they are computed again
        return None


def _made(markers: Sequence[str]) -> list[str]:
    return [__version__, *sorted(markers)]
