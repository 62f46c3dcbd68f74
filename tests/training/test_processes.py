"""Several processes that train one model: the same outcome as one process has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import nn

from hescribe.datasets.synthetic import make_synthetic
from hescribe.errors import HescribeError, InputError
from hescribe.inference import load_bundle, predict
from hescribe.methods import METHODS
from hescribe.methods.base import Batch, LearnsPrototypes, Origin, Shapes
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, processes, train
from hescribe.training.inputs.batches import SeededShuffle

D, PANEL, ROWS = 6, 5, 12
#: without anything drawn at random, as processes draw otherwise than one would
CALM = {
    "bleep": {"dropout": 0, "gather": True},
    "cmrcnet": {"dropout": 0, "mask_ratio": 0},
    "carhe-clip": {"dropout": 0},
    "carhe": {"dropout": 0},
}


@given(rows=st.integers(8, 60), size=st.integers(8, 30), world=st.integers(1, 4), epoch=st.integers(0, 3))
@settings(deadline=None)
def test_parts_make_the_whole_batch_in_order(rows: int, size: int, world: int, epoch: int) -> None:
    """Also in an epoch that a resumed run begins with."""
    parts = [SeededShuffle(np.arange(rows), size, 3, part=(rank, world)) for rank in range(world)]
    rounded = min(size, rows) // world * world
    one = SeededShuffle(np.arange(rows), rounded, 3)
    for sampler in (one, *parts):
        sampler.set_epoch(epoch)
    dealt = list(zip(*parts, strict=True))
    assert [[row for part in shares for row in part] for shares in dealt] == list(one)
    assert {len(part) for shares in dealt for part in shares} == {rounded // world}


def test_too_few_spots_for_the_processes_are_refused() -> None:
    with pytest.raises(InputError, match="3 spots for 2 processes"):
        SeededShuffle(np.arange(3), 8, 0, part=(0, 2))


def test_alone_there_is_nothing_to_wait_for() -> None:
    assert processes.share() == (0, 1)
    assert processes.is_first()
    assert not processes.agreed(fact=False)
    assert processes.dealt([1, 2, 3], lambda x: x * x) == [1, 4, 9]


@pytest.mark.parametrize(
    ("wanted", "environment", "message"),
    [
        ({"nodes": 2}, {}, "other nodes cannot be started from here"),
        ({"devices": 2}, {"RANK": "0", "WORLD_SIZE": "4"}, "4 processes were started, 2 are wanted"),
        ({}, {"RANK": "0", "WORLD_SIZE": "4"}, "4 processes were started, 1 are wanted"),
    ],
)
def test_other_processes_than_wanted_are_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: dict[str, int], environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        processes.must_start(TrainConfig(**wanted))


def test_tasks_of_srun_are_joined_and_a_job_script_starts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert not processes.must_start(TrainConfig(devices=2, nodes=2))
    assert processes.must_start(TrainConfig(devices=2))
    assert not processes.must_start(TrainConfig())


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be several devices"):
        processes.check_devices(TrainConfig(devices=2), "cuda:1")
    with pytest.raises(InputError, match="GPUs are there"):
        processes.check_devices(TrainConfig(devices=torch.cuda.device_count() + 2), "cuda")


def built(name: str) -> tuple[nn.Module, Batch]:
    """A model and the whole batch; the same in every process."""
    method = METHODS[name]
    rng = np.random.default_rng(0)
    expression = rng.gamma(1.0, size=(ROWS, PANEL)).astype("f")
    torch.manual_seed(0)
    optional = {"dim": 8} if "dim" in method.config.model_fields else {}
    model = method.build(nn.Identity(), Shapes(D, PANEL, PANEL), method.config(**optional, **CALM[name]))
    if isinstance(model, LearnsPrototypes):
        model.learn_prototypes(sparse.csr_matrix(expression), Origin(np.zeros(ROWS, int), np.zeros(ROWS, int)), seed=0)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.AlphaDropout):
            module.p = 0.0
    images = torch.from_numpy(rng.normal(size=(ROWS, D)).astype("f"))
    return model.train(), Batch(images, torch.from_numpy(expression), torch.zeros(ROWS, dtype=torch.int64))


def gradients(model: nn.Module, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    loss = torch.stack(list(model.losses(batch).values())).sum()
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def gathered(folder: Path) -> None:
    """Loss and gradients on a third of the batch, averaged over processes as DDP does."""
    rank, world = processes.share()
    found = {}
    for name in CALM:
        model, batch = built(name)
        own = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
        loss, grads = gradients(model, Batch(*(values[own] for values in batch)))
        for grad in grads.values():
            dist.all_reduce(grad)
            grad.div_(world)
        found[name] = (loss, grads)
        # Every process validates on everything: nothing may be gathered then
        with torch.no_grad():
            whole = torch.stack(list(model.eval().losses(batch).values())).sum()
        assert float(whole) == pytest.approx(loss, rel=1e-5)
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.slow
def test_gathered_losses_and_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    processes.start(gathered, (tmp_path,), count=3, device="cpu")
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in CALM:
            loss, grads = gradients(*built(name))
            assert found[name][0] == pytest.approx(loss, rel=1e-5), name
            assert grads.keys() == found[name][1].keys()
            for key, grad in grads.items():
                torch.testing.assert_close(found[name][1][key], grad, rtol=1e-4, atol=1e-6)


def one_fails(how: str) -> None:
    if processes.share().rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise InputError("a slide is damaged", path="slide.tif")
    processes.wait()  # the others would wait for a week


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [("refuses", InputError, "slide.tif: a slide is damaged"), ("killed", HescribeError, "SIGKILL.*run the same")],
)
def test_a_failing_process_ends_all(how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        processes.start(one_fails, (how,), count=2, device="cpu")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tissue") / "data"
    return make_synthetic(folder, n_patients=2, n_sections=1, side_um=1000, mpp=1.0, n_genes=80, seed=5)


@pytest.fixture(scope="module")
def sections(manifest: Path) -> list[Section]:
    return read_sections(manifest)


def bleep(devices: int, **options: object) -> TrainConfig:
    return TrainConfig(
        method="bleep",
        encoder="stain",
        genes="hvg:40",
        epochs=4,
        batch_size=32,
        inner_folds=1,
        device="cpu",
        devices=devices,
        options={"dropout": 0, **options},
    )


def curve(bundle: object) -> np.ndarray:
    """Losses by fold, split and epoch."""
    losses = bundle.history.query("metric == 'loss'").sort_values(["fold", "split", "epoch"])  # type: ignore[attr-defined]
    return losses["value"].to_numpy()


@pytest.mark.slow
def test_two_processes_train_as_one_does(sections: list[Section], tmp_path: Path) -> None:
    one = train(sections, bleep(1, gather=True), output=tmp_path / "one")
    two = train(sections, bleep(2, gather=True), output=tmp_path / "two")
    assert len(curve(one)) >= 6
    np.testing.assert_allclose(curve(two), curve(one), rtol=1e-4)
    weights = one.model.state_dict()
    for name, value in two.model.state_dict().items():
        # By norm: AdamW takes a whole step for a gradient that is all but zero, whichever its sign
        assert (value - weights[name]).norm() <= 1e-3 * weights[name].norm(), name
    expected = predict(one, sections[1]).X
    difference = np.abs(predict(two, sections[1]).X - expected)
    assert difference.mean() < 0.01 * expected.std()
    assert not list(tmp_path.glob(".*")), "something half-written remains"
    assert not list((tmp_path / "two.run").rglob("checkpoints"))


@pytest.mark.slow
def test_without_gathering_each_process_has_its_own_loss(sections: list[Section], tmp_path: Path) -> None:
    """As published; and parts of whole replicas are again what one process would do."""
    whole = train(sections, bleep(1), output=tmp_path / "whole")
    replicas = train(sections, bleep(1, replica_batch=16), output=tmp_path / "replicas")
    parts = train(sections, bleep(2), output=tmp_path / "parts")
    np.testing.assert_allclose(curve(parts)[:4], curve(replicas)[:4], rtol=1e-4)
    assert np.abs(curve(parts)[:4] / curve(whole)[:4] - 1).min() > 0.05


@pytest.mark.slow
def test_the_command_line_starts_processes_and_torchrun_may_start_them(manifest: Path, tmp_path: Path) -> None:
    """Whoever starts them: the same bundle, every line once."""
    given = ["train", manifest, "--method", "bleep", "--encoder", "stain", "--genes", "hvg:40", "--epochs", "2"]
    given += ["--batch-size", "32", "--inner-folds", "0", "--device", "cpu", "--devices", "2", "-O", "gather=true"]
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
    found = []
    for name, before in (("own", []), ("torchrun", torchrun)):
        command = [sys.executable, "-m", *before, "hescribe.cli.main", *given, "-o", tmp_path / name]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(": bleep") == 1
        assert done.stderr.count("fitting on all") == 1
        assert (tmp_path / f"{name}.config.yaml").is_file()
        found.append(load_bundle(tmp_path / name))
    # torchrun gives each process one thread, which rounds otherwise
    np.testing.assert_allclose(curve(found[0]), curve(found[1]), rtol=1e-6)
