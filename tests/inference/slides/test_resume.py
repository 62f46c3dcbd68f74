"""Killed at any moment and started again: the same bits. Two at one output: one waits for nobody and says so."""

from __future__ import annotations

import errno
import inspect
import json
import multiprocessing
import os
import random
import shutil
import signal
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import numpy as np
import pytest

from hescribe import keys
from hescribe.errors import InputError, OutputError
from hescribe.inference import read_prediction
from hescribe.inference.slides import predict_slide
from hescribe.inference.slides.plan import Stamp, Work, alone
from hescribe.io.predictions.stored import open_prediction
from hescribe.io.rows import RowFile
from tests.inference.slides.made import draw_slide, make_bundle, write_slide
from tests.inference.slides.victim import run

KILLS = 20


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "slide.tif", draw_slide(700))


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_killed_at_any_moment_the_result_is_the_same_bit_for_bit(slide: Path, tmp_path: Path) -> None:
    # Children are forked from a clean server that has everything imported: no start-up time, no inherited threads
    spawn = multiprocessing.get_context("forkserver")
    multiprocessing.set_forkserver_preload(["tests.inference.slides.victim"])
    whole, cut = tmp_path / "whole" / "out.zarr", tmp_path / "cut" / "out.zarr"

    def start(output: Path) -> tuple[BaseProcess, Semaphore]:
        steps = spawn.Semaphore(0)
        child = spawn.Process(target=run, args=(slide, output, steps))
        child.start()
        return child, steps

    child, steps = start(whole)
    child.join(300)
    assert child.exitcode == 0
    total = 0
    while steps.acquire(block=False):
        total += 1
    rng, kills, stages = random.Random(0), 0, set()  # noqa: S311
    # A kill comes a random number of steps after the start and a random moment after that step: counted in steps and
    # not in seconds, the kills are spread over a prediction however busy the machine is
    for _ in range(10 * KILLS):
        if cut.exists():
            assert files(cut) == files(whole)
            if kills >= KILLS and len(stages) >= 3:
                break
            shutil.rmtree(cut)
        child, steps = start(cut)
        if kills < KILLS or len(stages) < 3:
            ahead = rng.randint(1, total // 2)
            while ahead and child.is_alive():
                ahead -= steps.acquire(timeout=0.1)
            child.join(rng.uniform(0.0, 0.05))
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
        child.join(300)
        assert child.exitcode in {0, -signal.SIGKILL}
        work = Work.beside(cut)
        stages.add(tuple(bool(work.done(s)) for s in ("encoded", "surrounded", "written")) if work.plan else None)
        # A reader sees a whole output or none
        assert not cut.exists() or read_prediction(cut).n_obs
    assert kills >= KILLS
    assert len(stages) >= 3
    assert files(cut) == files(whole)


def test_it_goes_on_and_does_not_begin_again(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hescribe.inference.slides import features

    bundle, output = make_bundle("fusion"), tmp_path / "out.zarr"
    expected = predict_slide(bundle, slide, tmp_path / "whole.zarr", stride_um=40.0, precision="fp32")
    monkeypatch.setattr(features, "BATCH", 64)
    monkeypatch.setattr(features, "CHUNK", 64)
    marks, encoded = [], []
    mark, encode = Work.mark, features.encode_batch

    def stop(self: Work, stage: str, tiles: int) -> None:
        mark(self, stage, tiles)  # type: ignore[arg-type]
        marks.append((stage, tiles))
        if len(marks) in {2, 9}:
            raise KeyboardInterrupt

    monkeypatch.setattr(Work, "mark", stop)
    monkeypatch.setattr(features, "encode_batch", lambda *a, **k: encoded.append(len(a[1])) or encode(*a, **k))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            predict_slide(bundle, slide, output, stride_um=40.0, precision="fp32")
        assert not output.exists()
    predict_slide(bundle, slide, output, stride_um=40.0, precision="fp32")
    n = read_prediction(output).n_obs
    assert [t for s, t in marks if s == "encoded"] == sorted({t for s, t in marks if s == "encoded"})
    # Two scales; what was read ahead when it was stopped is encoded again, no more
    assert sum(encoded) < 2 * (n + 2 * 5 * 64)
    np.testing.assert_array_equal(read_prediction(output).X, read_prediction(expected).X)


def test_nothing_is_left_running_where_it_was_stopped(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to the garbage collector, the threads that encode could wait forever for the one that collects them."""
    from hescribe.inference.slides import features

    made = []
    encode = features.encode_in_order
    monkeypatch.setattr(features, "BATCH", 64)
    monkeypatch.setattr(features, "CHUNK", 64)
    monkeypatch.setattr(features, "encode_in_order", lambda *a, **k: made.append(encode(*a, **k)) or made[-1])
    monkeypatch.setattr(Work, "mark", interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:  # holds every frame, and what they hold
        predict_slide(make_bundle(), slide, tmp_path / "out.zarr", stride_um=40.0)
    assert stopped.tb is not None
    assert [inspect.getgeneratorstate(one) for one in made] == [inspect.GEN_CLOSED]


def test_finished_is_finished(slide: Path, tmp_path: Path) -> None:
    bundle, output = make_bundle(), tmp_path / "out.zarr"
    predict_slide(bundle, slide, output)
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    predict_slide(bundle, slide, output)
    os.utime(slide)  # touched, not changed
    predict_slide(bundle, slide, output)
    assert before == {p: p.stat().st_mtime_ns for p in output.rglob("*")}


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_output_that_is_gone_is_made_again(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between handing it over and tidying up: the work says that all is written, and it is not there."""
    output = tmp_path / "out.zarr"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Work, "discard", lambda self: interrupt() if output.exists() else None)
        predict_slide(make_bundle(), slide, output)
    expected = files(output)
    assert Work.beside(output).folder.is_dir()
    shutil.rmtree(output)
    predict_slide(make_bundle(), slide, output)
    assert files(output) == expected


def test_work_that_is_half_removed_is_not_gone_on_with(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.zarr"
    work = Work.beside(output)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hescribe.inference.slides.job.publish", interrupt)
        predict_slide(make_bundle(), slide, output)
    assert work.plan
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hescribe.io.store.shutil.rmtree", interrupt)
        work.discard()
    assert work.plan is None
    assert work.folder.is_dir()


CHANGES = {
    "another bundle": lambda s, o: predict_slide(make_bundle(seed=1), s, o),
    "another --stride-um": lambda s, o: predict_slide(make_bundle(), s, o, stride_um=60.0),
    r"another choice of genes \(--min-pcc\)": lambda s, o: predict_slide(make_bundle(), s, o, min_pcc=0.1),
    "another --dtype": lambda s, o: predict_slide(make_bundle(), s, o, dtype="float16"),
    "another --patient": lambda s, o: predict_slide(make_bundle(), s, o, patient="P1"),
    "another slide": lambda s, o: predict_slide(make_bundle(), write_slide(s, draw_slide(700, seed=1)), o),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
def test_nothing_else_is_taken_for_it(
    change: str, finished: bool, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.zarr"
    if finished:
        predict_slide(make_bundle(), slide, output)
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("hescribe.inference.slides.job.publish", interrupt)
            predict_slide(make_bundle(), slide, output)
    with pytest.raises(OutputError, match=change):
        CHANGES[change](slide, output)
    if change == "another bundle":
        predict_slide(make_bundle(seed=1), slide, output, overwrite=True)
        assert read_prediction(output).uns[keys.PROVENANCE]["bundle"] == "ridge1"


def test_a_prediction_that_lost_files_is_not_taken_for_zeros(slide: Path, tmp_path: Path) -> None:
    output = predict_slide(make_bundle(), slide, tmp_path / "out.zarr")
    next(p for p in (output / "X" / "c").rglob("*") if p.is_file()).unlink()
    for read in (read_prediction, open_prediction, lambda path: predict_slide(make_bundle(), slide, path)):
        with pytest.raises(InputError, match=r"out\.zarr: .*blocks of X are missing"):
            read(output)
    predict_slide(make_bundle(), slide, output, overwrite=True)
    assert np.isfinite(read_prediction(output).X).all()


def test_a_prediction_at_spots_is_not_written_over(slide: Path, tmp_path: Path) -> None:
    import anndata as ad

    ad.AnnData(np.zeros((2, 2), "f")).write_zarr(tmp_path / "out.zarr")
    with pytest.raises(OutputError, match="is no prediction of a slide"):
        predict_slide(make_bundle(), slide, tmp_path / "out.zarr")


def test_a_disk_that_hiccups_costs_nothing(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slide that cannot be read for a moment is not a damaged one: what was done stays, a cohort tries again."""
    from hescribe.inference.cohorts.work import _may_pass
    from hescribe.slides.blocks.tiff import _File

    monkeypatch.setattr("hescribe.inference.slides.features.CHUNK", 64)
    fine = {"stride_um": 40.0, "precision": "fp32"}
    output, read, count = tmp_path / "out.zarr", _File.read, iter(range(10**6))

    def stale(self: _File, offset: int, length: int) -> bytes:
        if Work.beside(output).plan and next(count) == 24:  # not where tissue is looked for
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self, offset, length)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"slide\.tif: cannot be read") as failed:
        patch.setattr(_File, "read", stale)
        predict_slide(make_bundle(), slide, output, **fine)
    assert _may_pass(failed.value)
    assert Work.beside(output).done("encoded") > 0
    again = read_prediction(predict_slide(make_bundle(), slide, output, **fine))
    whole = read_prediction(predict_slide(make_bundle(), slide, tmp_path / "whole.zarr", **fine))
    np.testing.assert_array_equal(again.X, whole.X)


def test_without_bf16_it_is_begun_anew(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.zarr"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hescribe.inference.slides.job.publish", interrupt)
        predict_slide(make_bundle(), slide, output)
    plan = Work.beside(output).folder / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "precision": "bf16"}))
    monkeypatch.setattr("hescribe.inference.slides.job.lacks_bf16", lambda *_: True)
    told = read_prediction(predict_slide(make_bundle(), slide, output)).uns[keys.PROVENANCE]
    assert told["precision"] == "fp32"


def test_nothing_stays_of_what_was_replaced(slide: Path, tmp_path: Path) -> None:
    output = predict_slide(make_bundle(), slide, tmp_path / "out.zarr")
    (tmp_path / ".out.zarr.0123abcd.old").mkdir()  # killed while the older output was removed
    predict_slide(make_bundle(), slide, output)
    assert {p.name for p in tmp_path.glob(".*")} == {".out.zarr.lock"}


def test_a_byte_changed_in_the_middle_is_noticed(slide: Path, tmp_path: Path) -> None:
    predict_slide(make_bundle(), slide, tmp_path / "out.zarr")
    data = bytearray(slide.read_bytes())
    data[len(data) // 2] ^= 1
    slide.write_bytes(bytes(data))
    with pytest.raises(OutputError, match="the slide has changed"):
        predict_slide(make_bundle(), slide, tmp_path / "out.zarr")


@pytest.mark.parametrize(("name", "beside"), [("m.mrxs", "m/Data0000.dat"), ("a.dcm", "b.dcm"), ("v.vms", "v-1.jpg")])
def test_pixels_may_lie_in_files_beside(name: str, beside: str, tmp_path: Path) -> None:
    slide, pixels = tmp_path / name, tmp_path / beside
    pixels.parent.mkdir(exist_ok=True)
    slide.write_bytes(b"index")
    pixels.write_bytes(b"one")
    before = Stamp.of(slide)
    assert Stamp.of(slide, before) is before
    pixels.write_bytes(b"two")
    os.utime(pixels, ns=(before.changed + 1, before.changed + 1))
    assert Stamp.of(slide, before).content != before.content


def test_a_second_process_says_so_in_one_line(slide: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    with alone(output), pytest.raises(OutputError, match="is being written by another process"):
        predict_slide(make_bundle(), slide, output)
    predict_slide(make_bundle(), slide, output)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"No space left on device \(run it again to go on .*\)"),
        (OSError("1080000 requested and 151424 written"), r"no space left on the disk \(run it again to go on .*\)"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_can_be_gone_on_from(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, told: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises(OutputError, match=f"could not be written: {told}$"):
        patch.setattr(RowFile, "write", fail)
        predict_slide(make_bundle(), slide, tmp_path / "out.zarr")
    assert read_prediction(predict_slide(make_bundle(), slide, tmp_path / "out.zarr")).n_obs
