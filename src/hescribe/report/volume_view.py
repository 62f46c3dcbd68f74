"""What the page's three-dimensional view shows: spots in space, coloured by a gene, and each section's outline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from hescribe import keys
from hescribe.io.expression import name_unit, told_sum
from hescribe.io.pitch import distance_between
from hescribe.plots.maps import colour_range, gene_values
from hescribe.plots.style import EXPRESSION_COLOURS

VIEW = "view-3d"  #: the id of the element that the script fills
MOST_SPOTS = 30_000  #: in the page; more would make it slow to turn
_COLOURS = 64
_HEIGHT = 0.45  #: of the width, as the stack is drawn at first

Rings = Sequence[npt.NDArray[np.float64]]  #: (n, 2) µm each


def view_script() -> str:
    """The view's JavaScript."""
    return (Path(__file__).parent / "volume.js").read_text(encoding="utf-8")


def view_data(stack: ad.AnnData, genes: Sequence[str], outlines: Mapping[str, Rings]) -> dict[str, Any]:
    """What the script reads.

    Parameters
    ----------
    stack
        Spots with ``obsm["spatial_3d"]``; more than 30,000 are thinned evenly.
    genes
        To choose from.
    outlines
        Section → rings around its tissue, common coordinates.
    """
    chosen = np.unique(np.linspace(0, stack.n_obs - 1, min(stack.n_obs, MOST_SPOTS)).round().astype(int))
    places = np.asarray(stack.obsm[keys.SPATIAL_3D], dtype=np.float64)
    low, high = places.min(axis=0), places.max(axis=0)
    extent = np.maximum(high - low, 1.0)
    middle = (low + high) / 2
    names = stack.obs[keys.SECTION].astype(str).to_numpy()
    order = list(dict.fromkeys(names))
    first = places[names == order[0], :2]
    shares = (places[chosen] - middle) / extent + 0.5
    return {
        "positions": _coded((shares * 65535).round().astype("<u2")),
        "section": _coded(np.array([order.index(n) for n in names[chosen]], dtype=np.uint8)),
        "extent_um": extent.round(2).tolist(),
        "pitch_um": round(distance_between(first), 2),
        "stretch": float(max(1.0, _HEIGHT * extent[:2].max() / extent[2])),
        "unit": name_unit(told_sum(stack.uns.get(keys.PROVENANCE, {}))),
        "colours": (
            np.asarray(mpl.colormaps[EXPRESSION_COLOURS](np.linspace(0, 1, _COLOURS), bytes=True))[:, :3]
        ).tolist(),
        "sections": [_section(n, places[names == n, 2][0] - middle[2], outlines.get(n, ()), middle) for n in order],
        "genes": [_gene(stack, g, chosen) for g in genes],
    }


def _section(name: str, z: float, rings: Rings, middle: npt.NDArray[np.float64]) -> dict[str, Any]:
    return {"name": name, "z": round(float(z), 2), "outline": [(r - middle[:2]).round(1).tolist() for r in rings]}


def _gene(stack: ad.AnnData, gene: str, chosen: npt.NDArray[np.intp]) -> dict[str, Any]:
    values = gene_values(stack, gene)
    low, high = colour_range(values)
    level = np.clip((np.nan_to_num(values[chosen], nan=low) - low) / (high - low), 0, 1) * 255
    return {"name": gene, "low": low, "high": high, "values": _coded(level.round().astype(np.uint8))}


def _coded(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
