"""Predictions on disk, a gene at a time, and inside SpatialData stores."""

from __future__ import annotations

import errno
import shutil
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

from hescribe import keys
from hescribe.errors import InputError, OutputError
from hescribe.inference.predict import predict, read_prediction
from hescribe.inference.present import find_predictions
from hescribe.io.predictions import export_spatialdata, open_prediction
from hescribe.io.rows import GrowingTable
from hescribe.io.store import write_anndata

SIDE, STRIDE = 24.0, 12.0  #: pixels of a tile, and between tiles
CENTRES = np.stack([a.ravel() for a in np.meshgrid(np.arange(20.0, 140, STRIDE), np.arange(20.0, 90, STRIDE))], axis=1)
FACTS = {"slide": "S", "mpp": 0.5, "tile_um": SIDE * 0.5, "stride_um": STRIDE * 0.5, "image": "slide.tif"}


def values(n_genes: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(CENTRES), n_genes)).astype("f")


def prediction(dtype: str = "float32") -> ad.AnnData:
    obs = pd.DataFrame({keys.NOVELTY: np.linspace(0, 100, len(CENTRES)), keys.INTERVAL_SCALE: 1.0})
    obs.index = pd.Index([f"tile_{i}" for i in range(len(CENTRES))])
    var = pd.DataFrame({keys.EXPECTED_PCC: np.linspace(0, 1, 5), keys.INTERVAL: 0.5}, index=list("ABCDE"))
    table = ad.AnnData(values().astype(dtype), obs=obs, var=var)
    table.obsm[keys.SPATIAL] = CENTRES.copy()
    table.obsm[keys.CELL_TYPES] = pd.DataFrame({"T cell": 0.25, "other": 0.75}, index=obs.index)
    table.uns[keys.PROVENANCE] = FACTS
    return table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_anndata(prediction(), tmp_path / "p" / "S.zarr")
    return tmp_path / "p" / "S.zarr"


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """A tiled TIFF that OpenSlide opens."""
    import tifffile

    image = np.full((512, 768, 3), 230, np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", image, tile=(256, 256), photometric="rgb", compression="deflate")
    return tmp_path / "slide.tif"


def read(store: Path):  # type: ignore[no-untyped-def]
    import spatialdata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return spatialdata.read_zarr(store)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_genes_come_in_pieces(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hescribe.io.predictions.stored._BLOCK", 1)
    made, table = prediction(), GrowingTable(tmp_path / "S.zarr", (len(CENTRES), 5), dtype=dtype, rows=8)
    for start in range(0, len(CENTRES), 8):
        table.write(start, values()[start : start + 8])
    table.finish(obs=made.obs, var=made.var, obsm=dict(made.obsm), uns=dict(made.uns))
    stored = open_prediction(tmp_path / "S.zarr")
    for gene in range(5):
        pieces = list(stored.gene_pieces(gene))
        assert len(pieces) == -(-len(CENTRES) // 8)
        np.testing.assert_array_equal(np.concatenate(pieces), values()[:, gene].astype(dtype).astype("f"))
    assert list(stored.var.index) == list("ABCDE")
    np.testing.assert_array_equal(stored.centres, CENTRES)


def test_what_is_no_prediction(tmp_path: Path, path: Path) -> None:
    with pytest.raises(InputError, match="no such prediction"):
        open_prediction(tmp_path / "none.zarr")
    (tmp_path / "file.zarr").write_text("x")
    (tmp_path / "folder").mkdir()
    for name in ("file.zarr", "folder"):
        with pytest.raises(InputError, match="no prediction"):
            open_prediction(tmp_path / name)
    other = prediction()
    del other.uns[keys.PROVENANCE]
    write_anndata(other, tmp_path / "other.zarr")
    with pytest.raises(InputError, match="not a prediction of hescribe"):
        open_prediction(tmp_path / "other.zarr")
    shutil.rmtree(path / "X")
    with pytest.raises(InputError):
        open_prediction(path)


def test_a_new_store_is_read_by_spatialdata(path: Path, tmp_path: Path) -> None:
    import spatialdata

    store = export_spatialdata(path, tmp_path / "new.zarr")
    data = read(store)
    table = data.tables[keys.TILES_TABLE]
    np.testing.assert_array_equal(table.X, values())
    assert table.uns["spatialdata_attrs"]["region"] == keys.TILES_SHAPES
    assert table.uns[keys.PROVENANCE]["slide"] == "S"
    pd.testing.assert_frame_equal(table.obsm[keys.CELL_TYPES], prediction().obsm[keys.CELL_TYPES])
    squares = data.shapes[keys.TILES_SHAPES]
    bounds = squares.geometry.bounds.to_numpy()
    np.testing.assert_allclose((bounds[:, :2] + bounds[:, 2:]) / 2, CENTRES)
    np.testing.assert_allclose(bounds[:, 2:] - bounds[:, :2], SIDE)
    # Some tiles, by where they are, and the rows that belong to them
    within = data.query.bounding_box(
        axes=("x", "y"), min_coordinate=[0, 0], max_coordinate=[40, 40], target_coordinate_system="global"
    )
    inside = (CENTRES - SIDE / 2 < 40).all(axis=1)
    assert list(within.tables[keys.TILES_TABLE].obs_names) == [f"tile_{i}" for i in np.flatnonzero(inside)]
    joined, rows = spatialdata.join_spatialelement_table(
        data, keys.TILES_SHAPES, table_name=keys.TILES_TABLE, how="inner"
    )
    assert len(joined[keys.TILES_SHAPES]) == len(rows) == len(CENTRES)
    # The table is a prediction as before
    assert open_prediction(store).path == store / "tables" / keys.TILES_TABLE
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_wsidata_goes_on_with_it(path: Path, slide: Path, tmp_path: Path) -> None:
    from wsidata import open_wsi

    store = export_spatialdata(path, tmp_path / "slide.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wsi = open_wsi(slide)  # its own store, by name
        assert wsi.path == store
        features = wsi.fetch.features_anndata(keys.TILES_TABLE, tile_key=keys.TILES_SHAPES)
        np.testing.assert_array_equal(features.X, values())
        assert wsi.tile_spec(keys.TILES_SHAPES).base_width == SIDE
        assert wsi.tile_spec(keys.TILES_SHAPES).base_stride_width == STRIDE
        first = next(iter(wsi.iter.tile_images(keys.TILES_SHAPES)))
    assert (first.x, first.y) == (8, 8)
    assert first.image.shape[:2] == (24, 24)


def test_a_store_keeps_what_it_held(path: Path, slide: Path, tmp_path: Path) -> None:
    from wsidata import open_wsi
    from wsidata.io import add_tissues

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wsi = open_wsi(slide)
        from shapely import box

        add_tissues(wsi, "tissues", [box(0, 0, 100, 100)])
        wsi.write()
    store = tmp_path / "slide.zarr"
    export_spatialdata(path, store)
    data = read(store)
    assert set(data.shapes) == {"tissues", keys.TILES_SHAPES}
    assert data.attrs["slide_properties"]["shape"] == [512, 768]
    assert keys.TILES_SHAPES in data.attrs["tile_spec"]
    np.testing.assert_array_equal(data.tables[keys.TILES_TABLE].X, values())
    listed = zarr.open_group(store, mode="r").metadata.consolidated_metadata
    assert listed is not None
    assert f"tables/{keys.TILES_TABLE}/X" in listed.flattened_metadata
    with pytest.raises(OutputError, match="--overwrite"):
        export_spatialdata(path, store)
    changed = prediction()
    changed.X[:] = 7
    write_anndata(changed[:10].copy(), path)
    export_spatialdata(path, store, overwrite=True)
    data = read(store)
    assert (data.tables[keys.TILES_TABLE].X == 7).all()
    assert len(data.shapes[keys.TILES_SHAPES]) == 10
    assert "tissues" in data.shapes
    assert not list(store.rglob(".*"))


def test_squares_lie_on_the_image_that_is_named(path: Path, tmp_path: Path) -> None:
    from spatialdata import SpatialData, get_extent
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine, Identity

    turned = Affine([[0, 2, 5], [2, 0, 7], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    image = Image2DModel.parse(np.zeros((3, 160, 200), np.uint8), transformations={"here": turned, "raw": Identity()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SpatialData(images={"he": image}).write(tmp_path / "s.zarr")
    with pytest.raises(InputError, match=r"no image 'other'.*there: he"):
        export_spatialdata(path, tmp_path / "s.zarr", image="other")
    export_spatialdata(path, tmp_path / "s.zarr", image="he")
    data = read(tmp_path / "s.zarr")
    assert set(data.coordinate_systems) == {"here", "raw"}
    extent = get_extent(data.shapes[keys.TILES_SHAPES], coordinate_system="here")
    low, high = CENTRES.min(axis=0) - SIDE / 2, CENTRES.max(axis=0) + SIDE / 2
    np.testing.assert_allclose(extent["x"], [2 * low[1] + 5, 2 * high[1] + 5])
    np.testing.assert_allclose(extent["y"], [2 * low[0] + 7, 2 * high[0] + 7])


def test_refused_stores(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    zarr.create_group(tmp_path / "old.zarr", zarr_format=2, attributes={"spatialdata_attrs": {"version": "0.1"}})
    for name, message in (("folder", "not a SpatialData store"), ("old.zarr", "of an older format")):
        with pytest.raises(InputError, match=message):
            export_spatialdata(path, tmp_path / name)
    with pytest.raises(InputError, match="not a SpatialData store"):
        export_spatialdata(path, path)
    with pytest.raises(InputError, match="has no image 'he'"):
        export_spatialdata(path, tmp_path / "new.zarr", image="he")
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize("adding", [False, True])
def test_a_full_disk_leaves_the_store_as_it_was(
    path: Path, tmp_path: Path, *, adding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "s.zarr"
    if adding:
        export_spatialdata(path, store)
    before = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(OutputError, match="No space left"):
        export_spatialdata(path, store, overwrite=adding)
    assert {p.relative_to(tmp_path) for p in tmp_path.rglob("*")} == before
    if adding:
        np.testing.assert_array_equal(read(store).tables[keys.TILES_TABLE].X, values())


def test_scanpy_goes_on_with_it(path: Path, tmp_path: Path) -> None:
    import scanpy as sc

    table = read(export_spatialdata(path, tmp_path / "s.zarr")).tables[keys.TILES_TABLE]
    sc.pp.pca(table, n_comps=2)
    assert table.obsm["X_pca"].shape == (len(CENTRES), 2)


def test_read_again_from_wherever_it_was_put(path: Path, tmp_path: Path) -> None:
    made = read_prediction(path)
    made.write_h5ad(tmp_path / "S.h5ad")
    store = export_spatialdata(path, tmp_path / "new.zarr")
    for where in (tmp_path / "S.h5ad", store):
        assert find_predictions(where) == [where]
        again = read_prediction(where)
        np.testing.assert_array_equal(again.X, made.X)
        pd.testing.assert_frame_equal(again.var, made.var)
        assert again.uns[keys.PROVENANCE]["slide"] == "S"
    ad.AnnData(np.ones((2, 2), dtype="f")).write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(InputError, match="not a prediction of hescribe"):
        read_prediction(tmp_path / "other.h5ad")


def test_what_is_no_section_is_not_predicted() -> None:
    with pytest.raises(InputError, match=r"AnnData is no section \(one of read_sections"):
        predict(None, prediction())  # type: ignore[arg-type]
