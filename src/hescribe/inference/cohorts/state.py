"""How far each slide of a cohort has come, on disk; and what is said at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hescribe.errors import InputError, list_some
from hescribe.io.store import write_atomically


@dataclass(frozen=True)
class SlideState:
    """How far a slide has come.

    Attributes
    ----------
    slide, output
        Path or URL, and the store.
    state
        ``pending`` also where it was begun: its folder of work says how far.
    reason
        Why it failed, in one line.
    attempts, seconds
        Of the run that finished it, or that failed.
    tiles
        Of the prediction.
    kept
        It had been finished before this run.
    warnings
        What looked wrong though work went on.
    wanted
        Bundle and options.
    found
        Of a remote slide that was finished: what tells it from a later one of the same URL.
    """

    slide: str
    output: str
    state: Literal["pending", "done", "failed"] = "pending"
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    tiles: int = 0
    kept: bool = False
    warnings: tuple[str, ...] = ()
    wanted: dict[str, Any] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StateFolder:
    """One JSON file a slide, written by the driver alone.

    Attributes
    ----------
    folder
        ``DIR/.cohort``.
    """

    folder: Path

    def read(self, name: str) -> SlideState | None:
        """The state of a slide; None where none was noted, or by another version."""
        try:
            facts = json.loads((self.folder / f"{name}.json").read_text())
            facts["warnings"] = tuple(facts["warnings"])
            return SlideState(**facts)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, name: str, state: SlideState) -> None:
        """Note it; a reader sees the earlier state or this one."""
        with write_atomically(self.folder / f"{name}.json") as path:
            path.write_text(json.dumps(asdict(state), ensure_ascii=False))


@dataclass(frozen=True)
class CohortSummary:
    """What became of a cohort.

    Attributes
    ----------
    slides
        In the order given.
    seconds
        From the first slide handed out to the end.
    workers
        The most there were at a time.
    """

    slides: tuple[SlideState, ...]
    seconds: float
    workers: int

    def of(self, state: Literal["pending", "done", "failed"]) -> list[SlideState]:
        """Slides in a state."""
        return [s for s in self.slides if s.state == state]

    @property
    def tiles(self) -> int:
        """Of the slides that this run finished; one that went on counts whole."""
        return sum(s.tiles for s in self.of("done") if not s.kept)

    @property
    def tiles_per_second(self) -> float:
        """Over the whole run."""
        return self.tiles / self.seconds if self.seconds else 0.0

    @property
    def outputs(self) -> list[Path]:
        """Finished predictions, of this run and before."""
        return [Path(s.output) for s in self.of("done")]

    @property
    def counts(self) -> dict[str, int]:
        """Slides by what became of them."""
        done = self.of("done")
        return {
            "slides": len(self.slides),
            "done": sum(not s.kept for s in done),
            "done before": sum(s.kept for s in done),
            "failed": len(self.of("failed")),
            "pending": len(self.of("pending")),
        }

    def check(self) -> None:
        """Raise if a slide failed.

        Raises
        ------
        InputError
            Names those that did.
        """
        failed = self.of("failed")
        if failed:
            names = list_some(s.slide for s in failed)
            raise InputError(f"{len(failed)} of {len(self.slides)} slides failed: {names}")

    def write(self, folder: Path) -> None:
        """``summary.json`` and ``summary.md``."""
        facts = {
            **self.counts,
            "tiles": self.tiles,
            "seconds": round(self.seconds, 3),
            "tiles_per_second": round(self.tiles_per_second, 3),
            "workers": self.workers,
        }
        slides = [{k: v for k, v in asdict(s).items() if k not in {"wanted", "found"}} for s in self.slides]
        with write_atomically(folder / "summary.json") as path:
            path.write_text(json.dumps({**facts, "per_slide": slides}, indent=2, ensure_ascii=False) + "\n")
        with write_atomically(folder / "summary.md") as path:
            path.write_text(self._as_markdown())

    def _as_markdown(self) -> str:
        parts = ["# Cohort", _table(self.counts.keys(), [self.counts.values()])]
        speed = f"{self.tiles:,} tiles in {self.seconds:,.0f} s on {self.workers} worker{'s' * (self.workers != 1)}"
        parts.append(f"{speed} ({self.tiles_per_second:,.0f} tiles/s).")
        failed = self.of("failed")
        if failed:
            reasons = [(s.slide, s.attempts, s.reason) for s in failed]
            parts += ["## Failed", _table(("slide", "attempts", "reason"), reasons)]
        warned = [(s.slide, w) for s in self.slides for w in s.warnings]
        if warned:
            parts += ["## Warnings", _table(("slide", "warning"), warned)]
        rows = [(s.slide, _word(s), f"{s.tiles:,}", f"{s.seconds:,.0f}", s.attempts) for s in self.slides]
        parts += ["## Slides", _table(("slide", "state", "tiles", "seconds", "attempts"), rows)]
        return "\n\n".join(parts) + "\n"


def _word(state: SlideState) -> str:
    return "done before" if state.kept else state.state


def _table(head: Iterable[str], rows: Sequence[Iterable[object]]) -> str:
    names = list(head)
    lines: list[Iterable[object]] = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    """In one line, since the names of files may hold the ends of some."""
    return " ".join(str(value).split()).replace("<", "&lt;").replace("|", "\\|")
