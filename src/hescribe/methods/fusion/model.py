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

A known patient with two sections or more has programs, map and retrieval learned from his own sections alone, where
leaving them out in turn shows that this is better than learning from everybody's.

For a patient who is new, this is too bold: what a neighbouring section confirms, another patient need not. Fewer
programs and a heavier penalty are then used, and no retrieval. They are chosen by leaving training patients out, or,
where there is one training patient, stated in the settings. Another patient's section may also be sequenced less
deeply, which changes what log expression shows: the programs for new patients are those of the mean of the expression
as measured and as it would be at a shallow depth. Spots of other patients without image take part in these programs, as
much as those with one: what one patient's genes do together, another's do in part.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from hescribe.methods.base import Count, Method, MethodConfig, Origin, RegressionModel, Shapes, Unpaired
from hescribe.methods.baselines.ridge import principal_axes
from hescribe.methods.depth import at_depth
from hescribe.methods.fusion.programs import (
    COUNTS,
    MOST_PROGRAMS,
    Array,
    Choice,
    Mask,
    Spots,
    Strength,
    bounded,
    centre_sections,
    choose_strength,
    patient_folds,
    section_folds,
    solve_map,
    voting_genes,
)
from hescribe.methods.fusion.retrieval import cross_fit, retrieve, stack
from hescribe.types import Context, Features, SparseExpression

_EVERYBODY = "all"  #: name of the map that was learned from all patients


class FusionConfig(MethodConfig):
    """Settings of fusion."""

    context: Context = Field(
        Context((1.0, 2.0), (200.0, 400.0), centred=True), description="what of a tile is described"
    )
    components: Count = Field(256, description="principal components of the description")
    programs: int = Field(100, ge=1, le=MOST_PROGRAMS, description="programs that retrieval returns")
    neighbours: Count = Field(50, description="spots that retrieval averages over")
    retrieval: bool = Field(default=True, description="the second path, for patients of the training sections")
    own: bool = Field(default=True, description="a known patient's own sections alone, where that is better for him")
    known: Literal["auto"] | Strength = Field("auto", description="for a patient of the training sections")
    new: Literal["auto"] | Strength = Field("auto", description="for a new patient; auto: by leaving patients out")
    shallow: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="counts a spot that deeper sections are also seen with, for a new patient; 0: none",
    )
    unpaired: bool = Field(default=True, description="a new patient's programs from spots without image too")
    one_patient: Strength = Field(
        Strength(programs=5, penalty=0.1), description="for a new patient where only one could be learned from"
    )


class KnownMap(nn.Module):
    """Components → expression of a patient whose sections it has learned from.

    Parameters
    ----------
    components, genes
        Sizes k and g.
    config
        Settings.
    """

    def __init__(self, components: int, genes: int, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        k, p, g = components, config.programs, genes
        sizes = {
            "intercept": (g,), "programs": (p, g), "map": (k, p), "weight_regression": (g,), "weight_retrieval": (g,),
            "keys": (0, p), "payload": (0, p),
        }  # fmt: skip
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size))

    def forward(self, components: Tensor) -> Tensor:
        """(n, k) → (n, g)."""
        scores, programs = components @ self.get_buffer("map"), self.get_buffer("programs")
        out = (scores @ programs) * self.get_buffer("weight_regression") + self.get_buffer("intercept")
        if len(self.get_buffer("keys")):
            found = retrieve(scores, self.get_buffer("keys"), self.get_buffer("payload"), self.config.neighbours)
            out = out + (found @ programs) * self.get_buffer("weight_retrieval")
        # Log-normalised expression is not below zero
        return out.clamp_min(0.0)

    def learn(self, components: Array, spots: Spots, folds: list[Mask], strength: Strength) -> None:
        """Solve the map, and the retrieval where it can be judged."""
        _store(self, "map", solve_map(components, spots.scores, strength))
        _store(self, "programs", spots.programs)
        _store(self, "intercept", spots.sections.mean(axis=0))
        _store(self, "weight_regression", np.ones(spots.expression.shape[1]))
        # The keys for a left-out fold are themselves cross-fitted
        if self.config.retrieval and len(folds) > 2:
            self._learn_retrieval(components, spots, folds, strength)

    def _learn_retrieval(self, components: Array, spots: Spots, folds: list[Mask], strength: Strength) -> None:
        regression, retrieval = np.zeros_like(spots.scores), np.zeros_like(spots.scores)
        for held in folds:
            inner = [fold[~held] for fold in folds if fold is not held]
            rest = spots.scores[~held]
            query = components[held] @ solve_map(components[~held], rest, strength)
            regression[held, : query.shape[1]] = query
            keys = cross_fit(components[~held], rest, spots.section[~held], inner, strength)
            found = retrieve(torch.tensor(query), torch.tensor(keys), torch.tensor(rest), self.config.neighbours)
            retrieval[held] = found.numpy()
        weights = stack(regression, retrieval, spots)
        _store(self, "weight_regression", weights[0])
        _store(self, "weight_retrieval", weights[1])
        keys = cross_fit(components, spots.scores, spots.section, folds, strength)
        for name, rows in (("keys", keys), ("payload", spots.scores)):
            # Zero columns up to a width that is known before fitting
            padded = np.pad(rows, ((0, 0), (0, self.config.programs - rows.shape[1])))
            self.register_buffer(name, torch.tensor(padded).float())

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # As many keys as there were training spots
        for name in ("keys", "payload"):
            if f"{prefix}{name}" in state_dict:
                self.register_buffer(name, torch.zeros_like(state_dict[f"{prefix}{name}"]))
        super()._load_from_state_dict(state_dict, prefix, *args)


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
        self.sizes = k, g = min(config.components, shapes.features), shapes.genes
        p = config.programs
        sizes = {
            "mean": (shapes.features,), "axes": (shapes.features, k),
            "intercept": (g,), "programs_new": (p, g), "map_new": (k, p),
        }  # fmt: skip
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size))
        self._unpaired: Unpaired | None = None
        #: by the number of the patient, and that of everybody
        self.known = nn.ModuleDict({_EVERYBODY: KnownMap(k, g, config)})

    def predict_expression(self, images: Tensor) -> Tensor:
        """For a new patient: (n, …) → (n, g)."""
        scores = self._components(images) @ self.get_buffer("map_new")
        return (scores @ self.get_buffer("programs_new") + self.get_buffer("intercept")).clamp_min(0.0)

    def predict_known(self, images: Tensor, patient: int) -> Tensor:
        """For a patient of the training sections, by his number there: (n, …) → (n, g)."""
        name = str(patient) if str(patient) in self.known else _EVERYBODY
        out: Tensor = self.known[name](self._components(images))
        return out

    def _components(self, images: Tensor) -> Tensor:
        return (self.tower(images) - self.get_buffer("mean")) @ self.get_buffer("axes")

    def add_unpaired(self, unpaired: Unpaired) -> None:
        """They shape the programs for new patients: those of one patient are in part his alone."""
        self._unpaired = unpaired

    def solve(self, features: Features, expression: SparseExpression, origin: Origin) -> None:
        """Fit in closed form; every choice is made by leaving sections or patients out."""
        components = self._learn_components(features)
        spots = centre_sections(expression, origin.section, self.config.programs)
        shallow = self._shallower(spots, origin)
        self._unpaired = None
        new = self._choose_new(components, shallow, origin)
        _store(self, "map_new", solve_map(components, shallow.scores, new))
        _store(self, "programs_new", shallow.programs)
        _store(self, "intercept", spots.sections.mean(axis=0))
        folds = section_folds(origin)
        self._part(_EVERYBODY).learn(components, spots, folds, self._choose_known(components, spots, folds).strength)
        patients = np.unique(origin.patient)
        if self.config.own and len(patients) > 1:
            for patient in patients:
                self._learn_own(int(patient), components, spots, origin)

    def _learn_own(self, patient: int, components: Array, spots: Spots, origin: Origin) -> None:
        """A patient's own map, where his sections, left out in turn, are better predicted by the others of his."""
        own = origin.patient == patient
        folds = section_folds(origin.at(own))
        if not folds:
            return
        alone = centre_sections(spots.expression[own], origin.section[own], self.config.programs)
        voters = voting_genes(alone)
        chosen = self._choose_known(components[own], alone, folds, voters=voters)
        among_all = [np.zeros(len(own), dtype=bool) for _ in folds]
        for wide, fold in zip(among_all, folds, strict=True):
            wide[own] = fold
        if chosen.correlation >= self._choose_known(components, spots, among_all, voters=voters).correlation:
            self._part(str(patient)).learn(components[own], alone, folds, chosen.strength)

    def _part(self, name: str) -> KnownMap:
        if name not in self.known:
            self.known[name] = KnownMap(*self.sizes, self.config)
        part = self.known[name]
        assert isinstance(part, KnownMap)  # noqa: S101 - nothing else is put there
        return part

    def _learn_components(self, features: Features) -> Array:
        mean, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        spread[spread < 1e-8] = 1.0
        axes = principal_axes((features - mean) / spread, self.get_buffer("axes").shape[1]) / spread[:, None]
        _store(self, "mean", mean)
        _store(self, "axes", axes)
        return np.asarray((features - mean) @ axes, dtype=np.float64)

    def _shallower(self, spots: Spots, origin: Origin) -> Spots:
        """The same spots between their own depth and a shallow one, as programs that others without image share."""
        others = self._unpaired
        if not self.config.shallow and others is None:
            return spots
        if others is not None:
            others = others._replace(expression=self._between(others.expression, others.source))
        own = self._between(spots.expression, origin.section)
        stated = [s.programs for s in (self.config.new, self.config.one_patient) if s != "auto"]
        most = min(self.config.programs, max(COUNTS[-1], *stated))  # each costs time among many transcriptomes
        between = centre_sections(own, origin.section, most, others)
        # Settings are judged by what was measured
        return between._replace(expression=spots.expression, sections=spots.sections)

    def _between(self, expression: SparseExpression, section: npt.NDArray[np.intp]) -> SparseExpression:
        if not self.config.shallow:
            return expression
        return (expression + at_depth(expression, section, self.config.shallow)) / 2

    def _choose_known(
        self, components: Array, spots: Spots, folds: list[Mask], *, voters: list[np.ndarray] | None = None
    ) -> Choice:
        if self.config.known != "auto":
            return Choice(bounded(self.config.known, spots), 0.0)
        if not folds:
            return Choice(bounded(self.config.one_patient, spots), 0.0)
        return choose_strength(components, spots, folds, spots.section, voters=voters)

    def _choose_new(self, components: Array, spots: Spots, origin: Origin) -> Strength:
        if self.config.new != "auto":
            return bounded(self.config.new, spots)
        if len(np.unique(origin.patient)) < 2:
            return bounded(self.config.one_patient, spots)
        return choose_strength(components, spots, patient_folds(origin), origin.patient).strength

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        start = f"{prefix}known."
        for name in dict.fromkeys(key.removeprefix(start).split(".")[0] for key in state_dict if key.startswith(start)):
            self._part(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _store(module: nn.Module, name: str, values: Array) -> None:
    # Small data give fewer components or programs than there is room for; the rest stays zero
    buffer = module.get_buffer(name).zero_()
    buffer[tuple(slice(size) for size in values.shape)] = torch.from_numpy(np.asarray(values, dtype=np.float32))


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
