"""Retrieval among expression programs, and what it is worth beside the regression."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hescribe.methods.fusion.programs import Array, Mask, Spots, Strength, solve_map


def cross_fit(
    components: Array, scores: Array, section: npt.NDArray[np.intp], folds: list[Mask], strength: Strength
) -> Array:
    """Scores of each spot predicted without its own fold.

    A section of no fold, the only one of its patient, is left out by itself: a key must err as a query does, and one
    that its own map was fitted to would be nearer to the truth than any query.
    """
    out = np.zeros((len(components), min(strength.programs, scores.shape[1])))
    covered = np.any(folds, axis=0) if folds else np.zeros(len(components), dtype=bool)
    alone = [section == name for name in np.unique(section[~covered])]
    for held in [*folds, *alone]:
        if held.any() and not held.all():
            out[held] = components[held] @ solve_map(components[~held], scores[~held], strength)
    return out


def retrieve(queries: Tensor, keys: Tensor, payload: Tensor, neighbours: int) -> Tensor:
    """Mean payload of the keys nearest by cosine, block by block."""
    wanted = min(neighbours, len(keys))
    unit = F.normalize(keys, dim=1)
    rows = max(1, 2**26 // max(len(keys), 1))
    found = [(F.normalize(block, dim=1) @ unit.T).topk(wanted, dim=1).indices for block in queries.split(rows)]
    # A loop over neighbours: the payload of all at once would be neighbours times as large
    indices = torch.cat(found)
    return torch.stack([payload[indices[:, i]] for i in range(wanted)]).mean(dim=0)


def stack(regression: Array, retrieval: Array, spots: Spots) -> tuple[Array, Array]:
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
    common = non_negative(*(np.array([v.sum()]) for v in (aa, bb, ab, ay, by)))
    prior_aa, prior_bb, prior_ab = few * aa.sum(), few * bb.sum(), few * ab.sum()
    return non_negative(
        aa + prior_aa,
        bb + prior_bb,
        ab + prior_ab,
        ay + prior_aa * common[0] + prior_ab * common[1],
        by + prior_bb * common[1] + prior_ab * common[0],
    )


def non_negative(aa: Array, bb: Array, ab: Array, ay: Array, by: Array) -> tuple[Array, Array]:
    """Minimum of ``‖y − u a − v b‖²`` over u, v ≥ 0 from the inner products."""
    determinant = np.maximum(aa * bb - ab**2, 1e-12 * np.maximum(aa * bb, 1e-300))
    u, v = (bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant
    only_a, only_b = np.maximum(ay, 0) / np.maximum(aa, 1e-300), np.maximum(by, 0) / np.maximum(bb, 1e-300)
    inside = (u >= 0) & (v >= 0)
    # Outside, the minimum lies on an edge: the one that explains more
    a_better = only_a * ay >= only_b * by
    return np.where(inside, u, np.where(a_better, only_a, 0.0)), np.where(inside, v, np.where(a_better, 0.0, only_b))
