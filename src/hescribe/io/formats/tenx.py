"""The matrix of 10x's pipelines, as HDF5 (layout 3) or as a folder of three tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from scipy import sparse

from hescribe.errors import InputError
from hescribe.io.formats.genes import tidy_genes
from hescribe.io.schema import match_spots
from hescribe.types import SparseExpression

GENES = "Gene Expression"  #: feature_type of genes; all else is antibodies, guides, probes or codewords of control


def read_genes(
    folder: Path, name: str, places: pd.Index, *, beside: Path
) -> tuple[SparseExpression, pd.DataFrame, pd.Index]:
    """Counts of genes, of the barcodes that have a place.

    Parameters
    ----------
    folder, name
        ``<name>.h5``, or the folder of that name, lies here.
    places, beside
        Barcodes of which the position is known, and from which file.

    Returns
    -------
    csr_matrix
        (barcodes, genes), equal symbols summed.
    DataFrame
        ``var``, as of `tidy_genes`.
    Index
        Barcodes, in the matrix's order.

    Raises
    ------
    InputError
        The matrix is missing or malformed, holds no genes, or has no barcode in common with ``places``.
    """
    matrix, barcodes, features, source = _read_counts(folder, name)
    shared = match_spots(barcodes, places, source, beside=beside)
    genes = (features["feature_type"] == GENES).to_numpy()
    if not genes.any():
        kinds = ", ".join(sorted(set(features["feature_type"].astype(str)))) or "no features"
        raise InputError(f"no feature is of the type {GENES!r} (found {kinds})", path=source)
    if len(shared) < len(barcodes):
        matrix = matrix[barcodes.get_indexer(shared)]
    if not genes.all():
        matrix, features = matrix[:, genes], features[genes]
    counts, var = tidy_genes(matrix, list(features["name"]), list(features["id"]))
    return counts, var, shared


def _read_counts(folder: Path, name: str) -> tuple[sparse.csr_matrix, pd.Index, pd.DataFrame, Path]:
    """(barcodes × features, barcodes, features with id, name and feature_type, the file)."""
    file, directory = folder / f"{name}.h5", folder / name
    if file.is_file():
        return *_read_h5(file), file
    if directory.is_dir():
        return *_read_mtx(directory), directory
    raise InputError(f"neither {name}.h5 nor the folder of that name is here", path=folder)


def _read_h5(file: Path) -> tuple[sparse.csr_matrix, pd.Index, pd.DataFrame]:
    import h5py

    try:
        with h5py.File(file) as h5:
            group = h5["matrix"]
            shape = tuple(group["shape"][:])
            parts = (group["data"][:], group["indices"][:], group["indptr"][:])
            barcodes = group["barcodes"].asstr()[:]
            features = {name: group["features"][name].asstr()[:] for name in ("id", "name", "feature_type")}
        # Stored features × barcodes by column, which is barcodes × features by row
        return sparse.csr_matrix(parts, shape=shape[::-1]), pd.Index(barcodes), pd.DataFrame(features)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"not a readable 10x matrix ({error})", path=file) from error


def _read_mtx(folder: Path) -> tuple[sparse.csr_matrix, pd.Index, pd.DataFrame]:
    from scipy.io import mmread

    try:
        matrix = sparse.csr_matrix(mmread(_either(folder, "matrix.mtx")).T)
        barcodes = _read_text(_either(folder, "barcodes.tsv"))[0]
        features = _read_text(_either(folder, "features.tsv", "genes.tsv"))
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise InputError(f"not a readable 10x matrix folder ({error})", path=folder) from error
    if matrix.shape != (len(barcodes), len(features)):
        raise InputError(
            f"a matrix of {matrix.shape[0]} barcodes × {matrix.shape[1]} features, but {len(barcodes)} barcodes and "
            f"{len(features)} features are named",
            path=folder,
        )
    # The oldest files have no third column: all are genes
    kind = features[2] if 2 in features else pd.Series(GENES, index=features.index)
    return matrix, pd.Index(barcodes), pd.DataFrame({"id": features[0], "name": features[1], "feature_type": kind})


def _read_text(file: Path) -> pd.DataFrame:
    """All cells as text: cells of a tissue may be named by numbers, and a gene may be called NA."""
    return pd.read_csv(file, header=None, sep="\t", dtype=str, keep_default_na=False)


def _either(folder: Path, *names: str) -> Path:
    for name in names:
        for file in (folder / f"{name}.gz", folder / name):
            if file.is_file():
                return file
    raise InputError(f"{names[0]} (or .gz) is missing", path=folder)
