"""Clusters: what is laid out on a machine, and what a queue is asked for."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hescribe.errors import InputError, MissingExtraError
from hescribe.inference.cohorts import clusters, predict_cohort
from hescribe.inference.cohorts.clusters import lay_out, open_client, open_queue
from tests.inference.slides.made import draw_slide, write_slide

SLURM = {
    "kind": "slurm",
    "workers": 3,
    "cores": 6,
    "memory": "24GB",
    "walltime": "03:00:00",
    "queue": "gpu",
    "job_extra_directives": ["--gres=gpu:1"],
    "job_script_prologue": ["module load openslide"],
}


def test_without_gpus_one_worker_for_two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CPU_COUNT", 16)
    monkeypatch.setattr(clusters.torch.cuda, "device_count", lambda: 0)
    assert lay_out(None, "auto", 100) == (8, 2, [])
    assert lay_out(4, "auto", 100) == (4, 4, [])
    assert lay_out(None, "auto", 3) == (3, 5, [])
    assert lay_out(None, "cpu", 1) == (1, 16, [])
    with pytest.raises(InputError, match="there is no GPU"):
        lay_out(None, "cuda", 9)


def test_one_worker_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CPU_COUNT", 16)
    monkeypatch.setattr(clusters.torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert lay_out(None, "auto", 100) == (3, 5, ["0", "1", "2"])
    assert lay_out(None, "cuda:2,cuda:0", 100) == (2, 8, ["2", "0"])
    assert lay_out(None, "cpu", 100).gpus == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,GPU-7")
    assert lay_out(None, "cuda", 100).gpus == ["5", "6", "GPU-7"]
    assert lay_out(None, "cuda:2", 100).gpus == ["GPU-7"]
    with pytest.raises(InputError, match="cuda:3"):
        lay_out(None, "cuda:3", 100)


@pytest.mark.parametrize(
    ("cluster", "workers", "message"),
    [
        ("remote", None, "'remote' is no cluster"),
        ("local", 0, "0 workers"),
        ("tcp://127.0.0.1:1", 2, "its own workers"),
        ({"kind": "cron"}, None, "'cron' is no kind of queue .*slurm, lsf, pbs, sge"),
        ({"cores": 4}, None, "'' is no kind of queue"),
        ({"kind": "slurm", "workers": "many"}, None, "'many' is no number"),
        ({"kind": "slurm", "workers": True}, None, "True is no number"),
        ({"kind": "slurm", "cores": "two"}, None, "cores = 'two' is no number"),
        ({"kind": "slurm", "cores": 0}, None, "cores = 0 is no number"),
        ({"kind": "slurm", "job_script_prologue": "module load x"}, None, "'module load x' is no list"),
    ],
)
def test_clusters_that_cannot_be(cluster: object, workers: int | None, message: str) -> None:
    with (
        pytest.raises(InputError, match=message) as caught,
        open_client(cluster, workers=workers, device="cpu", slides=9),  # type: ignore[arg-type]
    ):
        pass
    assert "\n" not in str(caught.value)


def test_no_scheduler_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_TIMEOUT", 0.5)
    with (
        pytest.raises(InputError, match=r"tcp://127\.0\.0\.1:1: no Dask scheduler answers"),
        open_client("tcp://127.0.0.1:1", workers=None, device="cpu", slides=9),
    ):
        pass


def test_without_jobqueue_it_is_said_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dask_jobqueue", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hescribe\[cluster\]'"):
        open_queue(SLURM)


def test_the_job_is_what_was_asked_for() -> None:
    pytest.importorskip("dask_jobqueue")
    with open_queue(SLURM, submit=False) as cluster:
        lines = cluster.job_script().splitlines()
    for wanted in ("#SBATCH -p gpu", "#SBATCH --cpus-per-task=6", "#SBATCH -t 03:00:00", "#SBATCH --gres=gpu:1"):
        assert wanted in lines
    assert lines.index("export OMP_NUM_THREADS=6") < lines.index("module load openslide")
    command = lines[-1]
    assert command.rindex("--nthreads 1") > command.rindex("--nthreads 6")  # the last one counts
    assert "--nworkers" not in command  # one slide a job


@pytest.mark.parametrize(("kind", "mark"), [("lsf", "#BSUB"), ("pbs", "#PBS"), ("sge", "#$")])
def test_other_queues(kind: str, mark: str) -> None:
    pytest.importorskip("dask_jobqueue")
    with open_queue({"kind": kind, "cores": 2, "memory": "4GB", "walltime": "01:00"}, submit=False) as cluster:
        assert mark in cluster.job_script()


def test_what_the_queue_does_not_know_is_said() -> None:
    pytest.importorskip("dask_jobqueue")
    with pytest.raises(InputError, match=r"slurm: .*colour"):
        open_queue({**SLURM, "colour": "red"}, submit=False)
    with pytest.raises(InputError, match=r"slurm: .*nowhere0"):
        open_queue({**SLURM, "interface": "nowhere0"}, submit=False)
    with pytest.raises(InputError, match="cores and memory"):
        open_queue({"kind": "slurm"}, submit=False)


def put_on_path(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.slow
def test_jobs_are_submitted_and_do_the_work(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that starts every job at once, on this machine."""
    pytest.importorskip("dask_jobqueue")
    with pytest.raises(InputError, match="sbatch is not on this machine"):
        open_queue(SLURM)
    log = tmp_path / "jobs"
    put_on_path(
        tmp_path / "bin",
        "sbatch",
        f'cp "$1" {log}; bash {log} >{log}.log 2>&1 & echo Submitted batch job $!',
        monkeypatch,
    )
    put_on_path(tmp_path / "bin", "scancel", "kill $1", monkeypatch)
    slide = write_slide(tmp_path / "a.tif", draw_slide(600))
    table = {**SLURM, "workers": 1, "cores": 1, "job_script_prologue": [], "interface": "lo"}
    summary = predict_cohort(bundle, [slide], tmp_path / "out", cluster=table, device="cpu", stride_um=300.0)
    summary.check()
    assert summary.slides[0].tiles
    assert "#SBATCH -p gpu" in log.read_text()


def test_a_queue_that_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    put_on_path(tmp_path / "bin", "sbatch", "echo invalid partition specified >&2; exit 1", monkeypatch)
    with pytest.raises(InputError, match=r"jobs could not be submitted: .*invalid partition"):
        open_queue(SLURM)
