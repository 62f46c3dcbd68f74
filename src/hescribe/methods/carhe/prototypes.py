"""Where transcriptomes lie and how they cluster: closed forms on sparse arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hescribe.methods.base import Unpaired

Array = npt.NDArray[np.float64]

_FEWEST_PER_PROTOTYPE = 5  #: fewer would make a prototype of noise
_MOST_FOR_KMEANS = 50_000  #: transcriptomes; beyond, k-means on small batches
_RIDGE = 0.1  #: where a source lacks genes of the panel; the axes are orthonormal


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
