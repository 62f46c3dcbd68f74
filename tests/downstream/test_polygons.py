"""Cells of spots join without gaps or overlaps; the file is what QuPath reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from hescribe.downstream.polygons import region_polygons, spot_cells, write_geojson
from hescribe.errors import InputError


def grid(rows: int, columns: int, pitch: float = 10.0) -> np.ndarray:
    y, x = np.mgrid[0:rows, 0:columns]
    return np.stack([x.ravel() * pitch, y.ravel() * pitch], axis=1)


def test_cells_of_a_grid_are_its_squares() -> None:
    cells = spot_cells(grid(5, 5))
    middle = cells[12]
    assert middle.equals_exact(shapely.box(15, 15, 25, 25), 1e-6) or middle.area == pytest.approx(100)
    assert middle.bounds == pytest.approx((15, 15, 25, 25))


def test_cells_of_a_hexagonal_array_are_hexagons() -> None:
    rows = [[10 * i + 5 * (j % 2), j * 10 * np.sqrt(0.75)] for j in range(5) for i in range(5)]
    cell = spot_cells(np.array(rows))[12]
    assert cell.area == pytest.approx(100 * np.sqrt(0.75))
    assert len(shapely.get_coordinates(cell.simplify(1e-6))) == 7


def test_neighbouring_regions_share_an_edge_and_nothing_else() -> None:
    centres = grid(4, 6)
    found = region_polygons(centres, ["left" if x < 25 else "right" for x in centres[:, 0]])
    assert found["left"].geom_type == found["right"].geom_type == "Polygon"
    assert found["left"].intersection(found["right"]).area == pytest.approx(0)
    assert found["left"].intersection(found["right"]).length == pytest.approx(45)


def test_apart_is_apart_and_a_hole_is_a_hole() -> None:
    centres = grid(5, 5)
    ring = region_polygons(centres, ["in" if i == 12 else "out" for i in range(25)])
    assert len(ring["out"].interiors) == 1
    corners = region_polygons(centres, ["a" if i in (0, 24) else None for i in range(25)])
    assert list(corners) == ["a"]
    assert len(shapely.get_parts(corners["a"])) == 2


def test_one_spot_and_spots_at_one_place() -> None:
    assert region_polygons(np.array([[3.0, 4.0]]), ["a"])["a"].area > 0
    assert region_polygons(np.array([[3.0, 4.0], [3.0, 4.0], [9.0, 4.0]]), ["a", "b", "a"])["b"].area > 0
    with pytest.raises(InputError, match="no spots"):
        region_polygons(np.empty((0, 2)), [])


def test_the_file_has_qupaths_fields(tmp_path: Path) -> None:
    shape = shapely.box(0, 0, 10, 10).difference(shapely.box(4, 4, 6, 6))
    path = write_geojson(
        tmp_path / "a.geojson",
        {"x": shape},
        names={"x": "</script>"},
        colours={"x": "#ff8000"},
        measurements={"x": {"area": 96.0, "missing": float("nan")}},
    )
    (feature,) = json.loads(path.read_text())["features"]
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"] == {"name": "</script>", "color": [255, 128, 0]}
    assert feature["properties"]["measurements"] == {"area": 96.0}
    rings = feature["geometry"]["coordinates"]
    assert len(rings) == 2
    assert all(ring[0] == ring[-1] for ring in rings)
    assert shapely.geometry.shape(feature["geometry"]).area == pytest.approx(96)
