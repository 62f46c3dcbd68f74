"""Predicted cell types of one section against measured ones."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from hescribe import keys
from hescribe.metrics.correlation import pearson_per_gene

FEWEST = 0.01  #: mean share from which on a type counts
_FIGURES = ("pcc", "measured", "predicted")


def score_cell_types(predicted: ad.AnnData, measured: ad.AnnData) -> pd.DataFrame | None:
    """Correlation of each cell type's share across the spots of a section.

    Spots are matched by name, types too; what only one side knows is left out.

    Parameters
    ----------
    predicted, measured
        With ``obsm["cell_types"]``, spots × types.

    Returns
    -------
    DataFrame or None
        A row a type: ``pcc`` (as `hescribe.metrics.pearson_per_gene`), ``measured`` and ``predicted`` mean shares,
        ``counted``, whether the type makes up at least 1 % of the section and hence belongs into a mean. None where
        either side knows no types, or they share none or no spot.
    """
    if keys.CELL_TYPES not in predicted.obsm or keys.CELL_TYPES not in measured.obsm:
        return None
    stated, truth = (pd.DataFrame(a.obsm[keys.CELL_TYPES]).dropna() for a in (predicted, measured))
    spots, types = truth.index.intersection(stated.index), truth.columns.intersection(stated.columns)
    if not len(spots) or not len(types):
        return None
    stated, truth = stated.loc[spots, types], truth.loc[spots, types]
    table = pd.DataFrame(
        {
            "pcc": pearson_per_gene(stated.to_numpy(np.float64), truth.to_numpy(np.float64)),
            "measured": truth.mean(),
            "predicted": stated.mean(),
        },
        index=types.rename("cell_type"),
    )
    table["counted"] = (table["measured"] >= FEWEST) & table["pcc"].notna()
    return table


def describe_cell_types(table: pd.DataFrame) -> dict[str, Any]:
    """Plain numbers for JSON: ``pcc``, the mean over the types that count, their number, and each type's own."""
    counted = table[table["counted"]]
    types = {
        str(name): {column: None if pd.isna(row[column]) else float(row[column]) for column in _FIGURES}
        for name, row in table.iterrows()
    }
    return {"pcc": float(counted["pcc"].mean()) if len(counted) else None, "n_types": len(counted), "types": types}
