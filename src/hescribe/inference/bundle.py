"""Bundle: a trained method as a folder that loads anywhere and holds no executable content."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hescribe import keys
from hescribe.encoders import Encoder, Extraction, load_encoder, mean_of_tokens, resolve_device
from hescribe.errors import BundleError, HescribeError, check_choice
from hescribe.evaluation.splits import patient_key
from hescribe.inference.card import render_card
from hescribe.inference.predictors import Head, RegressionHead, TilePredictor, retrieval_head
from hescribe.inference.trust import Novelty, Trust
from hescribe.io.expression import TargetSum, told_sum
from hescribe.io.store import write_atomically
from hescribe.methods import METHODS
from hescribe.methods.base import JointModel, MethodConfig, RegressionModel, Shapes
from hescribe.methods.layers import Standardise
from hescribe.reference import Reference
from hescribe.types import Context, Views


@dataclass(frozen=True)
class Bundle:
    """A trained method.

    Attributes
    ----------
    method, config
        Name in the table of methods, and its settings.
    encoder, extraction
        Tiles → features.
    model
        With its tower removed: it takes features.
    reference
        For methods that retrieve.
    genes
        One row a gene, in the order of a prediction: ``gene_ids``, ``in_panel``, ``mean``, ``variance``
        and ``detected`` in the training sections, ``expected_pcc``, ``interval``.
    novelty
        From the training tiles.
    trust, trust_known
        From left-out training sections: for a new patient, and for a patient of the training sections. None where
        nothing could be left out; ``trust`` then stands in for a missing ``trust_known``.
    history
        Training curves, long format.
    provenance
        Versions, seed, training sections and settings.
    """

    method: str
    config: MethodConfig
    encoder: Encoder
    extraction: Extraction
    model: JointModel | RegressionModel
    reference: Reference | None
    genes: pd.DataFrame
    novelty: Novelty
    trust: Trust | None
    history: pd.DataFrame
    provenance: dict[str, Any]
    trust_known: Trust | None = None
    hash: str = ""

    def __repr__(self) -> str:
        learned = ", ".join(self.training_sections)
        return f"Bundle({self.method} on {self.encoder.name}, {len(self.genes):,} genes, learned from {learned})"

    @property
    def training_sections(self) -> dict[str, str]:
        """Section id → patient id of everything the bundle was learned from."""
        return dict(self.provenance["sections"])

    @property
    def target_sum(self) -> TargetSum:
        """Scale of its predictions: counts per spot before the logarithm, or each section's median library size."""
        return told_sum(self.provenance.get("settings", {}))

    def knows_patient(self, patient_id: str) -> bool:
        """Whether image and expression of this patient were learned from; transcriptomes alone do not count."""
        return self.patient_number(patient_id) is not None

    def patient_number(self, patient_id: str) -> int | None:
        """The patient's number in the training's `Origin`, where patients stand in the order of their first section."""
        key = patient_key(patient_id)
        return self.patients.index(key) if key in self.patients else None

    @property
    def patients(self) -> list[str]:
        """Keys of the patients whose image and expression were learned from."""
        unpaired = set(self.provenance.get("unpaired", ()))
        return list(dict.fromkeys(patient_key(p) for s, p in self.training_sections.items() if s not in unpaired))

    def trust_for(self, *, known_patient: bool) -> Trust | None:
        """How far predictions can be trusted, for a patient of the training sections or for a new one."""
        return self.trust_known if known_patient and self.trust_known is not None else self.trust

    def interval_scale(self, novelty: npt.NDArray[np.float32], *, known_patient: bool) -> npt.NDArray[np.float32]:
        """(n,) novelty of tiles → (n,) factors on the genes' intervals; NaN where nothing could be left out."""
        trust = self.trust_for(known_patient=known_patient)
        return trust.interval_scale(novelty) if trust else np.full(len(novelty), np.nan, dtype=np.float32)

    def var(self, *, known_patient: bool) -> pd.DataFrame:
        """``genes`` with the trust that goes with the patient: the ``var`` of a prediction."""
        genes, trust = self.genes.copy(), self.trust_for(known_patient=known_patient)
        if trust is not None:
            genes[keys.EXPECTED_PCC], genes[keys.INTERVAL] = trust.expected_pcc, trust.interval
        return genes

    def with_views(self, views: Views | None) -> Bundle:
        """The same bundle, describing a tile by the mean over so many of its symmetries; None: as it was trained.

        The encoder runs once a view. What it costs to leave views out that a bundle was trained on stands in
        ``docs/benchmarks.md``.

        Raises
        ------
        InputError
            The number is none of 1, 4, 8.
        """
        if views is None:
            return self
        check_choice(views, get_args(Views), "--views")
        return replace(self, extraction=replace(self.extraction, views=views))

    def predictor(self, *, device: str = "auto", use_cache: bool = True, patient: str = "") -> TilePredictor:
        """The bundle as a Predictor; methods may be bolder for a patient they have learned from."""
        device = resolve_device(device)
        return TilePredictor(
            self.encoder,
            self.extraction,
            self._head(device, patient),
            tuple(self.genes.index),
            device,
            use_cache,
        )

    def _head(self, device: str, patient: str) -> Head:
        if isinstance(self.model, JointModel):
            if self.reference is None:
                raise BundleError(f"method {self.method!r} retrieves, but the bundle has no reference")
            described_by = (self.encoder, self.extraction)
            return retrieval_head(self.model, self.reference, self.config, described_by, device=device)
        return RegressionHead(self.model, device, self.patient_number(patient))

    def save(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Write the folder; it appears under its name when complete."""
        with write_atomically(path, overwrite=overwrite, like=keys.BUNDLE_CONFIG) as folder:
            folder.mkdir()
            save_file(_tensors(self), folder / keys.BUNDLE_WEIGHTS)
            self.genes.rename_axis("gene").to_parquet(folder / keys.BUNDLE_GENES)
            # safetensors writes for the owner alone
            shutil.copymode(folder / keys.BUNDLE_GENES, folder / keys.BUNDLE_WEIGHTS)
            self.history.to_csv(folder / keys.BUNDLE_HISTORY, index=False)
            if self.reference is not None:
                self.reference.save(folder / keys.BUNDLE_REFERENCE)
            config = _describe(self)
            config["files"] = hash_files(folder)
            (folder / keys.BUNDLE_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
            (folder / keys.BUNDLE_CARD).write_text(render_card(config, self.genes))
        return Path(path)


def _describe(bundle: Bundle) -> dict[str, Any]:
    encoder = bundle.encoder
    return {
        "format": keys.SCHEMA_VERSION,
        "method": bundle.method,
        "method_config": bundle.config.model_dump(),
        "encoder": {
            "name": encoder.name,
            "identity": encoder.identity,
            "width": encoder.width,
            "input_px": encoder.input_px,
            "licence": encoder.licence,
            "weights_included": encoder.redistributable,
            "pool": encoder.pool,
        },
        "extraction": asdict(bundle.extraction),
        "provenance": bundle.provenance,
    }


def _tensors(bundle: Bundle) -> dict[str, Tensor]:
    parts = {"model": bundle.model.state_dict()}
    if bundle.encoder.redistributable:
        parts["encoder"] = bundle.encoder.module.state_dict()
    for name, stated in (("novelty", bundle.novelty), ("trust", bundle.trust), ("trust_known", bundle.trust_known)):
        if stated is not None:
            parts[name] = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in stated.arrays().items()}
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def hash_files(folder: Path) -> dict[str, str]:
    """Content hash of each file of a bundle; a Zarr store counts as one file."""
    hashes = {}
    for name in (keys.BUNDLE_WEIGHTS, keys.BUNDLE_GENES, keys.BUNDLE_HISTORY, keys.BUNDLE_REFERENCE):
        path = folder / name
        if not path.exists():
            continue
        digest = hashlib.blake2b(digest_size=16)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(str(file.relative_to(folder)).encode())
            with file.open("rb") as content:
                while block := content.read(2**20):
                    digest.update(block)
        hashes[name] = digest.hexdigest()
    return hashes


def load_bundle(path: str | Path | Bundle) -> Bundle:
    """Load a bundle; one that is loaded is given back.

    Raises
    ------
    BundleError
        A file is missing, was changed or cut short, or is of a newer format.
    EncoderError
        The encoder's weights are not in the bundle and cannot be had.
    """
    if isinstance(path, Bundle):
        return path
    folder = Path(path)
    description = _read_config(folder)
    _check_files(folder, description["files"])
    try:
        return _assemble(folder, description)
    except HescribeError:
        raise
    except (KeyError, ValueError, RuntimeError, OSError, TypeError) as error:
        raise BundleError(f"the bundle is inconsistent ({type(error).__name__}: {error})", path=folder) from error


def check_bundle(path: str | Path) -> str:
    """Hash of a bundle, found whole and unchanged; nothing is loaded.

    Raises
    ------
    BundleError
        As for ``load_bundle``.
    """
    folder = Path(path)
    description = _read_config(folder)
    _check_files(folder, description["files"])
    return _hash(description)


def _hash(description: dict[str, Any]) -> str:
    """Of everything that a prediction depends on: the files, and how they are used."""
    told = {name: description.get(name) for name in ("files", "method", "method_config", "encoder", "extraction")}
    told["sections"] = description.get("provenance", {}).get("sections")  # who is a known patient
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / keys.BUNDLE_CONFIG
    if not path.is_file():
        raise BundleError("no bundle here: config.json is missing", path=folder, fix="make one with 'hescribe train'")
    try:
        description = json.loads(path.read_text())
        version = int(description["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"not a bundle's configuration ({error})", path=path) from error
    if version > keys.SCHEMA_VERSION:
        raise BundleError(f"bundle format {version} is newer than this hescribe knows", path=folder, fix="upgrade it")
    if description.get("method") not in METHODS:
        raise BundleError(
            f"unknown method {description.get('method')!r}", path=path, fix=f"known: {', '.join(METHODS)}"
        )
    return description


def _check_files(folder: Path, expected: dict[str, str]) -> None:
    found = hash_files(folder)
    for name, digest in expected.items():
        if name not in found:
            raise BundleError(f"the bundle is incomplete: {name} is missing", path=folder, fix="copy it again, whole")
        if found[name] != digest:
            raise BundleError(f"{name} is truncated or was changed", path=folder, fix="copy the bundle again, whole")


def _assemble(folder: Path, description: dict[str, Any]) -> Bundle:
    tensors = load_file(folder / keys.BUNDLE_WEIGHTS)
    genes = pd.read_parquet(folder / keys.BUNDLE_GENES)
    method = METHODS[description["method"]]
    config = method.config.model_validate(description["method_config"])
    encoder = _restore_encoder(description["encoder"], _part(tensors, "encoder"))
    extraction = _read_extraction(description["extraction"])
    width = extraction.context.width(encoder.width)
    model = method.build(Standardise(width), Shapes(width, int(genes[keys.IN_PANEL].sum()), len(genes)), config)
    model.load_state_dict(_part(tensors, "model"), strict=True)
    reference = folder / keys.BUNDLE_REFERENCE
    return Bundle(
        method=description["method"],
        config=config,
        encoder=encoder,
        extraction=extraction,
        model=model.eval(),  # type: ignore[arg-type]
        reference=Reference.load(reference, identity=description["files"][keys.BUNDLE_REFERENCE])
        if reference.exists()
        else None,
        genes=genes,
        novelty=_restore_novelty(tensors),
        trust=_restore_trust(tensors, "trust"),
        trust_known=_restore_trust(tensors, "trust_known"),
        history=_read_history(folder / keys.BUNDLE_HISTORY),
        provenance=description["provenance"],
        hash=_hash(description),
    )


def _read_extraction(facts: dict[str, Any]) -> Extraction:
    context = facts["context"]
    lists = {name: tuple(context[name]) for name in ("scales", "spreads_um")}
    return Extraction(**{**facts, "context": Context(**{**context, **lists})})


def _read_history(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def _restore_novelty(tensors: dict[str, Tensor]) -> Novelty:
    try:
        return Novelty.from_arrays({k: v.numpy() for k, v in _part(tensors, "novelty").items()})
    except KeyError as error:
        raise BundleError(
            f"the bundle has no {error}: an older hescribe made it, which knew no colours", fix="train it again"
        ) from error


def _restore_trust(tensors: dict[str, Tensor], name: str) -> Trust | None:
    arrays = _part(tensors, name)
    return Trust(**{k: v.numpy() for k, v in arrays.items()}) if arrays else None


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def _restore_encoder(facts: dict[str, Any], weights: dict[str, Tensor]) -> Encoder:
    encoder = load_encoder(facts["name"], pretrained=not facts["weights_included"])
    if facts["pool"] == "tokens":
        encoder = mean_of_tokens(encoder)
    if facts["weights_included"]:
        encoder.module.load_state_dict(weights, strict=True)
        encoder = encoder.with_module(encoder.module)
    if encoder.identity != facts["identity"]:
        raise BundleError(
            f"the encoder {facts['name']!r} found here has other weights than the one this bundle was trained with"
        )
    return encoder
