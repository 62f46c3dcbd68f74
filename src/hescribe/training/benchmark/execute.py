"""One run of a benchmark: train, predict, score, each split once, everything kept in a folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from hescribe import keys
from hescribe.encoders import resolve_device
from hescribe.evaluation.crossval import cross_validate
from hescribe.evaluation.scores import SectionScores, score_section
from hescribe.evaluation.splits import Split, select_sections
from hescribe.inference.bundle import Bundle, load_bundle
from hescribe.inference.predict import predict, read_prediction
from hescribe.io.store import remove, write_anndata
from hescribe.sections import Section
from hescribe.training.benchmark import cost
from hescribe.training.benchmark.kept import read_scores, write_scores
from hescribe.training.benchmark.plan import Run, file_name
from hescribe.training.benchmark.spots import some_spots
from hescribe.training.config import TrainConfig
from hescribe.training.train import train

log = logging.getLogger("hescribe")

_SEED = 0  #: of count splits and bootstrap; one for all runs, so that any two can be compared pair by pair


@dataclass(frozen=True)
class Finished:
    """What a run found.

    Attributes
    ----------
    run
        Which.
    scores
        Of every test section.
    costs
        A row a split.
    """

    run: Run
    scores: list[SectionScores]
    costs: list[dict[str, Any]]

    @property
    def training_spots(self) -> float:
        """Mean over splits."""
        return float(np.mean([c["training_spots"] for c in self.costs]))


@dataclass(frozen=True)
class Execution:
    """One run and where it is kept.

    Attributes
    ----------
    run, config
        Which, and its settings.
    sections, splits
        The data.
    folder
        Of the run.
    markers
        Genes of special interest.
    """

    run: Run
    config: TrainConfig
    sections: Sequence[Section]
    splits: Sequence[Split]
    folder: Path
    markers: Sequence[str]

    def finish(self) -> Finished:
        """Do what has not been done yet."""
        for split in self.splits:
            if any(self._known(split, section) is None for section in split.test):
                self._score(split)
        return Finished(
            self.run,
            [s for split in self.splits for section in split.test if (s := self._known(split, section)) is not None],
            [self._cost(split) for split in self.splits],
        )

    @property
    def predicted(self) -> bool:
        """Whether all predictions are there, so that nothing is left to train."""
        return all(self._prediction(split, section).exists() for split in self.splits for section in split.test)

    def _score(self, split: Split) -> None:
        by_id = {s.section_id: s for s in self.sections}
        held_out = cross_validate(
            self.sections,
            [split],
            self._fit,
            predict=lambda bundle, section: self._predict(split, bundle, section),
            load=self._load,
            save=lambda _, section, prediction: write_anndata(prediction, self._prediction(split, section)),
        )
        for held in held_out:
            var = held.prediction.var
            scores = score_section(
                held.prediction,
                by_id[held.section_id].adata,
                method=self.run.method,
                # Genes that one method alone carries over from elsewhere would make its sets others than the rest's
                genes=var.index[~var[keys.TRANSFERRED].to_numpy(dtype=bool)],
                training_stats=held.prediction.var,
                markers=self.markers,
                allow_same_patient=split.same_patient,
                seed=_SEED,
            )
            write_scores(scores, self._scores(split, held.section_id), markers=self.markers)

    def _fit(self, sections: Sequence[Section], split: Split) -> Bundle:
        """Train on the sections of a split; a bundle that was finished before is loaded."""
        path = self._bundle(split)
        if (path / keys.BUNDLE_CONFIG).is_file():
            return load_bundle(path)
        log.info("%s: %s left out", self.run, split.name)
        begun = path.with_name(f"{path.name}.run").exists()
        chosen = some_spots(sections, self.run.share, seed=self.run.seed)
        device = resolve_device(self.config.device)
        tested = select_sections(self.sections, split.test)
        encoding = cost.encode([*chosen, *tested], self.config, device=device)
        with cost.measured(device) as spent:
            bundle = train(chosen, self.config, output=path)
        facts = {
            "training_spots": bundle.provenance["spots"],
            "encoding_seconds": encoding,
            "training": spent.known(),
            "continued": begun,
            "sizes": cost.sizes(bundle, path, fine_tuned=self.config.fine_tune),
        }
        cost.write_cost(self._costs(split), facts)
        return bundle

    def _predict(self, split: Split, bundle: Bundle, section: Section) -> ad.AnnData:
        remove(self._scores(split, section.section_id))  # of an older prediction
        device = resolve_device(self.config.device)
        with cost.measured(device) as spent:
            prediction = predict(bundle, section, device=device, picture=False)
        before = cost.read_cost(self._costs(split)).get("prediction", {})
        cost.write_cost(self._costs(split), {"prediction": {**before, section.section_id: spent.known()}})
        return prediction

    def _cost(self, split: Split) -> dict[str, Any]:
        """A row of the table of costs; NaN for what was not measured."""
        facts, unknown = cost.read_cost(self._costs(split)), math.nan
        training, predicted = facts.get("training", {}), facts.get("prediction", {})
        whole = set(split.test) <= predicted.keys()
        return {
            "split": split.name,
            "training_spots": facts.get("training_spots", unknown),
            "encoding_seconds": facts.get("encoding_seconds", unknown),
            "training_seconds": training.get("seconds", unknown),
            "prediction_seconds": sum(p["seconds"] for p in predicted.values()) if whole else unknown,
            "memory_before_mb": training.get("before", unknown),
            "training_memory_mb": training.get("memory", unknown),
            "prediction_memory_mb": max((p["memory"] for p in predicted.values()), default=unknown),
            "training_gpu_mb": training.get("gpu", unknown),
            **facts.get("sizes", {}),
            "continued": bool(facts.get("continued", False)),
        }

    def _known(self, split: Split, section: str) -> SectionScores | None:
        return read_scores(self._scores(split, section), markers=self.markers)

    def _load(self, split: Split, section: str) -> ad.AnnData | None:
        """A prediction made before."""
        path = self._prediction(split, section)
        return read_prediction(path) if path.exists() else None

    def _bundle(self, split: Split) -> Path:
        return self.folder / file_name(split.name) / "bundle"

    def _costs(self, split: Split) -> Path:
        return self._bundle(split).with_name("cost.json")

    def _prediction(self, split: Split, section: str) -> Path:
        return self._bundle(split).with_name(f"{section}.zarr")

    def _scores(self, split: Split, section: str) -> Path:
        return self._bundle(split).with_name(f"{section}.scores")
