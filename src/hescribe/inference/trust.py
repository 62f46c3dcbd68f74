"""Trust: how well each gene can be predicted, how wide its interval is, how new a tile looks.

All of it is learned from training sections that were left out, whole, while the rest was fitted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from hescribe.reference import search
from hescribe.types import Features, PerGene

COVERAGE = 0.90
_COMPONENTS = 128  #: of the space in which distances are measured; blur and ink show in the lesser ones
_TILES_PER_COMPONENT = 4  #: training tiles that a component needs at least, or its spread is chance
_NEIGHBOURS = 5  #: a tile's distance is to its fifth nearest, so that one odd training tile counts for little
_NORMAL_90 = 1.645  #: half-width of a normal distribution's 90 % interval, in standard deviations
#: standard deviation of a gene's mean between patients, 0.53 μ^0.65 for a mean μ of log1p expression: a fit to all pairs
#: of seven patients of HER2ST (19 sections), over genes of all levels; about 0.1 at μ = 0.1, 0.8 at 2, 1.3 at 4
_BETWEEN_PATIENTS = (0.53, 0.65)


@dataclass(frozen=True)
class Novelty:
    """Distance of a tile from the training tiles, as a percentile of their own distances.

    A tile's own distance is that to the training tiles of *other* patients (or sections, where there is one
    patient): tiles of one section share stain and blur and would make every new slide look strange.

    Attributes
    ----------
    mean, axes
        (d,), (d, p): features → whitened principal components.
    points
        (m, p) training tiles there.
    own
        (m,) sorted distances of the training tiles.
    """

    mean: Features
    axes: Features
    points: Features
    own: Features

    @classmethod
    def fit(cls, features: Features, groups: npt.NDArray[np.intp]) -> Novelty:
        """Learn from (m, d) training features and the patient or section of each."""
        mean = features.mean(axis=0, dtype=np.float64)
        _, singular, rows = np.linalg.svd((features - mean).astype(np.float64), full_matrices=False)
        most = min(_COMPONENTS, max(1, len(features) // _TILES_PER_COMPONENT))
        kept = min(most, int((singular > singular[0] * 1e-4).sum()))
        axes = rows[:kept].T * (np.sqrt(len(features)) / singular[:kept])
        points = (features - mean) @ axes
        return cls(*(a.astype(np.float32) for a in (mean, axes, points, np.sort(_own_distances(points, groups)))))

    def percentile(self, features: Features) -> npt.NDArray[np.float32]:
        """(n, d) features → (n,) percentile, 0 to 100.

        Beyond the farthest training tile it goes on rising towards 100 with the distance, so that of two strange
        tiles the stranger one still has the higher number.
        """
        points = (np.asarray(features, dtype=np.float64) - self.mean) @ self.axes
        distance = _kth_distance(self.points, points)
        count, farthest = len(self.own), max(float(self.own[-1]), 1e-12)
        within = np.searchsorted(self.own, distance) / (count + 1)
        beyond = 1.0 - farthest / np.maximum(distance, farthest) / (count + 1)
        return (100.0 * np.where(distance > farthest, beyond, within)).astype(np.float32)


def _kth_distance(
    points: npt.NDArray[np.floating], queries: npt.NDArray[np.floating], k: int = _NEIGHBOURS
) -> npt.NDArray[np.float64]:
    """(n,) Euclidean distance of each query to its k-th nearest point, or the farthest where there are fewer."""
    found = search(points.astype(np.float32), queries.astype(np.float32), k, similarity="euclidean")
    return np.sqrt(np.maximum(-found.similarity[:, -1].astype(np.float64), 0.0))


def _own_distances(points: npt.NDArray[np.float64], groups: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    own = np.empty(len(points))
    for group in np.unique(groups):
        inside = groups == group
        if inside.all():  # one section: the tile itself is its own first neighbour
            return _kth_distance(points, points, _NEIGHBOURS + 1)
        own[inside] = _kth_distance(points[~inside], points[inside])
    return own


@dataclass(frozen=True)
class Trust:
    """What held-out training sections say about the predictions.

    Attributes
    ----------
    expected_pcc
        (g,) mean correlation per gene within the sections left out; NaN where never measurable.
    interval
        (g,) half-width that covered 90 % of the left-out spots (split conformal prediction).
    scale_edges, scale
        (2,), (3,): novelty percentiles that part the left-out tiles in three, and the factor on the
        interval in each part.
    """

    expected_pcc: PerGene
    interval: PerGene
    scale_edges: PerGene
    scale: PerGene

    def interval_scale(self, novelty: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n,) novelty percentiles → (n,) factors."""
        return self.scale[np.searchsorted(self.scale_edges, novelty, side="right")].astype(np.float32)

    def for_another_patient(self, mean: PerGene) -> Trust:
        """What one patient's left-out sections say about another patient, whose genes have other levels.

        The half-width becomes ``√(interval² + (1.645 τ)²)``, with τ the standard deviation of a gene's mean between
        patients. One patient cannot tell it, so a prior stands in: see ``_BETWEEN_PATIENTS``.

        Parameters
        ----------
        mean
            (g,) mean of each gene in training.
        """
        factor, power = _BETWEEN_PATIENTS
        shift = _NORMAL_90 * factor * np.maximum(mean, 0.0) ** power
        return replace(self, interval=np.sqrt(self.interval**2 + shift**2))

    def arrays(self) -> dict[str, PerGene]:
        """Everything by name, for saving."""
        return asdict(self)


def fit_trust(residuals: list[Features], novelty: list[npt.NDArray[np.float32]], expected_pcc: PerGene) -> Trust:
    """Conformal intervals from the residuals of left-out sections.

    Parameters
    ----------
    residuals
        Per left-out section, (n, g) absolute residuals.
    novelty
        Per left-out section, (n,) novelty of its tiles, as seen by the model that did not know them.
    expected_pcc
        (g,) cross-validated correlations.
    """
    errors = np.concatenate(residuals)
    percentiles = np.concatenate(novelty)
    edges = np.quantile(percentiles, (1 / 3, 2 / 3))
    part = np.searchsorted(edges, percentiles, side="right")
    typical = np.maximum(errors.mean(axis=0), 1e-6)
    relative = (errors / typical).mean(axis=1)
    overall = relative.mean()
    scale = np.array([relative[part == i].mean() / overall if (part == i).any() else 1.0 for i in range(3)])
    # A tile farther away is never given a narrower interval: that could only be chance
    scale = np.maximum.accumulate(scale)
    scaled = errors / scale[part][:, None]
    return Trust(
        expected_pcc=expected_pcc,
        interval=_conformal_quantile(scaled),
        scale_edges=edges.astype(np.float64),
        scale=scale.astype(np.float64),
    )


def _conformal_quantile(errors: Features) -> PerGene:
    """The ⌈(n + 1) 0.9⌉-th smallest error of each gene."""
    n = len(errors)
    rank = min(n, int(np.ceil((n + 1) * COVERAGE))) - 1
    return np.partition(errors, rank, axis=0)[rank].astype(np.float64)
