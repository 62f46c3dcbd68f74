"""Where transcriptomes lie and how they cluster: closed forms on sparse arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from hescribe.methods.base import Unpaired
from hescribe.types import SparseExpression

Array = npt.NDArray[np.float64]

_FEWEST_PER_PROTOTYPE = 5  #: fewer would make a prototype of noise
_MOST_FOR_KMEANS = 50_000  #: transcriptomes; beyond, k-means on small batches
_NEARLY_ALL = 0.9  #: share of the panel that a source must have measured to shape the embedding
_RIDGE = 0.1  #: where a source lacks genes of the panel; the axes are orthonormal


def principal_axes(
    matrix: SparseExpression, section: npt.NDArray[np.intp], unpaired: Unpaired | None, count: int
) -> Array:
    """(panel, k ≤ count) directions in which transcriptomes of one section or source differ.

    Sources without image together weigh no more than the paired spots, however many transcriptomes they have and
    however widely single cells scatter. One that lacks many genes of the panel has no say: its directions would be
    those of the others, cut off.
    """
    parts = [_Centred(matrix, section)]
    whole = np.zeros(0, bool) if unpaired is None else unpaired.measured.mean(axis=1) >= _NEARLY_ALL
    if unpaired is not None and whole.any():
        rows = whole[unpaired.source]
        parts.append(_Centred(unpaired.expression[rows], unpaired.source[rows]))
        parts[1].scale = np.sqrt(min(1.0, parts[0].squares() / max(parts[1].squares(), 1e-12)))
    ends = np.cumsum([part.rows for part in parts])
    shape = (int(ends[-1]), matrix.shape[1])
    operator = LinearOperator(
        shape,
        matvec=lambda x: np.concatenate([part.times(x.ravel()) for part in parts]),
        rmatvec=lambda y: np.sum(
            [p.transposed_times(v) for p, v in zip(parts, np.split(y.ravel(), ends[:-1]), strict=True)], axis=0
        ),
        dtype=np.float64,
    )
    found = min(count, min(shape) - 1)
    # A fixed start makes it repeatable; not all ones, which centring has made orthogonal to everything
    start = np.random.default_rng(0).standard_normal(min(shape))
    _, singular, axes = svds(operator, found, v0=start, random_state=0)
    axes = axes[np.argsort(-singular)]
    return np.asarray((axes * np.sign(axes[np.arange(found), np.abs(axes).argmax(axis=1)])[:, None]).T)


class _Centred:
    """A sparse matrix less the mean of each row's section, which is never made dense."""

    def __init__(self, matrix: SparseExpression, section: npt.NDArray[np.intp]) -> None:
        self.matrix = sparse.csr_matrix(matrix, dtype=np.float64)
        self.rows = self.matrix.shape[0]
        self.scale = 1.0
        self._member, self._means = _section_means(self.matrix, section)

    def squares(self) -> float:
        sizes = np.asarray(self._member.sum(axis=0)).ravel()
        return float((self.matrix.data**2).sum() - (sizes * (self._means**2).sum(axis=1)).sum())

    def times(self, x: Array) -> Array:
        return self.scale * (self.matrix @ x - self._member @ (self._means @ x))

    def transposed_times(self, y: Array) -> Array:
        return self.scale * (self.matrix.T @ y - self._means.T @ (self._member.T @ y))


def _section_means(matrix: SparseExpression, section: npt.NDArray[np.intp]) -> tuple[sparse.csr_matrix, Array]:
    """(n, sections) membership and (sections, panel) means."""
    _, rows = np.unique(section, return_inverse=True)
    member = sparse.csr_matrix((np.ones(len(rows)), (np.arange(len(rows)), rows)))
    means = sparse.diags(1.0 / np.bincount(rows)) @ member.T @ matrix
    return member, np.asarray(means.todense())


def project_unpaired(unpaired: Unpaired, axes: Array, spread: float) -> npt.NDArray[np.float32]:
    """(m, k) places of transcriptomes without image, comparable with those of the paired spots.

    Each source is taken less its own mean, which takes differences between platforms out (and also those in
    composition: a source should be of the whole tissue). One that scatters more widely than the paired spots, as
    single cells do, of which a spot is a mixture, is drawn in to their spread.

    Parameters
    ----------
    unpaired
        Transcriptomes.
    axes
        (panel, k), orthonormal.
    spread
        Root mean square distance of the paired spots from their centre.
    """
    out = np.empty((len(unpaired.source), axes.shape[1]), dtype=np.float32)
    for source in np.unique(unpaired.source):
        rows = unpaired.source == source
        places = np.asarray(unpaired.expression[rows] @ _projection(axes, unpaired.measured[source]))
        places -= places.mean(axis=0)
        own = float(np.sqrt((places**2).sum(axis=1).mean()))
        out[rows] = places * min(1.0, spread / max(own, 1e-12))
    return out


def _projection(axes: Array, measured: npt.NDArray[np.bool_]) -> Array:
    """(panel, k): the axes, or where genes are missing the places that explain the others best."""
    if measured.all():
        return axes
    known = axes * measured[:, None]
    gram = known.T @ known
    return np.asarray(known @ np.linalg.inv(gram + _RIDGE * np.eye(len(gram))))


def cluster(paired: Array, unpaired: npt.NDArray[np.float32] | None, *, most: int, seed: int) -> Array:
    """(prototypes, k) centres of k-means; transcriptomes without image weigh no more than the paired spots."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    places, weights = paired, np.ones(len(paired))
    if unpaired is not None and len(unpaired):
        share = min(1.0, len(paired) / len(unpaired))
        places = np.vstack([paired, unpaired])
        weights = np.concatenate([weights, np.full(len(unpaired), share)])
    count = max(2, min(most, round(weights.sum()) // _FEWEST_PER_PROTOTYPE))
    if len(places) > _MOST_FOR_KMEANS:
        found = MiniBatchKMeans(count, n_init=3, batch_size=4096, random_state=seed)
    else:
        found = KMeans(count, n_init=3, random_state=seed)
    return np.asarray(found.fit(places, sample_weight=weights).cluster_centers_, dtype=np.float64)
