"""A volume and a stack as files that other programs open: OME-Zarr (napari), ``.vti`` (ParaView), SpatialData."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from hescribe import keys
from hescribe.downstream.volume.interpolate import Volume
from hescribe.io.store import write_atomically

_SMALLEST = 64  #: pixels; a level with fewer along its longer side is not halved again
_COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF8000", "FFFFFF")
TISSUE = "tissue"


def write_ome_zarr(volume: Volume, path: str | Path) -> None:
    """Write a multiscale OME-Zarr image (version 0.4, which napari and most viewers read).

    Axes are c, z, y, x with scales and translations in µm; channels are genes, 0 outside the tissue; the label image
    ``tissue`` is the mask. Coarser levels halve y and x, by the mean of what is tissue.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    import zarr
    from ome_zarr.format import FormatV04
    from ome_zarr.writer import write_label_metadata, write_multiscale

    levels = _pyramid(volume.values)
    image = [np.nan_to_num(v, nan=0.0) for v in levels]
    masks = [np.isfinite(v[0]).astype(np.uint8) for v in levels]
    with write_atomically(path) as temporary, warnings.catch_warnings():
        # Of zarr and ome-zarr about their own coming defaults
        warnings.simplefilter("ignore")
        root = zarr.open_group(str(temporary), mode="w", zarr_format=2)
        write_multiscale(
            image,
            root,
            fmt=FormatV04(),
            axes=[{"name": "c", "type": "channel"}, *_space()],
            coordinate_transformations=_scales(volume, len(levels), channel=True),
            name="expression",
        )
        root.attrs["omero"] = _channels(volume)
        labels = root.require_group("labels").require_group(TISSUE)
        write_multiscale(
            masks,
            labels,
            fmt=FormatV04(),
            axes=_space(),
            coordinate_transformations=_scales(volume, len(levels), channel=False),
            name=TISSUE,
        )
        write_label_metadata(
            root["labels"], TISSUE, fmt=FormatV04(), colors=[{"label-value": 1, "rgba": [255, 255, 255, 64]}]
        )


def write_vti(volume: Volume, path: str | Path) -> None:
    """Write VTK image data for ParaView: a point array a gene (NaN outside the tissue), and ``tissue`` (0 or 1).

    Axes are x, y, z in µm.
    """
    from pyevtk.hl import imageToVTK

    arrays: dict[str, Any] = {TISSUE: _to_xyz(volume.mask.astype(np.uint8))}
    for gene, values in zip(_xml_names(volume.genes), volume.values, strict=True):
        arrays[gene] = _to_xyz(values)
    with write_atomically(path) as temporary:
        # pyevtk adds the ending itself
        written = imageToVTK(
            str(temporary), origin=volume.origin_um[::-1], spacing=volume.spacing_um[::-1], pointData=arrays
        )
        Path(written).replace(temporary)


def to_spatialdata(stack: ad.AnnData) -> Any:
    """The stack as SpatialData: points ``spots`` with x, y, z in µm, and the table ``expression`` that annotates them.

    Returns
    -------
    spatialdata.SpatialData
        ``.write(path)`` writes it.
    """
    import spatialdata as sd
    from spatialdata.models import PointsModel, TableModel

    x, y, z = np.asarray(stack.obsm[keys.SPATIAL_3D]).T
    frame = pd.DataFrame({"x": x, "y": y, "z": z, keys.SECTION: stack.obs[keys.SECTION].astype(str).to_numpy()})
    table = stack.copy()
    # The provenance's dictionary is kept; SpatialData adds its own beside it
    table.obs = stack.obs.assign(region=pd.Categorical(["spots"] * stack.n_obs), instance=np.arange(stack.n_obs))
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    return sd.SpatialData(points={"spots": PointsModel.parse(frame)}, tables={"expression": table})


def _pyramid(values: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    levels = [values]
    while max(levels[-1].shape[2:]) > _SMALLEST:
        levels.append(_halved(levels[-1]))
    return levels


def _halved(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean of 2 × 2 in y and x over what is tissue; NaN where none is."""
    rows, columns = values.shape[2:]
    whole = np.pad(values, [(0, 0), (0, 0), (0, rows % 2), (0, columns % 2)], constant_values=np.nan)
    quarters = np.stack([whole[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        return np.asarray(np.nanmean(quarters, axis=0), dtype=np.float32)


def _space() -> list[dict[str, str]]:
    return [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]


def _scales(volume: Volume, levels: int, *, channel: bool) -> list[list[dict[str, Any]]]:
    """Scale and translation of every level; a coarse voxel's centre lies between those it stands for."""
    z, y, x = volume.spacing_um
    start = volume.origin_um
    out = []
    for level in range(levels):
        factor = 2**level
        scale = [z, y * factor, x * factor]
        shift = [start[0], start[1] + y * (factor - 1) / 2, start[2] + x * (factor - 1) / 2]
        lead = ([1.0], [0.0]) if channel else ([], [])
        out.append([
            {"type": "scale", "scale": [*lead[0], *map(float, scale)]},
            {"type": "translation", "translation": [*lead[1], *map(float, shift)]},
        ])  # fmt: skip
    return out


def _channels(volume: Volume) -> dict[str, Any]:
    """How viewers first show the genes: the first one switched on."""
    channels = []
    for i, (gene, values) in enumerate(zip(volume.genes, volume.values, strict=True)):
        known = values[np.isfinite(values)]
        low, high = (float(v) for v in np.percentile(known, (1, 99))) if len(known) else (0.0, 1.0)
        window = {"start": low, "end": max(high, low + 1e-6), "min": 0.0, "max": max(high, low + 1e-6)}
        channels.append({"label": gene, "color": _COLOURS[i % len(_COLOURS)], "active": i == 0, "window": window})
    return {"name": "expression", "channels": channels, "rdefs": {"model": "color"}}


def _to_xyz(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(z, y, x) → (x, y, z) in Fortran's order, so that x runs fastest in the file."""
    return np.asfortranarray(values.transpose(2, 1, 0))


def _xml_names(genes: list[str]) -> list[str]:
    """Names that may stand in an XML attribute, all different, none of them ``tissue``."""
    used = {TISSUE}
    out = []
    for gene in genes:
        name = stem = re.sub(r"[^A-Za-z0-9._ -]", "_", gene) or "gene"
        number = 1
        while name in used:
            number += 1
            name = f"{stem}-{number}"
        used.add(name)
        out.append(name)
    return out
