"""Regions of a section: spots that express alike and lie together, named by the markers they are highest in."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import calinski_harabasz_score

from hescribe import keys
from hescribe.downstream.gene_sets import (
    MIN_PCC,
    Scoring,
    dense,
    log_expression,
    marker_sets,
    match_genes,
    present_sets,
    score_gene_sets,
    standardised,
    untrusted_genes,
)
from hescribe.errors import InputError
from hescribe.io.pitch import check_apart, distance_between
from hescribe.types import Centres, Microns

UNCLEAR = "unclear"  #: label of a cluster that no marker set stands out in
_COMPONENTS = 15
_COUNTS = range(4, 10)  #: numbers of clusters tried where none is given
_SAMPLE = 4000  #: spots that settle components and the number of clusters of a large slide
_ROUNDS = 20
_ROUNDING = 1e-5
_NEXT = 1.6  #: pitches within which spots are neighbours

Numbers = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class RegionSettings:
    """How regions are found.

    Attributes
    ----------
    n_clusters
        Number of clusters; none: the one with the largest ratio of variance between to within clusters, 4 to 9.
    n_genes
        Most variable genes that the clustering looks at; of a prediction those that can be trusted.
    smooth_um
        Spread of the Gaussian over which expression is averaged before clustering; none: one pitch of the spots.
    cohesion
        What a neighbour in the same cluster counts for: 0 clusters every spot by itself.
    margin
        By how many standard deviations of the spots a cluster's best score must lie above the section's mean to give
        the cluster its name.
    scoring
        As in ``score_gene_sets``.
    min_pcc
        Expected correlation under which a gene of a prediction is left out of the clustering, and named in a warning
        where a score contains it.
    seed
        Same seed, same result.
    """

    n_clusters: int | None = None
    n_genes: int = 1000
    smooth_um: Microns | None = None
    cohesion: float = 1.0
    margin: float = 0.1
    scoring: Scoring = "zscore"
    min_pcc: float = MIN_PCC
    seed: int = 0


def regions(
    adata: ad.AnnData, sets: dict[str, list[str]] | None = None, settings: RegionSettings | None = None
) -> ad.AnnData:
    """Cluster the spots of a section by expression and place, and name the clusters by marker scores.

    The most variable genes are reduced to 15 components, averaged over the neighbourhood, and clustered by k-means;
    then each spot takes the cluster that is best for it and its neighbours (a Potts model, relaxed by iterated
    conditional modes; Besag 1986). A cluster is named by the set whose standardised score is highest
    in it, of those sets more than half of whose genes can be trusted.

    Parameters
    ----------
    adata
        Measured counts or a prediction, with positions in ``obsm["spatial"]``.
    sets
        Set → genes; by default those of `marker_sets` that the data have a gene of.
    settings
        See `RegionSettings`.

    Returns
    -------
    AnnData
        A copy with ``obs["region"]`` (name), ``obs["region_cluster"]`` (number, 0 the largest) and one
        ``obs["score_<set>"]`` a set; ``uns["regions"]`` has the mean standardised score of each set in each cluster.

    Raises
    ------
    InputError
        No positions or several spots at one, fewer spots than clusters, no variable gene, or no gene of a set.
    """
    how = settings or RegionSettings()
    if keys.SPATIAL not in adata.obsm:
        raise InputError(f'no positions in obsm["{keys.SPATIAL}"]', fix="regions need to know where the spots are")
    wanted = how.n_clusters or min(_COUNTS)
    if adata.n_obs < max(2 * wanted, 8):
        few = "1 spot is" if adata.n_obs == 1 else f"{adata.n_obs} spots are"
        raise InputError(f"{few} too few for {wanted} regions", fix="at least 2 spots a region")
    centres = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)[:, :2]
    check_apart(centres)
    sets = sets or present_sets(adata, marker_sets())
    scores = score_gene_sets(adata, sets, method=how.scoring, min_pcc=how.min_pcc)
    naming = [name for name, genes in sets.items() if can_name(adata, genes, how.min_pcc)]
    near = neighbourhood(centres, _spread_px(adata, centres, how.smooth_um))
    components = near @ _components(adata, how)
    labels = relax(components, cluster(components, how.n_clusters, how.seed), adjacency(centres), how.cohesion)
    return _described(adata, scores, _by_size(labels), naming=naming, margin=how.margin)


def can_name(adata: ad.AnnData, genes: list[str], min_pcc: float) -> bool:
    """Whether more than half of a set's genes can be trusted; of measured data all can."""
    found = match_genes(adata, genes)
    return len(found) > 2 * len(untrusted_genes(adata, found, min_pcc))


def _described(
    adata: ad.AnnData, scores: pd.DataFrame, labels: Labels, *, naming: list[str], margin: float
) -> ad.AnnData:
    own = pd.DataFrame(standardised(scores.to_numpy()), columns=scores.columns)
    means = own.groupby(labels).mean()
    names = [name_cluster(row, margin) for _, row in means[naming].iterrows()]
    out = adata.copy()
    out.obs[keys.REGION_CLUSTER] = labels
    out.obs[keys.REGION] = pd.Categorical([names[i] for i in labels])
    for name in scores:
        out.obs[f"{keys.SCORE}{name}"] = scores[name].to_numpy()
    out.uns[keys.REGIONS] = {
        "names": np.array(names, dtype=object),
        "sets": np.array(list(map(str, means.columns)), dtype=object),
        "scores": means.to_numpy(),
        "spots": np.bincount(labels),
    }
    return out


def name_cluster(scores: pd.Series, margin: float) -> str:
    """The set with the highest of a cluster's standardised scores, if it lies above the section's mean; else "unclear"."""
    if scores.empty:
        return UNCLEAR
    best = int(scores.to_numpy(dtype=float).argmax())
    return str(scores.index[best]) if float(scores.iloc[best]) > margin else UNCLEAR


def _components(adata: ad.AnnData, how: RegionSettings) -> Numbers:
    """(n, c) principal components of the most variable genes."""
    expression = log_expression(adata)
    if isinstance(expression, sparse.csr_matrix):
        mean = np.asarray(expression.mean(axis=0, dtype=np.float64)).ravel()
        variance = np.asarray(expression.power(2).mean(axis=0, dtype=np.float64)).ravel() - mean**2
    else:
        mean = np.asarray(expression.mean(axis=0, dtype=np.float64))
        variance = np.asarray(expression.var(axis=0, dtype=np.float64))
    variance[variance < _ROUNDING * mean**2] = 0.0  # a constant gene's, but for the last bits
    if keys.EXPECTED_PCC in adata.var:
        expected = adata.var[keys.EXPECTED_PCC].to_numpy(dtype=float)
        trusted = expected >= how.min_pcc
        if trusted.sum() >= _COMPONENTS:  # where nothing can be trusted, or nothing is known, all genes must do
            variance = np.where(trusted, variance, 0.0)
    chosen = np.argsort(-variance, kind="stable")[: how.n_genes]
    chosen = chosen[variance[chosen] > 0]
    if not len(chosen):
        raise InputError("no gene varies between the spots, so there are no regions")
    values = dense(expression, np.sort(chosen))
    rng = np.random.default_rng(how.seed)
    some = np.sort(rng.choice(len(values), _SAMPLE, replace=False)) if len(values) > _SAMPLE else slice(None)
    n_components = min(_COMPONENTS, len(chosen), len(values[some]) - 1)
    return np.asarray(PCA(n_components, random_state=how.seed).fit(values[some]).transform(values), dtype=np.float64)


def _spread_px(adata: ad.AnnData, centres: Centres, smooth_um: Microns | None) -> float:
    if smooth_um is None:
        return distance_between(centres)
    mpp = adata.uns.get(keys.PROVENANCE, {}).get("mpp")
    if not mpp or not np.isfinite(mpp):
        raise InputError("a smoothing in µm needs µm per pixel, which these data do not state")
    return smooth_um / float(mpp)


def neighbourhood(centres: Centres, spread: float) -> sparse.csr_matrix:
    """(n, n) Gaussian weights within three spreads, rows sum to 1; a spread of 0 leaves every spot alone."""
    if spread <= 0:
        return sparse.identity(len(centres), format="csr")
    tree = cKDTree(centres)
    pairs = tree.query_pairs(3 * spread, output_type="ndarray")
    weight = np.exp(-0.5 * ((centres[pairs[:, 0]] - centres[pairs[:, 1]]) ** 2).sum(axis=1) / spread**2)
    half = sparse.coo_matrix((weight, (pairs[:, 0], pairs[:, 1])), shape=(len(centres),) * 2)
    full = (half + half.T + sparse.identity(len(centres))).tocsr()
    return sparse.csr_matrix(sparse.diags(1 / np.asarray(full.sum(axis=1)).ravel()) @ full)


def adjacency(centres: Centres) -> sparse.csr_matrix:
    """(n, n) 1 where two spots are neighbours on their array."""
    pairs = cKDTree(centres).query_pairs(_NEXT * distance_between(centres), output_type="ndarray")
    ones = np.ones(len(pairs))
    half = sparse.coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(len(centres),) * 2)
    return sparse.csr_matrix(half + half.T)


def cluster(components: Numbers, n_clusters: int | None, seed: int) -> Labels:
    """k-means; without a number the one of 4 to 9 with the largest Calinski–Harabasz ratio."""
    rng = np.random.default_rng(seed)
    some = components
    if len(components) > _SAMPLE:
        some = components[np.sort(rng.choice(len(components), _SAMPLE, replace=False))]
    distinct = len(np.unique(some, axis=0))
    if n_clusters is None:
        counts = [k for k in _COUNTS if k <= min(len(some) // 2, distinct - 1)]
        fits = [KMeans(k, n_init=5, random_state=seed).fit(some) for k in counts]
        ratios = [calinski_harabasz_score(some, f.labels_) for f in fits]
        if not fits:
            return np.zeros(len(components), dtype=np.intp)
        best = fits[int(np.argmax(ratios))]
    else:
        best = KMeans(min(n_clusters, distinct), n_init=10, random_state=seed).fit(some)
    return np.asarray(best.predict(components), dtype=np.intp)


def relax(components: Numbers, labels: Labels, near: sparse.csr_matrix, cohesion: float) -> Labels:
    """Let each spot take the cluster that suits it and its neighbours, until none changes.

    Minimised is ``‖z_i − c_k‖² / (2 s²) − cohesion × share of i's neighbours in k``, with s² the mean squared
    distance to the own cluster's centre per component count; centres stay as they are.
    """
    if cohesion <= 0 or not near.nnz:
        return labels
    count = int(labels.max()) + 1
    centres = np.stack([components[labels == k].mean(axis=0) for k in range(count)])
    distance = ((components[:, None] - centres) ** 2).sum(axis=2)
    own = distance[np.arange(len(labels)), labels].mean()
    cost = distance / (2 * own) if own > 0 else distance
    share = sparse.diags(1 / np.maximum(np.asarray(near.sum(axis=1)).ravel(), 1)) @ near
    for _ in range(_ROUNDS):
        beside = share @ np.eye(count)[labels]
        new = np.asarray((cost - cohesion * beside).argmin(axis=1), dtype=np.intp)
        if np.array_equal(new, labels):
            break
        labels = new
    return labels


def _by_size(labels: Labels) -> Labels:
    """Numbers without gaps, the largest cluster first."""
    _, which, count = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(np.argsort(-count, kind="stable"), kind="stable")
    return np.asarray(order[which], dtype=np.intp)
