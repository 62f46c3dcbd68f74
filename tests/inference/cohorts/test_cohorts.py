"""Many slides: nothing lost, nothing twice, whatever becomes of slides, workers and the run itself."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from hescribe.errors import InputError, OutputError
from hescribe.inference import load_bundle, read_prediction
from hescribe.inference.cohorts import predict_cohort, run, work
from hescribe.inference.slides import predict_slide
from tests.inference.slides.made import draw_slide, write_slide

COARSE = {"stride_um": 300.0, "precision": "fp32"}


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def make_slides(folder: Path, names: str, side: int = 600) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [write_slide(folder / f"{n}.tif", draw_slide(side, seed=i)) for i, n in enumerate(names)]


def kill_one_at_work(output: Path, killed: list[int]) -> None:
    """SIGKILL the worker that holds a slide's lock, once its prediction has begun."""
    for _ in range(6000):
        for worker in psutil.Process().children(recursive=True):
            try:
                held = [Path(f.path).name for f in worker.open_files() if f.path.endswith(".zarr.lock")]
            except psutil.Error:
                continue
            for name in held:
                if (output / name.replace(".lock", ".work") / "plan.json").exists():
                    os.kill(worker.pid, signal.SIGKILL)
                    killed.append(worker.pid)
                    return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_worker_is_killed_and_a_slide_is_broken(bundle: Path, tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "in", "abd")
    (tmp_path / "in" / "c.tif").write_bytes(slides[0].read_bytes()[:5000])
    killed: list[int] = []
    output = tmp_path / "out"
    thread = threading.Thread(target=kill_one_at_work, args=(output, killed), daemon=True)
    thread.start()
    options = {"stride_um": 140.0, "precision": "fp32"}
    summary = predict_cohort(bundle, [tmp_path / "in"], output, cluster="local", workers=2, device="cpu", **options)
    thread.join()
    assert killed
    assert summary.counts == {"slides": 4, "done": 3, "done before": 0, "failed": 1, "pending": 0}
    assert Counter(Path(s.slide).stem for s in summary.slides) == Counter("abcd")
    # Whose worker was lost had two attempts, all others one: not even what waited at that worker is blamed
    assert sorted(s.attempts for s in summary.slides) == [1, 1, 1, 2]
    (failed,) = summary.of("failed")
    assert (Path(failed.slide).name, failed.attempts) == ("c.tif", 1)
    assert failed.slide in failed.reason
    for slide in slides:
        serial = predict_slide(load_bundle(bundle), slide, tmp_path / "serial" / f"{slide.stem}.zarr", **options)
        assert files(output / f"{slide.stem}.zarr") == files(serial)
    assert not list(output.glob(".*.work"))
    assert not list(output.glob(".*.partial"))


def test_started_again_it_does_what_is_left(bundle: Path, here: str, tmp_path: Path) -> None:
    a, b = make_slides(tmp_path / "in", "ab")
    good = b.read_bytes()
    b.write_bytes(b"")
    first = predict_cohort(bundle, [a, b], tmp_path / "out", cluster=here, **COARSE)
    assert [s.state for s in first.slides] == ["done", "failed"]
    with pytest.raises(InputError, match=r"1 of 2 slides failed: .*b\.tif"):
        first.check()
    written = files(tmp_path / "out" / "a.zarr")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "a.zarr").rglob("*")}
    b.write_bytes(good)
    second = predict_cohort(bundle, [a, b], tmp_path / "out", cluster=here, **COARSE)
    second.check()
    assert [(s.state, s.kept, s.attempts) for s in second.slides] == [("done", True, 1), ("done", False, 1)]
    assert second.slides[0].tiles == first.slides[0].tiles == read_prediction(tmp_path / "out" / "a.zarr").n_obs
    assert second.tiles == second.slides[1].tiles
    assert files(tmp_path / "out" / "a.zarr") == written
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "a.zarr").rglob("*")} == stamps
    third = predict_cohort(bundle, [a], tmp_path / "out", cluster=here, stride_um=200.0, precision="fp32")
    assert "another --stride-um" in third.slides[0].reason


def test_summary_says_what_became_of_each(bundle: Path, here: str, tmp_path: Path) -> None:
    make_slides(tmp_path / "in", "a")
    (tmp_path / "in" / "x|y\n z.tif").write_bytes(b"")
    predict_cohort(bundle, [tmp_path / "in"], tmp_path / "out", cluster=here, **COARSE)
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {k: facts[k] for k in ("slides", "done", "failed", "pending")} == {
        "slides": 2, "done": 1, "failed": 1, "pending": 0,
    }  # fmt: skip
    assert facts["tiles"] == read_prediction(tmp_path / "out" / "a.zarr").n_obs
    assert facts["tiles_per_second"] == pytest.approx(facts["tiles"] / facts["seconds"], rel=0.01)
    text = (tmp_path / "out" / "summary.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|") and "a.tif" in line]
    assert table
    assert all(line.count("|") - line.count("\\|") == 6 for line in table), "five columns"
    assert "empty (0 bytes)" in text
    rows = [line for line in text.splitlines() if r"x\|y z.tif |" in line]
    assert len(rows) == 2, "one that failed, one of all: an end of a line in a name does not end its row"


def test_an_unlucky_slide_is_tried_so_many_times(
    bundle: Path, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = make_slides(tmp_path / "in", "ab")
    tried: Counter[str] = Counter()

    def unlucky(bundle: object, path: Path, *args: object, **options: object) -> Path:
        tried[path.stem] += 1
        if path.stem == "b" or tried["a"] < 3:
            raise OutputError("could not be written") from OSError(5, "Input/output error")
        return predict_slide(bundle, path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "predict_slide", unlucky)
    monkeypatch.setattr(run, "_PAUSE", 0.01)
    summary = predict_cohort(bundle, slides, tmp_path / "out", cluster=here, retries=2, **COARSE)
    assert tried == {"a": 3, "b": 3}
    assert [(s.state, s.attempts) for s in summary.slides] == [("done", 3), ("failed", 3)]


def test_fail_fast_stops_and_leaves_the_rest(bundle: Path, here: str, tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "in", "bcdefg")
    (tmp_path / "a.tif").write_bytes(b"")
    given = [tmp_path / "a.tif", *slides]
    summary = predict_cohort(bundle, given, tmp_path / "out", cluster=here, keep_going=False, **COARSE)
    assert summary.slides[0].state == "failed"
    assert len(summary.of("pending")) >= 4
    again = predict_cohort(bundle, slides, tmp_path / "out", cluster=here, **COARSE)
    assert len(again.of("done")) == 6


def test_interrupted_it_can_go_on(bundle: Path, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slides = make_slides(tmp_path / "in", "abc")
    take = run._Cohort._take_back

    def interrupt(self: run._Cohort, future: object) -> None:
        take(self, future)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run._Cohort, "_take_back", interrupt)
        predict_cohort(bundle, slides, tmp_path / "out", cluster=here, **COARSE)
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (facts["done"], facts["pending"]) == (1, 2)
    summary = predict_cohort(bundle, slides, tmp_path / "out", cluster=here, **COARSE)
    assert len(summary.of("done")) == 3
    assert sum(s.kept for s in summary.slides) >= 1


def test_sigterm_is_ctrl_c(bundle: Path, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that a queue ended left no summary."""
    take, before = run._Cohort._take_back, signal.getsignal(signal.SIGTERM)

    def end(self: run._Cohort, future: object) -> None:
        take(self, future)  # type: ignore[arg-type]
        # Without a handler of the run's the process of the tests would end
        assert signal.getsignal(signal.SIGTERM) not in {signal.SIG_DFL, before}
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(run._Cohort, "_take_back", end)
    with pytest.raises(KeyboardInterrupt):
        predict_cohort(bundle, make_slides(tmp_path / "in", "ab"), tmp_path / "out", cluster=here, **COARSE)
    assert signal.getsignal(signal.SIGTERM) == before
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (facts["done"], facts["pending"]) == (1, 1)
    assert (tmp_path / "out" / "summary.md").exists()


def test_a_thread_of_many_can_run_a_cohort(bundle: Path, here: str, tmp_path: Path) -> None:
    """Signals belong to the main thread."""
    slides, told = make_slides(tmp_path / "in", "a"), []
    given = (bundle, slides, tmp_path / "out")
    thread = threading.Thread(target=lambda: told.append(predict_cohort(*given, cluster=here, **COARSE)))
    thread.start()
    thread.join()
    assert told[0].counts["done"] == 1


def test_two_runs_at_one_output(bundle: Path, here: str, tmp_path: Path) -> None:
    from hescribe.inference.slides.plan import alone

    slides = make_slides(tmp_path / "in", "a")
    with alone(tmp_path / "out" / ".cohort" / "run"), pytest.raises(OutputError, match="another process"):
        predict_cohort(bundle, slides, tmp_path / "out", cluster=here, **COARSE)


def test_an_output_that_is_held_is_waited_for(
    bundle: Path, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that lost its connection may still be writing: the slide is tried again, not refused."""
    from hescribe.inference.slides.plan import alone

    monkeypatch.setattr(run, "_PAUSE", 0.01)
    slides = make_slides(tmp_path / "in", "a")
    with alone(tmp_path / "out" / "a.zarr"):
        summary = predict_cohort(bundle, slides, tmp_path / "out", cluster=here, retries=1, **COARSE)
    assert (summary.slides[0].state, summary.slides[0].attempts) == ("failed", 2)
    assert "written by another process" in summary.slides[0].reason


def test_a_bug_in_one_slide_does_not_end_the_cohort(
    bundle: Path, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = make_slides(tmp_path / "in", "ab")

    def faulty(bundle: object, path: Path, *args: object, **options: object) -> Path:
        if path.stem == "a":
            raise ZeroDivisionError
        return predict_slide(bundle, path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "predict_slide", faulty)
    summary = predict_cohort(bundle, slides, tmp_path / "out", cluster=here, retries=0, **COARSE)
    assert [(s.state, s.reason) for s in summary.slides] == [("failed", "ZeroDivisionError"), ("done", "")]


def test_what_looked_wrong_is_told(bundle: Path, here: str, tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "in", "a")
    summary = predict_cohort(bundle, slides, tmp_path / "out", cluster=here, mpp=1.0, **COARSE)
    assert "µm per pixel" in summary.slides[0].warnings[0]


def test_the_bundle_is_checked_first(here: str, tmp_path: Path) -> None:
    slides = make_slides(tmp_path / "in", "a")
    with pytest.raises(InputError, match="no bundle here"):
        predict_cohort(tmp_path, slides, tmp_path / "out", cluster=here)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="retries"):
        predict_cohort(tmp_path, slides, tmp_path / "out", cluster=here, retries=-1)
