"""Maps in which the scores lie where chance put them: what a structure has to be more than."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.special import ndtri
from scipy.stats import rankdata

from hescribe.types import Microns

Null: TypeAlias = Literal["spots", "field"]
Positions: TypeAlias = npt.NDArray[np.float64]  #: (n, 2) µm
#: gives the order in which sorted scores are laid on the spots; the same generator, the same order
Arrangement: TypeAlias = Callable[[np.random.Generator], npt.NDArray[np.intp]]

_EXACT = 2000  #: spots up to which a field is drawn exactly; beyond, by cosines
_COSINES = 400
_PAIRS_OF = 3000  #: spots whose pairs tell the correlogram
_SHORTEST, _LONGEST = 0.75, 0.25  #: of the field's ranges: in pitches, and as a share of the tissue's extent


def arrangements(null: Null, centres_um: Positions, scores: npt.NDArray[np.float64], pitch_um: Microns) -> Arrangement:
    """What deals the scores out again.

    ``"spots"``
        Every order is as likely as any other. It asks whether scores lie together at all, so any patchiness of the
        tissue is against it.
    ``"field"``
        The order of a Gaussian random field whose correlation falls off with distance as that of the section's own
        scores (their ranks, as normal scores). The map keeps its values and its patchiness, and loses what is where.
        It asks whether a place stands out more than places in tissue as patchy as this do.

    Both use the section's own values, each once.
    """
    if null == "spots":
        n = len(scores)
        return lambda rng: rng.permutation(n)
    nugget, mixture = correlogram(centres_um, scores, pitch_um)
    draw = _exact_field if len(scores) <= _EXACT else _cosine_field
    return partial(_order_of, draw(centres_um, nugget, mixture))


def _order_of(
    field: Callable[[np.random.Generator], npt.NDArray[np.float64]], rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Rank of each spot in a field: spot i gets the score of that rank."""
    return np.argsort(np.argsort(field(rng), kind="stable"), kind="stable").astype(np.intp)


def correlogram(
    centres_um: Positions, scores: npt.NDArray[np.float64], pitch_um: Microns
) -> tuple[float, list[tuple[Microns, float]]]:
    """How like two places' scores are, by their distance, as a sum of Gaussians: ``ρ(d) = Σ_k a_k exp(−d² / 2 ℓ_k²)``.

    Fitted by non-negative least squares to the mean product of normal scores in bins of one pitch, up to half of the
    tissue's extent. A sum of Gaussians with a_k ≥ 0 is the correlation of some field, which a curve drawn through the
    means need not be. What is left to 1 is the nugget: what a spot has for itself.

    Returns
    -------
    nugget, mixture
        1 − Σ a_k, and pairs (ℓ_k in µm, a_k) with a_k > 0.
    """
    n = len(scores)
    normal = ndtri((rankdata(scores) - 0.5) / n)
    normal = (normal - normal.mean()) / (normal.std() or 1.0)
    chosen = np.sort(np.random.default_rng(0).permutation(n)[:_PAIRS_OF])
    points, values = centres_um[chosen], normal[chosen]
    extent = float(np.linalg.norm(np.ptp(centres_um, axis=0)))
    bins = np.arange(0.5, max(extent / 2 / pitch_um, 2.0) + 1)
    near = cKDTree(points).query_pairs(float(bins[-1]) * pitch_um, output_type="ndarray")
    if not len(near):
        return 1.0, []
    distance = np.linalg.norm(points[near[:, 0]] - points[near[:, 1]], axis=1)
    place = np.digitize(distance / pitch_um, bins)
    pairs = np.bincount(place, minlength=len(bins) + 1).astype(float)
    product = np.bincount(place, weights=values[near[:, 0]] * values[near[:, 1]], minlength=len(pairs))
    middle = np.bincount(place, weights=distance, minlength=len(pairs))
    there = pairs > 0
    product, middle = product[there] / pairs[there], middle[there] / pairs[there]
    # By pairs alone the many far bins, which say little, would rule the near ones
    weight = np.sqrt(pairs[there]) / middle
    ranges = pitch_um * _SHORTEST * 2.0 ** np.arange(0, 12, 0.5)
    ranges = ranges[ranges <= max(_LONGEST * extent, pitch_um)]
    design = np.exp(-(middle[:, None] ** 2) / (2 * ranges**2))
    share = nnls(design * weight[:, None], product * weight)[0]
    share /= max(share.sum(), 1.0)
    return max(0.0, float(1 - share.sum())), [(float(r), float(a)) for r, a in zip(ranges, share, strict=True) if a > 0]


def _exact_field(
    centres_um: Positions, nugget: float, mixture: list[tuple[Microns, float]]
) -> Callable[[np.random.Generator], npt.NDArray[np.float64]]:
    """A field by the root of its covariance matrix."""
    n = len(centres_um)
    squared = cdist(centres_um, centres_um, "sqeuclidean")
    covariance = sum((a * np.exp(-squared / (2 * r**2)) for r, a in mixture), np.zeros((n, n)))
    covariance[np.diag_indices(n)] += nugget + 1e-8
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    return lambda rng: root @ rng.standard_normal(n)


def _cosine_field(
    centres_um: Positions, nugget: float, mixture: list[tuple[Microns, float]]
) -> Callable[[np.random.Generator], npt.NDArray[np.float64]]:
    """A field as a sum of cosines with random waves, whose covariance is the Gaussian one on average over draws."""
    n = len(centres_um)

    def draw(rng: np.random.Generator) -> npt.NDArray[np.float64]:
        field = np.sqrt(nugget) * rng.standard_normal(n)
        for length, share in mixture:
            waves = rng.standard_normal((2, _COSINES)) / length
            phases = rng.uniform(0, 2 * np.pi, _COSINES)
            field += np.sqrt(2 * share / _COSINES) * np.cos(centres_um @ waves + phases).sum(axis=1)
        return field

    return draw
