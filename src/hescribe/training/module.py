"""The one LightningModule: whatever the method, its named losses are summed and minimised."""

from __future__ import annotations

from typing import Any, NoReturn

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hescribe.errors import DivergedError
from hescribe.methods.base import Batch, JointModel, Optimisation, RegressionModel
from hescribe.training.inputs.augment import jitter_stain, random_symmetry, random_view


class Agreement:
    """Correlation of each gene within sections, of predictions that come batch by batch; only sums are kept."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def update(self, predicted: Tensor, truth: Tensor, section: Tensor) -> None:
        """(n, g), (n, g) and (n,) index of the section."""
        for index in section.unique().tolist():
            p, t = (values[section == index].double() for values in (predicted, truth))
            parts = torch.stack([torch.ones_like(p).sum(0), *(v.sum(0) for v in (p, t, p * p, t * t, p * t))])
            self._sums[index] = self._sums.get(index, 0) + parts

    def take(self) -> Tensor:
        """Mean over genes that vary in a section, then over sections; what is predicted constant counts 0. Empties."""
        means = []
        for n, p, t, pp, tt, pt in self._sums.values():
            spread_p, spread_t = pp - p * p / n, tt - t * t / n
            varies = spread_t > 1e-9 * tt
            together = (pt - p * t / n) / (spread_p * spread_t).clamp_min(1e-30).sqrt()
            means.append(torch.where(spread_p > 1e-9 * pp, together, 0.0)[varies].mean())
        self._sums.clear()
        return torch.stack(means).nanmean()


class Training(L.LightningModule):
    """Training of any model that has ``losses``.

    Parameters
    ----------
    model
        The model.
    optimisation
        Learning rate and its course, weight decay, averaging of weights.
    stain_jitter
        Strength of stain augmentation, on images.
    seed
        Of the augmentation.
    any_turn
        Turn and crop images freely, instead of by the symmetries of the square alone.
    """

    def __init__(
        self, model: nn.Module, optimisation: Optimisation, *, stain_jitter: float, seed: int, any_turn: bool = False
    ) -> None:
        super().__init__()
        self.model: JointModel = model  # type: ignore[assignment]
        self._optimisation = optimisation
        decay = optimisation.average
        # Part of the state, hence of every checkpoint
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        if self.average is not None:
            self.average.requires_grad_(requires_grad=False)  # several processes would wait for its gradients
        self._jitter = stain_jitter
        self._seed = seed
        self._augment = random_view if any_turn else random_symmetry
        self._agreement = Agreement()

    def on_fit_start(self) -> None:
        """Deterministic algorithms are on; what torch does besides, filling memory before it is written, is not needed."""
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch makes it a property of the module

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Sum of the named losses on an augmented batch."""
        # Dropout draws from the global generator; seeded by epoch and batch, a resumed run draws what an
        # uninterrupted one would. Processes must not all draw the same for their different spots
        rank = (self.global_rank,) if self.global_rank else ()
        draw = hash((self._seed, self.current_epoch, index, *rank)) % 2**63
        torch.manual_seed(draw)
        return self._log_losses(self.model, self._augmented(batch, draw), "train")

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the running mean of the weights."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def on_train_epoch_end(self) -> None:
        """Refuse to go on once a loss is no finite number: it never becomes one again."""
        told = self.trainer.callback_metrics
        if not all(torch.isfinite(told[name]) for name in ("train_loss", "validation_loss") if name in told):
            self._refuse(f"the loss is no finite number in epoch {self.current_epoch + 1}")

    def check_weights(self) -> None:
        """Refuse weights that the very last step made infinite.

        Raises
        ------
        DivergedError
            There are such.
        """
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            self._refuse("the last step has made weights that are no finite numbers")

    def _refuse(self, what: str) -> NoReturn:
        rate = self._optimisation.learning_rate
        raise DivergedError(what, path="--learning-rate", fix=f"take a lower one than {rate:g}")

    def keep_average(self) -> None:
        """Give the model the averaged weights, where there are such."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())

    def validation_step(self, batch: Batch, index: int) -> Tensor:
        """The same on a held-out batch, as it is, by the weights that would be kept."""
        model: Any = self.model if self.average is None else self.average.module
        if isinstance(model, RegressionModel):
            self._agreement.update(model.predict_expression(batch.images), batch.expression, batch.section)
        return self._log_losses(model, batch, "validation")

    def on_validation_epoch_end(self) -> None:
        """Of a regression, how well the maps of held-out sections are told."""
        if isinstance(self.model, RegressionModel):
            self.log("validation_correlation", self._agreement.take().float(), sync_dist=True)

    def _augmented(self, batch: Batch, draw: int) -> Batch:
        if batch.images.ndim != 4:
            return batch
        generator = torch.Generator().manual_seed(draw)
        images = self._augment(batch.images, generator)
        if self._jitter > 0:
            images = jitter_stain(images, self._jitter, generator)
        # Convolutions run up to twice as fast on a CPU in this layout, and on a GPU in half precision
        return batch._replace(images=images.contiguous(memory_format=torch.channels_last))

    def _log_losses(self, model: JointModel, batch: Batch, split: str) -> Tensor:
        terms = model.losses(batch)
        total = torch.stack(list(terms.values())).sum()
        values = {f"{split}_loss": total, **{f"{split}_{name}": value for name, value in terms.items()}}
        self.log_dict(
            values, batch_size=len(batch.section), on_step=False, on_epoch=True, prog_bar=False, sync_dist=True
        )
        return total

    def configure_optimizers(self) -> Any:
        """AdamW, at a constant rate as BLEEP or along a cosine as CMRCNet.

        The cosine is as long as the method's whole course, also where fewer epochs are run: a rate that fell to its
        end within them would not be the one by which their number was chosen.
        """
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        settings = self._optimisation
        # One pass over each parameter instead of six: a third of a step where the genes are many
        optimiser = torch.optim.AdamW(
            trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        if settings.final_learning_rate is None:
            return optimiser
        lowest = min(settings.final_learning_rate, settings.learning_rate)  # a lower rate asked for does not rise
        schedule = CosineAnnealingLR(optimiser, T_max=settings.epochs, eta_min=lowest)
        return {"optimizer": optimiser, "lr_scheduler": schedule}
