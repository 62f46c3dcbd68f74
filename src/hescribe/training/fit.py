"""Fitting one model to some rows of the training data; the only place that runs Lightning."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from scipy import sparse
from torch import nn

from hescribe.encoders import Described, Encoder, Extraction, MeanOfTokens, TokenTower, describe_tiles
from hescribe.encoders.extract import tile_stack, token_stack
from hescribe.errors import HescribeError
from hescribe.evaluation.splits import patient_key
from hescribe.inference.predictors import Head, RegressionHead, in_blocks, retrieval_head
from hescribe.methods.base import (
    ClosedForm,
    JointModel,
    LearnsPrototypes,
    MethodConfig,
    Optimisation,
    RegressionModel,
    Shapes,
    Unpaired,
)
from hescribe.methods.layers import Standardise
from hescribe.reference import Reference
from hescribe.sections import Section
from hescribe.training import processes
from hescribe.training.config import TrainConfig
from hescribe.training.inputs.batches import SeededShuffle, Spots, ordered_loader, training_loader
from hescribe.training.inputs.data import TrainingData, check_features
from hescribe.training.inputs.harmony import harmonise
from hescribe.training.inputs.unpaired import UnpairedData
from hescribe.training.memory import keep_freed_memory
from hescribe.training.module import Training
from hescribe.training.outcome import is_done, mark_done, no_history, restore_best, take_outcome
from hescribe.training.prototypes import Prototypes
from hescribe.types import Context, Features, SparseExpression

Rows = npt.NDArray[np.intp]


class _Targets(NamedTuple):
    """(n, g) ``expression``, and (n, p) ``inputs`` of a joint model's expression side: the panel, or scGPT vectors."""

    expression: SparseExpression
    inputs: SparseExpression


@dataclass(frozen=True)
class Fitted:
    """A model fitted to some rows.

    Attributes
    ----------
    model
        Tower removed.
    encoder
        With the trained weights, where it was fine-tuned.
    reference
        For joint models.
    features, colours
        (len(rows), d), (len(rows), 9) of the tiles it was fitted to, without their surroundings.
    epochs
        Epochs until the best held-out loss (or as many as were run).
    history
        Long table: epoch, split, metric, value.
    """

    model: JointModel | RegressionModel
    encoder: Encoder
    reference: Reference | None
    features: Features
    colours: Features
    epochs: int
    history: pd.DataFrame

    def head(self, config: MethodConfig, extraction: Extraction, device: str, *, patient: int | None) -> Head:
        """Features → expression."""
        if isinstance(self.model, JointModel):
            assert self.reference is not None  # noqa: S101 - a joint model is always fitted with one
            return retrieval_head(self.model, self.reference, config, (self.encoder, extraction), device=device)
        return RegressionHead(self.model, device, patient)


def extraction_of(config: TrainConfig, method_config: MethodConfig) -> Extraction:
    """How a run's features are computed."""
    context = getattr(method_config, "context", Context())
    views = config.views or config.method_row().views
    return Extraction(config.tile_um, views, config.extraction_batch, config.precision, context)


@dataclass(frozen=True)
class Fitter:
    """What stays the same over all fits of a run.

    Attributes
    ----------
    data
        Training data.
    config
        Settings of the run; ``method_config`` those of the method.
    encoder
        As loaded.
    device
        Torch device.
    fewest
        Spots of the smallest fit, by which the batches of all are sized: epochs are counted in fits without some
        sections, and an epoch of the last one should not be fewer or other steps.
    cell_types
        Compositions of the training data's spots, where they are known.
    unpaired
        Transcriptomes without image, for a method that learns from them.
    embedding
        (n, d) scGPT vectors of the spots, where the method works on them in place of the panel.
    """

    data: TrainingData
    config: TrainConfig
    method_config: MethodConfig
    encoder: Encoder
    device: str
    fewest: int
    cell_types: pd.DataFrame | None = None
    unpaired: UnpairedData | None = None
    embedding: Features | None = None

    @property
    def extraction(self) -> Extraction:
        """How features are computed."""
        return extraction_of(self.config, self.method_config)

    def describe(self, encoder: Encoder) -> Described:
        """Features of all training spots; kept on disk only for an encoder that others will use too."""
        reusable = encoder.identity == self.encoder.identity

        def describe(section: Section) -> Described:
            return describe_tiles(section.tiles(), encoder, self.extraction, device=self.device, use_cache=reusable)

        sections = self.data.sections
        parts = processes.dealt(sections, describe) if reusable else [describe(s) for s in sections]
        for section, part in zip(sections, parts, strict=True):
            check_features(part.full, section, encoder.name)
        return Described(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def fit(
        self, rows: Rows, held_out: Rows, *, panel: npt.NDArray[np.bool_], folder: Path, epochs: int | None = None
    ) -> Fitted:
        """Fit to ``rows``; stop by the loss on ``held_out`` (which may be empty).

        Parameters
        ----------
        rows, held_out
            Rows of the training data.
        panel
            (g,) mask of the genes the embedding is learned on.
        folder
            For logs and checkpoints; a run that was interrupted continues from there.
        epochs
            A fixed number, instead of the method's own with early stopping.
        """
        method = self.config.method_row()
        targets = self._targets(rows, panel)
        shapes = Shapes(
            self.extraction.context.width(self.encoder.width), targets.inputs.shape[1], targets.expression.shape[1]
        )
        # Before the module is made, so that its first weights depend on the seed alone
        L.seed_everything(self.config.seed, workers=True, verbose=False)
        model = method.build(self._tower(), shapes, self.method_config)
        if isinstance(model, ClosedForm):
            if isinstance(model, RegressionModel) and (others := self._without_image(held_out)) is not None:
                expression = others.on_scale_of(targets.expression[rows])
                model.add_unpaired(Unpaired(expression, others.source, others.measured))
            model.solve(self.describe(self.encoder).full[rows], targets.expression[rows], self.data.origin.at(rows))
            return self._finish(model, targets, rows, (no_history(), 0))
        prototypes = None
        if isinstance(model, LearnsPrototypes):
            prototypes = self.prototypes(rows, held_out, panel=panel)
            prototypes.learn(model, seed=self.config.seed)
        if isinstance(model.tower, Standardise):
            model.tower.learn(torch.from_numpy(self.describe(self.encoder).full[rows]))
        wanted = targets.inputs if isinstance(model, JointModel) else targets.expression
        if isinstance(model, RegressionModel):
            model.start_from(torch.from_numpy(np.asarray(wanted[rows].mean(axis=0), dtype=np.float32).ravel()))
        outcome = self._descend(model, wanted, (rows, held_out), folder=folder, epochs=epochs)
        return self._finish(model, targets, rows, outcome, prototypes=prototypes)

    def _tower(self) -> nn.Module:
        """What turns a batch's images into features: the encoder, or nothing but scaling where it is frozen."""
        if not self.config.fine_tune:
            return Standardise(self.extraction.context.width(self.encoder.width))
        keep_freed_memory()
        module = copy.deepcopy(self.encoder.module).to(memory_format=torch.channels_last)
        return TokenTower(module) if isinstance(module, MeanOfTokens) else module

    def _targets(self, rows: Rows, panel: npt.NDArray[np.bool_]) -> _Targets:
        expression = self.data.expression
        if getattr(self.method_config, "harmony", False):
            expression = harmonise(expression, self.data.section, rows=rows, panel=panel, seed=self.config.seed)
        inputs = expression[:, panel] if self.embedding is None else sparse.csr_matrix(self.embedding)
        return _Targets(expression, inputs)

    def _without_image(self, held_out: Rows) -> UnpairedData | None:
        """Transcriptomes of patients of whom nothing is held out."""
        if self.unpaired is None:
            return None
        return self.unpaired.without(
            {patient_key(self.data.sections[i].patient_id) for i in np.unique(self.data.section[held_out])}
        )

    def prototypes(self, rows: Rows, held_out: Rows, *, panel: npt.NDArray[np.bool_]) -> Prototypes:
        """What prototypes are learned from."""
        targets = self._targets(rows, panel)
        return Prototypes(
            expression=targets.expression[rows],
            inputs=targets.inputs[rows],
            origin=self.data.origin.at(rows),
            genes=tuple(self.data.genes.index),
            without_image=self._without_image(held_out),
            panel=None if self.embedding is not None else panel,
            transfer=getattr(self.method_config, "transfer", False),
            cell_types=None if self.cell_types is None else self.cell_types.iloc[rows],
        )

    def _finish(
        self,
        model: nn.Module,
        targets: _Targets,
        rows: Rows,
        outcome: tuple[pd.DataFrame, int],
        *,
        prototypes: Prototypes | None = None,
    ) -> Fitted:
        """Part model and tower, and build the reference from the fitted rows; held-out truth is never in it."""
        encoder = self.encoder
        if self.config.fine_tune:
            tower = model.tower.pooled if isinstance(model.tower, TokenTower) else model.tower
            encoder = encoder.with_module(tower)  # type: ignore[arg-type]
            model.tower = Standardise(encoder.width)
        described = self.describe(encoder)
        history, best = outcome
        reference = None
        if prototypes is not None:
            reference = prototypes.reference(model.cpu().eval())  # type: ignore[arg-type]
        elif isinstance(model, JointModel):
            key = self.method_config.retrieval.key  # type: ignore[attr-defined]
            if key == "expression":
                embedding = in_blocks(model.embed_expression, model, targets.inputs[rows].toarray(), self.device)
            else:
                embedding = in_blocks(model.embed_images, model, described.full[rows], self.device)
            genes = tuple(self.data.genes.index)
            known = None if self.cell_types is None else self.cell_types.iloc[rows]
            reference = Reference(embedding, targets.expression[rows], genes, self.data.obs().iloc[rows], known)
        features, colours = described.plain[rows], described.colours[rows]
        return Fitted(model.cpu(), encoder, reference, features, colours, best, history)  # type: ignore[arg-type]

    def _descend(
        self,
        model: nn.Module,
        expression: SparseExpression,
        rows: tuple[Rows, Rows],
        *,
        folder: Path,
        epochs: int | None,
    ) -> tuple[pd.DataFrame, int]:
        """Train by gradient descent, unless that is done; returns the history and the number of the best epoch."""
        if not processes.agreed(fact=is_done(folder)):
            self._train(model, expression, rows, folder=folder, epochs=epochs)
            processes.wait()
        return take_outcome(folder, model)

    def _train(
        self,
        model: nn.Module,
        expression: SparseExpression,
        rows: tuple[Rows, Rows],
        *,
        folder: Path,
        epochs: int | None,
    ) -> None:
        """Train by gradient descent and leave the best weights, the history and the epoch in the folder."""
        fitting, held_out = rows
        optimisation: Optimisation = self.method_config.optimisation  # type: ignore[attr-defined]
        frozen = self.config.freeze(model.tower) if self.config.fine_tune else []  # type: ignore[arg-type]
        spots = Spots(self._images(), expression, self.data.section)
        most = epochs or optimisation.epochs
        any_turn = getattr(self.method_config, "augmentation", None) == "any turn"
        module = Training(
            model, optimisation, stain_jitter=self.config.stain_jitter, seed=self.config.seed, any_turn=any_turn
        )
        # Squared error on another section is ruled by how deep it was sequenced; whether the map is right is not
        watched = "validation_correlation" if isinstance(model, RegressionModel) else "validation_loss"
        trainer, keeper = self._trainer(
            folder, most, watched=watched if len(held_out) else None, patience=optimisation.patience
        )
        size, seed = optimisation.batch_for(self.fewest), self.config.seed
        loader = training_loader(spots, SeededShuffle(fitting, size, seed, part=processes.share()), device=self.device)
        # Every process validates on all of it: a contrastive loss over parts would be another number
        validation = ordered_loader(spots, held_out, batch_size=512, device=self.device) if len(held_out) else None
        last = folder / "checkpoints" / "last.ckpt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice on workers and logging steps
            resumed = str(last) if processes.agreed(fact=last.is_file()) else None
            # Lightning keeps each module's mode, and an encoder comes in evaluation mode: its batch statistics
            # would stay those of ImageNet and the embedding would collapse
            module.train()
            for part in frozen:
                part.eval()
            trainer.fit(module, loader, validation, ckpt_path=resumed, weights_only=True)
        if trainer.interrupted:
            raise HescribeError(f"interrupted; run the same command again to continue from {folder}")
        if processes.is_first():
            best = restore_best(module, keeper, most if not len(held_out) else None)
            module.check_weights()
            mark_done(folder, model, best=best)

    def _images(self) -> list[npt.NDArray[np.generic]]:
        if self.config.fine_tune:
            size = self.encoder.input_px
            tile_um = self.config.tile_um
            return [*processes.dealt(self.data.sections, lambda s: tile_stack(s.tiles(), tile_um, size))]
        if getattr(self.method_config, "tokens", False):
            how, device = self.extraction, self.device
            made = processes.dealt(
                self.data.sections, lambda s: token_stack(s.tiles(), self.encoder, how, device=device)
            )
            return [*made]
        features = self.describe(self.encoder).full
        return [features[self.data.section == i] for i in range(len(self.data.sections))]

    def _trainer(
        self, folder: Path, epochs: int, *, watched: str | None, patience: int
    ) -> tuple[L.Trainer, ModelCheckpoint]:
        mode = "max" if watched == "validation_correlation" else "min"
        keeper = ModelCheckpoint(
            folder / "checkpoints",
            filename="best",
            monitor=watched,
            mode=mode,
            save_last=True,
            save_top_k=1 if watched else 0,  # else the last epoch is taken
        )
        callbacks: list[Callback] = [keeper]
        if watched:
            callbacks.append(EarlyStopping(watched, patience=patience, mode=mode, check_finite=True))
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        trainer = L.Trainer(
            **processes.placement(self.config, self.device),
            max_epochs=epochs,
            precision="bf16-mixed" if self.config.precision == "bf16" else "32-true",
            logger=[
                CSVLogger(folder, name="csv", version=""),
                TensorBoardLogger(folder, name="tensorboard", version=""),
            ],
            callbacks=callbacks,
            deterministic=True,
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
        )
        return trainer, keeper
