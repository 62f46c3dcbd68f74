"""Patients: what their tumour is like, how much of each tissue they have, how the slides were stained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hescribe.types import Microns


@dataclass(frozen=True)
class Subtype:
    """How a tumour of this kind grows and looks.

    Attributes
    ----------
    nest_um
        Size of the nests; the correlation length of the tumour field.
    core
        What stands in the middle of a nest: cells, a gland's lumen, or necrosis.
    core_share
        Share of the tumour's area taken by it.
    pleomorphism
        0: all nuclei alike, 1: very different sizes and shapes.
    spacing_um
        Radius that a tumour cell keeps free.
    composition
        Shares of the tissue's area: tumour, lymphoid, fat, vessel lumens; the rest is stroma.
    """

    name: str
    nest_um: Microns
    core: Literal["cells", "lumen", "necrosis"]
    core_share: float
    pleomorphism: float
    spacing_um: Microns
    composition: tuple[float, float, float, float]


SUBTYPES = (
    Subtype("her2", 52.0, "cells", 0.0, 0.5, 4.9, (0.44, 0.07, 0.12, 0.014)),
    Subtype("luminal", 34.0, "lumen", 0.13, 0.25, 4.4, (0.33, 0.045, 0.21, 0.012)),
    Subtype("basal", 85.0, "necrosis", 0.08, 0.85, 5.1, (0.52, 0.11, 0.05, 0.016)),
)


@dataclass(frozen=True)
class Stain:
    """Haematoxylin and eosin as optical density per unit of dye, natural logarithm, RGB."""

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    strength: tuple[float, float]
    glass: tuple[float, float, float]


@dataclass(frozen=True)
class Patient:
    """One patient; everything about the tissue follows from it and the seed.

    Attributes
    ----------
    entropy
        Seeds the patient's tissue, see `numpy.random.SeedSequence`.
    inflammation
        Factor on the density of scattered immune cells.
    """

    patient_id: str
    subtype: Subtype
    entropy: tuple[int, ...]
    inflammation: float
    stain: Stain

    def rng(self, *purpose: int) -> np.random.Generator:
        """An independent stream for each purpose, so that changing one step leaves the others as they were."""
        return np.random.default_rng(np.random.SeedSequence((*self.entropy, *purpose)))


def make_patient(index: int, seed: int) -> Patient:
    """Patient ``index`` of the cohort ``seed``; subtypes take turns."""
    entropy = (seed, index)
    rng = np.random.default_rng(np.random.SeedSequence((*entropy, 0)))
    return Patient(
        patient_id=f"P{index + 1}",
        subtype=SUBTYPES[index % len(SUBTYPES)],
        entropy=entropy,
        inflammation=float(rng.uniform(0.7, 1.6)),
        stain=_draw_stain(rng),
    )


def _draw_stain(rng: np.random.Generator) -> Stain:
    # Near the directions that Macenko et al. (ISBI 2009) found, each turned a little
    haematoxylin = np.array([0.5826, 0.7501, 0.3762]) + rng.normal(0, (0.035, 0.02, 0.035))
    eosin = np.array([0.2159, 0.8012, 0.5581]) + rng.normal(0, (0.03, 0.02, 0.08))
    strength = np.exp(rng.normal(0, (0.10, 0.14)))
    glass = 243 + rng.uniform(-3, 3, 3) + rng.uniform(-2, 3)
    return _stain(haematoxylin, eosin, strength, glass)


def vary_stain(stain: Stain, rng: np.random.Generator) -> Stain:
    """The same laboratory on another day: strengths and hues a few per cent off."""
    haematoxylin, eosin = (np.asarray(v) + rng.normal(0, 0.01, 3) for v in (stain.haematoxylin, stain.eosin))
    strength = np.asarray(stain.strength) * np.exp(rng.normal(0, 0.05, 2))
    glass = np.asarray(stain.glass) + rng.uniform(-1, 1)
    return _stain(haematoxylin, eosin, strength, glass)


def _stain(haematoxylin: np.ndarray, eosin: np.ndarray, strength: np.ndarray, glass: np.ndarray) -> Stain:
    return Stain(_triple(haematoxylin), _triple(eosin), (float(strength[0]), float(strength[1])), _triple(glass))


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
