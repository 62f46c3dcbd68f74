"""ridge: the baseline every method must beat, a penalised linear map from frozen features.

Features are standardised, reduced to 256 principal components and mapped to expression by ridge
regression, as HEST-Benchmark does (Jaume et al., NeurIPS 2024, arXiv 2406.16192). Theirs has one
fixed, very small penalty; ours chooses it by leaving training groups out.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn

from hescribe.methods.base import Count, Method, MethodConfig, Origin, Penalty, RegressionModel, Shapes
from hescribe.metrics.gene_sets import variance_within
from hescribe.types import Features, SparseExpression

_VOTERS = 1000  #: most variable genes, by which a penalty is chosen
_PENALTIES = tuple(float(p) for p in np.logspace(-5, 1, 13))  #: as shares of the largest component's sum of squares


class RidgeConfig(MethodConfig):
    """Settings of the ridge."""

    components: Count = Field(256, description="principal components of the features")
    penalty: Literal["auto", "hest"] | Penalty = Field(
        "auto",
        description="as a share of the largest component's sum of squares; auto: by leaving groups out; "
        "hest: 100 / (components × genes of the panel), as HEST-Benchmark",
    )
    intercept: bool = Field(default=True, description="predict the training mean where features say nothing")


class HestRidgeConfig(RidgeConfig):
    """The recipe of HEST-Benchmark to the letter."""

    penalty: Literal["auto", "hest"] | Penalty = "hest"
    intercept: bool = False


class Ridge(RegressionModel):
    """Standardise → principal components → linear map; all in buffers, so that it is saved as weights.

    Parameters
    ----------
    tower
        Images → (n, features); the identity when features are given.
    shapes
        Sizes.
    config
        Settings.
    """

    mean: Tensor
    scale: Tensor
    axes: Tensor
    coefficients: Tensor
    intercept: Tensor
    penalty: Tensor

    def __init__(self, tower: nn.Module, shapes: Shapes, config: RidgeConfig) -> None:
        super().__init__()
        self.tower = tower
        self.config = config
        self._targets = shapes.panel or shapes.genes
        components = min(config.components, shapes.features)
        self.register_buffer("mean", torch.zeros(shapes.features))
        self.register_buffer("scale", torch.ones(shapes.features))
        self.register_buffer("axes", torch.zeros(shapes.features, components))
        self.register_buffer("coefficients", torch.zeros(components, shapes.genes))
        self.register_buffer("intercept", torch.zeros(shapes.genes))
        self.register_buffer("penalty", torch.zeros(()))

    def predict_expression(self, images: Tensor) -> Tensor:
        """(n, …) → (n, g); not below zero, since log-normalised expression is not."""
        scores = ((self.tower(images) - self.mean) / self.scale) @ self.axes
        out = scores @ self.coefficients + self.intercept
        # Without an intercept, predictions lie around zero
        return out.clamp_min(0.0) if self.config.intercept else out

    def solve(self, features: Features, expression: SparseExpression, origin: Origin) -> None:
        """Fit in closed form; the penalty is chosen by leaving out one group at a time."""
        mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        scale[scale < 1e-8] = 1.0
        standard = (features - mean) / scale
        axes = principal_axes(standard, self.axes.shape[1])
        scores = standard @ axes
        penalty = self.config.penalty
        if penalty == "auto":
            penalty = choose_penalty(scores, expression, origin)
        elif penalty == "hest":
            # Theirs is on components as they are, ours on components divided by the first one's spread, n times
            first = np.square(axes[:, :1]).sum()  # none, where all tiles look the same
            penalty = 100 / (max(axes.shape[1], 1) * self._targets) * first / len(features)
        coefficients = solve_ridge(scores, expression, (float(penalty),))[0]
        self._store("mean", mean)
        self._store("scale", scale)
        self.axes.zero_()
        self.axes[:, : axes.shape[1]] = torch.from_numpy(axes).to(self.axes)
        self.coefficients.zero_()
        self.coefficients[: len(coefficients)] = torch.from_numpy(coefficients).to(self.coefficients)
        if self.config.intercept:
            self._store("intercept", np.asarray(expression.mean(axis=0)).ravel())
        self.penalty.fill_(float(penalty))

    def _store(self, name: str, values: npt.NDArray[np.float64]) -> None:
        getattr(self, name).copy_(torch.from_numpy(np.asarray(values, dtype=np.float32)))


def principal_axes(standard: npt.NDArray[np.float64], components: int) -> npt.NDArray[np.float64]:
    """(n, d) centred → (d, k) axes, all divided by one number so that the first score has unit variance."""
    _, singular, rows = np.linalg.svd(standard, full_matrices=False)
    kept = min(components, int((singular > singular[0] * 1e-6).sum()))
    # A sign is arbitrary in an SVD; fixing it keeps saved models comparable
    signs = np.sign(rows[np.arange(kept), np.abs(rows[:kept]).argmax(axis=1)])
    spread = singular[0] / np.sqrt(len(standard))
    return (rows[:kept] * signs[:, None]).T / spread


def solve_ridge(
    scores: npt.NDArray[np.float64], expression: SparseExpression, penalties: tuple[float, ...]
) -> list[npt.NDArray[np.float64]]:
    """Ridge coefficients on centred data, one (k, g) array per penalty λ.

    ``argmin ‖Y − ZB‖² + λ n ‖B‖²``, through one eigendecomposition of ZᵀZ; the first score has
    unit variance, so ``n`` is its sum of squares.
    """
    centre = scores.mean(axis=0)
    centred = scores - centre
    # (Z − z̄)ᵀ(Y − ȳ) = (Z − z̄)ᵀY: expression stays sparse
    products = np.asarray((sparse.csr_matrix(expression).T @ centred).T)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    rotated = vectors.T @ products
    n = len(scores)
    return [vectors @ (rotated / (np.maximum(values, 0) + p * n)[:, None]) for p in penalties]


def choose_penalty(scores: npt.NDArray[np.float64], expression: SparseExpression, origin: Origin) -> float:
    """The penalty with the highest mean correlation per gene within the sections left out.

    Patients are left out whole, or sections, where there is one patient. A patient counts once, and no correlation is
    over several sections: that would measure how they differ. Only the thousand most variable genes vote: the rest is
    mostly counting noise.
    """
    variance = variance_within(sparse.csr_matrix(expression), origin.section)
    voters = np.sort(np.argsort(-variance, kind="stable")[:_VOTERS])
    subset = sparse.csc_matrix(expression)[:, voters].tocsr()
    totals = np.zeros(len(_PENALTIES))
    for group in np.unique(origin.group):
        inside = origin.group == group
        names, spots = np.unique(origin.section[inside], return_counts=True)
        judged = inside & np.isin(origin.section, names[spots >= 3])
        if inside.all() or not judged.any():
            continue
        truth, section = subset[judged].toarray().astype(np.float64), origin.section[judged]
        fitted = solve_ridge(scores[~inside], subset[~inside], _PENALTIES)
        totals += [np.mean(mean_pcc(scores[judged] @ coefficients, truth, section)) for coefficients in fitted]
    return _PENALTIES[int(totals.argmax())] if totals.any() else 0.01


def mean_pcc(
    predicted: npt.NDArray[np.float64], truth: npt.NDArray[np.float64], section: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64]:
    """Correlation of each gene within each section, averaged over sections."""
    names = np.unique(section)
    total = np.zeros(truth.shape[1])
    for name in names:
        p, t = (values[section == name] - values[section == name].mean(axis=0) for values in (predicted, truth))
        norm = np.sqrt((p**2).sum(axis=0) * (t**2).sum(axis=0))
        total += (p * t).sum(axis=0) / np.maximum(norm, 1e-12)
    return total / len(names)


def _build(tower: nn.Module, shapes: Shapes, config: MethodConfig) -> nn.Module:
    assert isinstance(config, RidgeConfig)  # noqa: S101 - the table pairs them
    return Ridge(tower, shapes, config)


RIDGE = Method(
    name="ridge",
    summary="linear regression from frozen features, the baseline to beat",
    source="the recipe of HEST-Benchmark, Jaume et al., NeurIPS 2024, arXiv 2406.16192",
    config=RidgeConfig,
    build=_build,
    can_fine_tune=False,
)

RIDGE_HEST = Method(
    name="ridge-hest",
    summary="the ridge of HEST-Benchmark to the letter: fixed small penalty, no intercept",
    source="Jaume et al., NeurIPS 2024, arXiv 2406.16192",
    config=HestRidgeConfig,
    build=_build,
    can_fine_tune=False,
)
