"""What is written can be read by those whose formats they are."""

import json
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile

from hescribe.sections import read_sections
from tests.datasets.conftest import TINY


@pytest.mark.parametrize("backend", ["openslide", "tiffslide"])
def test_slide_readers_see_levels_and_mpp(tiny: Path, backend: str) -> None:
    path = tiny / "slides" / "P1_S1.tiff"
    opened = pytest.importorskip(backend)
    slide = opened.OpenSlide(str(path)) if backend == "openslide" else opened.TiffSlide(str(path))
    side = round(TINY["side_um"] / TINY["mpp"])
    assert slide.dimensions == (side, side)
    assert [round(d) for d in slide.level_downsamples] == [1, 2]
    assert float(slide.properties[f"{backend}.mpp-x"]) == pytest.approx(TINY["mpp"])
    region = np.asarray(slide.read_region((side // 2, side // 2), 1, (64, 64)).convert("RGB"))
    assert region.mean() < 235


def test_tiff_is_tiled_compressed_and_every_level_says_its_scale(tiny: Path) -> None:
    with tifffile.TiffFile(tiny / "slides" / "P1_S1.tiff") as tiff:
        for level, page in enumerate(tiff.pages):
            assert page.is_tiled
            assert page.compression.name == "JPEG"
            numerator, denominator = page.tags["XResolution"].value
            assert 1e4 / (numerator / denominator) == pytest.approx(TINY["mpp"] * 2**level, rel=1e-3)


def test_levels_show_the_same_picture(tiny: Path) -> None:
    with tifffile.TiffFile(tiny / "slides" / "P2_S1.tiff") as tiff:
        full, half = (page.asarray().astype(float) for page in tiff.pages)
    small = full.reshape(half.shape[0], 2, half.shape[1], 2, 3).mean(axis=(1, 3))
    assert np.abs(small - half).mean() < 4


def test_scanpy_reads_the_counts(tiny: Path) -> None:
    sc = pytest.importorskip("scanpy")
    adata = sc.read_10x_h5(tiny / "expression" / "P1_S1" / "filtered_feature_bc_matrix.h5")
    positions = pd.read_csv(tiny / "expression" / "P1_S1" / "spatial" / "tissue_positions.csv")
    assert adata.n_vars == TINY["n_genes"]
    assert set(adata.obs_names) == set(positions.loc[positions.in_tissue == 1, "barcode"])
    assert adata.var["feature_types"].unique().tolist() == ["Gene Expression"]
    assert {"gene_ids", "genome"} <= set(adata.var)


def test_matrix_has_the_layout_of_10x_version_3(tiny: Path) -> None:
    with h5py.File(tiny / "expression" / "P1_S1" / "filtered_feature_bc_matrix.h5") as file:
        assert {"barcodes", "data", "indices", "indptr", "shape", "features"} == set(file["matrix"])
        assert {"id", "name", "feature_type", "genome", "_all_tag_keys"} == set(file["matrix/features"])
        assert len(file["matrix/indptr"]) == file["matrix/shape"][1] + 1


def test_spots_lie_on_the_hexagonal_grid_of_visium(tiny: Path) -> None:
    folder = tiny / "expression" / "P1_S1" / "spatial"
    table = pd.read_csv(folder / "tissue_positions.csv")
    assert ((table.array_row + table.array_col) % 2 == 0).all()
    assert table.barcode.is_unique
    xy = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy() * TINY["mpp"]
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert np.abs(distance.min(axis=1) - 100).max() < 2
    factors = json.loads((folder / "scalefactors_json.json").read_text())
    assert factors["spot_diameter_fullres"] * TINY["mpp"] == pytest.approx(55)
    assert (folder / "tissue_hires_image.png").stat().st_size > 0


def test_the_manifest_reads_as_sections(tiny: Path) -> None:
    sections = read_sections(tiny / "sections.csv")
    assert [s.section_id for s in sections] == ["P1_S1", "P1_S2", "P2_S1", "P2_S2"]
    assert [s.row.z for s in sections] == [0, 20, 0, 20]
    for section in sections:
        adata = section.adata
        assert section.mpp == pytest.approx(TINY["mpp"])
        assert np.allclose(adata.obsm["cell_types"].sum(axis=1), 1, atol=1e-3)
        assert adata.obs["annotation"].notna().all()
        assert len(section.tiles()) == adata.n_obs
        truth = ad.read_h5ad(tiny / "truth" / f"{section.section_id}.h5ad")
        assert truth.obs_names.equals(adata.obs_names)
        assert truth.var_names.equals(adata.var_names)
        assert np.allclose(truth.obsm["spatial"], adata.obsm["spatial"])
