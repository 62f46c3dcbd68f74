"""From sections to a bundle: inner cross-validation over whole sections, then one fit on everything."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from hescribe import keys
from hescribe.encoders import Encoder, load_encoder, mean_of_tokens, resolve_device
from hescribe.errors import DivergedError, HescribeWarning, InputError
from hescribe.evaluation.splits import inner_splits
from hescribe.inference.bundle import Bundle, load_bundle
from hescribe.inference.refine import wanted_refinement
from hescribe.inference.trust import Novelty, Trust, fit_trust, full_level
from hescribe.io.store import check_free
from hescribe.methods.base import MethodConfig, Retrieval
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.sections import Section
from hescribe.slides.tiles import SomeTiles
from hescribe.training import processes
from hescribe.training.config import TrainConfig
from hescribe.training.fit import Fitted, Fitter, Rows, extraction_of
from hescribe.training.inputs.cells import compositions
from hescribe.training.inputs.data import TrainingData, assemble
from hescribe.training.inputs.panel import choose_panel
from hescribe.training.inputs.unpaired import UnpairedData, assemble_unpaired, ready_embedding
from hescribe.types import Context, Expression, Features, PerGene
from hescribe.version import __version__

log = logging.getLogger("hescribe")


def train(sections: Sequence[Section], config: TrainConfig, *, output: str | Path) -> Bundle:
    """Learn from paired sections and write a bundle.

    Parameters
    ----------
    sections
        Rows without image are unpaired transcriptomes: `carhe` and `fusion` use them (unless ``unpaired`` is off;
        `fusion` only those with positions), the others do not. Rows without expression are not used.
    config
        Settings. With several ``devices`` processes are started on this machine (a script that calls this must guard
        its own start by ``if __name__ == "__main__"``), or this one joins those that torchrun or srun started.
    output
        Folder of the bundle. Logs and checkpoints lie beside it in ``<output>.run``; a run that was interrupted
        continues from there, and one with other settings starts afresh.

    Returns
    -------
    Bundle
        As read back from what was written.

    Raises
    ------
    InputError
        Wrong settings or sections.
    DivergedError
        The loss is no finite number; nothing is left behind.
    """
    config.method_config()  # refused before anything is started
    check_free(output, overwrite=True, like=keys.BUNDLE_CONFIG)
    output, device = Path(output), resolve_device(config.device)
    processes.check_devices(config, device)
    try:
        if processes.must_start(config):
            # Read again from their files by each process
            arguments = ([s.unread() for s in sections], config, output, device)
            processes.start(_train_here, arguments, count=config.devices, device=device)
        else:
            processes.join(config, device)
            _train_here(sections, config, output, device)
    except DivergedError:
        shutil.rmtree(_run_folder(output), ignore_errors=True)  # nobody would go on from there
        raise
    except InputError:
        _forget(_run_folder(output))
        raise
    return load_bundle(output)


def _train_here(sections: Sequence[Section], config: TrainConfig, output: Path, device: str) -> None:
    """What each process does."""
    fitter = _fitter(sections, config, processes.own_device(device))
    run = _run_folder(output)
    facts = _facts(fitter)
    if processes.is_first():
        _empty_unless_of(run, facts)
    processes.wait()
    bundle = _learn(fitter, run)
    if processes.is_first():
        bundle.save(output)
        for checkpoints in run.glob("*/checkpoints"):
            shutil.rmtree(checkpoints, ignore_errors=True)
    processes.wait()


def _fitter(sections: Sequence[Section], config: TrainConfig, device: str) -> Fitter:
    method_config = config.method_config()
    data = assemble(sections, config)
    log.info(
        "%d sections, %d spots, %d genes of which %d in the panel",
        len(data.sections), len(data.section), len(data.genes), int(data.panel.sum()),
    )  # fmt: skip
    unpaired = None
    if getattr(method_config, "unpaired", False):
        # What cells have in common is not what their mixtures have: they are for prototypes, which draw them in
        unpaired = assemble_unpaired(sections, data, config, cells=hasattr(method_config, "prototypes"))
    if unpaired is not None:
        log.info("%d transcriptomes without image, of %d sources", len(unpaired.source), len(unpaired.sections))
    encoder = _encoder(config, method_config)
    embedding = ready_embedding(data, unpaired, getattr(method_config, "gene_embedding", "learned"))
    cell_types = compositions(data.sections, [s for s in sections if s.image is None and s.has_expression])
    fewest = min([len(data.section), *(len(rows) for rows, _ in _splits(data, config))])
    _warn_of_few(config, method_config, fewest)
    fitter = Fitter(data, config, method_config, encoder, device, fewest, cell_types, unpaired, embedding)
    wanted_refinement(method_config, encoder, fitter.extraction)  # refused now, not after hours of training
    return fitter


def _warn_of_few(config: TrainConfig, method_config: MethodConfig, spots: int) -> None:
    """Say where a mean over neighbours is one over all spots: the same for every tile."""
    how = getattr(method_config, "retrieval", None)
    if not isinstance(how, Retrieval) or how.imputation != "mean" or hasattr(method_config, "prototypes"):
        return
    if how.k >= spots:
        warnings.warn(
            f"{config.method} averages over {how.k} spots and has {spots} to learn from in one of its fits: every tile "
            f"gets the same there (fewer neighbours: -O retrieval.k={max(1, spots // 5)})",
            HescribeWarning,
            stacklevel=2,
        )


def _encoder(config: TrainConfig, method_config: MethodConfig) -> Encoder:
    """As the method wants it.

    Raises
    ------
    InputError
        It cannot be had so.
    """
    # A bundle without weights, of a frozen encoder, finds it again by name alone
    encoder = load_encoder(config.encoder, seed=config.seed if config.fine_tune else 0)
    tokens = getattr(method_config, "tokens", False)
    if config.fine_tune and getattr(method_config, "context", Context()) != Context():
        raise InputError("a context is described with a frozen encoder only", path="--fine-tune", fix="leave one out")
    if config.fine_tune:
        tokens = config.method_row().tokens
    elif tokens and extraction_of(config, method_config).views > 1:
        raise InputError("the tokens of a frozen encoder are those of one view", path="--views", fix="leave it out")
    return mean_of_tokens(encoder) if tokens else encoder


def _learn(fitter: Fitter, run: Path) -> Bundle:
    data, config = fitter.data, fitter.config
    folds = [_left_out(fitter, rows, held, run / f"fold-{i}") for i, (rows, held) in enumerate(_splits(data, config))]
    epochs = int(np.median([f.fitted.epochs for f in folds])) if folds else 0
    log.info("fitting on all %d spots%s", len(data.section), f" for {epochs} epochs" if epochs else "")
    everything = np.arange(len(data.section))
    final = fitter.fit(everything, everything[:0], panel=data.panel, folder=run / "final", epochs=epochs or None)
    return _bundle(fitter, final, folds)


@dataclass(frozen=True)
class _Judged:
    """What was left out, as predicted for a known patient or for a new one."""

    residuals: Features
    pcc: list[PerGene]


@dataclass(frozen=True)
class _Fold:
    """``known`` and ``new`` where the fold can tell: a patient left out whole cannot be a known one."""

    fitted: Fitted
    novelty: npt.NDArray[np.float32]
    known: _Judged | None
    new: _Judged
    name: str


def _splits(data: TrainingData, config: TrainConfig) -> list[tuple[Rows, Rows]]:
    """Rows to learn from and rows left out: whole patients, sections of one patient, or blocks of one section.

    For a method that predicts otherwise for a known patient, sections of patients who stay are left out besides.
    """
    if config.folds == 0:
        return []
    patients, folds = [s.patient_id for s in data.sections], max(config.folds, 2)
    masks = inner_splits(patients, data.section, data.centres, max_folds=folds)[: config.folds]
    if config.method_row().knows_patients and len(np.unique(data.origin.patient)) > 1:
        masks += _of_known_patients(data, folds)[: config.folds]
    return [(np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in masks]


def _of_known_patients(data: TrainingData, folds: int) -> list[npt.NDArray[np.bool_]]:
    """Masks of sections whose patient has others, which are dealt out so that some of these always stay."""
    of_patient = [np.unique(data.section[data.origin.patient == p]) for p in np.unique(data.origin.patient)]
    sections = [int(s) for own in of_patient if len(own) > 1 for s in own]
    return [np.isin(data.section, sections[i::folds]) for i in range(min(folds, len(sections)))]


def _left_out(fitter: Fitter, rows: Rows, held: Rows, folder: Path) -> _Fold:
    """Fit without some sections and predict them."""
    data = fitter.data
    names = ", ".join(dict.fromkeys(data.sections[i].section_id for i in data.section[held]))
    log.info("inner fold: %d spots to learn from, %s left out (%d spots)", len(rows), names, len(held))
    # The panel too is chosen without the sections that are left out
    panel = choose_panel(
        fitter.config.genes,
        data.expression[rows],
        data.section[rows],
        data.genes.index,
        np.asarray((data.expression[rows] > 0).mean(axis=0)).ravel() >= fitter.config.min_detected,
    )
    fitted = fitter.fit(rows, held, panel=panel, folder=folder)
    described = fitter.describe(fitted.encoder)
    familiar = Novelty.fit(fitted.features, fitted.colours, data.origin.at(rows).group)
    novelty = familiar.percentile(described.plain[held], described.colours[held])
    patients = data.origin.patient
    stays = bool(np.isin(patients[held], patients[rows]).all())
    new = _judge(fitter, fitted, described.full, held, known_patient=False)
    known = new if stays else None
    if stays and fitter.config.method_row().knows_patients:  # others would only do the same work again
        known = _judge(fitter, fitted, described.full, held, known_patient=True)
    return _Fold(fitted, novelty, known, new, names)


def _judge(fitter: Fitter, fitted: Fitted, features: Features, held: Rows, *, known_patient: bool) -> _Judged:
    data = fitter.data
    predicted = _predict(fitter, fitted, features, held, known_patient=known_patient)
    truth = data.expression[held].toarray()
    section = data.section[held]
    pcc = [pearson_per_gene(predicted[section == s], truth[section == s]) for s in np.unique(section)]
    return _Judged(np.abs(predicted - truth), pcc)


def _predict(fitter: Fitter, fitted: Fitted, features: Features, rows: Rows, *, known_patient: bool) -> Expression:
    """Rows of the training data predicted, section by section, as a bundle would."""
    data = fitter.data
    predicted = np.empty((len(rows), len(data.genes)), dtype=np.float32)
    for number in np.unique(data.section[rows]):
        own = np.flatnonzero(data.section == number)
        here = data.section[rows] == number
        tiles = SomeTiles(data.sections[number].tiles(), np.searchsorted(own, rows[here]))
        patient = int(data.origin.patient[own[0]]) if known_patient else None
        head = fitted.head(fitter.method_config, fitter.extraction, fitter.device, patient=patient)
        # Genes that were transferred stand behind the others and have no truth
        predicted[here] = head(features[rows[here]], tiles)[:, : len(data.genes)]
    return predicted


def _bundle(fitter: Fitter, final: Fitted, folds: list[_Fold]) -> Bundle:
    data, config = fitter.data, fitter.config
    unpaired = fitter.unpaired.sections if fitter.unpaired is not None else ()
    genes = _output_genes(data, fitter.unpaired, final)
    trust, known = _trusts(folds, data, n_genes=len(genes))
    genes[keys.EXPECTED_PCC] = trust.expected_pcc if trust else np.nan
    genes[keys.INTERVAL] = trust.interval if trust else np.nan
    history = [f.fitted.history.assign(fold=f.name) for f in folds] + [final.history.assign(fold="all sections")]
    return Bundle(
        method=config.method,
        config=fitter.method_config,
        encoder=final.encoder,
        extraction=fitter.extraction,
        model=final.model,
        reference=final.reference,
        genes=genes,
        novelty=Novelty.fit(final.features, final.colours, data.origin.group),
        trust=trust,
        trust_known=known,
        history=pd.concat(history, ignore_index=True),
        provenance={
            "version": __version__,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": config.seed,
            "spots": len(data.section),
            "sections": {s.section_id: s.patient_id for s in (*data.sections, *unpaired)},
            "unpaired": [s.section_id for s in unpaired],
            "epochs": final.epochs,
            "inner_folds": [f.name for f in folds],
            "settings": config.model_dump(exclude={"device"}),
            "torch": str(torch.__version__),
        },
    )


def _output_genes(data: TrainingData, unpaired: UnpairedData | None, final: Fitted) -> pd.DataFrame:
    """Genes in the order of a prediction: the training data's, then those that were transferred."""
    genes = data.genes.assign(**{keys.TRANSFERRED: False})
    count = len(final.reference.genes) - len(genes) if final.reference is not None else 0
    if unpaired is None or count == 0:
        return genes
    return pd.concat([genes, unpaired.extra_genes.assign(**{keys.TRANSFERRED: True})])


def _trusts(folds: list[_Fold], data: TrainingData, *, n_genes: int) -> tuple[Trust | None, Trust | None]:
    """For a new patient and for a known one; NaN for the genes at the end that no paired section has."""
    new, known = _trusts_of_measured(folds, data)
    return _extended(new, n_genes), _extended(known, n_genes)


def _extended(trust: Trust | None, n_genes: int) -> Trust | None:
    if trust is None:
        return None
    beyond = np.full(n_genes - len(trust.interval), np.nan)
    return replace(
        trust,
        expected_pcc=np.concatenate([trust.expected_pcc, beyond]),
        interval=np.concatenate([trust.interval, beyond]),
    )


def _trusts_of_measured(folds: list[_Fold], data: TrainingData) -> tuple[Trust | None, Trust | None]:
    mean, patient = data.genes["mean"].to_numpy(dtype=np.float64), data.origin.patient
    staying = [(f.known, f.novelty) for f in folds if f.known is not None]
    strangers = [f for f in folds if f.known is None]
    known = _trust(staying, mean) if staying else None
    if not folds:
        return None, known
    # A few patients, and still more a single one, hardly tell how much patients differ
    new = _trust([(f.new, f.novelty) for f in strangers or folds], mean)
    of_each = [np.asarray(data.expression[patient == p].mean(axis=0)).ravel() for p in np.unique(patient)]
    return new.for_another_patient(full_level(data.expression), np.stack(of_each)), known


def _trust(judged: list[tuple[_Judged, npt.NDArray[np.float32]]], mean: PerGene) -> Trust:
    per_section = np.stack([pcc for one, _ in judged for pcc in one.pcc])
    seen = np.isfinite(per_section)
    with np.errstate(invalid="ignore"):
        expected = np.where(seen, per_section, 0).sum(axis=0) / np.where(seen.any(axis=0), seen.sum(axis=0), np.nan)
    residuals = [one.residuals for one, _ in judged]
    return fit_trust(residuals, [novelty for _, novelty in judged], expected, level=mean)


def _run_folder(output: Path) -> Path:
    """Of the logs and checkpoints."""
    return output.with_name(f"{output.name}.run")


def _forget(run: Path) -> None:
    """Remove the folder of a run that left nothing to continue from."""
    if (run / "run.json").is_file() and not any(run.rglob("last.ckpt")):
        shutil.rmtree(run, ignore_errors=True)


def _facts(fitter: Fitter) -> str:
    """What decides a run's outcome; how many processes share it does not."""
    data, config, unpaired = fitter.data, fitter.config, fitter.unpaired
    facts = {
        "settings": config.model_dump(mode="json", exclude={"devices", "nodes", "strategy"}),
        "encoder": fitter.encoder.identity,
        "sections": {s.section_id: s.tiles().fingerprint() for s in data.sections},
        "expression": hash_arrays(data.expression.data, fitter.embedding),
        "unpaired": hash_arrays(unpaired.shares.data, unpaired.extra.data, unpaired.scgpt)
        if unpaired is not None
        else "",
        "version": __version__,
    }
    return json.dumps(facts, indent=2, sort_keys=True)


def _empty_unless_of(folder: Path, facts: str) -> None:
    """Make a run's folder, without what a run with other settings or data left there."""
    record = folder / "run.json"
    if folder.exists() and (not record.is_file() or record.read_text() != facts):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(facts)


def hash_arrays(*arrays: npt.NDArray[np.generic] | None) -> str:
    """Hash of what some arrays hold; None is an empty one."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
