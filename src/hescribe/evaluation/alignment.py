"""Prediction and measurement of one section, brought to the same spots and genes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import InputError, LeakageError
from hescribe.io.expression import USUAL_SUM, TargetSum, log_normalise, resolve_sum, told_sum
from hescribe.metrics.gene_blocks import columns_of
from hescribe.metrics.gene_sets import gene_moments
from hescribe.metrics.maps import Pixels, array_pixels, nearest_pixels
from hescribe.types import Centres, SparseExpression


@dataclass(frozen=True, eq=False)
class Aligned:
    """What scores are computed from; n shared spots, g shared genes.

    Attributes
    ----------
    genes, spots
        Names of the columns, sorted as in the measurement, and of the rows.
    predicted, truth
        (n, g) log expression on the prediction's scale; the truth was normalised with all genes of the section.
    target_sum
        That scale: counts per spot before the logarithm, or "counts".
    counts
        (n, all genes of the section) raw counts of the shared spots.
    columns
        (g,) where the shared genes stand in ``counts``.
    centres, pixels
        (n, 2) positions, and pixel of each spot on the raster of the maps.
    n_unmatched
        Measured spots without a prediction.
    """

    genes: tuple[str, ...]
    spots: tuple[str, ...]
    predicted: npt.NDArray[np.float32]
    truth: SparseExpression
    target_sum: TargetSum
    counts: sparse.csr_matrix
    columns: npt.NDArray[np.intp]
    centres: Centres
    pixels: Pixels
    n_unmatched: int


def align(predicted: ad.AnnData, section: ad.AnnData, *, genes: Collection[str] | None = None) -> Aligned:
    """Bring both to the spots and genes they share, in the measurement's order, and to the prediction's scale.

    Parameters
    ----------
    predicted
        Spots × genes, log1p of counts per 10,000, or on the scale that its provenance states.
    section
        Raw counts, with positions in ``obsm["spatial"]``.
    genes
        Only these genes.

    Raises
    ------
    InputError
        Names that are there twice, no shared spot or gene, no positions.
    """
    for what, names in (("spot", predicted.obs_names), ("gene", predicted.var_names), ("spot", section.obs_names)):
        if not names.is_unique:
            raise InputError(f"{what} {names[names.duplicated()][0]!r} is there twice")
    if not section.var_names.is_unique:
        raise InputError(f"gene {section.var_names[section.var_names.duplicated()][0]!r} is measured twice")
    if keys.SPATIAL not in section.obsm:
        raise InputError(f"the section has no positions in obsm[{keys.SPATIAL!r}]")
    rows = predicted.obs_names.get_indexer(section.obs_names)
    columns = predicted.var_names.get_indexer(section.var_names)
    if genes is not None:
        columns = np.where(section.var_names.isin(list(genes)), columns, -1)
    here, there = np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0)
    _check_shared(predicted, section, len(here), len(there))
    counts = sparse.csr_matrix(section.X)[here]
    target_sum = resolve_sum(sparse.csr_matrix(section.X), told_sum(predicted.uns.get(keys.PROVENANCE, {})))
    chosen = predicted.X[rows[here]]
    dense = chosen.toarray() if sparse.issparse(chosen) else np.asarray(chosen)
    centres = np.asarray(section.obsm[keys.SPATIAL], dtype=np.float64)[here]
    return Aligned(
        genes=tuple(section.var_names[there]),
        spots=tuple(section.obs_names[here]),
        predicted=dense[:, columns[there]].astype(np.float32),
        truth=columns_of(log_normalise(counts, target_sum=target_sum), there),
        target_sum=target_sum,
        counts=counts,
        columns=there,
        centres=centres,
        pixels=_pixels(section.obs.iloc[here], centres),
        n_unmatched=section.n_obs - len(here),
    )


def training_stats(sections: Iterable[ad.AnnData], *, target_sum: TargetSum = USUAL_SUM) -> pd.DataFrame:
    """Mean and variance of every gene on training sections, for gene sets chosen without the test section.

    Parameters
    ----------
    sections
        Raw counts of each training section.
    target_sum
        The scale of the prediction that they are compared with.

    Returns
    -------
    DataFrame
        Index gene; ``mean``, ``variance``: each section's own, averaged over the sections that have the gene.
    """
    tables = []
    for section in sections:
        moments = gene_moments(log_normalise(sparse.csr_matrix(section.X), target_sum=target_sum))
        tables.append(pd.DataFrame({"mean": moments.mean, "variance": moments.variance}, index=section.var_names))
    if not tables:
        raise InputError("no training section to take statistics of")
    return pd.concat(tables).groupby(level=0).mean()


def check_provenance(prediction: ad.AnnData, *, allow_same_patient: bool) -> None:
    """Refuse a prediction whose own provenance says that its model has seen the section or the patient.

    Raises
    ------
    LeakageError
        Seen; for the patient, unless allowed.
    """
    told = prediction.uns.get(keys.PROVENANCE, {})
    name = told.get("slide", "")
    if bool(told.get("seen_in_training", False)):
        raise LeakageError(f"section {name!r} was in the training of the model that predicted it")
    if bool(told.get("patient_seen_in_training", False)) and not allow_same_patient:
        raise LeakageError(
            f"patient {told.get('patient', '')!r} of section {name!r} was in the training of the model",
            fix="pass --allow-same-patient (allow_same_patient=True), and the result is labelled so",
        )


def _check_shared(predicted: ad.AnnData, section: ad.AnnData, n_spots: int, n_genes: int) -> None:
    for what, shared, names in (
        ("spots", n_spots, (predicted.obs_names, section.obs_names)),
        ("genes", n_genes, (predicted.var_names, section.var_names)),
    ):
        if not shared:
            examples = " and ".join(repr(n[0]) if len(n) else "none" for n in names)
            raise InputError(f"prediction and measurement share no {what} (they begin with {examples})")


def _pixels(obs: pd.DataFrame, centres: Centres) -> Pixels:
    if keys.ARRAY_ROW in obs and keys.ARRAY_COL in obs:
        try:
            return array_pixels(obs[keys.ARRAY_ROW], obs[keys.ARRAY_COL])
        except InputError:  # refined positions are no whole numbers: the pixel centres serve as well
            pass
    return nearest_pixels(centres)
