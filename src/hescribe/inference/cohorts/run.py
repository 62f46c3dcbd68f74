"""Slides → predictions on a cluster, one slide a task."""

from __future__ import annotations

import heapq
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Unpack

import distributed
from distributed import Client, Future, KilledWorker
from tqdm.auto import tqdm

from hescribe.errors import InputError, OutputError
from hescribe.inference.bundle import check_bundle
from hescribe.inference.cohorts.clusters import Cluster, open_client
from hescribe.inference.cohorts.sources import describe, find_sources
from hescribe.inference.cohorts.state import CohortSummary, SlideState, StateFolder
from hescribe.inference.cohorts.work import Outcome, Task, predict_one
from hescribe.inference.slides.plan import SlideOptions, alone
from hescribe.inference.slides.run import Options
from hescribe.io.store import without_secrets

logger = logging.getLogger(__name__)

_LOOK = 1.0  #: seconds between two looks at how many workers there are
_PAUSE = 1.0  #: seconds before a second attempt; doubled before each further one, to at most the next
_LONGEST_PAUSE = 60.0
_PATIENCE = 20.0  #: seconds without a worker before it is said


def predict_cohort(
    bundle: str | Path,
    slides: Sequence[str | Path],
    output: str | Path,
    *,
    cluster: Cluster = "local",
    workers: int | None = None,
    retries: int = 2,
    keep_going: bool = True,
    scratch: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    **options: Unpack[Options],
) -> CohortSummary:
    """Predict slides into ``output/<slide's stem>.zarr``, one slide a task on a Dask cluster.

    The numbers are those of ``predict_slides``, bit for bit where precision and engine are named; with ``auto`` each
    worker measures them for itself. Interrupted or killed and called again, finished slides
    are skipped, begun ones go on where they stopped, and failed ones are tried again. ``output/.cohort`` holds the
    state of each slide; ``output/summary.md`` and ``summary.json`` say what became of them, also after Ctrl-C or SIGTERM.

    Parameters
    ----------
    bundle
        Folder of a trained method; like ``output`` and slides that are files, under the same path on every worker.
    slides
        Slides, folders of slides, patterns, or URLs (``https://``, ``s3://``, ``gs://`` …), which the worker copies to
        ``scratch`` and removes after. Slides of several files (.mrxs, .vms, .vmu, .dcm) must be files.
    output
        Folder of the predictions.
    cluster
        ``"local"``; the address of a running scheduler, ``tcp://host:port``; or a table for jobs of a queue: ``kind``
        (slurm, lsf, pbs, sge), ``workers``, and what else dask-jobqueue's class takes.
    workers
        Processes at a time. Local: one a GPU, else one for every two processors.
    retries
        Further attempts after a worker was lost, or a slide could not be fetched or written. A slide that is damaged
        or refused is not tried again.
    keep_going
        After a slide that failed go on with the others; otherwise what is running is stopped.
    scratch
        Where URLs are copied to, on the worker; default: its folder for temporary files.
    device
        ``auto``, ``cpu``, ``cuda``; local workers have one GPU each.
    overwrite
        Predict anew what is there.
    **options
        As in ``SlideOptions``.

    Raises
    ------
    InputError
        Bundle, slides (two of one stem), cluster or options are wrong. Slides that fail do not raise: see
        ``CohortSummary.check``.
    OutputError
        Another run is at this output, or the cluster was lost.
    """
    if retries < 0:
        raise InputError(f"{retries} retries cannot be", path="--retries", fix="0 or more")
    settings = asdict(SlideOptions(**options))
    sources, folder = find_sources(slides), Path(output).absolute()
    content = check_bundle(bundle)
    wanted: dict[str, object] = {"bundle": content, "options": settings}
    with alone(folder / ".cohort" / "run"):
        cohort = _Cohort(StateFolder(folder / ".cohort"), retries=retries, keep_going=keep_going)
        for name, slide in sources.items():
            task = Task(
                slide,
                str(folder / f"{name}.zarr"),
                str(Path(bundle).absolute()),
                content,
                _device_of_workers(cluster, device),
                overwrite,
                settings,
                str(Path(scratch).absolute()) if scratch else "",
            )
            cohort.add(name, task, wanted)
        with _ended_by_sigterm(), open_client(cluster, workers=workers, device=device, slides=len(sources)) as client:
            try:
                cohort.run(client)
            finally:
                summary = cohort.summary()
                summary.write(folder)
    return summary


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, by which queues and service managers end a run, be Ctrl-C: cluster closed, summary written."""
    if threading.current_thread() is not threading.main_thread():  # no other can have signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _device_of_workers(cluster: Cluster, device: str) -> str:
    """A local worker sees one GPU, whatever its number elsewhere."""
    return "cuda" if cluster == "local" and device.startswith("cuda") else device


def _count_workers(client: Client) -> int:
    try:
        return len(client.nthreads())
    except OSError as error:
        again = "run it again to go on where it stopped"
        raise OutputError(f"the cluster was lost: {describe(error)} ({again})") from error


@dataclass
class _Cohort:
    """Slides on their way: a few at the workers, the others waiting."""

    folder: StateFolder
    retries: int
    keep_going: bool
    tasks: dict[str, Task] = field(default_factory=dict)
    states: dict[str, SlideState] = field(default_factory=dict)
    waiting: list[tuple[float, int, str]] = field(default_factory=list)
    running: dict[Future, str] = field(default_factory=dict)
    workers: int = 0
    began: float = 0.0

    def add(self, name: str, task: Task, wanted: dict[str, object]) -> None:
        """A slide to be predicted."""
        earlier = self.folder.read(name)
        state = SlideState(without_secrets(task.slide), task.output, wanted=wanted)
        if earlier is not None and (earlier.slide, earlier.wanted) == (state.slide, wanted):
            task, state = (
                replace(task, found=earlier.found),
                replace(state, seconds=earlier.seconds, found=earlier.found),
            )
        self.tasks[name], self.states[name] = task, state
        heapq.heappush(self.waiting, (0.0, len(self.tasks), name))

    def run(self, client: Client) -> None:
        """Hand out slides, no more at a time than there are workers, until none is left."""
        self.began = time.monotonic()
        seen = self.began
        with tqdm(total=len(self.tasks), desc="slides", unit="slide", disable=None) as bar:
            while self.waiting or self.running:
                number = _count_workers(client)
                self.workers = max(self.workers, number)
                seen = self._tell_if_alone(number, seen)
                self._hand_out(client, number)
                for future in self._wait():
                    self._take_back(future)
                    states = [s.state for s in self.states.values()]
                    bar.set_postfix(failed=states.count("failed"), refresh=False)
                    bar.update(len(states) - states.count("pending") - bar.n)
                if not self.keep_going and any(s.state == "failed" for s in self.states.values()):
                    client.cancel(list(self.running))
                    return

    def summary(self) -> CohortSummary:
        """What became of them so far."""
        return CohortSummary(tuple(self.states.values()), time.monotonic() - self.began, self.workers)

    def _tell_if_alone(self, number: int, seen: float) -> float:
        """When there last were workers."""
        now = time.monotonic()
        if number or now - seen < _PATIENCE:
            return now if number else seen
        logger.info("waiting for workers …")
        return float("inf")  # said once

    def _hand_out(self, client: Client, workers: int) -> None:
        # Dask would count a lost worker against every task that was queued there, so none is
        while self.waiting and len(self.running) < workers and self.waiting[0][0] <= time.monotonic():
            _, _, name = heapq.heappop(self.waiting)
            state = self.states[name]
            self._note(name, replace(state, attempts=state.attempts + 1))
            key = f"{name}-{state.attempts + 1}-{id(self)}"
            self.running[client.submit(predict_one, self.tasks[name], key=key, pure=False)] = name

    def _wait(self) -> list[Future]:
        if not self.running:
            time.sleep(_LOOK / 4)
            return []
        try:
            return list(distributed.wait(list(self.running), timeout=_LOOK, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return []

    def _take_back(self, future: Future) -> None:
        name = self.running.pop(future)
        state, outcome = self.states[name], _read(future)
        future.release()
        if outcome.kind == "unlucky" and state.attempts <= self.retries:
            pause = min(_PAUSE * 2 ** (state.attempts - 1), _LONGEST_PAUSE)
            heapq.heappush(self.waiting, (time.monotonic() + pause, len(self.tasks) + state.attempts, name))
            self._note(name, replace(state, reason=outcome.reason))
            logger.warning(f"{name}: {outcome.reason}; trying again")
            return
        if outcome.kind == "done":
            self._finish(name, state, outcome)
            return
        self._note(name, replace(state, state="failed", reason=outcome.reason, warnings=outcome.warnings))
        logger.error(f"error: {outcome.reason}")

    def _finish(self, name: str, state: SlideState, outcome: Outcome) -> None:
        kept = outcome.kept and state.attempts == 1  # else it was this run's, lost after the last step
        seconds = state.seconds if kept else outcome.seconds
        done = replace(state, state="done", reason="", seconds=seconds, tiles=outcome.tiles, kept=kept)
        self._note(name, replace(done, warnings=outcome.warnings, found=outcome.found))
        for warning in outcome.warnings:
            logger.warning(f"warning: {name}: {warning}")
        told = "finished before" if kept else f"{outcome.tiles:,} tiles in {outcome.seconds:.0f} s"
        logger.info(f"{name}: {told} → {state.output}")

    def _note(self, name: str, state: SlideState) -> None:
        self.states[name] = state
        self.folder.write(name, state)


def _read(future: Future) -> Outcome:
    if future.status == "finished":
        return future.result()
    if future.status == "cancelled":
        return Outcome("unlucky", "the scheduler lost it")
    error = future.exception()
    if isinstance(error, KilledWorker):
        return Outcome("unlucky", "its worker was lost (killed, out of memory, or the machine is gone)")
    return Outcome("unlucky", describe(error) if error else "no result came back")
