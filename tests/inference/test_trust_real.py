"""Intervals for new patients on real ones, by expression alone; skipped where the sections are not."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hescribe.inference.trust import fit_trust, full_level
from hescribe.io.expression import log_normalise

SHARED = Path(os.environ.get("HESCRIBE_SHARED", Path(__file__).parents[3] / "shared"))
FOLDER = SHARED / "data" / "her2st" / "ST-cnts"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the real sections are not here (set HESCRIBE_SHARED)"),
]


@pytest.fixture(scope="module")
def expression():
    """A section of each of seven patients: (spots, shared genes)."""
    names = ["B4", "C2", "D1", "E1", "F1", "G1", "H1"]
    tables = {n[0]: pd.read_csv(FOLDER / f"{n}.tsv.gz", sep="\t", index_col=0) for n in names}
    genes = sorted(set.intersection(*(set(t.columns) for t in tables.values())))
    counts = {p: t[genes].to_numpy(np.float32) for p, t in tables.items()}
    return {p: log_normalise(sparse.csr_matrix(c[c.sum(1) >= 100])).toarray() for p, c in counts.items()}


def test_highest_genes_of_a_new_patient_are_covered_on_average(expression):
    """Two patients, each predicted by the other's mean; then the five others, by the mean of both."""
    bare, wide = [], []
    for one, other in (("B", "C"), ("C", "D"), ("E", "F"), ("G", "H"), ("D", "G"), ("B", "H")):
        pair = [expression[one], expression[other]]
        residuals = [np.abs(pair[0] - pair[1].mean(0)), np.abs(pair[1] - pair[0].mean(0))]
        mean = np.concatenate(pair).mean(0)
        flat = [np.zeros(len(r), "f") for r in residuals]
        trust = fit_trust(residuals, flat, np.zeros(len(mean)), level=mean)
        level = full_level(sparse.csr_matrix(np.concatenate(pair)))
        widened = trust.for_another_patient(level, np.stack([p.mean(0) for p in pair]))
        for patient in set(expression) - {one, other}:
            high = np.argsort(-expression[patient].mean(0))[:50]
            error = np.abs(expression[patient] - mean)[:, high]
            bare.append((error <= trust.interval[high]).mean())
            wide.append((error <= widened.interval[high]).mean())
    assert np.mean(bare) < 0.83
    assert 0.86 <= np.mean(wide) <= 0.94
