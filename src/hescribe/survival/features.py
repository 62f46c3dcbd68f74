"""A slide as a vector that a clinician can read, and a patient as the mean of the slides.

Names are ``kind:of``: ``mean:T cells``, ``spread:T cells``, ``moran:T cells``, ``fraction:tumour``,
``next:stroma|tumour``, ``tls:fraction``. What a feature says of a tile or a gene can be traced back (`attribution`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from hescribe import keys
from hescribe.errors import InputError
from hescribe.metrics.autocorrelation import morans_i_per_gene, neighbour_weights
from hescribe.types import Mpp

Values = npt.NDArray[np.float64]  #: (n,)

MEAN, SPREAD, MORAN, FRACTION, NEXT, CELLS, TLS = "mean", "spread", "moran", "fraction", "next", "cells", "tls"
TILES = "tiles"  #: column of a table of slides: how many tiles the slide has
LEAST_TILES = 20  #: a mean, a spread and neighbours of fewer say nothing of a tumour


def slide_features(
    adata: ad.AnnData,
    scores: pd.DataFrame,
    regions: pd.Series | None = None,
    tls: pd.Series | None = None,
    *,
    cell_types: pd.DataFrame | None = None,
    region_names: Sequence[str] | None = None,
    mpp: Mpp | None = None,
) -> pd.Series:
    """One slide's features, measured or predicted.

    - ``mean:S``, ``spread:S``, ``moran:S``: mean, standard deviation and Moran's I of gene-set score S over tiles;
    - ``fraction:R``: share of the tiles in region R;
    - ``next:R|Q``: log2 of how often tiles of R and Q are neighbours, over how often they would be by chance;
    - ``tls:fraction``, ``tls:number``: share of the tiles in lymphoid structures, and structures for each 1,000 tiles
      (for each mm² where ``mpp`` is known);
    - ``cells:C``: mean proportion of cell type C.

    Parameters
    ----------
    adata
        n tiles with ``obsm["spatial"]``.
    scores
        (n, s) gene-set scores of the tiles.
    regions
        (n,) a label each; the same label must mean the same on all slides. Missing: in no region.
    tls
        (n,) number of the tertiary lymphoid structure a tile lies in, 0 outside; or bool, where each connected group of
        tiles is one.
    cell_types
        (n, c) proportions.
    region_names
        All regions of the study: one that a slide lacks has the fraction 0. By default those of the slide.
    mpp
        µm per pixel; by default what the provenance says.

    Returns
    -------
    Series
        Float64, named; a score that is constant has no Moran's I (NaN), nor have regions that cannot meet.

    Raises
    ------
    InputError
        Fewer than 20 tiles, no positions, or tables of other tiles.
    """
    _check(adata, scores=scores, regions=regions, tls=tls, cell_types=cell_types)
    centres = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)
    weights = neighbour_weights(centres)
    values = scores.to_numpy(dtype=np.float64)
    moran = morans_i_per_gene(values, weights)
    out: dict[str, float] = {}
    for k, name in enumerate(scores.columns):
        out[f"{MEAN}:{name}"] = float(values[:, k].mean())
        out[f"{SPREAD}:{name}"] = float(values[:, k].std())
        out[f"{MORAN}:{name}"] = float(moran[k])
    if regions is not None:
        out |= _region_features(regions, weights, region_names)
    if tls is not None:
        area = _area_mm2(adata, centres, mpp)
        out |= _tls_features(tls.fillna(0).to_numpy(), weights, area)
    if cell_types is not None:
        out |= {f"{CELLS}:{c}": float(v) for c, v in cell_types.mean().items()}
    return pd.Series(out, dtype=np.float64)


def _check(adata: ad.AnnData, **tables: pd.DataFrame | pd.Series | None) -> None:
    if keys.SPATIAL not in adata.obsm:
        raise InputError("the slide has no positions", fix="obsm['spatial'] is needed")
    if adata.n_obs < LEAST_TILES:
        raise InputError(f"the slide has {adata.n_obs} tiles; at least {LEAST_TILES} are needed")
    for name, table in tables.items():
        if table is not None and not table.index.equals(adata.obs_names):
            raise InputError(f"{name} are of other tiles than the slide's")


def _region_features(regions: pd.Series, weights: sparse.csr_matrix, names: Sequence[str] | None) -> dict[str, float]:
    labels = regions.astype(object).where(regions.notna(), None).map(lambda v: None if v is None else str(v))
    known = sorted(map(str, labels.dropna().unique() if names is None else names))
    member = np.stack([(labels == r).to_numpy(dtype=np.float64) for r in known], axis=1)
    share = member.mean(axis=0)
    out = {f"{FRACTION}:{r}": float(s) for r, s in zip(known, share, strict=True)}
    # Sides of the graph that join two regions, over what shares of tiles alone would give, no tile being its own
    # neighbour; +1 so that none is no infinity, and one odd pair on a small slide counts for little
    met, degree = member.T @ (weights @ member), float(weights.sum())
    n = len(labels)
    for i, j in combinations_with_replacement(range(len(known)), 2):
        both = met[i, j] + met[j, i] if i != j else met[i, i]
        pairs = 2 * share[i] * share[j] if i != j else share[i] * (share[i] - 1 / n)
        chance = degree * pairs * n / max(n - 1, 1)
        there = share[i] > 0 and share[j] > 0
        out[f"{NEXT}:{known[i]}|{known[j]}"] = float(np.log2((both + 1) / (chance + 1))) if there else float("nan")
    return out


def _tls_features(
    labels: npt.NDArray[np.generic], weights: sparse.csr_matrix, area_mm2: float | None
) -> dict[str, float]:
    inside = labels.astype(bool)
    if labels.dtype == bool:
        number = int(connected_components(weights[inside][:, inside], directed=False)[0]) if inside.any() else 0
    else:
        number = len(np.unique(labels[inside]))
    size = area_mm2 if area_mm2 is not None else len(inside) / 1000
    return {f"{TLS}:fraction": float(inside.mean()), f"{TLS}:number": number / size}


def _area_mm2(adata: ad.AnnData, centres: Values, mpp: Mpp | None) -> float | None:
    """Tissue covered by tiles: their number times the square of their distance."""
    scale = mpp or adata.uns.get(keys.PROVENANCE, {}).get("mpp")
    if not scale or not np.isfinite(scale):
        return None
    from scipy.spatial import cKDTree

    pitch = float(np.median(cKDTree(centres).query(centres, k=2)[0][:, 1]))
    return len(centres) * (pitch * float(scale) / 1000) ** 2 or None


def patient_features(slides: pd.DataFrame, patients: Mapping[str, str] | pd.Series) -> pd.DataFrame:
    """A patient's features: means over the slides, each weighed by its tiles; what a slide lacks is left out.

    Parameters
    ----------
    slides
        Slides × features, and the column ``tiles`` with each slide's number of tiles.
    patients
        The patient of each slide.

    Returns
    -------
    DataFrame
        Patients × features, in order of first appearance.

    Raises
    ------
    InputError
        A slide without patient.
    """
    owner = pd.Series({s: patients.get(s) for s in slides.index}, dtype=object)
    if owner.isna().any():
        raise InputError(f"slide {owner[owner.isna()].index[0]!r} belongs to no patient")
    values = slides.drop(columns=TILES)
    weight = values.notna().mul(slides[TILES].astype(np.float64), axis=0)
    total = (values.fillna(0.0) * weight).groupby(owner.to_numpy(), sort=False).sum()
    return total / weight.groupby(owner.to_numpy(), sort=False).sum().replace(0.0, np.nan)


def tile_contributions(
    per_unit: pd.Series,
    scores: pd.DataFrame,
    regions: pd.Series | None = None,
    *,
    reference: Mapping[str, float],
) -> Values:
    """What each tile adds to the slide's log hazard through features that are means over tiles; (n,).

    Means of scores and fractions of regions are means over tiles, so their part of the log hazard, less that of the
    mean patient, is *exactly* the mean of these numbers. Spreads, Moran's I and neighbourhoods belong to no tile.

    Parameters
    ----------
    per_unit
        Log hazard for one unit of each feature (`CoxModel.per_unit`).
    scores, regions
        As of `slide_features`.
    reference
        The mean patient's features.
    """
    out = np.zeros(len(scores))
    for name, effect in per_unit.items():
        kind, _, of = str(name).partition(":")
        if kind == MEAN and of in scores:
            out += effect * (scores[of].to_numpy(dtype=np.float64) - reference[str(name)])
        elif kind == FRACTION and regions is not None:
            inside = (regions.astype(object).astype(str) == of) & regions.notna()
            out += effect * (inside.to_numpy(dtype=np.float64) - reference[str(name)])
    return out


def gene_effects(per_unit: pd.Series, sets: Mapping[str, Sequence[str]], genes: Sequence[str]) -> pd.DataFrame:
    """What one unit more of a gene, in all tiles, adds to the log hazard through mean scores of the sets it is in.

    Exact where a score is the plain mean of its genes (method ``mean``).

    Parameters
    ----------
    per_unit
        As of `tile_contributions`.
    sets
        Genes of each set.
    genes
        Those that the slides have; a score is the mean of the set's genes among them.

    Returns
    -------
    DataFrame
        ``gene``, ``sets``, ``effect``; the strongest first.
    """
    there = set(genes)
    effect: dict[str, float] = {}
    names: dict[str, list[str]] = {}
    for name, members in sets.items():
        used = [g for g in dict.fromkeys(members) if g in there]
        slope = float(per_unit.get(f"{MEAN}:{name}", 0.0))
        for gene in used:
            effect[gene] = effect.get(gene, 0.0) + slope / len(used)
            names.setdefault(gene, []).append(name)
    table = pd.DataFrame(
        {"gene": list(effect), "sets": [", ".join(names[g]) for g in effect], "effect": list(effect.values())}
    )
    order = table["effect"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)
