"""Names for units and array shapes, so that a signature says what it wants.

Lengths are plain numbers at run time; the names tell the reader (and mypy) which unit.
Shapes are written as comments in array aliases: ``n`` tiles or spots, ``g`` genes, ``d`` features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

Microns: TypeAlias = float  #: a length on the glass, µm
Mpp: TypeAlias = float  #: µm per level-0 pixel
Level0Px: TypeAlias = float  #: a position or length in full-resolution pixels
PLAUSIBLE_MPP = (0.05, 10.0)  #: µm per pixel of a microscope; outside, a resolution is a printer's or a slip
POSSIBLE_MPP = (0.02, 50.0)  #: what a manifest or spots may say: they may be of a picture of a few hundred pixels
TilePx: TypeAlias = int  #: side of a tile as given to an encoder, pixels
Views: TypeAlias = Literal[1, 4, 8]  #: symmetries of a tile that its features are averaged over
Dtype: TypeAlias = Literal["float32", "float16"]  #: of a prediction's ``X``

TileArray: TypeAlias = npt.NDArray[np.uint8]  #: (n, side, side, 3) RGB
Centres: TypeAlias = npt.NDArray[np.float64]  #: (n, 2) x, y in full-resolution pixels
Features: TypeAlias = npt.NDArray[np.float32]  #: (n, d)
Expression: TypeAlias = npt.NDArray[np.float32]  #: (n, g) log1p of counts per 10,000
PerGene: TypeAlias = npt.NDArray[np.float64]  #: (g,)
SparseExpression: TypeAlias = sparse.csr_matrix  #: (n, g)

_MOST_VIEWS = 32  #: a description is that many times as long as a tile's features
_LARGEST_SIDE = 32  #: or the square of this times


@dataclass(frozen=True)
class Context:
    """What of a tile's surroundings is described besides the tile; as made, nothing.

    Attributes
    ----------
    scales
        Sides of the tiles read around a centre, as multiples of the tile's side; the first is 1.
    spreads_um
        Standard deviations of Gaussian means over the features of the same slide's other tiles, µm.
    centred
        Every feature less its mean over the slide, divided by its spread there: what differs between slides as a
        whole (stain, scanner) is taken out. It looks at the image alone.
    position
        Two more numbers: where on the slide the tile is, from 0 to 1 between the outermost tiles.
    grid
        Side of a square of tiles around a centre, tile beside tile, whose features stand side by side; odd, or none.
    raster
        Side of a raster laid over the slide between its outermost tiles: mean features of the tiles in each cell
        (zeros where there are none), and for each cell whether it holds any. The same for all tiles of a slide, and
        kept with each, so that a description says all there is to know: ``raster² × width`` numbers a tile.
    """

    scales: tuple[float, ...] = (1.0,)
    spreads_um: tuple[Microns, ...] = ()
    centred: bool = False
    position: bool = False
    grid: int = 0
    raster: int = 0

    def __post_init__(self) -> None:
        if not self.scales or self.scales[0] != 1.0 or not all(0.1 <= s <= 100 for s in self.scales):
            raise ValueError("the first of context.scales is 1 and all are between 0.1 and 100")
        if not all(1 <= s <= 100_000 for s in self.spreads_um):
            raise ValueError("context.spreads_um are between 1 and 100,000 µm")
        if len(self.scales) * (1 + len(self.spreads_um)) > _MOST_VIEWS:
            raise ValueError(
                f"context.scales times context.spreads_um give more than {_MOST_VIEWS} descriptions of a tile"
            )
        if self.grid and (not 3 <= self.grid <= _LARGEST_SIDE or self.grid % 2 == 0):
            raise ValueError(f"context.grid, the side of a square, is odd and between 3 and {_LARGEST_SIDE}, or 0")
        if not 0 <= self.raster <= _LARGEST_SIDE:
            raise ValueError(f"context.raster, the side of a raster, is between 1 and {_LARGEST_SIDE}, or 0")

    def width(self, encoder_width: int) -> int:
        """Length of a description, from that of one tile's features."""
        tiles = len(self.scales) * (1 + len(self.spreads_um)) + max(self.grid**2 - 1, 0) + self.raster**2
        return encoder_width * tiles + self.raster**2 + 2 * self.position
