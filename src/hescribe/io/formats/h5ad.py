"""Plain ``.h5ad``, and HEST-1k, whose sections are h5ad files beside their images."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.formats.genes import tidy_genes
from hescribe.io.manifest import ManifestRow

_SYMBOLS = ("gene_name", "gene_symbols", "gene_symbol", "feature_name", "symbol")
_IDS = ("gene_ids", "gene_id", "ensembl_id", "ensemblID", "ensembl")


def read_h5ad(row: ManifestRow) -> ad.AnnData:
    """Raw counts (``layers["counts"]``, ``raw`` or ``X``) and ``obsm["spatial"]`` of an h5ad file.

    Raises
    ------
    InputError
        The file is unreadable, or has no positions and the row an image: only without one can it do without.
    """
    assert row.expression is not None  # noqa: S101 - readers are called for rows with expression
    return _tidy(_open(row.expression), row)


def read_hest(row: ManifestRow) -> ad.AnnData:
    """A HEST-1k section: an h5ad file, of which the spots under tissue count."""
    assert row.expression is not None  # noqa: S101 - as above
    source = _open(row.expression)
    adata = _tidy(source, row)
    if keys.IN_TISSUE in source.obs:
        adata = adata[_numbers(source.obs[keys.IN_TISSUE], row.expression) > 0].copy()
    return adata


def _tidy(source: ad.AnnData, row: ManifestRow) -> ad.AnnData:
    assert row.expression is not None  # noqa: S101 - as above
    counts, var = _raw_counts(source, row.expression)
    matrix, genes = tidy_genes(counts, _symbols(var), _ensembl(var))
    obs = pd.DataFrame(index=pd.Index(source.obs_names.astype(str)))
    for column in (keys.ARRAY_ROW, keys.ARRAY_COL):
        if column in source.obs:
            obs[column] = _numbers(source.obs[column], row.expression)
    if keys.CELL_TYPE in source.obs:
        obs[keys.CELL_TYPE] = pd.Categorical(source.obs[keys.CELL_TYPE].to_numpy())
    adata = ad.AnnData(matrix, obs=obs, var=genes)
    if keys.SPATIAL in source.obsm:
        adata.obsm[keys.SPATIAL] = _positions(source.obsm[keys.SPATIAL], row.expression)
    elif row.image is not None:
        raise InputError("no obsm['spatial']", path=row.expression, fix="x, y of each spot in full-resolution pixels")
    if factors := _scalefactors(source):
        adata.uns[keys.SPATIAL] = {row.section_id: {"images": {}, "scalefactors": factors}}
    if keys.SCGPT in source.obsm:
        adata.obsm[keys.SCGPT] = np.asarray(source.obsm[keys.SCGPT], dtype=np.float32)
    return adata


def _scalefactors(source: ad.AnnData) -> dict[str, float]:
    """What the file says of the size of a spot and the like, where it holds one section."""
    libraries = source.uns.get(keys.SPATIAL)
    if not isinstance(libraries, dict) or len(libraries) != 1:
        return {}
    (library,) = libraries.values()
    factors = library.get("scalefactors") if isinstance(library, dict) else None
    if not isinstance(factors, dict):
        return {}
    return {str(k): float(v) for k, v in factors.items() if np.ndim(v) == 0 and np.isreal(v)}


def _open(path: Path) -> ad.AnnData:
    if not path.is_file():
        raise InputError("no such file", path=path, fix="check the manifest")
    try:
        return ad.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many kinds for damaged files
        raise InputError(f"not a readable h5ad file ({type(error).__name__}: {error})", path=path) from error


def _numbers(column: pd.Series, path: Path) -> npt.NDArray[np.float64]:
    """A column of ``obs`` as numbers, also where it holds them, or yes and no, as text."""
    words = {"true": 1.0, "false": 0.0}
    plain = column.astype(object).map(lambda value: words.get(str(value).strip().lower(), value))
    numbers = pd.to_numeric(plain, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.isnan(numbers) & column.notna().to_numpy()
    if bad.any():
        wrong = column[bad].iloc[0]
        raise InputError(f"obs[{column.name!r}] holds {str(wrong)!r}, not a number", path=path)
    return numbers


def _positions(stored: object, path: Path) -> npt.NDArray[np.float64]:
    try:
        positions = np.asarray(stored, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("obsm['spatial'] does not hold numbers", path=path) from error
    if positions.ndim != 2 or positions.shape[1] < 2:
        raise InputError(f"obsm['spatial'] has the shape {positions.shape}", path=path, fix="two columns, x and y")
    return positions[:, :2]


def _raw_counts(source: ad.AnnData, path: Path) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    if "counts" in source.layers:
        return sparse.csr_matrix(source.layers["counts"]), source.var
    if source.raw is not None and (source.X is None or not _whole(source.X)):
        return sparse.csr_matrix(source.raw.X), source.raw.var
    if source.X is None:
        raise InputError("neither X nor layers['counts'] is there", path=path, fix="raw counts are needed")
    return sparse.csr_matrix(source.X), source.var


def _whole(matrix: object) -> bool:
    values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)  # type: ignore[attr-defined]
    return bool((values == np.round(values)).all())


def _symbols(var: pd.DataFrame) -> list[str]:
    """Symbols from a column where the index holds Ensembl ids."""
    if len(var) and var.index.str.match(r"^ENS[A-Z]*G\d").mean() > 0.5:
        for column in _SYMBOLS:
            if column in var:
                names = var[column].astype("string").fillna("")
                return [n or i for n, i in zip(names, var.index, strict=True)]
    return list(var.index.astype(str))


def _ensembl(var: pd.DataFrame) -> list[str] | None:
    for column in _IDS:
        if column in var:
            return list(var[column].astype("string").fillna(""))
    return None
