"""Stack, grid and files."""

from __future__ import annotations

import json
import struct
from xml.etree import ElementTree

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

from hescribe.downstream.volume.interpolate import Volume, _signed_distance, blend, interpolate_at, interpolate_volume
from hescribe.downstream.volume.placement import Placement, apply, invert
from hescribe.downstream.volume.stack import heights, stack_sections
from hescribe.downstream.volume.write import to_spatialdata, write_ome_zarr, write_vti
from hescribe.errors import HescribeWarning, InputError

from .conftest import MPP, block_points, measured, place

GENES = ["EAST", "SOUTH"]


@pytest.fixture(scope="module")
def stack(block) -> ad.AnnData:
    """Three sections at 0, 16 and 40 µm, put back by the maps that cut them."""
    points = block_points(block)
    maps = [place(0), place(137, flip=True), place(-62, stretch=1.04)]
    tables = {f"S{i}": measured(points, m, i) for i, m in enumerate(maps)}
    placements = [Placement(f"S{i}", invert(m)) for i, m in enumerate(maps)]
    return stack_sections(tables, placements, [0, 16, 40], mpp=dict.fromkeys(tables, MPP))


@pytest.fixture(scope="module")
def volume(stack) -> Volume:
    return interpolate_volume(stack, GENES, grid_um=60, sigma_um=60)


def test_spots_come_back_to_where_they_were_cut(stack, block) -> None:
    points = block_points(block)
    for i, z in enumerate((0, 16, 40)):
        own = stack[stack.obs["section_id"] == f"S{i}"]
        np.testing.assert_allclose(own.obsm["spatial_3d"][:, :2], points, atol=1e-6)
        assert set(own.obsm["spatial_3d"][:, 2]) == {z}
    assert np.asarray(np.expm1(stack.X.toarray()).sum(axis=1)) == pytest.approx(1e4, rel=1e-4)


def test_volume_against_a_slow_loop(stack, volume) -> None:
    rng = np.random.default_rng(0)
    places = stack.obsm["spatial_3d"]
    values = stack[:, GENES].X.toarray().astype(float)
    chosen = np.argwhere(volume.mask)
    for k, j, i in chosen[rng.permutation(len(chosen))[:40]]:
        z, y, x = (volume.axis(n)[m] for n, m in zip("zyx", (k, j, i), strict=True))
        planes = {}
        for height in (0.0, 16.0, 40.0):
            total, weight = np.zeros(2), 0.0
            for place_, value in zip(places, values, strict=True):
                distance = np.hypot(place_[0] - x, place_[1] - y)
                if place_[2] == height and distance <= 180:
                    w = np.exp(-0.5 * (distance / 60) ** 2)
                    total, weight = total + w * value, weight + w
            planes[height] = total / weight if weight else np.full(2, np.nan)
        low, high = (0.0, 16.0) if z <= 16 else (16.0, 40.0)
        share = (z - low) / (high - low)
        expected = (1 - share) * planes[low] + share * planes[high] if 0 < share < 1 else planes[high if share else low]
        np.testing.assert_allclose(volume.values[:, k, j, i], expected, rtol=1e-5)


def test_the_grid_is_regular_and_holds_the_gradient(volume) -> None:
    assert volume.spacing_um == (8.0, 60.0, 60.0)
    assert volume.axis("z").tolist() == [0, 8, 16, 24, 32, 40]
    x = np.broadcast_to(volume.axis("x"), volume.mask.shape)[volume.mask]
    y = np.broadcast_to(volume.axis("y")[:, None], volume.mask.shape)[volume.mask]
    east, south = (v[volume.mask] for v in volume.values)
    assert np.corrcoef(x, east)[0, 1] > 0.85
    assert abs(np.corrcoef(y, east)[0, 1]) < 0.3
    assert np.corrcoef(y, south)[0, 1] > 0.85


def test_by_default_the_mean_reaches_half_the_distance_of_spots(stack) -> None:
    """Spots are 96 µm apart."""
    found, told = (interpolate_volume(stack, GENES, grid_um=60, sigma_um=s) for s in (None, 48))
    np.testing.assert_allclose(found.values, told.values, rtol=1e-5)
    assert found.mask.any()
    places = stack.obsm["spatial_3d"][::7] + 5
    np.testing.assert_allclose(interpolate_at(stack, places, GENES), interpolate_at(stack, places, GENES, sigma_um=48))


def test_distances_to_an_edge_are_as_far_on_both_sides() -> None:
    mask = np.zeros((41, 9), dtype=bool)
    mask[:, 3:8] = True
    np.testing.assert_array_equal(_signed_distance(mask)[20], [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1.5, 0.5, -0.5])


def test_tissue_moves_steadily_from_one_section_to_the_next() -> None:
    """Discs of 300, 600 and 600 µm: half way up the radius is 450."""
    angles = np.linspace(0, 2 * np.pi, 60)
    spots = np.concatenate([[[0, 0], [100, 0]], 900 * np.column_stack([np.cos(angles), np.sin(angles)])])
    stack = ad.AnnData(np.ones((186, 1), np.float32), obs=pd.DataFrame({"section_id": np.repeat(["A", "B", "C"], 62)}, index=[str(i) for i in range(186)]),
                       var=pd.DataFrame(index=["G"]))  # fmt: skip
    stack.obsm["spatial_3d"] = np.column_stack([np.tile(spots, (3, 1)), np.repeat([0, 10, 20], 62)])
    tissue = {n: (lambda p, r=r: np.hypot(*p.T) < r) for n, r in zip("ABC", (300, 600, 600), strict=True)}
    made = interpolate_volume(stack, ["G"], tissue=tissue, grid_um=20, grid_z_um=5, sigma_um=400)
    centre = np.hypot(*np.meshgrid(made.axis("x"), made.axis("y"))) < 750  # beyond, spots make their own tissue
    radii = [np.sqrt((m & centre).sum() * 400 / np.pi) for m in made.mask]
    np.testing.assert_allclose(radii, [300, 450, 600, 600, 600], atol=15)
    np.testing.assert_allclose(made.values[0][made.mask], 1)


def test_a_section_left_out_lies_between_its_neighbours(stack) -> None:
    middle = stack[stack.obs["section_id"] == "S1"]
    rest = stack[stack.obs["section_id"] != "S1"]
    found = interpolate_at(rest, middle.obsm["spatial_3d"], GENES)
    low, high = (
        interpolate_at(rest[rest.obs["section_id"] == n], middle.obsm["spatial_3d"], GENES) for n in ("S0", "S2")
    )
    np.testing.assert_allclose(found, 0.6 * low + 0.4 * high)  # at 16 of 40 µm
    truth = middle[:, GENES].X.toarray()
    assert np.corrcoef(found[:, 0], truth[:, 0])[0, 1] > 0.7
    assert np.isnan(interpolate_at(stack, [[1e6, 0, 16]], ["EAST"])).all()


def test_the_order_of_sections_is_their_height(stack) -> None:
    turned = stack[np.arange(stack.n_obs)[::-1]].copy()
    again = interpolate_volume(turned, GENES, grid_um=60, sigma_um=60)
    np.testing.assert_allclose(
        again.values, interpolate_volume(stack, GENES, grid_um=60, sigma_um=60).values, rtol=1e-5
    )


def test_one_missing_side_leaves_the_other() -> None:
    low, high = np.array([1.0, np.nan, 1.0, np.nan]), np.array([3.0, 3.0, np.nan, np.nan])
    np.testing.assert_array_equal(blend(low, high, 0.25), [1.5, 3, 1, np.nan])
    np.testing.assert_array_equal(blend(low, high, 0), low)


def test_heights() -> None:
    assert heights(["A", "B", "C"], [None] * 3, thickness_um=10).tolist() == [0, 10, 20]
    assert heights(["A", "B"], [5.0, -3.0]).tolist() == [5, -3]
    for stated, message in (([1.0, None], "not for B"), ([1.0, 1.0], "same z")):
        with pytest.raises(InputError, match=message):
            heights(["A", "B"], stated)
    with pytest.raises(InputError, match="thickness"):
        heights(["A", "B"], [None, None], thickness_um=0)


def test_ome_zarr_as_its_specification_has_it(volume, tmp_path) -> None:
    """Read by zarr and JSON alone."""
    path = tmp_path / "v.ome.zarr"
    write_ome_zarr(volume, path)
    attributes = json.loads((path / ".zattrs").read_text())
    image = attributes["multiscales"][0]
    assert image["version"] == "0.4"
    assert [a["name"] for a in image["axes"]] == ["c", "z", "y", "x"]
    assert [a.get("unit") for a in image["axes"]] == [None, *["micrometer"] * 3]
    first = image["datasets"][0]
    assert first["coordinateTransformations"] == [
        {"type": "scale", "scale": [1, *volume.spacing_um]},
        {"type": "translation", "translation": [0, *volume.origin_um]},
    ]
    read = zarr.open_array(str(path / first["path"]), mode="r")[:]
    np.testing.assert_array_equal(read, np.nan_to_num(volume.values))
    assert [c["label"] for c in attributes["omero"]["channels"]] == GENES
    mask = zarr.open_array(str(path / "labels" / "tissue" / first["path"]), mode="r")[:]
    np.testing.assert_array_equal(mask, volume.mask)
    assert json.loads((path / "labels" / ".zattrs").read_text())["labels"] == ["tissue"]


def test_coarser_levels_are_means_of_tissue(tmp_path) -> None:
    values = np.full((1, 1, 2, 130), np.nan, np.float32)
    values[0, 0, 0, :3] = [1, 3, 7]
    write_ome_zarr(Volume(["G"], values, (0, 0, 0), (1, 10, 10)), tmp_path / "v.ome.zarr")
    levels = json.loads((tmp_path / "v.ome.zarr" / ".zattrs").read_text())["multiscales"][0]["datasets"]
    second = zarr.open_array(str(tmp_path / "v.ome.zarr" / levels[1]["path"]), mode="r")[0, 0, 0]
    assert second[:3].tolist() == [2, 7, 0]
    assert levels[1]["coordinateTransformations"][1]["translation"] == [0, 0, 5, 5]


def read_vti(path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Appended raw arrays of a VTK image: after the underscore, each behind its length as an unsigned 64-bit number."""
    content = path.read_bytes()
    head, _, data = content.partition(b"_")
    while not head.rstrip().endswith(b'encoding="raw">'):
        more, _, data = data.partition(b"_")
        head += b"_" + more
    root = ElementTree.fromstring(head + b"</AppendedData></VTKFile>")  # noqa: S314 - our own file
    image = root.find("ImageData")
    kinds = {"Float32": "<f4", "UInt8": "u1"}
    arrays = {}
    for entry in image.iter("DataArray"):
        offset = int(entry.get("offset"))
        (size,) = struct.unpack("<Q", data[offset : offset + 8])
        arrays[entry.get("Name")] = np.frombuffer(data[offset + 8 : offset + 8 + size], kinds[entry.get("type")])
    return dict(image.attrib), arrays


def test_vti_as_paraview_reads_it(volume, tmp_path) -> None:
    odd = Volume(['A"<&', "tissue"], volume.values, volume.origin_um, volume.spacing_um)
    write_vti(odd, tmp_path / "v.vti")
    image, arrays = read_vti(tmp_path / "v.vti")
    nz, ny, nx = volume.mask.shape
    assert image["WholeExtent"].split() == ["0", str(nx - 1), "0", str(ny - 1), "0", str(nz - 1)]
    np.testing.assert_allclose([float(v) for v in image["Spacing"].split()], volume.spacing_um[::-1])
    np.testing.assert_allclose([float(v) for v in image["Origin"].split()], volume.origin_um[::-1])
    assert set(arrays) == {"tissue", "A___", "tissue-2"}
    np.testing.assert_array_equal(arrays["tissue-2"].reshape(nz, ny, nx), volume.values[1])
    np.testing.assert_array_equal(arrays["tissue"].reshape(nz, ny, nx), volume.mask)


@pytest.mark.slow
def test_spatialdata(stack, tmp_path) -> None:
    import spatialdata

    to_spatialdata(stack).write(tmp_path / "s.zarr")
    read = spatialdata.read_zarr(tmp_path / "s.zarr")
    points = read.points["spots"].compute()
    np.testing.assert_allclose(points[["x", "y", "z"]], stack.obsm["spatial_3d"])
    assert read.tables["expression"].shape == stack.shape


def test_refusals(stack, block) -> None:
    two = stack[stack.obs["section_id"] != "S1"]
    for call, message in (
        (lambda: interpolate_volume(two, GENES), "2 sections do not make a volume"),
        (lambda: interpolate_volume(stack, ["MAGIC"]), "no gene 'MAGIC'"),
        (lambda: interpolate_volume(stack, []), "no gene is named"),
        (lambda: interpolate_volume(stack, GENES, grid_um=0.01), "do not fit"),
        (lambda: interpolate_volume(stack, GENES, grid_um=-1), "grid_um is -1"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    placements = [Placement(n, np.eye(2, 3)) for n in "AB"]
    tables = {n: measured(block_points(block)[:5], place(0), i) for i, n in enumerate("AB")}
    mpp = {"A": 1.0, "B": 1.0}
    tables["B"].var_names = ["w", "x", "y", "z"]
    with pytest.raises(InputError, match="sections A, B share no gene"):
        stack_sections(tables, placements, [0, 1], mpp=mpp)
    tables["B"].var_names = ["EAST", "x", "y", "z"]
    with pytest.warns(HescribeWarning, match="share 1 genes"):
        stack_sections(tables, placements, [0, 1], mpp=mpp)
    with pytest.raises(InputError, match="no expression of section 'A'"):
        stack_sections({"B": tables["B"]}, placements, [0, 1], mpp=mpp)


def test_predictions_are_left_as_they_are(block) -> None:
    tables = {}
    for i, name in enumerate("AB"):
        table = measured(block_points(block)[:5], place(0), i)
        table.uns["hescribe"] = {"unit": "log1p of counts per 10,000"}
        table.var["expected_pcc"] = [0.1 + i, 0.5 - i / 10, np.nan, 0.2]
        tables[name] = table
    made = stack_sections(tables, [Placement(n, np.eye(2, 3)) for n in "AB"], [0, 1], mpp={"A": 2.0, "B": 2.0})
    np.testing.assert_array_equal(made[:5].X, tables["A"].X)
    np.testing.assert_allclose(made.obsm["spatial_3d"][:5, :2], 2 * apply(place(0), block_points(block)[:5]) / MPP)
    np.testing.assert_allclose(made.var["expected_pcc"], [0.1, 0.4, np.nan, 0.2])
