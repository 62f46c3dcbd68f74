"""Several processes that train one model: how they are started, who each is, how they wait for one another.

Every process runs the whole of a training, on the same data and seed, so all of them come to the same panels, folds
and prototypes. Only the steps of gradient descent are shared out (each process takes its part of every batch), and
the making of features and tiles that are kept on disk. The first process alone writes.
"""

from __future__ import annotations

import atexit
import datetime
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from hescribe.errors import DivergedError, HescribeError, HescribeWarning, InputError

if TYPE_CHECKING:
    from hescribe.training.config import TrainConfig

Item = TypeVar("Item")
Made = TypeVar("Made")

_FEW = 4  #: processes that may share a single processor, to try things out
# The first process may be busy for hours while the others wait; a process that dies is noticed otherwise
_PATIENCE = datetime.timedelta(days=7)


class Share(NamedTuple):
    """Number of this process, from 0, and how many there are."""

    rank: int
    world: int


def share() -> Share:
    """Which process this is; the only one, unless it has joined others."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share(0, 1)


def is_first() -> bool:
    """Whether this is the process that writes."""
    return share().rank == 0


def wait() -> None:
    """Return when all processes have come here."""
    agreed(fact=True)


def agreed(*, fact: bool) -> bool:
    """What the first process says, in all processes: a file may be there for one and not yet for another."""
    said = torch.tensor(int(fact and is_first()))
    if dist.is_initialized():
        dist.all_reduce(said)
    return bool(said)


def dealt(items: Sequence[Item], make: Callable[[Item], Made]) -> list[Made]:
    """``[make(item) for item in items]``, where ``make`` keeps on disk what it made: each process makes its share."""
    rank, world = share()
    if world > 1:
        for item in items[rank::world]:
            make(item)
        wait()
    return [make(item) for item in items]


def must_start(config: TrainConfig) -> bool:
    """Whether the processes wanted are still to be started; otherwise this is one of them, or the only one.

    Raises
    ------
    InputError
        Other processes were started than are wanted, or these cannot be started from here.
    """
    wanted, there = config.devices * config.nodes, _started(config.devices * config.nodes)
    if there > 1 or dist.is_initialized():
        if there != wanted:
            fix = "--devices counts the processes of one node, --nodes the nodes"
            raise InputError(f"{there} processes were started, {wanted} are wanted", path="--devices", fix=fix)
        return False
    if config.nodes > 1:
        fix = "start the same command on every node with torchrun, or with srun, a task for each device"
        raise InputError("processes on other nodes cannot be started from here", path="--nodes", fix=fix)
    return wanted > 1


def _started(wanted: int) -> int:
    if dist.is_initialized():
        return dist.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun
        return int(os.environ["WORLD_SIZE"])
    # A job's own script has these variables too, without being one of the tasks
    tasks = int(os.environ.get("SLURM_NTASKS", "1")) if SLURMEnvironment.detect() else 1
    return tasks if tasks == wanted else 1


def check_devices(config: TrainConfig, device: str) -> None:
    """Refuse more processes than there are devices.

    Raises
    ------
    InputError
        Fewer GPUs, or a kind of device that processes cannot share.
    """
    if config.devices * config.nodes == 1:
        return
    if device not in {"cpu", "cuda"}:
        raise InputError(f"{device!r} cannot be several devices", path="--device", fix="cuda, cpu or auto")
    if device == "cuda" and torch.cuda.device_count() < config.devices:
        there = torch.cuda.device_count()
        raise InputError(f"{config.devices} wanted, {there} GPUs are there", path="--devices", fix="take fewer")
    cores = os.cpu_count() or 1
    if device == "cpu" and config.devices > max(_FEW, cores):
        raise InputError(f"{config.devices} wanted, {cores} processors are there", path="--devices", fix="take fewer")


def start(function: Callable[..., object], arguments: tuple[Any, ...], *, count: int, device: str) -> None:
    """Run a function in ``count`` processes on this machine, which know of one another; return when all have ended.

    The processes are made afresh (nothing of this one's state is in them), so a script that calls this must guard its
    own start by ``if __name__ == "__main__"``. When one fails, the others are ended.

    Raises
    ------
    HescribeError
        What the failing process raised.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    errors = mp.get_context("spawn").SimpleQueue()
    logger = logging.getLogger("hescribe")
    level = logger.level if logger.handlers else None
    try:
        mp.spawn(_run, args=(function, arguments, _Start(count, store.port, device, level), errors), nprocs=count)
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as failure:
        if not errors.empty():
            kind, message = errors.get()
            raise kind(message) from None
        if isinstance(failure, mp.ProcessExitedException):
            raise HescribeError(f"{failure}; run the same command again to continue") from failure
        raise


class _Start(NamedTuple):
    """What a process is told by the one that starts it."""

    world: int
    port: int
    device: str
    log_level: int | None


def _run(rank: int, function: Callable[..., object], arguments: tuple[Any, ...], how: _Start, errors: Any) -> None:
    # An end asked for by the starting process too must remove what is half-written
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": how.world}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(how.port)})
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name is not always known to it
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // how.world))
    if how.log_level is not None:
        _log_lines(how.log_level)
    try:
        store = dist.TCPStore("127.0.0.1", how.port, is_master=False)
        _join(how.device, {"store": store, "rank": rank, "world_size": how.world})
        function(*arguments)
    except HescribeError as error:
        kinds = (DivergedError, InputError, HescribeError)  # all made of one text
        errors.put((next(k for k in kinds if isinstance(error, k)), str(error)))
        sys.exit(2)


def _log_lines(level: int) -> None:
    """As the command line logs: one clean line a message."""
    logger = logging.getLogger("hescribe")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(level)
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", HescribeWarning)
    warnings.showwarning = lambda message, *_, **__: logger.warning(f"warning: {message}")


def join(config: TrainConfig, device: str) -> None:
    """Join the other processes, where some were started and this has not joined yet."""
    if config.devices * config.nodes == 1 or dist.is_initialized():
        return
    if "RANK" not in os.environ:
        slurm = SLURMEnvironment(auto_requeue=False)
        numbers = {
            "RANK": slurm.global_rank(),
            "LOCAL_RANK": slurm.local_rank(),
            "GROUP_RANK": slurm.node_rank(),
            "WORLD_SIZE": slurm.world_size(),
            "MASTER_ADDR": slurm.main_address,
            "MASTER_PORT": slurm.main_port,
        }
        os.environ.update({name: str(value) for name, value in numbers.items()})
    _join(device, {"init_method": "env://"})


def _join(device: str, others: dict[str, Any]) -> None:
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=_PATIENCE, **others)
    atexit.register(_leave)
    if not is_first():
        logging.getLogger("hescribe").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process, where several share a machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and share().world > 1 else device


def placement(config: TrainConfig, device: str) -> dict[str, Any]:
    """Where Lightning's Trainer runs."""
    kind, _, number = device.partition(":")
    accelerator = "gpu" if kind == "cuda" else kind
    if share().world == 1:
        return {"accelerator": accelerator, "devices": [int(number)] if number else 1}
    return {
        "accelerator": accelerator,
        "devices": config.devices,
        "num_nodes": config.nodes,
        # An encoder may have weights that no loss reaches; the methods' own parts have none
        "strategy": DDPStrategy(
            find_unused_parameters=config.fine_tune and config.strategy == "auto", timeout=_PATIENCE
        ),
        "plugins": [TorchElasticEnvironment()],  # says: the processes are there, their numbers are in the environment
        "use_distributed_sampler": False,  # batches are dealt out by our own
    }
