"""What training costs beyond the network: an epoch on frozen features, and fine-tuning against its bare steps.

    python benchmarks/training.py [--encoder timm:mobilenetv1_100] [--batch 64] [--steps 20] [--device cpu]

Fine-tuning: images a second through our loader (tiles on disk), augmentation, loss and Lightning, divided by those of
bare forward, backward and optimiser steps on batches that are in memory, of the same model, batch and precision. Both
are timed in turns, several times; the best of each counts. ``--clock cpu`` counts the process's own seconds, which
others on the machine hardly change, but which leave waiting for a disk out. Weights are random and tiles are noise.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import timm
import torch
from scipy import sparse
from torch import nn

from hescribe.encoders.record import IMAGENET_MEAN, IMAGENET_STD, Normalised
from hescribe.methods import METHODS
from hescribe.methods.base import Shapes
from hescribe.methods.layers import Standardise
from hescribe.training.inputs.batches import Images, SeededShuffle, Spots, training_loader
from hescribe.training.memory import keep_freed_memory
from hescribe.training.module import Training

PANEL = 1000


class Clock(L.Callback):
    """Seconds of all steps but the first ones, which warm up."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.start, self.seconds = args.device, 0.0, 0.0
        self.read = time.process_time if args.clock == "cpu" else time.perf_counter

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.read()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 2:
            self.start = self.now()

    def on_train_epoch_end(self, *_: object) -> None:
        self.seconds = self.now() - self.start


def spots_of(images: Images) -> Spots:
    expression = sparse.random(len(images), PANEL, density=0.2, format="csr", dtype=np.float32, random_state=0)
    return Spots([images], expression, np.zeros(len(images), dtype=np.intp))


def training(tower: nn.Module, width: int) -> Training:
    method = METHODS["bleep"]
    config = method.config()
    model = method.build(tower, Shapes(width, PANEL, PANEL), config)
    return Training(model, config.optimisation, stain_jitter=0.0, seed=0).train()  # type: ignore[attr-defined]


def ours(module: Training, spots: Spots, args: argparse.Namespace) -> float:
    """Spots a second through what ``fit`` runs."""
    clock = Clock(args)
    trainer = L.Trainer(
        accelerator="gpu" if args.device == "cuda" else "cpu",
        devices=1,
        max_epochs=1,
        precision="bf16-mixed" if args.precision == "bf16" else "32-true",
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        deterministic=True,
    )
    loader = training_loader(spots, SeededShuffle(np.arange(len(spots)), args.batch, 0), device=args.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader)
    return (len(loader) - 2) * args.batch / clock.seconds


def bare(module: Training, spots: Spots, args: argparse.Namespace) -> float:
    """Spots a second with nothing to load, draw or log."""
    model = module.model.to(args.device)
    kept = [spots.__getitems__(list(range(i * args.batch, (i + 1) * args.batch))) for i in range(2)]
    kept = [b._replace(images=b.images.contiguous(memory_format=torch.channels_last)) for b in kept]
    batches = [type(b)(*(values.to(args.device) for values in b)) for b in kept]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    clock = Clock(args)
    for step in range(args.steps):
        if step == 2:
            start = clock.now()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            loss = torch.stack(list(model.losses(batches[step % 2]).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return (args.steps - 2) * args.batch / (clock.now() - start)


def in_turns(rounds: int, *timed: Callable[[], float]) -> list[float]:
    """The best of each; neighbours in time see the same load of the machine."""
    return [max(column) for column in zip(*([one() for one in timed] for _ in range(rounds)), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="timm:mobilenetv1_100", help="or timm:resnet50")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spots", type=int, default=20_000, help="of the epoch on frozen features")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a machine that others use too"
    )
    args = parser.parse_args()
    keep_freed_memory()
    rng = np.random.default_rng(0)
    features = rng.standard_normal((args.spots, 2048), dtype=np.float32)
    frozen = argparse.Namespace(**{**vars(args), "batch": 512})
    rate = ours(training(Standardise(2048), 2048), spots_of(features), frozen)
    print(f"frozen features, 2048 wide: {args.spots / rate:.1f} s an epoch of {args.spots:,} spots ({rate:,.0f}/s)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiles.npy"
        np.save(path, rng.integers(0, 256, (args.batch * args.steps, args.side, args.side, 3), dtype=np.uint8))
        os.sync()
        spots = spots_of(np.load(path, mmap_mode="r"))
        backbone = timm.create_model(args.encoder.removeprefix("timm:"), num_classes=0)
        tower = Normalised(backbone, mean=IMAGENET_MEAN, std=IMAGENET_STD).to(memory_format=torch.channels_last)
        module = training(tower, backbone.num_features)
        whole, steps = in_turns(
            args.rounds, lambda: ours(module, spots, args), lambda: bare(module.to(args.device), spots, args)
        )
    print(f"fine-tuning {args.encoder}: {whole:.1f} images/s, bare {steps:.1f}, ratio {whole / steps:.3f}")


if __name__ == "__main__":
    main()
