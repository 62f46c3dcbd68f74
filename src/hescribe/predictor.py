"""The two contracts between rooms: where tiles come from, and what predicts from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hescribe.types import Centres, Expression, Microns, Mpp, TileArray, TilePx


@runtime_checkable
class TileSource(Protocol):
    """Square tiles of *one* slide, centred on spots or on a grid.

    The side is chosen when reading, so one source serves tiles at several scales.

    Attributes
    ----------
    slide_id
        The section or slide the tiles are from.
    centres
        (n, 2) float64, x and y of the tile centres in full-resolution pixels.
    mpp
        µm per full-resolution pixel.
    """

    @property
    def slide_id(self) -> str:
        """The section or slide."""
        ...

    @property
    def centres(self) -> Centres:
        """(n, 2) positions."""
        ...

    @property
    def mpp(self) -> Mpp:
        """µm per full-resolution pixel."""
        ...

    def __len__(self) -> int: ...

    def at(self, centres: Centres) -> TileSource:
        """Tiles of the same slide, centred elsewhere.

        Raises
        ------
        InputError
            There is no slide to cut them from.
        """
        ...

    def fingerprint(self) -> str:
        """Hash of the image's content, the scale and the centres: equal if and only if all tiles are equal."""
        ...

    def read(self, indices: npt.NDArray[np.intp], *, tile_um: Microns, size_px: TilePx) -> TileArray:
        """Tiles ``indices`` of side ``tile_um`` scaled to ``size_px``: (n, size_px, size_px, 3) uint8 RGB."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """Anything that predicts expression from tiles; all that evaluation ever sees."""

    @property
    def genes(self) -> Sequence[str]:
        """Columns of a prediction."""
        ...

    def predict(self, tiles: TileSource) -> Expression:
        """Predicted log1p expression, (len(tiles), len(genes)) float32."""
        ...
