"""How often the intervals for new patients hold: all patients of a cohort, by expression alone.

    python benchmarks/patients.py shared/data/her2st [--patients 1,2,3,4,6] [--root 0.4 --slope 0.35]

Images are not needed: what a map adds to a gene's mean on a new patient's slide is small beside how patients differ, so
the training mean stands for the prediction. K patients are drawn as training set, each left out in turn (sections, for
K = 1; a patient's one section from itself) to learn the intervals as ``train`` does; every spot of the patients that
remain is a test. Printed are, per K, the mean over pairs of training set and patient for each gene set, chosen on the test
section as ``evaluate`` does it, without and with the prior; the standard deviation; the share of pairs between 0.86 and 0.94.
Genes by their level in training, as the prior knows them, are sets of their own.
``--root`` and ``--slope`` try another prior than the package's.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from hescribe.inference import trust as trust_module
from hescribe.inference.trust import Trust, fit_trust, full_level
from hescribe.io.expression import log_normalise
from hescribe.metrics.gene_sets import detected_genes, gene_moments, top_genes
from hescribe.sections import read_sections
from methods import her2st_rows

SETS = ("all", "detected10", "heg50", "hvg50")
LEVELS = (0.05, 0.2, 0.8, 1.5)  #: log1p of a gene's mean share in training, between the sets by level
MOST_SETS = 12  #: training sets of one size, drawn at random where there are more
SPOTS = 80  #: of a test section, drawn at random


class Cohort(NamedTuple):
    """Section → (spots, genes) log-normalised expression, and its patient; sections → (4, genes) masks of ``SETS``."""

    expression: dict[str, np.ndarray]
    patient: dict[str, str]
    sets: dict[str, np.ndarray]


def read(folder: Path) -> Cohort:
    with tempfile.TemporaryDirectory() as temporary:
        manifest = Path(temporary) / "sections.csv"
        pd.DataFrame(her2st_rows(folder)).to_csv(manifest, index=False)
        sections = read_sections(manifest)
    genes = sorted(set.intersection(*(set(s.adata.var_names) for s in sections)))
    found = {
        s.section_id: log_normalise(s.adata.X).tocsc()[:, s.adata.var_names.get_indexer(genes)].toarray()
        for s in sections
    }
    return Cohort(
        found, {s.section_id: s.patient_id for s in sections}, {n: gene_sets(y, genes) for n, y in found.items()}
    )


def gene_sets(expression: np.ndarray, genes: list[str]) -> np.ndarray:
    found = gene_moments(expression)
    top = [top_genes(by, genes) for by in (found.mean, found.variance)]
    return np.stack([found.detected > 0, detected_genes(found.detected), *top])


class Learned(NamedTuple):
    """Intervals from what was left out in turn, without prior and with it, the training mean, and the genes' levels."""

    bare: Trust
    wide: Trust
    mean: np.ndarray
    level: np.ndarray


def learn(cohort: Cohort, patients: tuple[str, ...]) -> Learned:
    names = [s for s, p in cohort.patient.items() if p in patients]
    groups = {s: (cohort.patient[s] if len(patients) > 1 else s) for s in names}
    residuals = []
    for group in dict.fromkeys(groups.values()):
        inside = [cohort.expression[s] for s in names if groups[s] == group]
        others = [cohort.expression[s] for s in names if groups[s] != group] or inside
        residuals.append(np.abs(np.concatenate(inside) - np.concatenate(others).mean(axis=0)))
    mean = np.concatenate([cohort.expression[s] for s in names]).mean(axis=0)
    levels = [
        np.concatenate([cohort.expression[s] for s in names if cohort.patient[s] == p]).mean(axis=0) for p in patients
    ]
    alike = [np.zeros(len(r), dtype=np.float32) for r in residuals]
    bare = fit_trust(residuals, alike, np.zeros(len(mean)), level=mean)
    level = full_level(sparse.csr_matrix(np.concatenate([cohort.expression[s] for s in names])))
    return Learned(bare, bare.for_another_patient(level, np.stack(levels)), mean, level)


def coverage(cohort: Cohort, trust: Trust, learned: Learned, patients: tuple[str, ...]) -> np.ndarray:
    """(patients that remain, 4 + levels) share of spots and genes inside the interval, by set and by level."""
    rng = np.random.default_rng(0)
    band = np.digitize(learned.level, LEVELS)
    found: dict[str, list[np.ndarray]] = {}
    for section, expression in cohort.expression.items():
        if cohort.patient[section] in patients:
            continue
        some = expression[rng.permutation(len(expression))[:SPOTS]]
        inside = (np.abs(some - learned.mean) <= trust.interval).mean(axis=0)
        seen = cohort.sets[section][0]
        masks = [*cohort.sets[section], *(seen & (band == i) for i in range(len(LEVELS) + 1))]
        found.setdefault(cohort.patient[section], []).append([inside[mask].mean() for mask in masks])
    return np.array([np.mean(rows, axis=0) for rows in found.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", default="1,2,3,4,6", help="numbers of training patients")
    root, slope = trust_module._BETWEEN_PATIENTS
    parser.add_argument("--root", type=float, default=root)
    parser.add_argument("--slope", type=float, default=slope)
    args = parser.parse_args()
    trust_module._BETWEEN_PATIENTS = (args.root, args.slope)
    cohort = read(args.folder)
    everybody = list(dict.fromkeys(cohort.patient.values()))
    edges = ("0", *map(str, LEVELS))
    bands = [f"level {low} to {high}" for low, high in zip(edges, (*edges[1:], "…"), strict=True)]
    for count in (int(k) for k in args.patients.split(",")):
        drawn = list(itertools.combinations(everybody, count))
        np.random.default_rng(0).shuffle(drawn)
        bare, wide = [], []
        for patients in (tuple(d) for d in drawn[:MOST_SETS]):
            learned = learn(cohort, patients)
            bare.append(coverage(cohort, learned.bare, learned, patients))
            wide.append(coverage(cohort, learned.wide, learned, patients))
        without, with_prior = np.concatenate(bare), np.concatenate(wide)
        print(f"{count} training patients, {len(with_prior)} pairs with a new one: {', '.join((*SETS, *bands))}")
        for name, figures in (("without the prior", without), ("with it", with_prior)):
            within = ((figures >= 0.86) & (figures <= 0.94)).mean(axis=0)
            print(f"  {name:18}", *(np.round(x, 3) for x in (figures.mean(axis=0), figures.std(axis=0), within)))


if __name__ == "__main__":
    main()
