"""Expression as programs, their ridge on what a tile shows, and how bold that may be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from hescribe.methods.axes import Centred, beside, leading_axes
from hescribe.methods.base import MethodConfig, Origin, Penalty, Unpaired
from hescribe.methods.baselines.ridge import mean_pcc
from hescribe.metrics.gene_sets import variance_within
from hescribe.types import SparseExpression

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  #: as shares of the largest component's sum of squares
COUNTS = (2, 3, 5, 10, 20)  #: programs
MOST_FOLDS = 5
MOST_PROGRAMS = 10_000  #: each is as long as the transcriptome
_VOTERS = (50, 50, 1000)  #: genes of highest mean, highest variance, and most variable ones that choose the settings


class Strength(MethodConfig):
    """How bold a map is."""

    programs: int = Field(ge=1, le=MOST_PROGRAMS, description="expression programs it predicts")
    penalty: Penalty = Field(description="as a share of the largest component's sum of squares")


class Choice(NamedTuple):
    """A strength, and the mean correlation it reached on what was left out."""

    strength: Strength
    correlation: float


class Spots(NamedTuple):
    """Training spots as programs.

    ``expression`` (n, g) sparse as measured; ``sections`` (n sections, g) their means; ``section`` (n,) row of these;
    ``programs`` (p, g) orthonormal; ``scores`` (n, p) of the expression less its section's mean.
    """

    expression: SparseExpression
    sections: Array
    section: npt.NDArray[np.intp]
    programs: Array
    scores: Array


def centre_sections(
    expression: SparseExpression, section: npt.NDArray[np.intp], count: int, unpaired: Unpaired | None = None
) -> Spots:
    """Programs by SVD of the expression less each section's mean, together with transcriptomes without image.

    Expression that does not vary within any section has one program, of zeros.
    """
    centred = Centred(expression, section)
    programs = leading_axes(beside(centred, unpaired), count)
    return Spots(centred.matrix, centred.means, centred.section, programs, centred.times(programs.T))


def solve_map(components: Array, scores: Array, strength: Strength) -> Array:
    """Ridge of the leading programs' scores on the components, (k, programs); both are centred by section."""
    targets = scores[:, : strength.programs]
    gram = components.T @ components
    gram[np.diag_indices_from(gram)] += strength.penalty * len(components)
    return np.asarray(np.linalg.solve(gram, components.T @ targets), dtype=np.float64)


def bounded(strength: Strength, spots: Spots) -> Strength:
    """No more programs than the data gave."""
    return strength.model_copy(update={"programs": min(strength.programs, len(spots.programs))})


def section_folds(origin: Origin) -> list[Mask]:
    """At most five parts of the sections whose patient has others that stay: what is like predicting a known patient."""
    # Dealt out in turn, so that a patient's sections lie in different folds
    groups = [np.unique(origin.section[origin.patient == patient]) for patient in np.unique(origin.patient)]
    sections = [int(s) for group in groups if len(group) > 1 for s in group]
    folds = [sections[i::MOST_FOLDS] for i in range(MOST_FOLDS)]
    return [np.isin(origin.section, fold) for fold in folds if fold]


def patient_folds(origin: Origin) -> list[Mask]:
    """At most five parts of the patients."""
    patients = np.unique(origin.patient)
    parts = np.array_split(patients, min(len(patients), MOST_FOLDS))
    return [np.isin(origin.patient, part) for part in parts]


def choose_strength(
    components: Array,
    spots: Spots,
    folds: list[Mask],
    unit: npt.NDArray[np.intp],
    *,
    voters: list[npt.NDArray[np.intp]] | None = None,
) -> Choice:
    """The strength with the best mean correlation per gene within the sections left out.

    Parameters
    ----------
    components
        (n, k).
    spots
        As programs. They were found with the spots left out as well, which makes the correlation a little too high
        (by less than 0.02 on HER2ST) for all strengths alike; it is used to choose by and for nothing else.
    folds
        (n,) masks of what is left out.
    unit
        (n,) what counts once: a section, or a patient, so that one of many sections does not outvote another.
    voters
        Sets of genes with a vote each; default: highly expressed, highly variable, and many.
    """
    voters = voters or voting_genes(spots)
    voting = np.unique(np.concatenate(voters))
    where = [np.searchsorted(voting, v) for v in voters]
    truth, programs = spots.expression[:, voting].toarray(), spots.programs[:, voting]
    held = np.any(folds, axis=0)
    best = Choice(Strength(programs=COUNTS[0], penalty=PENALTIES[-1]), -np.inf)
    for penalty in PENALTIES:
        widest = Strength(programs=min(COUNTS[-1], len(programs)), penalty=penalty)
        scores = np.zeros((len(components), widest.programs))
        for fold in folds:
            scores[fold] = components[fold] @ solve_map(components[~fold], spots.scores[~fold], widest)
        for count in sorted({min(c, len(programs)) for c in COUNTS}):
            predicted = scores[held, :count] @ programs[:count]
            pcc = _mean_by_unit(predicted, truth[held], spots.section[held], unit[held])
            value = float(np.mean([np.mean(pcc[genes]) for genes in where]))
            if value > best.correlation:
                best = Choice(Strength(programs=count, penalty=penalty), value)
    return best


def voting_genes(spots: Spots) -> list[npt.NDArray[np.intp]]:
    """Three sets of genes with a vote each: highly expressed, highly variable, and many."""
    mean = np.asarray(spots.expression.mean(axis=0)).ravel()
    variance = variance_within(spots.expression, spots.section)
    ranks = (mean, variance, variance)
    return [np.argsort(-values, kind="stable")[:count] for values, count in zip(ranks, _VOTERS, strict=True)]


def _mean_by_unit(predicted: Array, truth: Array, section: npt.NDArray[np.intp], unit: npt.NDArray[np.intp]) -> Array:
    """Correlation of each gene within each section, averaged over the sections of a unit, then over units."""
    return np.asarray(
        np.mean([mean_pcc(predicted[unit == u], truth[unit == u], section[unit == u]) for u in np.unique(unit)], axis=0)
    )
