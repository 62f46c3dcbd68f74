"""10x Xenium: cells of an output folder, summed into square bins and placed on the H&E image."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.formats.tables import need_columns, need_numbers, read_delimited
from hescribe.io.formats.tenx import read_genes
from hescribe.io.manifest import ManifestRow
from hescribe.types import Centres, Microns, Mpp

#: Side of a bin. As wide as a spot of Visium: counts then describe as much tissue as there, some tens of cells, and
#: sections of both can be trained on together; a single cell's are too few to be read off a tile of 112 µm.
BIN_UM: Microns = 55.0
EXPERIMENT = "experiment.xenium"
_CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
_MATRIX = "cell_feature_matrix"
_ALIGNMENT = "*he_imagealignment.csv"
_STRETCH = 1.1  #: of one direction against another, beyond which a tile would not be square

Matrix = npt.NDArray[np.float64]  #: (3, 3) from pixels of the H&E image to pixels of the morphology image


def read_xenium(row: ManifestRow) -> ad.AnnData:
    """Bins of `BIN_UM` that hold a cell's centroid, counts of genes summed over their cells.

    Bins are squares of the morphology image; positions are their centres in pixels of the H&E image, where the
    alignment leads. A row without image needs no alignment, and has pixels of the morphology image.

    The alignment is a 3 × 3 matrix from H&E pixels to morphology pixels, as 10x's ``*_he_imagealignment.csv`` and
    Xenium Explorer's export: the file in ``positions``, or ``<name>alignment.csv`` beside the image (10x names them
    ``x_he_image.ome.tif`` and ``x_he_imagealignment.csv``), or the only ``*he_imagealignment.csv`` in the folder.

    Raises
    ------
    InputError
        Something is missing or malformed, or nothing says where on the image the cells are.
    """
    assert row.expression is not None  # noqa: S101 - readers are called for rows with expression
    folder = row.expression / "outs" if (row.expression / "outs").is_dir() else row.expression
    pixel_um, software = _read_experiment(folder)
    alignment = _find_alignment(row, folder)
    to_morphology = _read_alignment(alignment) if alignment is not None else np.eye(3)
    cells, file = _read_cells(folder)
    counts, var, shared = read_genes(folder, _MATRIX, cells.index, beside=file)
    members, places = _bin(cells.loc[shared].to_numpy())
    names = [f"s_{BIN_UM:03.0f}um_{r:05d}_{c:05d}" for r, c in places]
    obs = pd.DataFrame(places, columns=[keys.ARRAY_ROW, keys.ARRAY_COL], index=names)
    obs[keys.N_CELLS] = np.asarray(members.sum(axis=1)).ravel().astype(int)
    adata = ad.AnnData(sparse.csr_matrix(members @ counts), obs=obs, var=var)
    centres_um: Centres = (places[:, ::-1].astype(np.float64) + 0.5) * BIN_UM
    adata.obsm[keys.SPATIAL] = _to_image(centres_um / pixel_um, to_morphology)
    factors = _scalefactors(pixel_um * _scale(to_morphology))
    library = {"images": {}, "scalefactors": factors, "metadata": {"software_version": software}}
    adata.uns[keys.SPATIAL] = {row.section_id: library}
    return adata


def _scalefactors(mpp: Mpp) -> dict[str, float]:
    return {keys.MICRONS_PER_PIXEL: mpp, keys.BIN_UM: BIN_UM, keys.SPOT_DIAMETER: BIN_UM / mpp}


def _bin(centroids_um: Centres) -> tuple[sparse.csr_matrix, npt.NDArray[np.int64]]:
    """(bins × cells, 1 where a cell is in a bin; row and column of each bin)."""
    squares = np.floor(centroids_um[:, ::-1] / BIN_UM).astype(np.int64)
    places, of_cell = np.unique(squares, axis=0, return_inverse=True)
    cells = np.arange(len(squares))
    shape = (len(places), len(squares))
    return sparse.csr_matrix((np.ones(len(cells), np.float32), (of_cell.ravel(), cells)), shape=shape), places


def _to_image(morphology_px: Centres, to_morphology: Matrix) -> Centres:
    """Pixels of the H&E image that the alignment leads to these of the morphology image."""
    offsets = (morphology_px - to_morphology[:2, 2]).T
    return np.asarray(np.linalg.solve(to_morphology[:2, :2], offsets).T, dtype=np.float64)


def _scale(to_morphology: Matrix) -> float:
    """Morphology pixels to an H&E pixel."""
    return float(np.sqrt(abs(np.linalg.det(to_morphology[:2, :2]))))


def _read_experiment(folder: Path) -> tuple[Mpp, str]:
    """(µm to a pixel of the morphology image, version of the analysis)."""
    file = folder / EXPERIMENT
    if not file.is_file():
        raise InputError(
            f"{EXPERIMENT} is missing" if folder.is_dir() else "not a folder of Xenium",
            path=folder,
            fix=f"give the output folder of Xenium, with {EXPERIMENT}, {_MATRIX}.h5 and cells.parquet",
        )
    try:
        facts = json.loads(file.read_text())
        pixel_um = float(facts["pixel_size"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"pixel_size cannot be read ({type(error).__name__}: {error})", path=file) from error
    if not 0 < pixel_um < np.inf:
        raise InputError(f"pixel_size is {pixel_um:g}, not a positive number of µm", path=file)
    return pixel_um, str(facts.get("analysis_sw_version", ""))


def _read_cells(folder: Path) -> tuple[pd.DataFrame, Path]:
    """Centroids in µm by cell id, and the file."""
    file = next((folder / name for name in _CELLS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"none of {', '.join(_CELLS)} is here", path=folder)
    table = read_delimited(file)
    columns = ["x_centroid", "y_centroid"]
    need_columns(table, ["cell_id", *columns], file)
    # Numbers in the first versions, later text, which some wrote as bytes
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in table["cell_id"]]
    index = pd.Index(names, dtype=object)
    return pd.DataFrame(need_numbers(table, columns, file), columns=columns, index=index), file


def _find_alignment(row: ManifestRow, folder: Path) -> Path | None:
    """The alignment's file; None where there is no image to align."""
    if row.positions is not None:
        return row.positions
    if row.image is None:
        return None
    beside = row.image.with_name(row.image.stem.removesuffix(".ome") + "alignment.csv")
    found = [beside] if beside.is_file() else sorted(folder.glob(_ALIGNMENT))
    if len(found) == 1:
        return found[0]
    what = "several alignments are here" if found else "where on the H&E image the cells are is not known"
    raise InputError(
        what,
        path=folder,
        fix="give the 3 × 3 matrix from pixels of the H&E to pixels of the morphology image (10x's "
        "*_he_imagealignment.csv, or Xenium Explorer's export) in the manifest's column 'positions'; for an image in "
        "the morphology image's own pixels, a file of 1,0,0 / 0,1,0 / 0,0,1",
    )


def _read_alignment(path: Path) -> Matrix:
    table = read_delimited(path, header=False)
    if table.shape != (3, 3):
        raise InputError(
            f"{table.shape[0]} rows and {table.shape[1]} columns, not a 3 × 3 matrix",
            path=path,
            fix="three lines of three numbers separated by commas, from pixels of the H&E to the morphology image",
        )
    table.columns = pd.Index(["1", "2", "3"])
    matrix = need_numbers(table, list(table.columns), path)
    if not np.allclose(matrix[2], [0, 0, 1]):
        raise InputError("the last row is not 0,0,1", path=path, fix="give an affine matrix")
    widest, narrowest = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if not narrowest > 0 or widest > _STRETCH * narrowest:
        raise InputError(
            f"one direction is scaled by {widest:.4g} and the one across by {narrowest:.4g}",
            path=path,
            fix="an alignment may turn, mirror, shift and scale, but not flatten",
        )
    return matrix
