"""Tertiary lymphoid structures of a section: where a score stands out, as numbered places with size and p-value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from hescribe import keys
from hescribe.downstream.gene_sets import MIN_PCC
from hescribe.downstream.tls.components import Chances, Control, Labels, find_structures, neighbours
from hescribe.downstream.tls.nulls import Null, arrangements
from hescribe.downstream.tls.scores import DEFAULT_SCORE, tls_scores
from hescribe.downstream.tls.smoothing import smoothing_weights, standing_out
from hescribe.errors import InputError
from hescribe.io.pitch import check_apart, spot_pitch
from hescribe.types import Level0Px, Microns, Mpp

Numbers = npt.NDArray[np.float64]  #: (n,) one a spot
_COLUMNS = ("tls", "n_spots", "area_mm2", "x", "y", "mean_score", "max_score", "peak_z", "mass", "p_value")
_NEXT = 1.25  #: pitches within which a spot has 4 neighbours on a square array and 6 on a hexagonal one


@dataclass(frozen=True)
class TLSSettings:
    """How structures are called.

    Attributes
    ----------
    smooth_um
        Standard deviation of the Gaussian over which scores are averaged, µm.
    alpha
        Level of the threshold and of the structures' p-values.
    permutations
        Rearranged maps; at least ``1 / alpha − 1``.
    null
        What they keep: ``"spots"`` nothing but the values, ``"field"`` also the tissue's patchiness.
    control
        ``"max"``: a structure by chance in at most ``alpha`` of sections; ``"fdr"``: ``alpha`` of the places found.
    min_spots
        Smaller ones are left out, of the rearranged maps too.
    seed
        Same seed, same result.
    """

    smooth_um: Microns = 150.0
    alpha: float = 0.05
    permutations: int = 1000
    null: Null = "spots"
    control: Control = "max"
    min_spots: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not np.isfinite(self.smooth_um) or self.smooth_um < 0:
            raise InputError(f"smoothing over {self.smooth_um} µm", fix="0 or more")
        if not 0 < self.alpha < 1:
            raise InputError(f"a level alpha of {self.alpha}", fix="between 0 and 1, such as 0.05")
        if int(self.alpha * (self.permutations + 1)) < 1:
            fewest = int(np.ceil(1 / self.alpha)) - 1
            raise InputError(
                f"{self.permutations} permutations cannot show a level of {self.alpha:g}", fix=f"at least {fewest}"
            )
        if self.null not in get_args(Null):
            raise InputError(f"no null {self.null!r}", fix=f"one of {', '.join(get_args(Null))}")
        if self.control not in get_args(Control):
            raise InputError(f"no control {self.control!r}", fix=f"one of {', '.join(get_args(Control))}")
        if self.min_spots < 1:
            raise InputError(f"structures of at least {self.min_spots} spots", fix="1 or more")


def tls(
    adata: ad.AnnData,
    score: str | npt.ArrayLike = DEFAULT_SCORE,
    *,
    settings: TLSSettings | None = None,
    mpp: Mpp | None = None,
    coefficients: str | Path | Mapping[str, float] | None = None,
    cell_types: pd.DataFrame | None = None,
    min_pcc: float | None = MIN_PCC,
) -> pd.DataFrame:
    """Tertiary lymphoid structures: connected places whose smoothed score is higher than chance would have it.

    The score is smoothed over spots, compared with what the same values give when they are dealt out at random
    (`standing_out`), cut at a threshold that such maps seldom reach, and what is above it is joined to structures.
    A structure's p-value is the share of rearranged maps with one as heavy (the sum of z above the threshold)
    anywhere, so it is corrected for having searched the whole section.

    Parameters
    ----------
    adata
        Measured (raw counts) or predicted; gets ``obs["tls_score"]`` (smoothed), ``obs["tls_z"]``, ``obs["tls"]``
        (number of the structure, 0 outside) and ``uns["tls"]`` (settings, threshold).
    score
        A column of `tls_scores`, or (n,) values of your own; spots of value NaN take no part.
    settings
        How.
    mpp
        µm per full-resolution pixel; by default what a prediction says.
    coefficients, cell_types, min_pcc
        As of `tls_scores`.

    Returns
    -------
    DataFrame
        A row a structure, heaviest first: ``tls`` (its number), ``n_spots``, ``area_mm2``, centre ``x``, ``y``
        (full-resolution pixels, mean of its spots), ``mean_score``, ``max_score`` (smoothed), ``peak_z``, ``mass``,
        ``p_value``. Without rows where nothing stands out.

    Raises
    ------
    InputError
        No µm per pixel, no positions or several spots at one, an unknown score, or genes that are not there.
    """
    settings = settings or TLSSettings()
    centres, scale = _places(adata, mpp)
    check_apart(centres)
    if isinstance(score, str):
        scores = tls_scores(adata, [score], coefficients=coefficients, cell_types=cell_types, min_pcc=min_pcc)
        raw, name = scores[score].to_numpy(dtype=np.float64), score
    else:
        raw, name = _given(score, adata.n_obs), "given"
    known = np.isfinite(raw)
    pitch = spot_pitch(adata, None) or 1.0
    found = _call(centres[known] * scale, raw[known], pitch * scale, settings)
    for key, part, empty in (
        (keys.TLS_SCORE, found.smooth, np.nan), (keys.TLS_Z, found.z, np.nan), (keys.TLS, found.labels, 0)
    ):  # fmt: skip
        whole = np.full(adata.n_obs, empty, dtype=part.dtype)
        whole[known] = part
        adata.obs[key] = whole
    adata.uns[keys.TLS] = {"score": name, "threshold_z": found.threshold, "mpp": scale, **asdict(settings)}
    return _table(found, centres[known], _spot_area(centres, pitch) * scale**2 / 1e6)


@dataclass(frozen=True, eq=False)
class _Found:
    """Per spot: smoothed score, z, structure; per structure: mass and p-value; and the threshold of z."""

    smooth: Numbers
    z: Numbers
    labels: Labels
    masses: Numbers
    p_values: Numbers
    threshold: float


def _call(centres_um: Numbers, scores: Numbers, pitch_um: Microns, settings: TLSSettings) -> _Found:
    weights = smoothing_weights(centres_um, settings.smooth_um)
    z = standing_out(scores, weights)
    smooth = np.asarray(weights @ scores)
    nothing = np.zeros(len(z), dtype=np.intp)
    if not z.any():
        return _Found(smooth, z, nothing, np.empty(0), np.empty(0), float("inf"))
    adjacency = neighbours(centres_um, pitch_um)
    arrange = arrangements(settings.null, centres_um, scores, pitch_um)
    chances = Chances(scores, weights, adjacency, arrange, settings.permutations, settings.seed)
    chance = chances.weigh(z, alpha=settings.alpha, control=settings.control, min_spots=settings.min_spots)
    labels, masses = find_structures(z, chance.threshold, adjacency, settings.min_spots)
    p_values = np.array([chance.p_value(m) for m in masses])
    # Masses fall, so p-values rise: those that stay are the first ones, and keep their numbers
    kept = int((p_values <= settings.alpha).sum())
    labels[labels > kept] = 0
    return _Found(smooth, z, labels, masses[:kept], p_values[:kept], chance.threshold)


def _table(found: _Found, centres: Numbers, spot_mm2: float) -> pd.DataFrame:
    rows = []
    for number, (mass, p_value) in enumerate(zip(found.masses, found.p_values, strict=True), start=1):
        inside = found.labels == number
        x, y = centres[inside].mean(axis=0)
        smooth, n = found.smooth[inside], int(inside.sum())
        rows.append(
            (number, n, n * spot_mm2, x, y, smooth.mean(), smooth.max(), found.z[inside].max(), mass, p_value)
        )  # fmt: skip
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    return table.astype({c: "int64" if c in {"tls", "n_spots"} else "float64" for c in _COLUMNS})


def _places(adata: ad.AnnData, mpp: Mpp | None) -> tuple[Numbers, Mpp]:
    if keys.SPATIAL not in adata.obsm or not adata.n_obs:
        raise InputError(f'no positions in obsm["{keys.SPATIAL}"]', fix="pixel centres x, y of the spots")
    scale = mpp if mpp is not None else adata.uns.get(keys.PROVENANCE, {}).get("mpp")
    if scale is None or not np.isfinite(scale) or scale <= 0:
        raise InputError("µm per pixel is not known, so nothing can be smoothed over µm", fix="give mpp")
    return np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)[:, :2], float(scale)


def _given(score: npt.ArrayLike, n: int) -> Numbers:
    values = np.asarray(score, dtype=np.float64)
    if values.shape != (n,):
        raise InputError(f"scores of shape {values.shape} for {n} spots", fix="one a spot")
    return values


def _spot_area(centres: Numbers, pitch: Level0Px) -> float:
    """Tissue that a spot stands for, square pixels: its cell of a square or of a hexagonal array."""
    around = np.asarray(neighbours(centres, pitch, reach=_NEXT).sum(axis=1)).ravel()
    hexagonal = float(np.quantile(around, 0.75)) > 5
    return pitch**2 * (np.sqrt(3) / 2 if hexagonal else 1.0)
