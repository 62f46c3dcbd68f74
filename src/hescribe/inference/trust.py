"""Trust: how well each gene can be predicted, how wide its interval is, how new a tile looks.

All of it is learned from training sections that were left out, whole, while the rest was fitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from hescribe.reference import search
from hescribe.types import Features, PerGene, SparseExpression

COVERAGE = 0.90
_COMPONENTS = 128  #: of the space in which distances are measured; blur and ink show in the lesser ones
_TILES_PER_COMPONENT = 4  #: training tiles that a component needs at least, or its spread is chance
_NEIGHBOURS = 5  #: a tile's distance is to its fifth nearest, so that one odd training tile counts for little
_FAR = 0.99  #: quantile of the training tiles' own distances that features and colours are compared by
_NORMAL_90 = 1.645  #: half-width of a normal distribution's 90 % interval, in standard deviations
#: τ = 0.4 √μ + 0.35 μ, how far the level of a gene differs between two patients, μ being the level it has with counts
#: without end (`full_level`): 0.2 at μ = 0.1, 1.3 at 2, 2.2 at 4. Beyond the differences of means that were seen, as
#: spots of another patient differ in spread, too. Set, with the shares, by coverage at the spots of all others of
#: HER2ST's seven patients, over genes of all levels and the highest expressed and most variable ones alike
#: (benchmarks/patients.py)
_BETWEEN_PATIENTS = (0.4, 0.35)
_HIGHEST = 1000  #: genes by which training patients are compared: of the others, means differ by counting noise
_BEYOND_SEEN = 1.7  #: times τ² at the size seen between two or three training patients; falls with their number beyond


@dataclass(frozen=True)
class Space:
    """Whitened principal components of the training tiles, in which a distance to them can be measured.

    Attributes
    ----------
    mean, axes
        (d,), (d, p): features → components.
    points
        (m, p) training tiles there.
    far
        (1,) a distance that one in a hundred of the training tiles has to the others.
    """

    mean: Features
    axes: Features
    points: Features
    far: Features

    @classmethod
    def fit(cls, features: Features, groups: npt.NDArray[np.intp]) -> tuple[Space, npt.NDArray[np.float64]]:
        """The space of (m, d) training features, and their own (m,) distances to tiles of other groups there."""
        mean = features.mean(axis=0, dtype=np.float64)
        _, singular, rows = np.linalg.svd((features - mean).astype(np.float64), full_matrices=False)
        most = min(_COMPONENTS, max(1, len(features) // _TILES_PER_COMPONENT))
        kept = min(most, int((singular > singular[0] * 1e-4).sum()))
        axes = rows[:kept].T * (np.sqrt(len(features)) / singular[:kept])
        points = (features - mean) @ axes
        own = _own_distances(points, groups)
        far = np.maximum(np.quantile(own, [_FAR]), 1e-12)
        return cls(*(a.astype(np.float32) for a in (mean, axes, points, far))), own / far

    def distance(self, features: Features) -> npt.NDArray[np.float64]:
        """(n, d) features → (n,) distance to the training tiles; 1 is far."""
        points = (np.asarray(features, dtype=np.float64) - self.mean) @ self.axes
        return _kth_distance(self.points, points) / self.far


@dataclass(frozen=True)
class Novelty:
    """Distance of a tile from the training tiles, as a percentile of their own distances.

    The distance is the larger of two: that of the encoder's features, and that of the tile's colours. A learned
    encoder is made to look past colour, and hardly tells brown from eosin; colours tell nothing of blur.

    A tile's own distance is that to the training tiles of *other* patients (or sections, where there is one
    patient): tiles of one section share stain and blur and would make every new slide look strange.

    Attributes
    ----------
    features, colours
        Where distances are measured.
    own
        (m,) sorted distances of the training tiles.
    """

    features: Space
    colours: Space
    own: Features

    @classmethod
    def fit(cls, features: Features, colours: Features, groups: npt.NDArray[np.intp]) -> Novelty:
        """Learn from (m, d) features and (m, c) colours of training tiles, and the patient or section of each."""
        (seen, own), (stained, stain) = (Space.fit(values, groups) for values in (features, colours))
        return cls(seen, stained, np.sort(np.maximum(own, stain)).astype(np.float32))

    def percentile(self, features: Features, colours: Features) -> npt.NDArray[np.float32]:
        """(n, d) features and (n, c) colours → (n,) percentile, 0 to 100.

        Beyond the farthest training tile it goes on rising towards 100 with the distance, so that of two strange
        tiles the stranger one still has the higher number.
        """
        distance = np.maximum(self.features.distance(features), self.colours.distance(colours))
        count, farthest = len(self.own), max(float(self.own[-1]), 1e-12)
        within = np.searchsorted(self.own, distance) / (count + 1)
        beyond = 1.0 - farthest / np.maximum(distance, farthest) / (count + 1)
        return (100.0 * np.where(distance > farthest, beyond, within)).astype(np.float32)

    def arrays(self) -> dict[str, Features]:
        """Everything by name, for saving."""
        parts = {"features": self.features, "colours": self.colours}
        return {f"{name}.{k}": v for name, space in parts.items() for k, v in asdict(space).items()} | {"own": self.own}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Features]) -> Novelty:
        """The inverse of ``arrays``.

        Raises
        ------
        KeyError
            Something is missing.
        """
        features, colours = (
            Space(**{field.name: arrays[f"{name}.{field.name}"] for field in fields(Space)})
            for name in ("features", "colours")
        )
        return cls(features, colours, arrays["own"])


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

    def for_another_patient(self, level: PerGene, levels: Features) -> Trust:
        """What left-out spots of a few patients say about one more patient, whose genes have other levels.

        The half-width becomes ``√(interval² + c (1.645 τ)²)``, with τ a prior for how far a gene's level differs between
        two patients (``_BETWEEN_PATIENTS``). Of one patient only sections could be left out, which tell nothing of
        it: c = 1. K patients left out whole do tell, but how patients differ is seen K times, not once a spot, and the
        genes that vary most in a new patient are in part others: c = 1.7 s² for two, 5/K s² for more, with s the size
        of the differences seen, in units of the prior: the 0.9 quantile over genes of ``|Δ| / 1.645 τ``, as a root mean
        square over pairs of patients.

        Parameters
        ----------
        level
            (g,) of each gene in training, as `full_level` has it.
        levels
            (K, g) mean of each gene in each training patient.
        """
        root, slope = _BETWEEN_PATIENTS
        shift = _NORMAL_90 * (root * np.sqrt(level) + slope * level)
        share = 1.0 if len(levels) < 2 else min(_BEYOND_SEEN, 5.0 / len(levels)) * _seen(levels, level, shift)
        return replace(self, interval=np.sqrt(self.interval**2 + share * shift**2))

    def arrays(self) -> dict[str, PerGene]:
        """Everything by name, for saving."""
        return asdict(self)


def full_level(expression: SparseExpression) -> PerGene:
    """(n, g) log expression → (g,) log1p of each gene's mean share, the level it has in a spot with counts without end.

    The mean of the logarithms depends on how deeply a section was sequenced: with 650 counts a spot a gene of 10 in
    10,000 is seen in every other spot and has a mean of 1.4, with 9,500 of 2.3. Of another patient, whose depth nobody
    knows, a shallow section's own means would promise too little difference and a deep one's too much.
    """
    return np.log1p(np.asarray(expression.expm1().mean(axis=0), dtype=np.float64).ravel())


def _seen(levels: Features, level: PerGene, shift: PerGene) -> float:
    """Mean square over pairs of patients of how far their genes' levels differ, in units of (g,) ``shift``."""
    high = np.argsort(-level)[:_HIGHEST]
    high = high[shift[high] > 0]
    if not len(high):
        return 0.0
    pairs = combinations(np.asarray(levels, dtype=np.float64)[:, high], 2)
    return float(np.mean([np.quantile(np.abs(one - other) / shift[high], COVERAGE) ** 2 for one, other in pairs]))


def fit_trust(
    residuals: list[Features], novelty: list[npt.NDArray[np.float32]], expected_pcc: PerGene, *, level: PerGene
) -> Trust:
    """Conformal intervals from the residuals of left-out sections.

    Parameters
    ----------
    residuals
        Per left-out section, (n, g) absolute residuals.
    novelty
        Per left-out section, (n,) novelty of its tiles, as seen by the model that did not know them.
    expected_pcc
        (g,) cross-validated correlations.
    level
        (g,) mean of each gene in training, by which a tile's errors are weighed: how errors grow with novelty shows in
        the genes that are expressed, and thousands of others, whose errors are counting noise, would hide it.
    """
    errors = np.concatenate(residuals)
    percentiles = np.concatenate(novelty)
    edges = np.quantile(percentiles, (1 / 3, 2 / 3))
    part = np.searchsorted(edges, percentiles, side="right")
    weighed = errors @ np.maximum(level, 0.0) + 1e-9  # where nothing is expressed or wrong, all tiles are alike
    scale = np.array([weighed[part == i].mean() / weighed.mean() if (part == i).any() else 1.0 for i in range(3)])
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
