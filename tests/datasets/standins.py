"""Small sections in the very layout and formats of published data sets; their darkness tells one gene."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import cv2
import h5py
import numpy as np
import pandas as pd
import tifffile
from scipy import sparse
from scipy.io import mmwrite

GENES = ("DARK", "LIGHT", *(f"G{i}" for i in range(28)))


@dataclass(frozen=True)
class Tissue:
    """Spots on a grid: array places (column, row), pixel centres, image, counts (spots × genes)."""

    grid: np.ndarray
    centres: np.ndarray
    image: np.ndarray
    counts: np.ndarray


def make_tissue(seed: int, *, pitch_px: int, side: int = 6, hexagonal: bool = False) -> Tissue:
    """Each spot's surroundings are as dark as its gene DARK is high."""
    rng = np.random.default_rng(seed)
    level = rng.random(side * side)
    grid = np.array([(x, y) for y in range(side) for x in range(side)])
    centres = (grid + 1.5) * pitch_px
    if hexagonal:  # Visium: neighbours in a row are two columns apart, every second row is shifted
        grid = np.column_stack([2 * grid[:, 0] + grid[:, 1] % 2, grid[:, 1]])
        centres = np.column_stack([grid[:, 0] * 0.5, grid[:, 1] * np.sqrt(3) / 2]) * pitch_px + 1.5 * pitch_px
    image = np.full(((side + 2) * pitch_px, (side + 3) * pitch_px, 3), 240, dtype=np.float64)
    for (x, y), dark in zip(centres.round().astype(int), level, strict=True):
        half = pitch_px // 2
        image[y - half : y + half, x - half : x + half] -= np.array([90, 170, 60]) * dark
    image += rng.normal(0, 4, image.shape)
    rates = np.full((side * side, len(GENES)), 20.0)
    rates[:, 0] += 200 * level
    rates[:, 1] += 200 * (1 - level)
    return Tissue(grid, centres, image.clip(0, 255).astype(np.uint8), rng.poisson(rates))


def zip_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.write(text)


def zip_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as file:
        file.write(content)


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def write_hest(folder: Path, ids: Sequence[str], *, slides: bool = True, bench: str = "") -> None:
    """HEST-1k (``st``, ``wsis``, ``patches``, ``metadata``), or one task of HEST-Benchmark (``adata``, ``patches``).

    Xenium as pseudo-spots: unsigned counts, control probes, ids ``000x002``, spots off the tissue.
    """
    root = folder / bench
    table, images = root / ("adata" if bench else "st"), root / "patches"
    for place in (table, images, *([] if bench else [root / "metadata", root / "wsis"])):
        place.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(ids):
        tissue = make_tissue(seed, pitch_px=224)
        spots = [f"{y:03d}x{x:03d}" for x, y in tissue.grid]
        probes = np.ones((len(spots), 2))
        adata = ad.AnnData(
            sparse.csr_matrix(np.hstack([tissue.counts, probes]).astype(np.uint16)),
            obs=pd.DataFrame({"in_tissue": 1, "array_col": tissue.grid[:, 0], "array_row": tissue.grid[:, 1]}, spots),
            var=pd.DataFrame(index=[*GENES, "NegControlProbe_00042", "BLANK_0069"]),
        )
        adata.obs.loc[spots[0], "in_tissue"] = 0
        adata.obsm["spatial"] = tissue.centres
        adata.write_h5ad(table / f"{name}.h5ad")
        kept = range(2, len(spots))  # patches are of fewer spots than there are
        with h5py.File(images / f"{name}.h5", "w") as file:
            file["img"] = np.stack([cut(tissue, i, 224) for i in kept])
            file["barcode"] = np.array([[spots[i]] for i in kept], dtype="S")
            file["coords"] = (tissue.centres[kept] - 112).astype(np.int64)
        if bench:
            continue
        (root / "metadata" / f"{name}.json").write_text(
            json.dumps({"id": name, "pixel_size_um_embedded": 0.46, "pixel_size_um_estimated": 0.5})
        )
        if slides:
            tifffile.imwrite(
                root / "wsis" / f"{name}.tif",
                tissue.image,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                resolution=(1e4 / 0.46, 1e4 / 0.46),
                resolutionunit="CENTIMETER",
            )
    if bench:
        (root / "var_50genes.json").write_text(json.dumps({"genes": list(GENES[:10])}))
        (root / "splits").mkdir(exist_ok=True)
        (root / "splits" / "train_0.csv").write_text("sample_id,patches_path,expr_path\n")


def cut(tissue: Tissue, i: int, side: int) -> np.ndarray:
    x, y = tissue.centres[i].round().astype(int) - side // 2
    return tissue.image[y : y + side, x : x + side]


def write_st(counts: Path, spots: Path, image: Path, seed: int) -> None:
    """Legacy ST; what ends in ``.gz`` is gzipped. One selected spot has no counts, one row of counts no spot."""
    tissue = make_tissue(seed, pitch_px=100)
    names = [f"{x + 2}x{y + 2}" for x, y in tissue.grid]
    table = pd.DataFrame(tissue.counts, index=names, columns=list(GENES))
    table.loc["60x60"] = 1
    places = pd.DataFrame(tissue.grid + 2, columns=["x", "y"])
    places["new_x"], places["new_y"] = places["x"] + 0.03, places["y"] - 0.02
    places["pixel_x"], places["pixel_y"] = tissue.centres.T
    for path, content in (
        (counts, table.iloc[1:].to_csv(sep="\t")),
        (spots, places.to_csv(sep="\t", index=False)),
        (image, jpeg(tissue.image)),
    ):
        raw = content.encode() if isinstance(content, str) else content
        path.parent.mkdir(parents=True, exist_ok=True)
        zip_bytes(path, raw) if path.suffix == ".gz" else path.write_bytes(raw)


def visium_files(tissue: Tissue) -> dict[str, str]:
    """The text files of a filtered matrix and its positions, as spaceranger 1 writes them."""
    barcodes = [f"{'ACGT'[i % 4] * 8}{i:08d}-1" for i in range(len(tissue.counts))]
    buffer = io.BytesIO()
    mmwrite(buffer, sparse.coo_matrix(tissue.counts.T))
    rows = [
        f"{barcode},1,{y},{x},{py:.0f},{px:.0f}"
        for barcode, (x, y), (px, py) in zip(barcodes, tissue.grid, tissue.centres, strict=True)
    ]
    return {
        "matrix.mtx": buffer.getvalue().decode(),
        "barcodes.tsv": "".join(f"{b}\n" for b in barcodes),
        "features.tsv": "".join(f"ENSG{i:011d}\t{g}\tGene Expression\n" for i, g in enumerate(GENES)),
        "tissue_positions_list.csv": "\n".join([*rows, "off-1,0,70,70,9,9"]) + "\n",
        "scalefactors_json.json": json.dumps({"spot_diameter_fullres": 66.0, "tissue_hires_scalef": 0.1}),
    }


def liver_image(tissue: Tissue) -> bytes:
    """A TIFF in strips without scale, as it is large and plain."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, tissue.image, photometric="rgb", rowsperstrip=64)
    return buffer.getvalue()
