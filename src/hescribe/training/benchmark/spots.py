"""Fewer training spots, for a learning curve."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hescribe.evaluation.splits import is_paired
from hescribe.sections import Section, SomeSpots


def some_spots(sections: Sequence[Section], share: float, *, seed: int) -> list[Section]:
    """Each paired section with a share of its spots; transcriptomes without image stay whole.

    Parameters
    ----------
    sections
        Of a training.
    share
        Of the spots of each section, rounded up. A smaller share is part of a larger one.
    seed
        Of the choice, which depends on nothing else but the section's name and number of spots.
    """
    if share == 1:
        return list(sections)
    return [SomeSpots(s.row, s, _chosen(s, share, seed)) if is_paired(s) else s for s in sections]


def _chosen(section: Section, share: float, seed: int) -> npt.NDArray[np.intp]:
    name = int.from_bytes(hashlib.blake2b(section.section_id.encode(), digest_size=8).digest())
    order = np.random.default_rng([seed, name]).permutation(section.adata.n_obs)
    return np.sort(order[: int(np.ceil(share * len(order) - 1e-9))]).astype(np.intp)
