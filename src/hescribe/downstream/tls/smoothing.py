"""A score made smooth over spots, and how far each place stands out if the scores lay anywhere."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.spatial import cKDTree

from hescribe.errors import InputError
from hescribe.types import Microns

Values: TypeAlias = npt.NDArray[np.float64]  #: (n,) one a spot, or (n, k) k maps
_REACH = 3.0  #: standard deviations; what lies beyond has 1 % of the kernel's weight
_SAME = 1e-9  #: a spread below this share of the values is rounding


def smoothing_weights(centres_um: npt.NDArray[np.float64], smooth_um: Microns) -> sparse.csr_matrix:
    """Weights of a Gaussian mean over spots, ``w_ij ∝ exp(−d_ij² / 2 σ²)`` up to 3 σ, each row of sum 1.

    As rows are scaled by the weight of the spots that are there (a normalised convolution), the edge of the tissue
    pulls no score towards zero, and missing spots leave no hole.

    Parameters
    ----------
    centres_um
        (n, 2) positions, µm.
    smooth_um
        σ, µm; 0 leaves every score as it is.

    Returns
    -------
    csr_matrix
        (n, n).

    Raises
    ------
    InputError
        σ is negative or no number, or a position is missing.
    """
    centres = np.asarray(centres_um, dtype=np.float64)
    if not np.isfinite(smooth_um) or smooth_um < 0:
        raise InputError(f"smoothing over {smooth_um} µm", fix="0 or more")
    if centres.ndim != 2 or centres.shape[1] != 2 or not np.isfinite(centres).all():
        raise InputError(f"positions must be finite and of shape (spots, 2), found {centres.shape}")
    n = len(centres)
    if smooth_um == 0 or n < 2:
        return sparse.identity(n, dtype=np.float64, format="csr")
    pairs = cKDTree(centres).query_pairs(_REACH * smooth_um, output_type="ndarray")
    distance = np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1)
    weight = np.exp(-(distance**2) / (2 * smooth_um**2))
    half = sparse.coo_matrix((weight, (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    full = sparse.csr_matrix(half + half.T + sparse.identity(n))
    return sparse.csr_matrix(sparse.diags(1 / np.asarray(full.sum(axis=1)).ravel()) @ full)


def standing_out(values: Values, weights: sparse.csr_matrix) -> Values:
    """How far each smoothed score is from what it would be if the spots' scores were dealt out at random.

    With m and S² the mean and the unbiased variance of the n scores, a place whose weights are w has over all
    permutations the mean m and the variance ``S² (Σ w² − 1/n)``, exactly; so

        z_i = (Σ_j w_ij s_j − m) / (S √(Σ_j w_ij² − 1/n))

    compares a place at the tissue's edge, where few spots are averaged, fairly with one in the middle.

    Parameters
    ----------
    values
        (n,) scores, or (n, k) for k maps that are permutations of one another.
    weights
        Of `smoothing_weights`.

    Returns
    -------
    ndarray
        As ``values``. 0 where nothing can stand out: constant scores, or a mean over all spots.
    """
    n = weights.shape[0]
    if n < 2:
        return np.zeros(values.shape)
    mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    size = np.abs(values).max(axis=0)
    spread = np.where(spread > _SAME * size, spread, 0.0)
    share = np.asarray(weights.multiply(weights).sum(axis=1)).ravel() - 1 / n
    share = np.sqrt(np.where(share > _SAME, share, 0.0))
    width = np.multiply.outer(share, spread)
    return np.divide(weights @ values - mean, width, out=np.zeros(values.shape), where=width > 0)
