"""Methods × encoders × protocols on the same splits: train, predict, score, and put into tables and a page."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hescribe.encoders import resolve_device
from hescribe.errors import HescribeError, InputError, LeakageError, OutputError
from hescribe.evaluation.scores import SectionScores
from hescribe.evaluation.splits import patient_key
from hescribe.io.expression import name_unit
from hescribe.report.benchmark import write_benchmark_page
from hescribe.sections import Section
from hescribe.training.benchmark.execute import Execution, Finished
from hescribe.training.benchmark.plan import Plan, Run, make_plan
from hescribe.training.benchmark.record import held, recorded_splits, remember
from hescribe.training.benchmark.tables import make_tables, write_tables
from hescribe.training.config import TrainConfig

log = logging.getLogger("hescribe")


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark found.

    Attributes
    ----------
    tables
        By the name of their files, without ending: ``methods``, ``seeds``, ``sections``, ``genes``, ``comparisons``,
        ``learning_curve``, ``cell_types``, ``cost``, ``failed``, ``published``, ``published_elsewhere``; those that
        do not apply are empty.
    scores
        Run → scores of its test sections.
    page
        The report.
    """

    tables: dict[str, pd.DataFrame]
    scores: dict[Run, list[SectionScores]]
    page: Path

    @property
    def methods(self) -> pd.DataFrame:
        """Means over sections and seeds with intervals, a row for each method, encoder, protocol and gene set."""
        return self.tables["methods"]

    @property
    def comparisons(self) -> pd.DataFrame:
        """Paired differences between methods on one encoder and protocol."""
        return self.tables["comparisons"]

    @property
    def failed(self) -> pd.DataFrame:
        """Runs that could not be made, with the reason."""
        return self.tables["failed"]

    def check(self) -> None:
        """Nothing, if all that was asked for is there.

        Raises
        ------
        InputError
            Says how many runs failed and why the first did.
        """
        if len(self.failed):
            first = self.failed.iloc[0]
            what = f"{len(self.failed)} of {len(self.failed) + len(self.scores)} runs failed"
            raise InputError(
                f"{what}; {first['method']} on {first['encoder']}: {first['reason']}", path=self.page.parent
            )


def benchmark(
    sections: Sequence[Section],
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]],
    config: TrainConfig,
    *,
    output: str | Path,
    encoder: str | Sequence[str] = "",
    protocol: str | Sequence[str] = "leave-one-patient-out",
    seed: int | Sequence[int] | None = None,
    learning_curve: Sequence[float] = (),
    markers: Iterable[str] = (),
    allow_same_patient: bool = False,
    recipe: str = "",
    published: pd.DataFrame | None = None,
) -> Benchmark:
    """Compare methods on the same splits, genes and figures; write tables and a page.

    Parameters
    ----------
    sections
        The data.
    methods
        Names in the table of methods; or name → settings, where some are variants of a method, such as
        ``{"ridge": {}, "bleep, fine-tuned": {"method": "bleep", "fine_tune": True}}``. Settings are those of
        `TrainConfig`; a variant that names an ``encoder`` is run on that one alone.
    config
        Settings shared by all; its ``method`` is ignored.
    output
        Folder of everything: bundles, predictions, scores, tables, ``index.html``. What is finished there is not made
        again, so a benchmark that was interrupted continues, and one that is asked for more grows. Everything finished
        stands in the tables, also what was asked for earlier.
    encoder
        One or several; by default that of ``config``.
    protocol
        Names in `hescribe.evaluation.PROTOCOLS`.
    seed
        One or several; by default that of ``config``.
    learning_curve
        Shares of the training spots to learn from besides all of them.
    markers
        Genes of special interest.
    allow_same_patient
        For leave-one-section-out where there are several patients; the results are labelled so.
    recipe
        Name of the recipe that prepared the data.
    published
        Figures of the literature to stand beside ours: ``method``, ``figure``, ``set``, ``pcc``, ``protocol``,
        ``source``, ``comparable``, ``differs``.

    Returns
    -------
    Benchmark
        A run that failed is in ``failed``; the others are not lost by it.

    Raises
    ------
    InputError
        Unknown method, encoder or protocol, a wrong variant, too few patients or sections; or what made every run fail.
    LeakageError
        The protocol would put a patient on both sides.
    OutputError
        The folder holds a benchmark that cannot be mixed with this one, or another process is at it.
    """
    folder, genes = Path(output), tuple(dict.fromkeys(markers))
    resolve_device(config.device)  # every run would fail by one that is not there
    plan = make_plan(
        sections,
        config,
        methods=methods if isinstance(methods, Mapping) else {name: {} for name in _several(methods)},
        encoders=_several(encoder) or [config.encoder],
        protocols=_several(protocol),
        seeds=[config.seed] if seed is None else [seed] if isinstance(seed, int) else list(seed),
        shares=learning_curve,
        allow_same_patient=allow_same_patient,
    )
    with held(folder):
        asked = remember(folder, plan, sections, recipe=recipe)
        made, failed, first = _execute(plan, sections, folder, genes)
        earlier = [run for run in asked.runs if run not in plan.runs]
        kept, unfinished = _earlier(earlier, plan, sections, folder, genes)
        finished = _in_order([*kept, *made], asked.runs)
        if first is not None and not any(f.run.share == 1 for f in finished):
            raise first
        shown = {name: told for name, told in asked.variants.items() if any(f.run.method == name for f in finished)}
        tables = make_tables(
            finished, pd.DataFrame(failed), published, variants={n: v["method"] for n, v in shown.items()}
        )
        write_tables(tables, folder)
        settings = _settings(plan, sections, folder) | {f"Variant “{n}”": _told(v) for n, v in shown.items()}
        missing = Counter(run.method for run in unfinished)
        page = write_benchmark_page(folder, tables, settings=settings, recipe=recipe, unfinished=missing)
    return Benchmark(tables, {f.run: f.scores for f in finished}, page)


def _several(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) and given else list(given)


def _execute(
    plan: Plan, sections: Sequence[Section], folder: Path, markers: Sequence[str]
) -> tuple[list[Finished], list[dict[str, Any]], Exception | None]:
    """Make every run; one that fails does not take the others with it.

    Returns
    -------
    finished, failed, first
        Runs that came to an end, those that did not with the reason, and the first error itself.
    """
    finished: list[Finished] = []
    failed: list[dict[str, Any]] = []
    first: Exception | None = None
    for number, run in enumerate(plan.runs, start=1):
        log.info("run %d of %d: %s", number, len(plan.runs), run)
        one = Execution(run, plan.settings(run), sections, plan.splits[run.protocol], run.folder(folder), markers)
        try:
            finished.append(one.finish())
        except (LeakageError, OutputError):  # a leak taints everything, a full disk stops everything
            raise
        except Exception as error:  # whatever it is, hours of other methods must not be lost by it
            first = first or error
            reason = " ".join(str(error).split())
            reason = reason if isinstance(error, HescribeError) else f"{type(error).__name__}: {reason}"
            log.warning("%s: failed: %s", run, reason)
            log.debug("the error in full", exc_info=True)
            failed.append({**run._asdict(), "reason": reason})
    return finished, failed, first


def _earlier(
    runs: Sequence[Run], plan: Plan, sections: Sequence[Section], folder: Path, markers: Sequence[str]
) -> tuple[list[Finished], list[Run]]:
    """Runs that were asked for before and came to an end, and those that did not; nothing is trained for them."""
    finished, unfinished = [], []
    for run in runs:
        splits = recorded_splits(folder, run.protocol)
        one = Execution(run, plan.config, sections, splits, run.folder(folder), markers)
        if one.predicted:
            finished.append(one.finish())
        else:
            log.info("%s: asked for before, not finished and not asked for now", run)
            unfinished.append(run)
    return finished, unfinished


def _in_order(finished: list[Finished], asked: Sequence[Run]) -> list[Finished]:
    """Protocol by protocol and encoder by encoder, each in the order in which they were first asked for."""
    protocols, encoders, methods = (list(dict.fromkeys(run[i] for run in asked)) for i in (2, 1, 0))

    def rank(one: Finished) -> tuple[float, ...]:
        run = one.run
        place = protocols.index(run.protocol), encoders.index(run.encoder)
        return *place, -run.share, methods.index(run.method), run.seed

    return sorted(finished, key=rank)


def _settings(plan: Plan, sections: Sequence[Section], folder: Path) -> dict[str, str]:
    """What all runs have in common, for the page."""
    config = plan.config
    used = [s for s in sections if any(s.section_id in (*x.train, *x.test) for y in plan.splits.values() for x in y)]
    facts = {
        "Sections": ", ".join(s.section_id for s in used),
        "Patients": str(len({patient_key(s) for s in used})),
        "Gene panel": config.genes,
        "Expression": name_unit(config.target_sum),
        "Tile": f"{config.tile_um:g} µm",
        "Inner folds": str(config.folds),
        "Views": "the method's" if config.views is None else str(config.views),
        "Epochs": "the method's" if config.epochs is None else str(config.epochs),
        "Folder": folder.name,
    }
    return {name: value for name, value in facts.items() if value}


def _told(variant: Mapping[str, Any]) -> str:
    """``method bleep, fine_tune True, options.retrieval.k 100``."""
    return ", ".join(_flat(variant))


def _flat(settings: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name} {value}"
