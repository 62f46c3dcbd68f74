"""Labelled spots → polygons that join, and the GeoJSON that QuPath reads."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from scipy.spatial import Voronoi
from shapely.geometry.base import BaseGeometry

from hescribe.errors import InputError
from hescribe.io.pitch import distance_between
from hescribe.io.store import write_atomically
from hescribe.types import Centres

_REACH = 0.75  #: pitches from a spot's centre that its cell may reach, where no neighbour stands


def spot_cells(centres: Centres) -> list[BaseGeometry]:
    """The ground of each spot: what is nearer to it than to any other, and no further than three quarters of a pitch.

    Cells of neighbours share their edges, so that their union has no gaps: squares on a grid, hexagons on a hexagonal
    array. Spots at one place share a cell.
    """
    places, which = np.unique(np.asarray(centres, dtype=np.float64), axis=0, return_inverse=True)
    pitch = distance_between(places)
    # Four far points close the cells of the outermost
    middle, far = places.mean(axis=0), 4 * (np.ptp(places, axis=0).max() + pitch)
    corners = middle + far * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    diagram = Voronoi(np.concatenate([places, corners]))
    cells = []
    for i, place in enumerate(places):
        region = diagram.regions[diagram.point_region[i]]
        near = shapely.box(*(place - _REACH * pitch), *(place + _REACH * pitch))
        cells.append(shapely.Polygon(diagram.vertices[region]).intersection(near))
    return [cells[i] for i in which.ravel()]


def region_polygons(centres: Centres, labels: Sequence[Hashable]) -> dict[Any, BaseGeometry]:
    """Label → union of the cells of its spots, in full-resolution pixels; spots labelled None are left out.

    Parameters
    ----------
    centres
        (n, 2) x, y.
    labels
        n labels.

    Raises
    ------
    InputError
        No spots.
    """
    if not len(centres):
        raise InputError("no spots to draw regions of")
    members: dict[Any, list[BaseGeometry]] = {}
    for cell, label in zip(spot_cells(centres), labels, strict=True):
        if label is not None:
            members.setdefault(label, []).append(cell)
    # The corners of neighbouring cells agree but for the last bits; on a fine grid they agree wholly
    return {k: shapely.union_all(shapely.set_precision(v, 1e-3)) for k, v in members.items()}


def write_geojson(
    path: str | Path,
    polygons: Mapping[Any, BaseGeometry],
    *,
    names: Mapping[Any, str] | None = None,
    colours: Mapping[Any, str] | None = None,
    measurements: Mapping[Any, Mapping[str, float]] | None = None,
) -> Path:
    """Write regions as annotations that QuPath imports by dropping the file on the slide.

    Parameters
    ----------
    path
        The ``.geojson`` file.
    polygons
        Label → polygon or polygons, full-resolution pixels. Each connected part is an annotation of its own.
    names
        Label → its class; by default the label.
    colours
        Label → ``#rrggbb``.
    measurements
        Label → named numbers; those that are not finite are left out.
    """
    features = []
    for label, geometry in polygons.items():
        name = str((names or {}).get(label, label))
        classification: dict[str, Any] = {"name": name}
        if colours and label in colours:
            text = colours[label].lstrip("#")
            classification["color"] = [int(text[i : i + 2], 16) for i in (0, 2, 4)]
        properties: dict[str, Any] = {"objectType": "annotation", "name": name, "classification": classification}
        if measurements and label in measurements:
            numbers = {k: float(v) for k, v in measurements[label].items() if np.isfinite(v)}
            properties["measurements"] = numbers
        for part in shapely.get_parts(geometry):
            shape = shapely.geometry.mapping(part)
            features.append({"type": "Feature", "geometry": shape, "properties": properties})
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False))
    return Path(path)
