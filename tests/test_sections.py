"""Sections: HEST stand-ins in their true layout, and the real sections where they are."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

from hescribe.sections import read_sections

SHARED = Path(os.environ.get("HESCRIBE_SHARED", Path(__file__).parents[2] / "shared")) / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real sections are not here (set HESCRIBE_SHARED)")


def hest(folder: Path, image: str) -> Path:
    """A section in the layout of HEST-1k: 16 spots, slide of 0.25 µm per pixel."""
    (folder / "st").mkdir()
    (folder / Path(image).parent).mkdir()
    rng = np.random.default_rng(0)
    names = [f"spot{i}" for i in range(16)]
    adata = ad.AnnData(
        sparse.csr_matrix(rng.poisson(3, (16, 5)).astype("f")),
        obs=pd.DataFrame({"in_tissue": [1] * 15 + [0]}, index=names),
        var=pd.DataFrame(index=list("ABCDE")),
    )
    adata.obsm["spatial"] = np.array([(600 + 400 * x, 600 + 400 * y) for x in range(4) for y in range(4)], float)
    adata.write_h5ad(folder / "st" / "T1.h5ad")
    manifest = folder / "sections.csv"
    manifest.write_text(f"section_id,patient_id,image,expression\nT1,P,{image},st/T1.h5ad\n")
    return manifest


def test_hest_with_patches(tmp_path: Path) -> None:
    manifest = hest(tmp_path, "patches/T1.h5")
    patches = np.random.default_rng(1).integers(0, 255, (15, 224, 224, 3), dtype=np.uint8)
    order = np.random.default_rng(2).permutation(15)
    section = read_sections(manifest)[0]
    centres = ad.read_h5ad(tmp_path / "st" / "T1.h5ad").obsm["spatial"]
    with h5py.File(tmp_path / "patches" / "T1.h5", "w") as file:
        file["img"] = patches[order]
        file["barcode"] = np.array([[f"spot{i}"] for i in order], dtype="S")
        file["coords"] = centres[order] - 224  # 112 µm at 0.25 µm per pixel are 448 px
    assert section.adata.n_obs == 15
    assert section.mpp == pytest.approx(0.25, rel=0.01)
    tiles = section.tiles()
    np.testing.assert_array_equal(tiles.read(np.array([3, 0]), tile_um=112.0, size_px=224), patches[[3, 0]])
    inner = tiles.read(np.array([5]), tile_um=56.0, size_px=112)[0]
    np.testing.assert_array_equal(inner, patches[5][56:168, 56:168])


def test_hest_with_the_slide(tmp_path: Path) -> None:
    manifest = hest(tmp_path, "wsis/T1.png")
    Image.fromarray(np.full((2600, 2600, 3), 200, np.uint8)).save(tmp_path / "wsis" / "T1.png")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "T1.json").write_text('{"pixel_size_um_estimated": 0.25}')
    section = read_sections(manifest)[0]
    assert section.mpp == 0.25
    assert len(section.tiles()) == 15
    image, downsample = section.thumbnail(650) or pytest.fail("no thumbnail")
    assert image.shape == (650, 650, 3)
    assert downsample == 4


def test_scanpy_draws_a_section_on_its_slide(tmp_path: Path) -> None:
    """Only Visium had ``uns["spatial"]``, and no section an image in it."""
    import matplotlib as mpl
    import scanpy as sc

    manifest = hest(tmp_path, "wsis/T1.png")
    Image.fromarray(np.full((2600, 2600, 3), (200, 120, 160), np.uint8)).save(tmp_path / "wsis" / "T1.png")
    section = read_sections(manifest)[0]
    assert section.adata.uns["spatial"] == {"T1": {"images": {}, "scalefactors": {}}}  # the file says nothing
    adata = section.with_image(650)
    library = adata.uns["spatial"]["T1"]
    assert library["images"]["hires"].shape == (650, 650, 3)
    assert library["scalefactors"] == {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": pytest.approx(400)}
    assert section.adata.uns["spatial"] == {"T1": {"images": {}, "scalefactors": {}}}
    with mpl.rc_context({"backend": "agg"}):
        (axes,) = sc.pl.spatial(adata, color="A", show=False)
    assert axes.get_images()[0].get_array().shape[:2] == (650, 650)
    # What the file does say is kept
    source = ad.read_h5ad(tmp_path / "st" / "T1.h5ad")
    source.uns["spatial"] = {"ST": {"images": {}, "scalefactors": {"spot_diameter_fullres": 99.0, "note": "x"}}}
    source.write_h5ad(tmp_path / "st" / "T1.h5ad")
    again = read_sections(manifest)[0]
    assert again.adata.uns["spatial"] == {"T1": {"images": {}, "scalefactors": {"spot_diameter_fullres": 99.0}}}
    assert again.with_image(650).uns["spatial"]["T1"]["scalefactors"]["spot_diameter_fullres"] == 99


@real
@pytest.mark.shared
def test_a_real_section_is_as_a_plain_read_of_its_files(tmp_path: Path) -> None:
    folder = SHARED / "her2st"
    (tmp_path / "sections.csv").write_text(
        "section_id,patient_id,image,expression,positions,technology\n"
        f"C3,C,{next(folder.glob('ST-imgs/C/C3/*.jpg'))},{folder}/ST-cnts/C3.tsv.gz,"
        f"{folder}/ST-spotfiles/C3_selection.tsv,st\n"
    )
    section = read_sections(tmp_path / "sections.csv")[0]
    counts = pd.read_csv(folder / "ST-cnts" / "C3.tsv.gz", sep="\t", index_col=0)
    spots = pd.read_csv(folder / "ST-spotfiles" / "C3_selection.tsv", sep="\t")
    names = {f"{x}x{y}" for x, y in zip(spots["x"].round().astype(int), spots["y"].round().astype(int), strict=True)}
    assert set(section.adata.obs_names) == names & set(counts.index)
    np.testing.assert_array_equal(
        section.adata[:, "ERBB2"].X.toarray().ravel(), counts.loc[section.adata.obs_names, "ERBB2"]
    )
    assert 0.6 < section.mpp < 0.85
    diameter = section.adata.uns["spatial"]["C3"]["scalefactors"]["spot_diameter_fullres"]
    assert diameter * section.mpp == pytest.approx(100)
    x, y = section.adata.obsm["spatial"][10].round().astype(int)
    Image.MAX_IMAGE_PIXELS = None
    expected = np.asarray(Image.open(section.image).crop((x, y, x + 8, y + 8)))
    np.testing.assert_allclose(section.slide.read_region(x, y, 8, 8).astype(int), expected, atol=2)
