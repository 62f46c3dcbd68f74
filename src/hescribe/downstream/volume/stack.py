"""All sections' spots in one table, with their places in space."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.downstream.volume.placement import Placement
from hescribe.errors import HescribeWarning, InputError
from hescribe.io.expression import TargetSum, common_sum, log_normalise, name_unit
from hescribe.types import Microns, Mpp

THICKNESS_UM: Microns = 16.0  #: of a section, where nobody says
_FEW_SHARED = 0.5  #: share of the genes of the section that has fewest


def heights(
    names: Sequence[str], stated: Sequence[Microns | None], *, thickness_um: Microns = THICKNESS_UM
) -> npt.NDArray[np.float64]:
    """Each section's z in µm.

    Parameters
    ----------
    names
        Sections, in the order of the manifest.
    stated
        z of each as the manifest says, or None.
    thickness_um
        Distance between consecutive sections where no z is stated.

    Raises
    ------
    InputError
        z is stated for some sections only, two share one, or the thickness is not positive.
    """
    known = [z for z in stated if z is not None]
    if not known:
        if not (np.isfinite(thickness_um) and thickness_um > 0):
            raise InputError(f"a thickness of {thickness_um:g} µm", fix="--thickness-um takes a positive number")
        return np.asarray(np.arange(len(names)) * float(thickness_um), dtype=np.float64)
    if len(known) < len(names):
        missing = [n for n, z in zip(names, stated, strict=True) if z is None]
        raise InputError(
            f"z is stated for some sections but not for {', '.join(missing)}",
            fix="fill the column 'z', or leave it out",
        )
    if len(set(known)) < len(known):
        raise InputError(f"two sections have the same z (of {', '.join(f'{z:g}' for z in known)})")
    return np.asarray(known, dtype=np.float64)


def stack_sections(
    tables: Mapping[str, ad.AnnData],
    placements: Sequence[Placement],
    z_um: npt.ArrayLike,
    *,
    mpp: Mapping[str, Mpp],
) -> ad.AnnData:
    """Spots of all sections × the genes that all have, with places in common coordinates.

    Parameters
    ----------
    tables
        Section → its spots: raw counts, which are normalised, or predictions, which are left as they are.
    placements
        One a section; its order is the stack's.
    z_um
        Height of each section, in the same order.
    mpp
        Section → µm per full-resolution pixel.

    Returns
    -------
    AnnData
        ``X`` log1p of counts per 10,000, or on the predictions' own scale; ``obs["section_id"]``;
        ``obsm["spatial_3d"]`` x, y, z in µm, and ``obsm["spatial"]`` the first two of them, for scanpy's and our own
        plots.

    Raises
    ------
    InputError
        A section is missing, without positions, the sections share no gene, or predictions differ in scale.
    """
    parts, places = [], []
    for placement, z in zip(placements, np.asarray(z_um, dtype=np.float64), strict=True):
        table = _table_of(tables, placement.name)
        common = placement.to_common(np.asarray(table.obsm[keys.SPATIAL], dtype=float)[:, :2] * mpp[placement.name])
        places.append(np.column_stack([common, np.full(len(common), z)]))
        parts.append(table)
    genes = shared_genes({p.name: t for p, t in zip(placements, parts, strict=True)})
    # Counts are brought to the scale of the predictions among them
    target_sum = common_sum(t.uns[keys.PROVENANCE] for t in parts if is_predicted(t))
    blocks = [_expression(t, genes, target_sum) for t in parts]
    names = np.repeat([p.name for p in placements], [t.n_obs for t in parts])
    spots = [f"{p.name}_{spot}" for p, t in zip(placements, parts, strict=True) for spot in t.obs_names]
    every_sparse = all(sparse.issparse(b) for b in blocks)
    matrix = sparse.vstack(blocks, format="csr") if every_sparse else np.concatenate([_dense(b) for b in blocks])
    obs = pd.DataFrame({keys.SECTION: pd.Categorical(names, [p.name for p in placements])}, index=pd.Index(spots))
    out = ad.AnnData(matrix, obs=obs, var=_var(parts, genes))
    out.obsm[keys.SPATIAL_3D] = np.concatenate(places)
    out.obsm[keys.SPATIAL] = out.obsm[keys.SPATIAL_3D][:, :2].copy()
    # Positions are in µm, so one of their units is 1 µm
    scale = {"unit": name_unit(target_sum), "target_sum": target_sum}
    out.uns[keys.PROVENANCE] = {"mpp": 1.0, **scale, "positions": "µm, common coordinates"}
    return out


def shared_genes(tables: Mapping[str, ad.AnnData]) -> list[str]:
    """Genes that all sections have, in the first one's order.

    Raises
    ------
    InputError
        There is none.
    """
    first, *others = tables.values()
    common = set(first.var_names).intersection(*(t.var_names for t in others))
    if not common:
        raise InputError(f"sections {', '.join(tables)} share no gene", fix="are the names of one kind and species?")
    fewest = min(t.n_vars for t in tables.values())
    if len(common) < _FEW_SHARED * fewest:
        warnings.warn(
            f"the sections share {len(common)} genes, though each has {fewest} or more", HescribeWarning, stacklevel=3
        )
    return [g for g in first.var_names if g in common]


def is_predicted(table: ad.AnnData) -> bool:
    """Whether a table holds log1p values already: a prediction, or a stack."""
    return "unit" in table.uns.get(keys.PROVENANCE, {})


def _table_of(tables: Mapping[str, ad.AnnData], name: str) -> ad.AnnData:
    if name not in tables:
        raise InputError(f"no expression of section {name!r} (there is {', '.join(tables) or 'none'})")
    table = tables[name]
    if keys.SPATIAL not in table.obsm or not table.n_obs:
        raise InputError(f"section {name!r} has no spots with positions")
    return table


def _expression(
    table: ad.AnnData, genes: Sequence[str], target_sum: TargetSum
) -> npt.NDArray[np.float32] | sparse.csr_matrix:
    """(n, genes), normalised over *all* genes of the section where it holds counts."""
    columns = table.var_names.get_indexer(pd.Index(genes))
    if is_predicted(table):
        matrix = table.X[:, columns]
        return matrix.tocsr() if sparse.issparse(matrix) else np.asarray(matrix, dtype=np.float32)
    return log_normalise(table.X, target_sum=target_sum)[:, columns]


def _dense(matrix: Any) -> npt.NDArray[np.float32]:
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=np.float32)


def _var(parts: Sequence[ad.AnnData], genes: Sequence[str]) -> pd.DataFrame:
    """The genes, with the least of the sections' expected correlations where they are predicted."""
    var = pd.DataFrame(index=pd.Index(genes))
    if all(keys.EXPECTED_PCC in t.var for t in parts):
        var[keys.EXPECTED_PCC] = np.min(
            [t.var.loc[genes, keys.EXPECTED_PCC].to_numpy(dtype=float) for t in parts], axis=0
        )
    return var
