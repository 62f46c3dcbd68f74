"""Names for units and array shapes, so that a signature says what it wants.

Lengths are plain numbers at run time; the names tell the reader (and mypy) which unit.
Shapes are written as comments in array aliases: ``n`` tiles or spots, ``g`` genes, ``d`` features.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

Microns: TypeAlias = float  #: a length on the glass, µm
Mpp: TypeAlias = float  #: µm per level-0 pixel
Level0Px: TypeAlias = float  #: a position or length in full-resolution pixels
TilePx: TypeAlias = int  #: side of a tile as given to an encoder, pixels

TileArray: TypeAlias = npt.NDArray[np.uint8]  #: (n, side, side, 3) RGB
Centres: TypeAlias = npt.NDArray[np.float64]  #: (n, 2) x, y in full-resolution pixels
Features: TypeAlias = npt.NDArray[np.float32]  #: (n, d)
Expression: TypeAlias = npt.NDArray[np.float32]  #: (n, g) log1p of counts per 10,000
PerGene: TypeAlias = npt.NDArray[np.float64]  #: (g,)
SparseExpression: TypeAlias = sparse.csr_matrix  #: (n, g)
