"""fusion: our own method. Expression programs from a tile and its surroundings, by regression and by retrieval.

What it does, in the order of the prediction:

1. The tile is described at two scales and by Gaussian means of its neighbourhood, each feature centred over the slide.
2. A penalised linear map gives the scores of *expression programs*, the leading singular vectors of the training
   sections' expression, each section centred: few numbers that carry what is shared by many genes, so that counting
   noise of single genes does not reach the map.
3. The scores are also a query: the spots whose *cross-fitted* scores (predicted without their own section) are nearest
   give their measured programs. Keys are cross-fitted so that they err as a query does.
4. Both paths are weighed for every gene by what they explained in left-out sections, the weights of a gene being drawn
   towards those of all genes together.

For a patient who is new, this is too bold: what a neighbouring section confirms, another patient need not. Fewer
programs and a heavier penalty are then used, and no retrieval. They are chosen by leaving training patients out, or,
where there is one training patient, stated in the settings. Another patient's section may also be sequenced less
deeply, which changes what log expression shows: the programs for new patients are those of the mean of the expression
as measured and as it would be at a shallow depth.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn

from hescribe.methods.base import Method, MethodConfig, Origin, RegressionModel, Shapes
from hescribe.methods.baselines.ridge import principal_axes
from hescribe.methods.depth import at_depth
from hescribe.types import Context, Features, SparseExpression

Array = npt.NDArray[np.float64]

_PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  #: as shares of the largest component's sum of squares
_COUNTS = (2, 3, 5, 10, 20)  #: programs
_MOST_FOLDS = 5
_VOTERS = (50, 50, 1000)  #: genes of highest mean, highest variance, and most variable ones that choose the settings


class Strength(MethodConfig):
    """How bold a map is."""

    programs: int = Field(ge=1, description="expression programs it predicts")
    penalty: float = Field(gt=0, description="as a share of the largest component's sum of squares")


class FusionConfig(MethodConfig):
    """Settings of fusion."""

    context: Context = Field(
        Context((1.0, 2.0), (200.0, 400.0), centred=True), description="what of a tile is described"
    )
    components: int = Field(256, ge=1, description="principal components of the description")
    programs: int = Field(100, ge=1, description="programs that retrieval returns")
    neighbours: int = Field(50, ge=1, description="spots that retrieval averages over")
    retrieval: bool = Field(default=True, description="the second path, for patients of the training sections")
    known: Literal["auto"] | Strength = Field("auto", description="for a patient of the training sections")
    new: Literal["auto"] | Strength = Field("auto", description="for a new patient; auto: by leaving patients out")
    shallow: int = Field(
        1000, ge=0, description="counts a spot that deeper sections are also seen with, for a new patient; 0: none"
    )
    one_patient: Strength = Field(
        Strength(programs=3, penalty=0.3), description="for a new patient where only one could be learned from"
    )


class Fusion(RegressionModel):
    """The whole model in buffers, so that it is saved as weights.

    Parameters
    ----------
    tower
        Images → (n, features); scaling only.
    shapes
        Sizes.
    config
        Settings.
    """

    def __init__(self, tower: nn.Module, shapes: Shapes, config: FusionConfig) -> None:
        super().__init__()
        self.tower = tower
        self.config = config
        k, p, g = min(config.components, shapes.features), config.programs, shapes.genes
        sizes = {
            "mean": (shapes.features,), "axes": (shapes.features, k), "intercept": (g,), "programs": (p, g),
            "programs_new": (p, g), "map_known": (k, p), "map_new": (k, p), "weight_regression": (g,), "weight_retrieval": (g,),
            "keys": (0, p), "payload": (0, p),
        }  # fmt: skip
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size))

    def predict_expression(self, images: Tensor) -> Tensor:
        """For a new patient: (n, …) → (n, g)."""
        scores = self._components(images) @ self.get_buffer("map_new")
        # Log-normalised expression is not below zero
        return (scores @ self.get_buffer("programs_new") + self.get_buffer("intercept")).clamp_min(0.0)

    def predict_known(self, images: Tensor) -> Tensor:
        """For a patient of the training sections: (n, …) → (n, g)."""
        scores = self._components(images) @ self.get_buffer("map_known")
        programs = self.get_buffer("programs")
        out = (scores @ programs) * self.get_buffer("weight_regression") + self.get_buffer("intercept")
        if len(self.get_buffer("keys")):
            found = _retrieve(scores, self.get_buffer("keys"), self.get_buffer("payload"), self.config.neighbours)
            out = out + (found @ programs) * self.get_buffer("weight_retrieval")
        return out.clamp_min(0.0)

    def _components(self, images: Tensor) -> Tensor:
        return (self.tower(images) - self.get_buffer("mean")) @ self.get_buffer("axes")

    def solve(self, features: Features, expression: SparseExpression, origin: Origin) -> None:
        """Fit in closed form; every choice is made by leaving sections or patients out."""
        components = self._learn_components(features)
        spots = _centre_sections(expression, origin.section, self.config.programs)
        known = self._choose_known(components, spots, origin)
        shallow = self._shallower(spots, origin)
        new = self._choose_new(components, shallow, origin)
        self._store("map_new", _solve(components, shallow.scores, new))
        self._store("programs_new", shallow.programs)
        self._store("map_known", _solve(components, spots.scores, known))
        self._store("programs", spots.programs)
        self._store("intercept", spots.sections.mean(axis=0))
        self._store("weight_regression", np.ones(expression.shape[1]))
        if self.config.retrieval and len(np.unique(origin.section)) > 2:
            self._learn_retrieval(components, spots, origin, known)

    def _learn_components(self, features: Features) -> Array:
        mean, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        spread[spread < 1e-8] = 1.0
        axes = principal_axes((features - mean) / spread, self.get_buffer("axes").shape[1]) / spread[:, None]
        self._store("mean", mean)
        self._store("axes", axes)
        return (features - mean) @ axes

    def _shallower(self, spots: _Spots, origin: Origin) -> _Spots:
        """The same spots between their own depth and a shallow one."""
        if not self.config.shallow:
            return spots
        thinned = at_depth(spots.expression, origin.section, self.config.shallow)
        between = _centre_sections((spots.expression + thinned) / 2, origin.section, self.config.programs)
        # Settings are judged by what was measured
        return between._replace(expression=spots.expression, sections=spots.sections)

    def _choose_known(self, components: Array, spots: _Spots, origin: Origin) -> Strength:
        if self.config.known != "auto":
            return _bounded(self.config.known, spots)
        folds = _section_folds(origin)
        return _choose(components, spots, folds) if folds else _bounded(self.config.one_patient, spots)

    def _choose_new(self, components: Array, spots: _Spots, origin: Origin) -> Strength:
        if self.config.new != "auto":
            return _bounded(self.config.new, spots)
        patients = np.unique(origin.patient)
        if len(patients) < 2:
            return _bounded(self.config.one_patient, spots)
        parts = np.array_split(patients, min(len(patients), _MOST_FOLDS))
        return _choose(components, spots, [np.isin(origin.patient, part) for part in parts])

    def _learn_retrieval(self, components: Array, spots: _Spots, origin: Origin, strength: Strength) -> None:
        folds = _section_folds(origin)
        if len(folds) < 3:  # the keys for a left-out fold are themselves cross-fitted
            return
        regression, retrieval = np.zeros_like(spots.scores), np.zeros_like(spots.scores)
        for held in folds:
            inner = [fold[~held] for fold in folds if fold is not held]
            rest = spots.scores[~held]
            regression[held, : strength.programs] = components[held] @ _solve(components[~held], rest, strength)
            keys = _cross_fitted(components[~held], rest, inner, strength)
            query = regression[held, : strength.programs]
            found = _retrieve(_tensor(query), _tensor(keys), _tensor(rest), self.config.neighbours)
            retrieval[held] = found.numpy()
        weights = _stack(regression, retrieval, spots)
        self._store("weight_regression", weights[0])
        self._store("weight_retrieval", weights[1])
        keys = _cross_fitted(components, spots.scores, folds, strength)
        self.register_buffer("keys", _tensor(_padded(keys, self.config.programs)).float())
        self.register_buffer("payload", _tensor(_padded(spots.scores, self.config.programs)).float())

    def _store(self, name: str, values: Array) -> None:
        # Small data give fewer components or programs than there is room for; the rest stays zero
        buffer = self.get_buffer(name).zero_()
        buffer[tuple(slice(size) for size in values.shape)] = torch.from_numpy(np.asarray(values, dtype=np.float32))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # As many keys as there were training spots
        for name in ("keys", "payload"):
            if f"{prefix}{name}" in state_dict:
                self.register_buffer(name, torch.zeros_like(state_dict[f"{prefix}{name}"]))
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Spots(NamedTuple):
    """Training spots as programs.

    ``expression`` (n, g) sparse as measured; ``sections`` (n sections, g) their means; ``section`` (n,) row of these;
    ``programs`` (p, g) orthonormal; ``scores`` (n, p) of the expression less its section's mean.
    """

    expression: SparseExpression
    sections: Array
    section: npt.NDArray[np.intp]
    programs: Array
    scores: Array


def _centre_sections(expression: SparseExpression, section: npt.NDArray[np.intp], count: int) -> _Spots:
    """Programs by SVD of the expression less each section's mean, which is never made dense."""
    matrix = sparse.csr_matrix(expression, dtype=np.float64)
    _, rows = np.unique(section, return_inverse=True)
    n, g = matrix.shape
    sections = int(rows.max()) + 1
    member = sparse.csr_matrix((np.ones(n), (np.arange(n), rows)), shape=(n, sections))
    means = np.asarray((sparse.diags(1.0 / np.bincount(rows)) @ member.T @ matrix).todense())
    operator = LinearOperator(
        (n, g),
        matvec=lambda x: matrix @ x - member @ (means @ x),
        rmatvec=lambda y: matrix.T @ y - means.T @ (member.T @ y),
        dtype=np.float64,
    )
    found = min(count, min(n, g) - 1)
    # A fixed start makes it repeatable; not all ones, which centring has made orthogonal to everything
    start = np.random.default_rng(0).standard_normal(min(n, g))
    _, singular, programs = svds(operator, k=found, v0=start, random_state=0)
    order = np.argsort(-singular)
    programs = programs[order]
    programs *= np.sign(programs[np.arange(found), np.abs(programs).argmax(axis=1)])[:, None]
    scores = matrix @ programs.T - member @ (means @ programs.T)
    return _Spots(matrix, means, rows, programs, np.asarray(scores))


def _solve(components: Array, scores: Array, strength: Strength) -> Array:
    """Ridge of the leading programs' scores on the components, (k, programs); both are centred by section."""
    targets = scores[:, : strength.programs]
    gram = components.T @ components
    gram[np.diag_indices_from(gram)] += strength.penalty * len(components)
    return np.asarray(np.linalg.solve(gram, components.T @ targets), dtype=np.float64)


def _section_folds(origin: Origin) -> list[npt.NDArray[np.bool_]]:
    """At most five parts of the sections whose patient has others that stay: what is like predicting a known patient."""
    # Dealt out in turn, so that a patient's sections lie in different folds
    groups = [np.unique(origin.section[origin.patient == patient]) for patient in np.unique(origin.patient)]
    sections = [int(s) for group in groups if len(group) > 1 for s in group]
    folds = [sections[i::_MOST_FOLDS] for i in range(_MOST_FOLDS)]
    return [np.isin(origin.section, fold) for fold in folds if fold]


def _choose(components: Array, spots: _Spots, folds: list[npt.NDArray[np.bool_]]) -> Strength:
    """The strength with the best mean correlation per gene within the sections left out.

    Each fold counts once: a patient of many sections does not outvote one of a single section.
    """
    voters = _voters(spots)
    truth = spots.expression[:, np.unique(np.concatenate(voters))].toarray()
    where = [np.searchsorted(np.unique(np.concatenate(voters)), v) for v in voters]
    programs = spots.programs[:, np.unique(np.concatenate(voters))]
    best, choice = -np.inf, Strength(programs=_COUNTS[0], penalty=_PENALTIES[-1])
    for penalty in _PENALTIES:
        widest = Strength(programs=min(_COUNTS[-1], len(programs)), penalty=penalty)
        scores = np.zeros((len(components), widest.programs))
        for held in folds:
            scores[held] = components[held] @ _solve(components[~held], spots.scores[~held], widest)
        for count in sorted({min(c, len(programs)) for c in _COUNTS}):
            predicted = scores[:, :count] @ programs[:count]
            pcc = np.mean([_mean_pcc(predicted[f], truth[f], spots.section[f]) for f in folds], axis=0)
            value = float(np.mean([np.mean(pcc[genes]) for genes in where]))
            if value > best:
                best, choice = value, Strength(programs=count, penalty=penalty)
    return choice


def _voters(spots: _Spots) -> list[npt.NDArray[np.intp]]:
    """Three sets of genes with a vote each: highly expressed, highly variable, and many."""
    mean = np.asarray(spots.expression.mean(axis=0)).ravel()
    square = np.asarray(spots.expression.multiply(spots.expression).mean(axis=0)).ravel()
    ranks = (mean, square - mean**2, square - mean**2)
    return [np.argsort(-values, kind="stable")[:count] for values, count in zip(ranks, _VOTERS, strict=True)]


def _mean_pcc(predicted: Array, truth: Array, section: npt.NDArray[np.intp]) -> Array:
    """Correlation of each gene within each section, averaged over sections."""
    names = np.unique(section)
    total = np.zeros(truth.shape[1])
    for name in names:
        p, t = (values[section == name] - values[section == name].mean(axis=0) for values in (predicted, truth))
        norm = np.sqrt((p**2).sum(axis=0) * (t**2).sum(axis=0))
        total += (p * t).sum(axis=0) / np.maximum(norm, 1e-12)
    return total / len(names)


def _cross_fitted(components: Array, scores: Array, folds: list[npt.NDArray[np.bool_]], strength: Strength) -> Array:
    """Scores of each spot predicted without its own fold; spots of no fold are predicted from all."""
    out = components @ _solve(components, scores, strength)
    for held in folds:
        if held.any() and not held.all():
            out[held] = components[held] @ _solve(components[~held], scores[~held], strength)
    return out


def _retrieve(queries: Tensor, keys: Tensor, payload: Tensor, neighbours: int) -> Tensor:
    """Mean payload of the keys nearest by cosine, block by block."""
    wanted = min(neighbours, len(keys))
    unit = F.normalize(keys, dim=1)
    rows = max(1, 2**26 // max(len(keys), 1))
    found = [(F.normalize(block, dim=1) @ unit.T).topk(wanted, dim=1).indices for block in queries.split(rows)]
    # A loop over neighbours: the payload of all at once would be neighbours times as large
    indices = torch.cat(found)
    return torch.stack([payload[indices[:, i]] for i in range(wanted)]).mean(dim=0)


def _stack(regression: Array, retrieval: Array, spots: _Spots) -> tuple[Array, Array]:
    """Non-negative weights (g,) of two predictions in program space, by least squares in left-out sections.

    A single gene's weights are noise for most genes, so the normal equations of all genes together, scaled to a few
    average genes, are added to each gene's own.
    """
    programs = spots.programs
    centred = spots.expression.T @ np.hstack([regression, retrieval])
    shift = np.zeros_like(centred)
    for section in range(len(spots.sections)):
        inside = spots.section == section
        sums = np.hstack([regression, retrieval])[inside].sum(axis=0)
        shift += spots.sections[section][:, None] * sums
    against = np.asarray(centred - shift)  # (g, 2p): sums of expression less section mean, times score
    p = len(programs)

    def quadratic(left: Array, right: Array) -> Array:
        return np.einsum("pg,pq,qg->g", programs, left.T @ right, programs, optimize=True)

    aa, bb, ab = quadratic(regression, regression), quadratic(retrieval, retrieval), quadratic(regression, retrieval)
    ay = np.einsum("gp,pg->g", against[:, :p], programs)
    by = np.einsum("gp,pg->g", against[:, p:], programs)
    few = 5.0 / len(aa)
    common = _non_negative(*(np.array([v.sum()]) for v in (aa, bb, ab, ay, by)))
    prior_aa, prior_bb, prior_ab = few * aa.sum(), few * bb.sum(), few * ab.sum()
    return _non_negative(
        aa + prior_aa,
        bb + prior_bb,
        ab + prior_ab,
        ay + prior_aa * common[0] + prior_ab * common[1],
        by + prior_bb * common[1] + prior_ab * common[0],
    )


def _non_negative(aa: Array, bb: Array, ab: Array, ay: Array, by: Array) -> tuple[Array, Array]:
    """Minimum of ``‖y − u a − v b‖²`` over u, v ≥ 0 from the inner products."""
    determinant = np.maximum(aa * bb - ab**2, 1e-12 * np.maximum(aa * bb, 1e-300))
    u, v = (bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant
    only_a, only_b = np.maximum(ay, 0) / np.maximum(aa, 1e-300), np.maximum(by, 0) / np.maximum(bb, 1e-300)
    inside = (u >= 0) & (v >= 0)
    # Outside, the minimum lies on an edge: the one that explains more
    a_better = only_a * ay >= only_b * by
    return np.where(inside, u, np.where(a_better, only_a, 0.0)), np.where(inside, v, np.where(a_better, 0.0, only_b))


def _bounded(strength: Strength, spots: _Spots) -> Strength:
    """No more programs than the data gave."""
    return strength.model_copy(update={"programs": min(strength.programs, len(spots.programs))})


def _tensor(values: Array) -> Tensor:
    return torch.tensor(values)


def _padded(values: Array, width: int) -> Array:
    """Zero columns up to a width that is known before fitting."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


def _build(tower: nn.Module, shapes: Shapes, config: MethodConfig) -> nn.Module:
    assert isinstance(config, FusionConfig)  # noqa: S101 - the table pairs them
    return Fusion(tower, shapes, config)


FUSION = Method(
    name="fusion",
    summary="expression programs from a tile and its surroundings, by regression and retrieval",
    source="ours",
    config=FusionConfig,
    build=_build,
    can_fine_tune=False,
    views=4,
    knows_patients=True,
)
