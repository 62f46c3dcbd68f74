"""Cross-validation over a *given* fit function: learn without some sections, predict them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import anndata as ad
import numpy as np
import pandas as pd

from hescribe import keys
from hescribe.errors import InputError
from hescribe.evaluation.splits import SectionLike, Split, check_no_leakage, select_sections
from hescribe.predictor import Predictor, TileSource


class TestableSection(SectionLike, Protocol):
    """As much of a `hescribe.sections.Section` as prediction looks at."""

    @property
    def adata(self) -> ad.AnnData:
        """Raw counts, spots × genes."""

    def tiles(self) -> TileSource:
        """Tiles at the spots, in their order."""


S = TypeVar("S", bound=TestableSection)

Fit = Callable[[Sequence[S], Split], Any]  #: training sections, split → Predictor
Predict = Callable[[Any, S], ad.AnnData]  #: what fit returned, section → prediction at its spots
Load = Callable[[Split, str], "ad.AnnData | None"]  #: split, section id → a prediction made before, if any
Save = Callable[[Split, str, ad.AnnData], None]  #: keeps a finished prediction


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Prediction of a section that its model never saw.

    Attributes
    ----------
    section_id, patient_id
        Of the section.
    split
        The round it was held out in.
    prediction
        Spots × genes, log1p of counts per 10,000.
    """

    section_id: str
    patient_id: str
    split: Split
    prediction: ad.AnnData


def predict_at_spots(predictor: Predictor, section: TestableSection) -> ad.AnnData:
    """Prediction at a section's measured spots, spots × genes.

    Raises
    ------
    InputError
        The predictor returned another shape than its tiles and genes ask for.
    """
    tiles = section.tiles()
    genes = [str(g) for g in predictor.genes]
    predicted = np.asarray(predictor.predict(tiles), dtype=np.float32)
    measured = section.adata
    if predicted.shape != (measured.n_obs, len(genes)):
        raise InputError(
            f"section {section.section_id!r}: prediction of shape {predicted.shape} "
            f"for {measured.n_obs} spots and {len(genes)} genes"
        )
    out = ad.AnnData(predicted, obs=pd.DataFrame(index=measured.obs_names), var=pd.DataFrame(index=pd.Index(genes)))
    out.obsm[keys.SPATIAL] = np.asarray(tiles.centres)
    out.uns[keys.PROVENANCE] = {"slide": section.section_id, "patient": section.patient_id}
    return out


def cross_validate(
    sections: Sequence[S],
    splits: Sequence[Split],
    fit: Fit[S],
    *,
    predict: Predict[S] = predict_at_spots,
    load: Load | None = None,
    save: Save | None = None,
) -> list[HeldOut]:
    """Predictions of all test sections, each by a model fitted without it.

    Parameters
    ----------
    sections
        All sections that the splits name.
    splits
        Every one is checked again for leaks before anything is fitted.
    fit
        Gets the training sections of a split, and them alone, and the split; returns a Predictor, or whatever
        ``predict`` understands.
    predict
        Predicts one section.
    load, save
        To continue an interrupted run: ``load`` gives predictions made before, ``save`` keeps new ones. A split
        whose predictions are all there is not fitted again.

    Returns
    -------
    list of HeldOut
        In the order of the splits and their test sections.

    Raises
    ------
    LeakageError
        A split shares a section or patient between its sides; nothing has been fitted then.
    InputError
        A split names a section that is not there, or two splits have one name.
    """
    if len({s.name for s in splits}) != len(splits):
        raise InputError("two splits have the same name", fix="names tell apart what was predicted before")
    sides = [(select_sections(sections, s.train), select_sections(sections, s.test)) for s in splits]
    for split, (train, test) in zip(splits, sides, strict=True):
        check_no_leakage(train, test, allow_same_patient=split.same_patient)
    out: list[HeldOut] = []
    for split, (train, test) in zip(splits, sides, strict=True):
        known = {s.section_id: load(split, s.section_id) if load else None for s in test}
        model = None if all(p is not None for p in known.values()) else fit(train, split)
        for section in test:
            prediction = known[section.section_id]
            if prediction is None:
                prediction = predict(model, section)
                if save:
                    save(split, section.section_id, prediction)
            out.append(HeldOut(section.section_id, section.patient_id, split, prediction))
    return out
