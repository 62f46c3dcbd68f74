"""Methods compared on the same splits: train, predict, score, and put into tables."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad
import pandas as pd

from hescribe import keys
from hescribe.encoders import resolve_device
from hescribe.errors import InputError, OutputError
from hescribe.evaluation.crossval import HeldOut, cross_validate
from hescribe.evaluation.scores import SectionScores, score_section
from hescribe.evaluation.splits import PROTOCOLS, Split, leave_one_section_out
from hescribe.evaluation.tables import compare_methods, gene_table, method_table, section_table, write_table
from hescribe.inference.bundle import Bundle, load_bundle
from hescribe.inference.predict import predict, read_prediction
from hescribe.io.store import write_anndata, write_atomically
from hescribe.sections import Section
from hescribe.training.config import TrainConfig
from hescribe.training.train import train

log = logging.getLogger("hescribe")

#: columns of the table people read; all others stand in the CSV
_HEADLINE = ["method", "set", "same_patient", "n_sections", "pcc", "pcc_low", "pcc_high", "spearman", "rmse", "ceiling",
             "share_of_ceiling", "gene_gene_pcc", "rvd", "morans_pcc", "coverage"]  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark found.

    Attributes
    ----------
    scores
        Of every method on every test section.
    methods
        Means over sections with intervals, a row a method and gene set.
    comparisons
        Paired differences between methods.
    """

    scores: list[SectionScores]
    methods: pd.DataFrame
    comparisons: pd.DataFrame


@dataclass(frozen=True)
class _Run:
    """One method on all splits, with everything it made kept in a folder."""

    config: TrainConfig
    sections: Sequence[Section]
    folder: Path
    device: str
    stats: dict[str, pd.DataFrame] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def held_out(self, splits: Sequence[Split]) -> list[HeldOut]:
        """Predictions of all test sections; those that are there already are kept."""
        return cross_validate(
            self.sections,
            splits,
            self.fit,
            predict=lambda bundle, section: predict(bundle, section, device=self.device),
            load=self.load,
            save=lambda split, section, prediction: write_anndata(prediction, self.path(split, section)),
        )

    def path(self, split: Split, section: str) -> Path:
        """Where a prediction is kept."""
        return self.folder / split.name / f"{section}.zarr"

    def fit(self, sections: Sequence[Section], split: Split) -> Bundle:
        """Train on the sections of a split; a bundle that was finished before is loaded."""
        path = self.folder / split.name / "bundle"
        if (path / keys.BUNDLE_CONFIG).is_file():
            return load_bundle(path)
        log.info("%s, %s left out", self.config.method, split.name)
        start = time.perf_counter()
        bundle = train(sections, self.config, output=path)
        self.seconds[split.name] = time.perf_counter() - start
        return bundle

    def load(self, split: Split, section: str) -> ad.AnnData | None:
        """A prediction made before."""
        path = self.path(split, section)
        return read_prediction(path) if path.exists() else None


def benchmark(
    sections: Sequence[Section],
    methods: Iterable[str],
    config: TrainConfig,
    *,
    output: str | Path,
    protocol: str = "leave-one-patient-out",
    markers: Iterable[str] = (),
    allow_same_patient: bool = False,
) -> Benchmark:
    """Compare methods on the same encoder, splits, genes and figures.

    Parameters
    ----------
    sections
        The data.
    methods
        Names in the table of methods.
    config
        Settings shared by all; its ``method`` is ignored.
    output
        Folder of everything: bundles, predictions, tables. A benchmark that was interrupted continues there.
    protocol
        A name in `hescribe.evaluation.PROTOCOLS`.
    markers
        Genes of special interest.
    allow_same_patient
        For leave-one-section-out where there are several patients; the results are labelled so.

    Raises
    ------
    InputError
        Unknown method or protocol, or too few patients or sections.
    LeakageError
        The protocol would put a patient on both sides.
    """
    folder = Path(output)
    names = list(dict.fromkeys(methods))
    if not names:
        raise InputError("no method to compare", path="--methods")
    configs = [config.model_copy(update={"method": name}) for name in names]
    for one in configs:  # every setting is checked before the first hour is spent
        one.method_config()
    splits = _splits(sections, protocol, allow_same_patient=allow_same_patient)
    _remember(folder, config, protocol, splits)
    by_id = {s.section_id: s for s in sections}
    scores: list[SectionScores] = []
    for one in configs:
        run = _Run(one, sections, folder / one.method, resolve_device(one.device))
        scores += [_score(held, by_id[held.section_id], markers, config.seed) for held in run.held_out(splits)]
    return _write(scores, names, folder)


def _splits(sections: Sequence[Section], protocol: str, *, allow_same_patient: bool) -> list[Split]:
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}", path="--protocol", fix=f"one of {', '.join(PROTOCOLS)}")
    if protocol == "leave-one-section-out":
        return leave_one_section_out(sections, allow_same_patient=allow_same_patient)
    return PROTOCOLS[protocol](sections)


def _remember(folder: Path, config: TrainConfig, protocol: str, splits: Sequence[Split]) -> None:
    """Refuse to continue a benchmark that was begun with other settings."""
    facts = {
        "protocol": protocol,
        "settings": config.model_dump(mode="json", exclude={"method", "device"}),
        "splits": [[s.name, list(s.train), list(s.test)] for s in splits],
    }
    text = json.dumps(facts, indent=2)
    record = folder / "benchmark.json"
    if record.is_file() and record.read_text() != text:
        raise OutputError(f"{folder} holds a benchmark with other settings or sections (choose another folder)")
    with write_atomically(record) as path:
        path.write_text(text)


def _score(held: HeldOut, section: Section, markers: Iterable[str], seed: int) -> SectionScores:
    return score_section(
        held.prediction,
        section.adata,
        training_stats=held.prediction.var,
        markers=markers,
        allow_same_patient=held.split.same_patient,
        seed=seed,
    )


def _write(scores: list[SectionScores], names: list[str], folder: Path) -> Benchmark:
    methods = method_table(scores)
    own = {name: [s for s in scores if s.method == name] for name in names}
    pairs = [compare_methods(own[a], own[b]) for a, b in itertools.combinations(names, 2)]
    comparisons = pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame()
    write_table(section_table(scores), folder / "sections.csv")
    write_table(gene_table(scores), folder / "genes.csv")
    write_table(methods, folder / "methods.csv")
    write_table(methods[[c for c in _HEADLINE if c in methods]], folder / "methods.md", digits=3)
    if len(comparisons):
        write_table(comparisons, folder / "comparisons.csv")
        write_table(comparisons, folder / "comparisons.md", digits=3)
    return Benchmark(scores, methods, comparisons)
