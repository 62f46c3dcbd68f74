"""The one LightningModule: whatever the method, its named losses are summed and minimised."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from hescribe.methods.base import Batch, JointModel, Optimisation
from hescribe.training.inputs.augment import jitter_stain, random_symmetry


class Training(L.LightningModule):
    """Training of any model that has ``losses``.

    Parameters
    ----------
    model
        The model.
    optimisation
        Learning rate and weight decay.
    stain_jitter
        Strength of stain augmentation, on images.
    seed
        Of the augmentation.
    """

    def __init__(self, model: nn.Module, optimisation: Optimisation, *, stain_jitter: float, seed: int) -> None:
        super().__init__()
        self.model: JointModel = model  # type: ignore[assignment]
        self._optimisation = optimisation
        self._jitter = stain_jitter
        self._seed = seed

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Sum of the named losses on an augmented batch."""
        # Dropout draws from the global generator; seeded by epoch and batch, a resumed run draws what an
        # uninterrupted one would
        draw = hash((self._seed, self.current_epoch, index)) % 2**63
        torch.manual_seed(draw)
        return self._log_losses(self._augmented(batch, draw), "train")

    def validation_step(self, batch: Batch, index: int) -> Tensor:
        """The same on a held-out batch, as it is."""
        return self._log_losses(batch, "validation")

    def _augmented(self, batch: Batch, draw: int) -> Batch:
        if batch.images.ndim != 4:
            return batch
        generator = torch.Generator().manual_seed(draw)
        images = random_symmetry(batch.images, generator)
        if self._jitter > 0:
            images = jitter_stain(images, self._jitter, generator)
        # Convolutions run up to twice as fast on a CPU in this layout, and on a GPU in half precision
        return batch._replace(images=images.contiguous(memory_format=torch.channels_last))

    def _log_losses(self, batch: Batch, split: str) -> Tensor:
        terms = self.model.losses(batch)
        total = torch.stack(list(terms.values())).sum()
        values = {f"{split}_loss": total, **{f"{split}_{name}": value for name, value in terms.items()}}
        self.log_dict(
            values, batch_size=len(batch.section), on_step=False, on_epoch=True, prog_bar=False, sync_dist=True
        )
        return total

    def configure_optimizers(self) -> Any:
        """AdamW at a constant rate, as BLEEP."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        settings = self._optimisation
        return torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay)
