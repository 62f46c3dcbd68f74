"""Prototypes of one fit: what they are learned from, and the reference made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import sparse
from scipy.spatial import cKDTree

from hescribe.methods.base import LearnsPrototypes, Origin, Unpaired
from hescribe.reference import Reference
from hescribe.training.inputs.cells import mean_composition, name_mixture
from hescribe.training.inputs.unpaired import UnpairedData
from hescribe.types import Features, SparseExpression

_FEWEST_MEMBERS = 20  #: transcriptomes a transferred gene's mean is of; where a prototype has fewer, the nearest ones
_PRIOR = 1.0  #: a mean is drawn to that of all transcriptomes as if by so many

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prototypes:
    """Transcriptomes of the spots that are fitted to, and those without image.

    Attributes
    ----------
    expression
        (n, g) of the paired spots.
    inputs
        (n, p) what the model's expression side takes of them.
    origin
        Of them.
    genes
        The g genes.
    without_image
        No patient of theirs is held out.
    panel
        (g,) mask of the genes that are the inputs; None where these are scGPT vectors.
    transfer
        Predict genes that only the transcriptomes without image have.
    cell_types
        (n × types) compositions of the paired spots, where they are known.
    """

    expression: SparseExpression
    inputs: SparseExpression
    origin: Origin
    genes: tuple[str, ...]
    without_image: UnpairedData | None
    panel: npt.NDArray[np.bool_] | None
    transfer: bool
    cell_types: pd.DataFrame | None = None

    def learn(self, model: LearnsPrototypes, *, seed: int) -> None:
        """Let the model find its prototypes."""
        model.learn_prototypes(
            self.inputs, self.origin, seed=seed, unpaired=self._unpaired(), embedded=self.panel is None
        )

    def _unpaired(self) -> Unpaired | None:
        others = self.without_image
        if others is None:
            return None
        if self.panel is not None:
            inputs, measured = others.on_scale_of(self.expression)[:, self.panel], others.measured[:, self.panel]
        else:
            inputs = sparse.csr_matrix(others.scgpt)
            measured = np.ones((len(others.sections), inputs.shape[1]), dtype=bool)
        return Unpaired(inputs, others.source, measured)

    def reference(self, model: LearnsPrototypes) -> Reference:
        """Keys are the prototypes that paired spots belong to, payload the mean expression of the members of each.

        A prototype without such a spot was never aligned with an image, so it is left out.
        """
        with torch.inference_mode():
            embedding = model.embed_prototypes().float().cpu().numpy()
            places = model.locate(torch.tensor(self.inputs.toarray(), dtype=torch.float32)).cpu().numpy()
        centres = model.centres()
        member = _membership(places, centres)
        used = np.asarray(member.sum(axis=1)).ravel() > 0
        composition = self._composition(member, used)
        member, genes = member[used], self.genes
        obs = pd.DataFrame({"spots": np.asarray(member.sum(axis=1)).ravel().astype(int)})
        obs.index = pd.Index([f"prototype {i}" for i in np.flatnonzero(used)])
        if composition is not None:
            obs["name"] = [name_mixture(shares) for _, shares in composition.iterrows()]
        others = self.without_image
        if others is None:
            means = np.asarray((sparse.diags(1.0 / obs["spots"].to_numpy()) @ member @ self.expression).todense())
        else:
            elsewhere = model.locate_unpaired(cast(Unpaired, self._unpaired()))
            beside = _membership(elsewhere, centres)[used]
            obs["unpaired"] = np.asarray(beside.sum(axis=1)).ravel().astype(int)
            means = _joint_means(member, self.expression, beside, others)
            if self.transfer:
                means = np.hstack([means, _transferred(_at_least(beside, elsewhere, centres[used]), others)])
                genes = (*genes, *others.extra_genes.index)
        return Reference(embedding[used], sparse.csr_matrix(means, dtype=np.float32), genes, obs, composition)

    def _composition(self, member: SparseExpression, used: npt.NDArray[np.bool_]) -> pd.DataFrame | None:
        """(used prototypes × types) mean over their paired spots."""
        if self.cell_types is None:
            return None
        cluster = member.tocsc().indices  # one entry a column
        return mean_composition(self.cell_types, cluster, member.shape[0])[used]


def _membership(places: Features, centres: Features) -> SparseExpression:
    """(prototypes, n), 1 where a transcriptome's nearest centre is."""
    nearest = cKDTree(centres).query(places)[1]
    ones, columns = np.ones(len(places)), np.arange(len(places))
    return sparse.csr_matrix((ones, (nearest, columns)), shape=(len(centres), len(places)))


def _at_least(member: SparseExpression, places: Features, centres: Features) -> SparseExpression:
    """Membership in which a prototype with too few members has the nearest transcriptomes instead."""
    wanted = min(_FEWEST_MEMBERS, len(places))
    few = np.flatnonzero(np.asarray(member.sum(axis=1)).ravel() < wanted)
    if not len(few):
        return member
    nearest = cKDTree(places).query(centres[few], k=[*range(1, wanted + 1)])[1]
    out = member.tolil()
    for prototype, rows in zip(few, nearest, strict=True):
        out[prototype] = 0
        out[prototype, rows] = 1
    return out.tocsr()


def _joint_means(
    member: SparseExpression, expression: SparseExpression, beside: SparseExpression, others: UnpairedData
) -> Array:
    """(prototypes, g) means over paired members and those without image, which weigh no more in total.

    Of a transcriptome without image counts what it differs from its source's mean, added to that of the paired spots.
    """
    overall = np.asarray(expression.mean(axis=0), dtype=np.float64).ravel()
    weight = min(1.0, expression.shape[0] / len(others.source))
    sums, counts = _deviations(beside, others.on_scale_of(expression), others.source, others.measured)
    sizes = np.asarray(member.sum(axis=1))
    own = np.asarray((member @ expression).todense()) - sizes * overall
    return np.maximum(overall + (own + weight * sums) / (sizes + weight * counts), 0.0)


def _transferred(member: SparseExpression, others: UnpairedData) -> Array:
    """(prototypes, t) means of genes that the paired sections lack."""
    sums, counts = _deviations(member, others.extra, others.source, others.extra_measured)
    return np.maximum(others.extra_genes["mean"].to_numpy() + sums / (counts + _PRIOR), 0.0)


def _deviations(
    member: SparseExpression,
    expression: SparseExpression,
    source: npt.NDArray[np.intp],
    measured: npt.NDArray[np.bool_],
) -> tuple[Array, Array]:
    """Sums over each prototype's members of what they differ from their source's mean, and how many were measured."""
    of_source = sparse.csr_matrix(
        (np.ones(len(source)), (np.arange(len(source)), source)), shape=(len(source), len(measured))
    )
    sizes = np.maximum(np.asarray(of_source.sum(axis=0)).ravel(), 1.0)
    means = np.asarray((sparse.diags(1.0 / sizes) @ of_source.T @ expression).todense())
    shares = np.asarray((member @ of_source).todense())
    return np.asarray((member @ expression).todense()) - shares @ means, shares @ measured.astype(np.float64)
