"""Writing a section in the formats that scanners and spaceranger leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import cv2
import numpy as np
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.datasets.synthetic.block import REGIONS
from hescribe.datasets.synthetic.cells import CELL_TYPES
from hescribe.datasets.synthetic.counts import PITCH_UM, SPOT_RADIUS_UM, Spots, Truth
from hescribe.types import Mpp, TileArray

GENOME = "GRCh38-synthetic"
_HIRES_PX, _LOWRES_PX = 1000, 300
_SMALLEST_LEVEL_PX = 512
_FIDUCIAL_FACTOR = 1.6  #: spaceranger's fiducials are that much wider than its spots


def write_slide(image: TileArray, path: Path, *, mpp: Mpp) -> None:
    """A tiled, JPEG-compressed TIFF whose pages are the levels of a pyramid, each half the last."""
    import tifffile

    per_cm = 1e4 / mpp
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        level, reduced = image, False
        while True:
            tiff.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 88},
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(reduced),
                metadata=None,
                software=False,
                maxworkers=1,
            )
            if max(level.shape[:2]) <= _SMALLEST_LEVEL_PX:
                return
            half = (level.shape[1] // 2, level.shape[0] // 2)
            level = np.asarray(cv2.resize(level, half, interpolation=cv2.INTER_AREA), dtype=np.uint8)
            per_cm, reduced = per_cm / 2, True


def write_spaceranger(
    folder: Path, spots: Spots, counts: sparse.csr_matrix, genes: list[str], *, mpp: Mpp, image: TileArray
) -> None:
    """``filtered_feature_bc_matrix.h5`` and ``spatial/`` as spaceranger 2 has them."""
    spatial = folder / "spatial"
    spatial.mkdir(parents=True, exist_ok=True)
    _write_matrix(folder / "filtered_feature_bc_matrix.h5", spots.barcodes[spots.in_tissue], counts, genes)
    pixels = np.rint(spots.xy_um / mpp).astype(int)
    columns = [spots.barcodes, spots.in_tissue.astype(int), *spots.array.T, pixels[:, 1], pixels[:, 0]]
    names = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
    table = pd.DataFrame(dict(zip(names, columns, strict=True)))
    table.to_csv(spatial / "tissue_positions.csv", index=False)
    factors = {keys.SPOT_DIAMETER: 2 * SPOT_RADIUS_UM / mpp}
    factors["fiducial_diameter_fullres"] = _FIDUCIAL_FACTOR * factors[keys.SPOT_DIAMETER]
    for name, side in (("hires", _HIRES_PX), ("lowres", _LOWRES_PX)):
        scale = min(1.0, side / max(image.shape[:2]))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(spatial / f"tissue_{name}_image.png"), cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        factors[f"tissue_{name}_scalef"] = scale
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))


def _write_matrix(path: Path, barcodes: np.ndarray, counts: sparse.csr_matrix, genes: list[str]) -> None:
    """The HDF5 layout of 10x, version 3: features × barcodes, compressed by column."""
    import h5py

    by_spot = sparse.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group.create_dataset("data", data=by_spot.data.astype(np.int32), compression="gzip", compression_opts=1)
        group.create_dataset("indices", data=by_spot.indices.astype(np.int64), compression="gzip", compression_opts=1)
        group["indptr"] = by_spot.indptr.astype(np.int64)
        group["shape"] = np.array(by_spot.shape[::-1], dtype=np.int32)
        features = group.create_group("features")
        features["id"] = np.array([f"SYNG{i + 1:08d}" for i in range(len(genes))], dtype="S")
        features["name"] = np.array(genes, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(genes), dtype="S")
        features["genome"] = np.array([GENOME] * len(genes), dtype="S")
        features["_all_tag_keys"] = np.array(["genome"], dtype="S")


def write_tables(spots: Spots, truth: Truth, *, cell_types: Path, annotations: Path) -> None:
    """Proportions of cell types and the region's label, by spot id."""
    for path in (cell_types, annotations):
        path.parent.mkdir(parents=True, exist_ok=True)
    names = pd.Index(spots.barcodes[spots.in_tissue], name="spot")
    pd.DataFrame(truth.proportions, names, list(CELL_TYPES)).round(4).to_csv(cell_types)
    labels = np.array(REGIONS)[truth.regions]
    pd.DataFrame({"label": labels}, names).to_csv(annotations)


def write_truth(path: Path, spots: Spots, truth: Truth, genes: list[str], *, mpp: Mpp) -> None:
    """What was planted, as AnnData: the expected mean in ``X``, float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = pd.Index(spots.barcodes[spots.in_tissue])
    obs = pd.DataFrame({"library": truth.library}, index=names)
    obs[keys.ANNOTATION] = pd.Categorical(np.array(REGIONS)[truth.regions])
    adata = ad.AnnData(truth.expected.astype(np.float32), obs=obs, var=pd.DataFrame(index=pd.Index(genes)))
    adata.obsm[keys.SPATIAL] = np.rint(spots.xy_um[spots.in_tissue] / mpp)
    adata.obsm[keys.CELL_TYPES] = pd.DataFrame(truth.proportions, names, list(CELL_TYPES))
    adata.uns["pitch_um"] = PITCH_UM
    adata.write_h5ad(path)
