"""Tile centres on a regular grid over tissue, in the order in which the file is best read."""

from __future__ import annotations

import numpy as np

from hescribe.errors import InputError
from hescribe.slides.tissue import Tissue
from hescribe.types import Centres, Level0Px, Microns, Mpp

SMALLEST_STRIDE_UM = 8.0


def stride_px(stride_um: Microns, mpp: Mpp) -> int:
    """From tile to tile, in whole pixels, so that the tile beside a tile is exactly another one."""
    return max(1, round(stride_um / mpp))


def lay_grid(tissue: Tissue, *, mpp: Mpp, stride_um: Microns, width: int, height: int) -> Centres:
    """Centres ``stride_um`` apart, from half a stride off the slide's corner, where there is tissue.

    The stride is rounded to whole pixels (`stride_px`).

    Returns
    -------
    ndarray
        (n, 2) x, y in full-resolution pixels, row by row.

    Raises
    ------
    InputError
        The stride is below 8 µm.
    """
    if not stride_um >= SMALLEST_STRIDE_UM:
        raise InputError(f"a stride of {stride_um:g} µm is too fine", path="--stride-um", fix="8 µm or more")
    stride = stride_px(stride_um, mpp)
    x, y = (np.arange(stride // 2, side, stride, dtype=np.float64) for side in (width, height))
    # Row by row: at 8 µm the whole rectangle would be tens of millions of points
    rows = []
    for centre in y:
        row = np.column_stack([x, np.full_like(x, centre)])
        rows.append(row[tissue.covers(row)])
    return np.concatenate(rows) if rows else np.empty((0, 2))


def reading_order(centres: Centres, block: tuple[Level0Px, Level0Px]) -> Centres:
    """The same centres, by rows of the file's blocks, then by blocks, then by position.

    Parameters
    ----------
    centres
        (n, 2).
    block
        Width and height of a block, in full-resolution pixels.
    """
    column, row = np.floor(centres / block).T
    return centres[np.lexsort((centres[:, 0], centres[:, 1], column, row))]
