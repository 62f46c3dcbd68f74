"""Cohorts with a known hazard through known regions, to see whether it is found again, and whether nothing is.

Each patient has tumour, stroma and lymphoid tissue in proportions of their own; smooth random fields lay them out on
one or two slides; genes of each tissue are high where it is. The log hazard is a stated function of the *true*
lymphoid fraction, of the true contact between tumour and lymphoid tissue, and of age; nothing else matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import gaussian_filter

from hescribe import keys
from hescribe.survival.clinical import EVENT, PATIENT, TIME

Values = npt.NDArray[np.float64]  #: (n,)

TISSUES = ("tumour", "stroma", "lymphoid")
SETS = {t: [f"{t.upper()}{i}" for i in range(1, 5)] for t in TISSUES}
_NOISE = 0.4  #: of a gene in a tile, log scale; its signal is 1
_SMOOTH = 1.5  #: of the fields, tiles
_PITCH_PX, _MPP = 224.0, 0.5
_MEDIAN_MONTHS, _SHAPE = 40.0, 1.2  #: of the Weibull baseline
_FOLLOWED_MONTHS = (12.0, 96.0)  #: censoring is uniform between


@dataclass(frozen=True)
class Hazard:
    """Log hazard for one standard deviation of each cause.

    Attributes
    ----------
    lymphoid
        Fraction of lymphoid tissue; it protects.
    contact
        Share of tumour tiles beside lymphoid ones.
    age
        Of the patient.
    """

    lymphoid: float = -0.7
    contact: float = 0.0
    age: float = 0.3


@dataclass(frozen=True)
class Cohort:
    """Patients whose slides can be made at any time, always the same.

    Attributes
    ----------
    clinical
        ``patient_id``, ``time`` (months), ``event``, ``age``; and the truth: ``true_risk``, the log hazard.
    slides
        ``slide_id``, ``patient_id``.
    layouts
        Of each slide, (side, side) index of the tissue.
    seed
        Of the cohort.
    """

    clinical: pd.DataFrame
    slides: pd.DataFrame
    layouts: list[npt.NDArray[np.intp]]
    seed: int

    def each_slide(self) -> Iterator[tuple[str, ad.AnnData]]:
        """Slide and its tiles, as a prediction: log expression in ``X``, the true tissue in ``obs["region"]``."""
        for k, slide in enumerate(self.slides["slide_id"]):
            yield str(slide), _tiles(self.layouts[k], np.random.default_rng([self.seed, 1, k]))

    def redrawn(self, *, seed: int) -> pd.DataFrame:
        """The clinical table with new outcomes that have nothing to do with anything."""
        rng = np.random.default_rng([seed, 2])
        clinical = self.clinical.copy()
        clinical[TIME], clinical[EVENT] = _follow(np.zeros(len(clinical)), rng)
        return clinical.assign(true_risk=0.0)


def simulate_cohort(n_patients: int, *, hazard: Hazard | None = None, side: int = 12, seed: int = 0) -> Cohort:
    """A cohort; a quarter of the patients have two slides.

    Parameters
    ----------
    n_patients
        How many.
    hazard
        What the outcome depends on.
    side
        Of a slide, in tiles.
    seed
        The same seed gives the same cohort.
    """
    causes = hazard or Hazard()
    rng = np.random.default_rng([seed, 0])
    leaning = rng.normal(0.0, 0.6, (n_patients, len(TISSUES))) + np.array([0.5, 0.2, -0.6])
    owner = np.repeat(np.arange(n_patients), 1 + (rng.random(n_patients) < 0.25))
    layouts = [_layout(leaning[p], side, rng) for p in owner]
    per_slide = np.array([[(layout == 2).mean(), _contact(layout)] for layout in layouts])
    truth = pd.DataFrame(per_slide).groupby(owner).mean().to_numpy()
    age = rng.normal(65, 9, n_patients)
    known = np.column_stack([truth, age])
    standard = (known - known.mean(axis=0)) / known.std(axis=0)
    risk = standard @ np.array([causes.lymphoid, causes.contact, causes.age])
    time, event = _follow(risk, rng)
    names = np.array([f"P{i:04d}" for i in range(n_patients)])
    slides = [f"{names[p]}-{'A' if i == 0 or owner[i - 1] != p else 'B'}" for i, p in enumerate(owner)]
    clinical = pd.DataFrame({PATIENT: names, TIME: time, EVENT: event, "age": age, "true_risk": risk})
    return Cohort(clinical, pd.DataFrame({"slide_id": slides, PATIENT: names[owner]}), layouts, seed)


def _layout(leaning: Values, side: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    fields = np.stack([gaussian_filter(rng.normal(size=(side, side)), _SMOOTH, mode="wrap") for _ in leaning])
    return np.asarray((fields / fields.std() + leaning[:, None, None]).argmax(axis=0))


def _contact(layout: npt.NDArray[np.intp]) -> float:
    """Share of tumour tiles with a lymphoid tile above, below or beside."""
    padded = np.pad(layout == 2, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    tumour = layout == 0
    return float((tumour & beside).sum() / max(int(tumour.sum()), 1))


def _follow(risk: Values, rng: np.random.Generator) -> tuple[Values, npt.NDArray[np.intp]]:
    """Months until event or censoring, and which of the two."""
    scale = _MEDIAN_MONTHS / np.log(2) ** (1 / _SHAPE)
    until = scale * (-np.log(rng.random(len(risk))) * np.exp(-risk)) ** (1 / _SHAPE)
    followed = rng.uniform(*_FOLLOWED_MONTHS, len(risk))
    return np.minimum(until, followed), (until <= followed).astype(np.intp)


def _tiles(layout: npt.NDArray[np.intp], rng: np.random.Generator) -> ad.AnnData:
    labels = layout.ravel()
    genes = [g for t in TISSUES for g in SETS[t]]
    tissue_of_gene = np.repeat(np.arange(len(TISSUES)), [len(SETS[t]) for t in TISSUES])
    expression = 1.0 + (labels[:, None] == tissue_of_gene) + rng.normal(0.0, _NOISE, (len(labels), len(genes)))
    y, x = np.divmod(np.arange(len(labels)), layout.shape[1])
    region = pd.Categorical(np.array(TISSUES)[labels], categories=list(TISSUES))
    tiles = ad.AnnData(
        X=np.maximum(expression, 0).astype(np.float32),
        obs=pd.DataFrame({"region": region}, index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)]),
        var=pd.DataFrame({keys.EXPECTED_PCC: 0.5}, index=genes),
    )
    tiles.obsm[keys.SPATIAL] = np.column_stack([x, y]) * _PITCH_PX
    tiles.uns[keys.PROVENANCE] = {"mpp": _MPP}
    return tiles
