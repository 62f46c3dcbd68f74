"""Places above a threshold, joined to structures; the threshold, and what chance would have given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from tqdm.auto import tqdm

from hescribe.downstream.tls.nulls import Arrangement
from hescribe.downstream.tls.smoothing import standing_out
from hescribe.types import Microns

Control: TypeAlias = Literal["max", "fdr"]
Labels: TypeAlias = npt.NDArray[np.intp]  #: (n,) structure of each spot, 0 for none

#: between the diagonal of a square array (1.41, more where spots were printed askew) and the second neighbour of a
#: hexagonal one (1.73)
_JOINED = 1.65
_CHUNK = 64  #: maps at once: memory is spots × this


@dataclass(frozen=True)
class Chance:
    """What rearranged maps gave.

    Attributes
    ----------
    threshold
        z above which a place is part of a structure; infinite where none is.
    heaviest
        (permutations,) the greatest mass of a structure in each rearranged map, 0 where it has none.
    """

    threshold: float
    heaviest: npt.NDArray[np.float64]

    def p_value(self, mass: float) -> float:
        """Share of maps, the section's own among them, with a structure as heavy anywhere: corrected for the search."""
        return float((1 + (self.heaviest >= mass).sum()) / (1 + len(self.heaviest)))


def neighbours(centres_um: npt.NDArray[np.float64], pitch_um: Microns, *, reach: float = _JOINED) -> sparse.csr_matrix:
    """Which spots touch: those within 1.65 pitches, diagonals of a square array included; (n, n) symmetric."""
    n = len(centres_um)
    pairs = cKDTree(centres_um).query_pairs(reach * pitch_um, output_type="ndarray")
    half = sparse.coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return sparse.csr_matrix(half + half.T)


def find_structures(
    z: npt.NDArray[np.float64], threshold: float, adjacency: sparse.csr_matrix, min_spots: int
) -> tuple[Labels, npt.NDArray[np.float64]]:
    """Connected places with ``z > threshold``, of at least ``min_spots`` spots, heaviest first.

    Returns
    -------
    labels, masses
        (n,) 1 … k and 0 elsewhere; (k,) the sum of ``z − threshold`` over each.
    """
    above = np.flatnonzero(z > threshold)
    labels = np.zeros(len(z), dtype=np.intp)
    if not len(above):
        return labels, np.empty(0)
    n, member = connected_components(adjacency[above][:, above], directed=False)
    mass = np.bincount(member, weights=z[above] - threshold, minlength=n).astype(np.float64)
    kept = np.flatnonzero(np.bincount(member, minlength=n) >= min_spots)
    kept = kept[np.argsort(-mass[kept], kind="stable")]
    name = np.zeros(n, dtype=np.intp)
    name[kept] = np.arange(1, len(kept) + 1)
    labels[above] = name[member]
    return labels, mass[kept]


@dataclass(frozen=True, eq=False)
class Chances:
    """Rearranged maps, drawn again whenever they are asked for: the same seed, the same maps.

    Attributes
    ----------
    scores
        (n,) the section's own.
    weights, adjacency
        Of `smoothing_weights` and `neighbours`.
    arrange
        Of `arrangements`.
    permutations, seed
        How many maps, and which.
    """

    scores: npt.NDArray[np.float64]
    weights: sparse.csr_matrix
    adjacency: sparse.csr_matrix
    arrange: Arrangement
    permutations: int
    seed: int

    def maps(self, which: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """(n, k) z of some of the maps."""
        ordered = np.sort(self.scores)
        dealt = [ordered[self.arrange(np.random.default_rng([self.seed, int(k)]))] for k in which]
        return standing_out(np.stack(dealt, axis=1), self.weights)

    def weigh(self, z: npt.NDArray[np.float64], *, alpha: float, control: Control, min_spots: int) -> Chance:
        """The threshold at level ``alpha``, and the heaviest structure of every map above it.

        ``"max"``
            z that at most ``alpha`` of the maps reach anywhere (the section's own counted among them): in tissue
            where chance alone deals the scores, something is found in at most ``alpha`` of the sections.
        ``"fdr"``
            z of the least place that Benjamini and Hochberg's procedure lets pass at ``alpha``, with the p-values
            of places from all maps and places together. More is found; of the places found a share of about
            ``alpha`` is chance.
        """
        highest = np.empty(self.permutations)
        exceed = np.zeros(len(z))
        parts = range(0, self.permutations, _CHUNK)
        for start in tqdm(parts, desc="rearranged maps", unit_scale=_CHUNK, unit="map", disable=None, leave=False):
            which = np.arange(start, min(start + _CHUNK, self.permutations))
            chunk = self.maps(which)
            highest[which] = chunk.max(axis=0)
            if control == "fdr":
                exceed += chunk.size - np.searchsorted(np.sort(chunk, axis=None), z)
        if control == "max":
            threshold = float(np.sort(highest)[::-1][int(alpha * (self.permutations + 1)) - 1])
        else:
            threshold = _least_passing(z, (exceed + 1) / (len(z) * self.permutations + 1), alpha)
        heaviest = np.zeros(self.permutations)
        some = np.flatnonzero(highest > threshold)
        for start in range(0, len(some), _CHUNK):
            which = some[start : start + _CHUNK]
            for k, column in zip(which, self.maps(which).T, strict=True):
                masses = find_structures(column, threshold, self.adjacency, min_spots)[1]
                heaviest[k] = masses[0] if len(masses) else 0.0
        return Chance(threshold, heaviest)


def _least_passing(z: npt.NDArray[np.float64], p: npt.NDArray[np.float64], alpha: float) -> float:
    """Just below the smallest z that passes; infinite where none does."""
    order = np.argsort(p, kind="stable")
    passing = np.flatnonzero(p[order] <= alpha * np.arange(1, len(p) + 1) / len(p))
    if not len(passing):
        return float("inf")
    return float(np.nextafter(z[order[: passing[-1] + 1]].min(), -np.inf))
