"""Harmony between training sections, as BLEEP applies it: genes play the role of components.

Korsunsky et al., Nature Methods 2019; METHODS of BLEEP correct the log-normalised panel matrix itself.
The published code corrects the test section along with the rest; here only training rows enter, and the
measured truth is never corrected.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe.types import SparseExpression


def harmonise(
    expression: SparseExpression,
    section: npt.NDArray[np.intp],
    *,
    rows: npt.NDArray[np.intp],
    panel: npt.NDArray[np.bool_],
    seed: int,
) -> SparseExpression:
    """Expression with the panel's columns corrected between the sections of ``rows``.

    Parameters
    ----------
    expression
        (n, g) log-normalised.
    section
        (n,) section of each spot, the batch variable.
    rows
        Rows that may be learned from; the others are returned as they are.
    panel
        (g,) genes to correct.
    seed
        Of Harmony's clustering.

    Returns
    -------
    csr_matrix
        (n, g). With a single section there is nothing to correct.
    """
    import harmonypy

    batches = section[rows].astype(str)
    if len(np.unique(batches)) < 2:
        return expression
    block = expression[rows][:, panel].toarray().astype(np.float64)
    meta = pd.DataFrame({"section": batches})
    # Genes first: where there are as many as spots, it takes the columns for spots. What it gives has spots first
    result = harmonypy.run_harmony(block.T, meta, ["section"], random_state=seed, verbose=False)
    corrected = np.asarray(result.Z_corr)
    out = sparse.lil_matrix(expression)
    out[np.ix_(rows, np.flatnonzero(panel))] = corrected.astype(np.float32)
    return out.tocsr()
