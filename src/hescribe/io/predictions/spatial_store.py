"""A prediction inside a SpatialData or WSIData store, where LazySlide, squidpy and napari go on with it."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr

from hescribe import keys
from hescribe.errors import InputError, OutputError
from hescribe.io.predictions.stored import StoredPrediction, open_prediction
from hescribe.io.store import remove, write_atomically

if TYPE_CHECKING:
    import geopandas as gpd

_SPECS = "tile_spec"  #: attribute of the store in which wsidata looks up the size of tiles
_ELEMENTS = (("shapes", keys.TILES_SHAPES), ("tables", keys.TILES_TABLE))  #: the table last: it names the shapes


def export_spatialdata(
    prediction: str | Path, store: str | Path, *, image: str | None = None, overwrite: bool = False
) -> Path:
    """Put a prediction into a SpatialData store as the table ``hescribe_tiles``, with its tiles as squares.

    The shapes ``hescribe_squares`` are the squares of the image that were described, in its full-resolution pixels;
    each row of the table names its own by ``obs["tile_id"]``. ``X`` is copied on the disk, never read.

    Parameters
    ----------
    prediction
        A ``.zarr`` that ``predict`` wrote.
    store
        Made where it is not there; otherwise added to, and everything else in it left as it is.
    image
        An image of the store, the one that was predicted from: the squares stand in its coordinate systems. By
        default pixels are those of the system ``global``, as in stores of wsidata.
    overwrite
        Replace a prediction that is in the store.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    InputError
        No prediction, no SpatialData store, or no such image in it.
    OutputError
        A prediction is there and may not be replaced, or the disk is full.

    Examples
    --------
    >>> export_spatialdata("predictions/slide.zarr", "slides/slide.zarr")  # doctest: +SKIP
    """
    stored, target = open_prediction(prediction), Path(store)
    adding = target.exists()
    if adding:
        _check_store(target, overwrite=overwrite)
    with _quietly():
        shapes, spec = _squares(stored, _coordinate_systems(target if adding else None, image))
        if not adding:
            with write_atomically(target, overwrite=False) as temporary:
                _write(stored, shapes, spec, temporary)
        else:
            _add(stored, shapes, spec, target)
    return target


def _check_store(store: Path, *, overwrite: bool) -> None:
    try:
        version = str(zarr.open_group(store, mode="r").attrs["spatialdata_attrs"]["version"])  # type: ignore[index,call-overload]
    except Exception as error:  # zarr raises many kinds for what is no store
        raise InputError(
            "not a SpatialData store", path=store, fix="name one, or a place where there is none"
        ) from error
    if not (store / "zarr.json").is_file():
        raise InputError(
            f"a SpatialData store of an older format ({version}, Zarr 2)",
            path=store,
            fix="write it anew with spatialdata",
        )
    if not overwrite and any((store / kind / name).exists() for kind, name in _ELEMENTS):
        raise OutputError(f"{store} holds a prediction already (pass --overwrite to replace it)")


def _coordinate_systems(store: Path | None, image: str | None) -> dict[str, Any]:
    """Coordinate system → transformation from full-resolution pixels."""
    from spatialdata import read_zarr
    from spatialdata.transformations import Identity, get_transformation

    if image is None:
        return {"global": Identity()}
    if store is None:
        raise InputError(f"a store that is not there has no image {image!r}", path="--image")
    images = read_zarr(store, selection=("images",)).images
    if image not in images:
        known = ", ".join(sorted(images)) or "none"
        raise InputError(f"no image {image!r} in {store}", path="--image", fix=f"there: {known}")
    return dict(get_transformation(images[image], get_all=True))


def _squares(stored: StoredPrediction, systems: dict[str, Any]) -> tuple[gpd.GeoDataFrame, dict[str, Any]]:
    """Outlines of the tiles, and their size as wsidata has it."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from wsidata import TileSpec

    told = stored.provenance
    side = float(told["tile_um"]) / float(told["mpp"])
    low, high = stored.centres - side / 2, stored.centres + side / 2
    number = pd.RangeIndex(len(low))
    outlines = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
    frame = gpd.GeoDataFrame({keys.TILE_ID: number, "x": low[:, 0], "y": low[:, 1]}, geometry=outlines, index=number)
    stride = float(told.get("stride_um", told["tile_um"])) / float(told["mpp"])
    pixels, step = max(1, round(side)), max(1, round(stride))
    spec = TileSpec(height=pixels, width=pixels, stride_height=step, stride_width=step, mpp=float(told["mpp"]))
    return ShapesModel.parse(frame, transformations=systems), spec.to_dict()


def _table(stored: StoredPrediction) -> ad.AnnData:
    """Everything but ``X``, its rows tied to the squares."""
    from spatialdata.models import TableModel

    obs = stored.obs.copy()
    obs[keys.TILE_REGION] = pd.Categorical([keys.TILES_SHAPES] * len(obs))
    obs[keys.TILE_ID] = np.arange(len(obs))
    uns = {key: value for key, value in stored.uns.items() if key != TableModel.ATTRS_KEY}
    table = ad.AnnData(obs=obs, var=stored.var, obsm=stored.obsm, uns=uns)
    how = {"region": keys.TILES_SHAPES, "region_key": keys.TILE_REGION, "instance_key": keys.TILE_ID}
    return TableModel.parse(table, **how)


def _write(stored: StoredPrediction, shapes: gpd.GeoDataFrame, spec: dict[str, Any], path: Path) -> None:
    """A store that holds nothing else."""
    from spatialdata import SpatialData

    SpatialData(
        shapes={keys.TILES_SHAPES: shapes},
        tables={keys.TILES_TABLE: _table(stored)},
        attrs={_SPECS: {keys.TILES_SHAPES: spec}},
    ).write(path, consolidate_metadata=False)
    x = path / "tables" / keys.TILES_TABLE / "X"
    remove(x)
    shutil.copytree(stored.path / "X", x)
    zarr.consolidate_metadata(zarr.open_group(path, mode="r+", use_consolidated=False).store)


def _add(stored: StoredPrediction, shapes: gpd.GeoDataFrame, spec: dict[str, Any], target: Path) -> None:
    """Made beside the store first; what is then done inside it are renames."""
    group = zarr.open_group(target, mode="r+", use_consolidated=False)
    for kind, _ in _ELEMENTS:
        group.require_group(kind)
    (_, squares), (_, table) = _ELEMENTS
    with (
        write_atomically(target / "tables" / table) as new_table,
        write_atomically(target / "shapes" / squares) as new_shapes,
        tempfile.TemporaryDirectory(
            dir=target.resolve().parent, prefix=f".{target.name}.", suffix=".partial"
        ) as folder,
    ):
        made = Path(folder) / target.name
        _write(stored, shapes, spec, made)
        os.replace(made / "shapes" / squares, new_shapes)
        os.replace(made / "tables" / table, new_table)
    others: Any = group.attrs.get(_SPECS, {})
    group.attrs[_SPECS] = {**others, squares: spec}
    zarr.consolidate_metadata(group.store)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what spatialdata and zarr announce about each other's formats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
