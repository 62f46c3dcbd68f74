"""What a section in memory must look like, checked once, on reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import InputError, list_some


def check_section(adata: ad.AnnData, path: Path, *, positions: bool = True) -> None:
    """Raw counts in ``X``, unique spot ids, a finite position for every spot.

    Parameters
    ----------
    adata, path
        What was read, and from where.
    positions
        Needed; otherwise checked where there are any (cells of a suspension have none).

    Raises
    ------
    InputError
        Says what was found and what to give instead.
    """
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise InputError(f"{adata.n_obs} spots and {adata.n_vars} genes: nothing to work with", path=path)
    if not adata.obs_names.is_unique:
        double = adata.obs_names[adata.obs_names.duplicated()]
        raise InputError(f"spot id {double[0]!r} stands there twice ({len(double)} duplicates)", path=path)
    values = adata.X.data if sparse.issparse(adata.X) else np.asarray(adata.X).ravel()
    if not np.isfinite(values).all():
        raise InputError("counts are not all finite", path=path, fix="give raw counts")
    if len(values) and values.min() < 0:
        raise InputError(
            f"negative counts (down to {values.min():g})", path=path, fix="give raw counts, not scaled ones"
        )
    if (values != np.round(values)).any():
        example = values[values != np.round(values)][0]
        raise InputError(
            f"counts are not whole numbers (for example {example:g})",
            path=path,
            fix="give raw counts, not normalised ones",
        )
    centres = adata.obsm.get(keys.SPATIAL)
    if centres is None and not positions:
        return
    if centres is None or np.asarray(centres).shape != (adata.n_obs, 2):
        raise InputError("no position (x, y) for each spot", path=path, fix="obsm['spatial'], full-resolution pixels")
    if not np.isfinite(np.asarray(centres, dtype=np.float64)).all():
        raise InputError("some spots have no finite position", path=path)


def add_picture(
    library: dict[str, Any], image: npt.NDArray[np.uint8], downsampling: float, *, name: Literal["hires", "lowres"]
) -> None:
    """Put a small picture of the slide where scanpy and squidpy look for it.

    Parameters
    ----------
    library
        An entry of ``uns["spatial"]``, changed.
    image
        (height, width, 3).
    downsampling
        Full-resolution pixels to a pixel of it.
    name
        One of the two sizes that Visium has.
    """
    library["images"] = {name: image}
    library["scalefactors"][f"tissue_{name}_scalef"] = 1 / downsampling


def match_spots(counts: pd.Index, positions: pd.Index, path: Path, *, beside: Path) -> pd.Index:
    """Spots that are in both files, in the order of the counts.

    Raises
    ------
    InputError
        A spot id stands twice in the positions, or the files share no spot.
    """
    if positions.has_duplicates:
        raise InputError(f"spot id {positions[positions.duplicated()][0]!r} stands there twice", path=beside)
    if counts.has_duplicates:
        raise InputError(f"spot id {counts[counts.duplicated()][0]!r} stands there twice", path=path)
    shared = counts[counts.isin(positions)]
    if not len(shared):
        raise InputError(
            f"no spot in common with {beside.name} (here {list_some(counts[:2])}; there {list_some(positions[:2])})",
            path=path,
            fix="are they of the same section?",
        )
    return shared
