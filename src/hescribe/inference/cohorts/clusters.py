"""Dask clusters: this machine, one that is running, or jobs of a queue."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NamedTuple

import dask
import torch
from dask.system import CPU_COUNT
from distributed import Client, Nanny, Scheduler, SpecCluster

from hescribe.errors import InputError, MissingExtraError

QUEUES = {"slurm": "SLURMCluster", "lsf": "LSFCluster", "pbs": "PBSCluster", "sge": "SGECluster"}
Cluster = str | Mapping[str, Any]
_LINES = ("job_script_prologue", "job_extra_directives", "worker_extra_args")  #: settings that are lists
_TIMEOUT = 15.0  #: seconds a scheduler may take to answer

# A task whose worker is lost comes back at once: the driver counts its attempts. Memory is bounded by the slide layer;
# Dask's own measures, to pause and kill workers, would only be in the way.
_CONFIG = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.admin.tick.limit": "1h",
    "distributed.comm.timeouts.connect": "60s",
}


class Machine(NamedTuple):
    """How a cluster on this machine is laid out: workers, threads of each, and GPU of each (none: empty)."""

    workers: int
    threads: int
    gpus: list[str]


@contextmanager
def open_client(cluster: Cluster, *, workers: int | None, device: str, slides: int) -> Iterator[Client]:
    """A client of a cluster; what was started for it ends with the block.

    Parameters
    ----------
    cluster
        ``"local"``, the address of a scheduler, or a table that describes jobs of a queue.
    workers
        How many; not for a scheduler that is running.
    device
        Of the workers: says whether GPUs are to be dealt out.
    slides
        How many there are: more workers are of no use.

    Raises
    ------
    InputError
        No such kind of cluster, it does not answer, or its jobs cannot be submitted.
    MissingExtraError
        dask-jobqueue is not there.
    """
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers cannot do anything", path="--workers", fix="1 or more")
    with dask.config.set(_CONFIG), _quiet_dask():
        if isinstance(cluster, str) and "://" in cluster:
            with _connect(cluster, workers) as client:
                yield client
            return
        if not isinstance(cluster, str):
            made = open_queue(cluster, workers=workers)
        elif cluster == "local":
            made = _open_local(lay_out(workers, device, slides))
        else:
            raise InputError(
                f"{cluster!r} is no cluster", path="--cluster", fix="local, tcp://host:port, or a .toml file"
            )
        with made, Client(made) as client:
            yield client


def _connect(address: str, workers: int | None) -> Client:
    if workers is not None:
        raise InputError("a scheduler that is running has its own workers", path="--workers", fix="leave it out")
    try:
        return Client(address, timeout=_TIMEOUT)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers ({error})", path=address, fix="start one: dask scheduler"
        ) from error


def lay_out(workers: int | None, device: str, slides: int) -> Machine:
    """One worker a GPU; without GPUs one for every two processors, as a slide is read while the one before is encoded."""
    gpus = _visible_gpus(device)
    number = min(workers or len(gpus) or max(1, CPU_COUNT // 2), max(slides, 1))
    return Machine(number, max(1, CPU_COUNT // number), gpus)


def _visible_gpus(device: str) -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` is to be for each GPU that ``device`` allows."""
    asked = [part.strip() for part in device.split(",") if part.strip()]
    if not any(part.startswith(("auto", "cuda")) for part in asked):
        return []
    number = torch.cuda.device_count()
    names = [n for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n] or [str(i) for i in range(number)]
    chosen = [part.partition(":")[2] for part in asked]
    if not all(chosen):
        if number == 0 and "auto" not in asked:
            raise InputError(f"the device {device!r} cannot be used (there is no GPU)", path="--device")
        return names[:number]
    missing = next((c for c in chosen if not c.isdigit() or int(c) >= number), None)
    if missing is not None:
        raise InputError(f"the device 'cuda:{missing}' cannot be used ({number} GPUs are there)", path="--device")
    return [names[int(c)] for c in chosen]


def _open_local(machine: Machine) -> SpecCluster:
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False}}
    specs = {}
    for i in range(machine.workers):
        env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(machine.threads))}
        if machine.gpus:
            env["CUDA_VISIBLE_DEVICES"] = machine.gpus[i % len(machine.gpus)]
        options = {"nthreads": 1, "memory_limit": 0, "dashboard": False, "env": env, "silence_logs": logging.CRITICAL}
        specs[i] = {"cls": Nanny, "options": options}
    return SpecCluster(workers=specs, scheduler=scheduler, silence_logs=logging.CRITICAL)


def open_queue(table: Mapping[str, Any], *, workers: int | None = None, submit: bool = True) -> Any:
    """A cluster of jobs: ``kind``, ``workers``, and all else as dask-jobqueue's class for the queue takes it.

    A job has one worker, with all its cores, unless ``processes`` says otherwise; a worker has one slide at a time.

    Parameters
    ----------
    table
        As read from the file.
    workers
        Instead of the table's.
    submit
        Whether the jobs are to be submitted now.
    """
    settings = {str(k).replace("-", "_"): v for k, v in table.items()}
    kind = str(settings.pop("kind", "")).lower()
    number = workers or settings.pop("workers", 1)
    settings.pop("workers", None)
    if kind not in QUEUES:
        raise InputError(f"{kind!r} is no kind of queue", path="--cluster", fix=f"kind = one of {', '.join(QUEUES)}")
    processes, cores = settings.setdefault("processes", 1), settings.get("cores", 1)
    for name, value in (("workers", number), ("processes", processes), ("cores", cores)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} = {value!r} is no number of {name}", path="--cluster")
    for name in _LINES:
        value = settings.get(name, [])
        if not isinstance(value, list | tuple):
            raise InputError(f"{name} = {value!r} is no list", path="--cluster", fix=f'{name} = ["…"]')
    try:
        made = getattr(import_module("dask_jobqueue"), QUEUES[kind])
    except ImportError:
        raise MissingExtraError("dask-jobqueue", "cluster") from None
    threads = max(1, cores // processes)
    # Before the user's own lines, so that those can say otherwise
    settings["job_script_prologue"] = [f"export OMP_NUM_THREADS={threads}", *settings.get("job_script_prologue", [])]
    settings["worker_extra_args"] = [*settings.get("worker_extra_args", []), "--nthreads", "1"]
    settings.setdefault("scheduler_options", {"dashboard": False})
    command = str(made.job_cls.submit_command).split()[0]
    if submit and shutil.which(command) is None:
        raise InputError(f"{command} is not on this machine", path="--cluster", fix="start it where jobs are submitted")
    try:
        cluster = made(**settings)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise InputError(f"{kind}: {error}", path="--cluster") from error
    if submit:
        _submit(cluster, -(-number // processes), kind)
    return cluster


def _submit(cluster: Any, jobs: int, kind: str) -> None:
    # As cluster.scale(), which leaves it to the event loop to know that a job was refused
    while len(cluster.worker_spec) < jobs:
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        cluster.sync(cluster._correct_state)
    except (RuntimeError, OSError, ValueError) as error:
        with suppress(AssertionError):  # about the jobs that there never were
            cluster.close()
        raise InputError(f"{kind}: jobs could not be submitted: {error}", path="--cluster") from error


@contextmanager
def _quiet_dask() -> Iterator[None]:
    """Lost workers and closed connections are told by us, once, in words."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
