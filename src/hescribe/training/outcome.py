"""What training by gradient descent leaves in its folder: the best weights, its history, how many epochs it took."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import nn

from hescribe import keys
from hescribe.io.store import write_atomically
from hescribe.training.module import Training


def is_done(folder: Path) -> bool:
    """Whether a fit has ended there."""
    return (folder / "done.json").is_file()


def take_outcome(folder: Path, model: nn.Module) -> tuple[pd.DataFrame, int]:
    """Give a model the weights that a fit has left; returns its history and its best epoch."""
    model.load_state_dict(load_file(folder / "best.safetensors"))
    history = pd.read_csv(folder / "history.csv", float_precision="round_trip")
    return history, int(json.loads((folder / "done.json").read_text())["epochs"])


def restore_best(module: Training, keeper: ModelCheckpoint, fixed: int | None) -> int:
    """Load the weights of the best epoch; without held-out spots the last epoch is taken."""
    best = fixed
    if best is None:
        # Written by this very run; weights_only refuses anything but tensors and numbers
        checkpoint = torch.load(keeper.best_model_path, map_location="cpu", weights_only=True)
        module.load_state_dict(checkpoint["state_dict"])
        best = int(checkpoint["epoch"]) + 1
    module.keep_average()
    return best


def mark_done(folder: Path, model: nn.Module, *, best: int) -> None:
    """Write the outcome; what is there last says that the rest is whole."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    with write_atomically(folder / "best.safetensors") as path:
        save_file(state, path)
    _read_log(folder / "csv" / "metrics.csv").to_csv(folder / "history.csv", index=False)
    with write_atomically(folder / "done.json") as path:
        path.write_text(json.dumps({"epochs": best, "schema": keys.SCHEMA_VERSION}))


def no_history() -> pd.DataFrame:
    """Of what is solved, not trained."""
    return pd.DataFrame({"epoch": pd.Series(dtype=int), "split": "", "metric": "", "value": pd.Series(dtype=float)})


def _read_log(path: Path) -> pd.DataFrame:
    """Lightning's wide CSV as a long table: epoch, split, metric, value."""
    wide = pd.read_csv(path)
    names = [c for c in wide.columns if c.startswith(("train_", "validation_"))]
    long = wide.melt(id_vars="epoch", value_vars=names, value_name="value").dropna()
    parts = long["variable"].str.split("_", n=1, expand=True)
    return pd.DataFrame(
        {"epoch": long["epoch"].astype(int), "split": parts[0], "metric": parts[1], "value": long["value"]}
    )
