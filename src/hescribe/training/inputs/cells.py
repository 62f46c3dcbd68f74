"""Cell types of the training spots: measured, or estimated from a single-cell reference."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from hescribe import keys
from hescribe.errors import HescribeWarning
from hescribe.io.mixtures import cell_type_signatures, estimate_cell_types
from hescribe.sections import Section

_NAMED_FROM = 0.1  #: smaller shares are not worth a place in a name


def compositions(sections: Sequence[Section], references: Sequence[Section] = ()) -> pd.DataFrame | None:
    """Cell types of the spots of all sections, one below the other.

    Parameters
    ----------
    sections
        Sections with expression. Where any of them has a table of cell types, such tables are all that counts.
    references
        Candidates for a single-cell reference; the first with ``obs["cell_type"]`` is used where no section has a
        table, and each spot's shares are estimated from its counts.

    Returns
    -------
    DataFrame or None
        Spots × types, rows of sum 1, NaN for spots of which nothing is known; a type that another section's table
        names counts as 0. None where there is nothing to go by.

    Raises
    ------
    InputError
        Sections and single-cell reference share too few genes.
    """
    tables = [s.cell_types for s in sections]
    if all(t is None for t in tables):
        reference = next((r for r in references if keys.CELL_TYPE in r.adata.obs), None)
        if reference is None:
            return None
        signatures = cell_type_signatures(reference.adata)
        return pd.concat([estimate_cell_types(s.adata, signatures) for s in sections])
    named = [list(t.columns) for t in tables if t is not None]
    types = list(dict.fromkeys(name for names in named for name in names))
    if any(set(names) != set(types) for names in named):
        warnings.warn(
            "the sections' tables name different cell types; one that a table lacks counts as 0 there",
            HescribeWarning,
            stacklevel=2,
        )
    return pd.concat(
        [_on(t, types) if t is not None else _unknown(s, types) for s, t in zip(sections, tables, strict=True)]
    )


def mean_composition(cell_types: pd.DataFrame, group: np.ndarray, n_groups: int) -> pd.DataFrame:
    """Mean composition of the spots of each group, (n_groups × types); NaN where none of them is known.

    Parameters
    ----------
    cell_types
        Spots × types.
    group
        (spots,) number of each spot's group.
    n_groups
        Groups are 0 … n_groups − 1; some may be empty.
    """
    return cell_types.groupby(np.asarray(group)).mean().reindex(range(n_groups))


def name_mixture(shares: pd.Series) -> str:
    """Such as ``0.61 cancer epithelial, 0.22 CAF``: the two largest shares of at least a tenth, or the largest.

    Empty where nothing is known.
    """
    largest = shares.dropna().sort_values(ascending=False, kind="stable")[:2]
    told = largest[largest >= _NAMED_FROM] if (largest >= _NAMED_FROM).any() else largest[:1]
    return ", ".join(f"{share:.2f} {name}" for name, share in told.items())


def _on(table: pd.DataFrame, types: list[str]) -> pd.DataFrame:
    """With the types of all tables: 0 for those it lacks, as its rows sum to 1 without them."""
    known = table.notna().all(axis=1).to_numpy()
    out = table.reindex(columns=types, fill_value=0.0)
    out.loc[~known] = np.nan
    return out


def _unknown(section: Section, types: list[str]) -> pd.DataFrame:
    return pd.DataFrame(np.nan, index=section.adata.obs_names, columns=types)
