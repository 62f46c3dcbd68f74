"""Predictions as AnnData, and writing them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from tqdm.auto import tqdm

from hescribe import keys
from hescribe.errors import HescribeWarning, InputError, OutputError, check_choice
from hescribe.evaluation.splits import patient_key
from hescribe.inference.bundle import Bundle, load_bundle
from hescribe.inference.predictors import Head, RetrievalHead
from hescribe.io.expression import name_unit
from hescribe.io.predictions.stored import store_of
from hescribe.io.rows import lost_blocks
from hescribe.io.store import write_anndata
from hescribe.predictor import TileSource
from hescribe.sections import Section
from hescribe.types import Dtype, Expression, Features, Mpp, Views
from hescribe.version import __version__

PICTURE_PX = 600  #: longer side of the slide's picture in a prediction, as of Visium's "lowres"

logger = logging.getLogger(__name__)


def predict(
    bundle: Bundle | str | Path,
    section: Section,
    *,
    device: str = "auto",
    use_cache: bool = True,
    picture: bool = True,
) -> ad.AnnData:
    """Predict at the measured spots of a section.

    Parameters
    ----------
    bundle, section, device
        What predicts (or its folder), what is predicted, and on which device.
    use_cache
        Take features from the disk where they are, and keep them there.
    picture
        Put the slide, small, into ``uns["spatial"]``, for scanpy; it takes a second.

    Returns
    -------
    AnnData
        Spots × genes: ``X`` float32, log1p of counts per 10,000 or on the bundle's own scale, trust in ``var`` and
        ``obs``, provenance in ``uns``; cell types in ``obsm`` where the method retrieves and its reference knows them.
    """
    if not isinstance(section, Section):
        raise InputError(
            f"{type(section).__name__} is no section", fix="one of read_sections(…); predict_slide is for whole slides"
        )
    if section.image is None:
        raise InputError(f"section {section.section_id!r} has no image to predict from", fix="fill the column 'image'")
    bundle, tiles = load_bundle(bundle), section.tiles()
    known = bundle.knows_patient(section.patient_id)
    predictor = bundle.predictor(device=device, use_cache=use_cache, patient=section.patient_id)
    described = predictor.describe(tiles)
    novelty = bundle.novelty.percentile(described.plain, described.colours)
    obs = pd.DataFrame({keys.NOVELTY: novelty}, index=pd.Index(section.adata.obs_names, name=None))
    obs[keys.INTERVAL_SCALE] = bundle.interval_scale(novelty, known_patient=known)
    for column in (keys.ARRAY_ROW, keys.ARRAY_COL):
        if column in section.adata.obs:
            obs[column] = section.adata.obs[column].to_numpy()
    expression, cell_types = read_off(predictor.head, described.full, tiles)
    prediction = ad.AnnData(X=expression, obs=obs, var=bundle.var(known_patient=known))
    prediction.obsm[keys.SPATIAL] = np.asarray(tiles.centres)
    if cell_types is not None:
        prediction.obsm[keys.CELL_TYPES] = cell_types.set_axis(prediction.obs_names, axis=0)
    prediction.uns[keys.PROVENANCE] = describe_origin(
        bundle,
        slide=section.section_id,
        patient=section.patient_id,
        image=section.image,
        mpp=section.mpp,
    )
    prediction.uns[keys.PROVENANCE]["tiles"] = tiles.fingerprint()
    said = section.adata.uns[keys.SPATIAL]
    prediction.uns[keys.SPATIAL] = {section.section_id: section.library(PICTURE_PX, name="lowres")} if picture else said
    return prediction


def read_off(head: Head, features: Features, tiles: TileSource) -> tuple[Expression, pd.DataFrame | None]:
    """Expression and, where they are known, cell types, by the same weights."""
    if not isinstance(head, RetrievalHead):
        return head(features, tiles), None
    weights = head.weights(features, tiles)
    return head.reference.blend_expression(weights, device=head.device), head.reference.blend_cell_types(weights)


def describe_origin(bundle: Bundle, *, slide: str, patient: str, image: Path | None, mpp: Mpp) -> dict[str, Any]:
    """Provenance of a prediction, for ``uns``."""
    return {
        "schema": keys.SCHEMA_VERSION,
        "version": __version__,
        "bundle": bundle.hash,
        "method": bundle.method,
        "encoder": bundle.encoder.name,
        "encoder_identity": bundle.encoder.identity,
        "slide": slide,
        "patient": patient,
        "image": image.name if image else "",
        "image_path": str(image.resolve()) if image else "",  # where a viewer finds it again, if it stays there
        "mpp": float(mpp),
        "tile_um": float(bundle.extraction.tile_um),
        "views": bundle.extraction.views,
        "seen_in_training": slide in bundle.training_sections,
        "patient_seen_in_training": patient_key(patient) in {patient_key(p) for p in bundle.training_sections.values()},
        "unit": name_unit(bundle.target_sum),
        "target_sum": bundle.target_sum,
    }


def predict_sections(
    bundle: Bundle | str | Path,
    sections: Sequence[Section],
    output: str | Path,
    *,
    device: str = "auto",
    min_pcc: float | None = None,
    dtype: Dtype = "float32",
    views: Views | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Predict sections into ``output/<section_id>.zarr``; finished ones of the same bundle are kept.

    Parameters
    ----------
    bundle, sections, output, device
        What predicts (or its folder), what is predicted, where to, and on which device.
    min_pcc
        Write only genes whose ``expected_pcc`` is at least this.
    dtype
        Of ``X``.
    views
        As for ``Bundle.with_views``.
    overwrite
        Replace predictions that are there.

    Returns
    -------
    list of Path
        One store a section, in the order given.

    Raises
    ------
    InputError
        No gene can be trusted that far, or no section has an image, and spots to predict at; those without among
        others are left out.
    OutputError
        A prediction of another bundle, patient, image, scale or spots, or with another choice of genes, is already
        there and may not be replaced.
    """
    check_choice(dtype, get_args(Dtype), "--dtype")
    bundle = load_bundle(bundle).with_views(views)
    for what, there in (("an image", lambda s: s.image is not None), ("spots", lambda s: s.has_expression)):
        if missing := [s.section_id for s in sections if not there(s)]:
            logger.info(f"without {what}, left out: {', '.join(missing)}")
            sections = [s for s in sections if there(s)]
    if not sections:
        raise InputError("no section has an image to predict from, and spots", fix="give slides by their files")
    chosen = [trusted_genes(bundle, min_pcc, known_patient=bundle.knows_patient(s.patient_id)) for s in sections]
    written = []
    for section, genes in zip(tqdm(sections, desc="predict", unit="section", disable=None), chosen, strict=True):
        path = Path(output) / f"{section.section_id}.zarr"
        if overwrite or not _is_finished(path, bundle, section, genes, dtype):
            predicted = predict(bundle, section, device=device)[:, genes].copy()
            predicted.X = predicted.X.astype(dtype, copy=False)
            write_anndata(predicted, path)
        written.append(path)
    return written


def trusted_genes(bundle: Bundle, min_pcc: float | None, *, known_patient: bool) -> list[str]:
    """Genes whose ``expected_pcc`` for such a patient is at least ``min_pcc``; all where that is None.

    Raises
    ------
    InputError
        There is none.

    Warns
    -----
    HescribeWarning
        The patient is new and the bundle knows a single one, whose own sections are all that the expectation is of.
    """
    if min_pcc is None:
        return list(bundle.genes.index)
    if not known_patient and len(bundle.patients) == 1:
        only = next(p for p in bundle.training_sections.values() if patient_key(p) == bundle.patients[0])
        warnings.warn(
            f"the expected correlations are of {only}, the only patient learned from; a new patient's are lower",
            HescribeWarning,
            stacklevel=2,
        )
    expected = bundle.var(known_patient=known_patient)[keys.EXPECTED_PCC]
    genes = list(bundle.genes.index[expected >= min_pcc])
    if not genes:
        best = f"the best one has {expected.max():.2f}" if expected.notna().any() else "it was trained without folds"
        raise InputError(f"no gene of this bundle has an expected correlation of {min_pcc:g}", fix=best)
    return genes


def _is_finished(path: Path, bundle: Bundle, section: Section, genes: list[str], dtype: str) -> bool:
    if not path.exists():
        return False
    there = read_prediction(path)
    told, tiles = there.uns[keys.PROVENANCE], section.tiles()
    differences = {
        "another bundle": told.get("bundle") != bundle.hash,
        "other genes": list(there.var_names) != genes,
        "another --dtype": there.X.dtype != np.dtype(dtype),
        "another patient": told.get("patient") != section.patient_id,
        "another image": told.get("image") != (section.image.name if section.image else ""),
        "other spots": list(there.obs_names) != list(section.adata.obs_names)
        or not np.array_equal(there.obsm[keys.SPATIAL], tiles.centres),
        "another --views": told.get("views") != bundle.extraction.views,
        "another scale": told.get("mpp") != section.mpp,
        "an image that has changed since": told.get("tiles") != tiles.fingerprint(),
    }
    for what, differs in differences.items():
        if differs:
            raise OutputError(f"{path} holds a prediction of {what} (choose another output or pass --overwrite)")
    return True


def read_prediction(path: str | Path) -> ad.AnnData:
    """Read a prediction: a store of ``predict``, the one inside a SpatialData store, or an ``.h5ad`` it was saved to.

    Raises
    ------
    InputError
        Not there, damaged, or not written by hescribe.
    """
    if not Path(path).exists():
        raise InputError("no such prediction", path=path, fix="make one with 'hescribe predict'")
    store = store_of(Path(path))
    h5ad = store.suffix.lower() == ".h5ad"
    try:
        prediction = ad.read_h5ad(store) if h5ad else ad.read_zarr(store)
    except Exception as error:  # zarr and anndata raise many kinds for damaged stores
        raise InputError(f"not a readable prediction ({type(error).__name__}: {error})", path=path) from error
    if keys.PROVENANCE not in prediction.uns:
        raise InputError("an AnnData store, but not a prediction of hescribe", path=path)
    if not h5ad and (lost := lost_blocks(zarr.open_group(store, mode="r").get("X"))):
        raise InputError(f"{lost:,} blocks of X are missing", path=path, fix="copy it again, or predict it again")
    return prediction
