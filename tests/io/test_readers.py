"""Readers against small files in the true formats."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.io import mmwrite

from hescribe import keys
from hescribe.errors import InputError
from hescribe.io.formats.genes import tidy_genes
from hescribe.io.manifest import ManifestRow
from hescribe.io.pitch import distance_between, is_checkerboard, spot_diameter, spot_pitch
from hescribe.io.readers import READERS, mpp_from_pitch, read_expression, technology_of

BARCODES = [f"AAC{i}-1" for i in range(6)]
SYMBOLS = ["ACTB", "MT-CO1", "TP53", "TP53", "CD3"]
IDS = ["ENSG1", "ENSG2", "ENSG3", "ENSG4", "CD3"]
KINDS = ["Gene Expression"] * 4 + ["Antibody Capture"]
COUNTS = np.random.default_rng(0).poisson(2, (6, 5)).astype(np.int32)
POSITIONS = pd.DataFrame(
    {
        "barcode": [*BARCODES, "off-1"],
        "in_tissue": [1, 1, 1, 1, 1, 0, 1],
        "array_row": [0, 0, 1, 1, 2, 2, 7],
        "array_col": [0, 2, 1, 3, 0, 2, 7],
        "pxl_row_in_fullres": [10, 10, 27, 27, 44, 44, 99],
        "pxl_col_in_fullres": [10, 30, 20, 40, 10, 30, 99],
    }
)


def row(expression: Path, **more: object) -> ManifestRow:
    return ManifestRow("s", "p", None, expression, **more)  # type: ignore[arg-type]


def write_h5(folder: Path) -> None:
    matrix = sparse.csc_matrix(COUNTS.T)
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = matrix.shape
        group["barcodes"] = np.array(BARCODES, dtype="S")
        for name, values in {"id": IDS, "name": SYMBOLS, "feature_type": KINDS}.items():
            group[f"features/{name}"] = np.array(values, dtype="S")


def write_mtx(folder: Path, *, zipped: bool) -> None:
    inside = folder / "filtered_feature_bc_matrix"
    inside.mkdir()
    mmwrite(inside / "matrix.mtx", sparse.coo_matrix(COUNTS.T))
    (inside / "barcodes.tsv").write_text("\n".join(BARCODES) + "\n")
    lines = ["\t".join(parts) for parts in zip(IDS, SYMBOLS, KINDS, strict=True)]
    (inside / "features.tsv").write_text("\n".join(lines) + "\n")
    for file in list(inside.iterdir()) if zipped else []:
        with gzip.open(f"{file}.gz", "wb") as out:
            out.write(file.read_bytes())
        file.unlink()


def write_positions(folder: Path, version: int) -> None:
    spatial = folder / "spatial"
    spatial.mkdir()
    (spatial / "scalefactors_json.json").write_text(json.dumps({"spot_diameter_fullres": 11.0}))
    if version == 1:
        POSITIONS.to_csv(spatial / "tissue_positions_list.csv", header=False, index=False)
    elif version == 2:
        POSITIONS.to_csv(spatial / "tissue_positions.csv", index=False)
    else:
        POSITIONS.to_parquet(spatial / "tissue_positions.parquet", index=False)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("matrix", ["h5", "mtx", "mtx.gz"])
@pytest.mark.parametrize("outs", [True, False])
def test_spaceranger(tmp_path: Path, version: int, matrix: str, outs: bool) -> None:
    folder = tmp_path / "run" / "outs" if outs else tmp_path / "run"
    folder.mkdir(parents=True)
    write_positions(folder, version)
    write_h5(folder) if matrix == "h5" else write_mtx(folder, zipped=matrix.endswith("gz"))
    assert technology_of(row(tmp_path / "run")) == "visium"
    adata = read_expression(row(tmp_path / "run"))
    # The sixth spot is not under tissue, the one named off-1 has no counts
    assert list(adata.obs_names) == BARCODES[:5]
    assert list(adata.var_names) == ["ACTB", "MT-CO1", "TP53"]
    np.testing.assert_array_equal(adata[:, "TP53"].X.toarray().ravel(), COUNTS[:5, 2] + COUNTS[:5, 3])
    assert adata.var.loc["TP53", keys.ENSEMBL] == "ENSG3;ENSG4"
    assert adata.var[keys.MITOCHONDRIAL].tolist() == [False, True, False]
    np.testing.assert_array_equal(adata.obsm[keys.SPATIAL][1], [30, 10])
    # Neighbours in a row are 20 px apart: 100 µm; rows are rounded to 17 px
    assert mpp_from_pitch(row(tmp_path / "run"), adata) == pytest.approx(100 / 20, rel=0.02)


def test_spaceranger_without_scalefactors(tmp_path: Path) -> None:
    write_positions(tmp_path, 2)
    write_h5(tmp_path)
    (tmp_path / "spatial" / "scalefactors_json.json").unlink()
    with pytest.raises(InputError, match=r"scalefactors_json\.json is missing"):
        read_expression(row(tmp_path))


def test_legacy_st(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("\tTP53\tACTB\tTP53\n2x3\t1\t0\t2\n4x3\t5\t1\t0\n9x9\t1\t1\t1\n6x3\t7\t1\t0\n")
    (tmp_path / "spots.tsv").write_text(
        "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
        "2\t3\t2.04\t3.1\t100\t50\t1\n4\t3\t4.0\t3.0\t150\t50\t1\n6\t3\t6\t3\t200\t50\t0\n8\t8\t8\t8\t9\t9\t1\n"
    )
    adata = read_expression(row(tmp_path / "a.tsv", positions=tmp_path / "spots.tsv"))
    # 9x9 has no place, 6x3 is not selected, 8x8 has no counts
    assert list(adata.obs_names) == ["2x3", "4x3"]
    assert adata[:, "TP53"].X.toarray().ravel().tolist() == [3, 5]
    assert adata.obsm[keys.SPATIAL].tolist() == [[100, 50], [150, 50]]


def test_h5ad_with_raw_counts_in_several_places(tmp_path: Path) -> None:
    counts = sparse.csr_matrix(COUNTS[:, :3].astype(np.float32))
    var = pd.DataFrame({"gene_name": ["A", "B", "A"]}, index=[f"ENSG0000000000{i}" for i in range(3)])
    base = ad.AnnData(counts, obs=pd.DataFrame(index=BARCODES), var=var)
    base.obsm["spatial"] = np.arange(12.0).reshape(6, 2)
    logged = base.copy()
    logged.X = np.log1p(counts.toarray())
    logged.layers["counts"] = counts
    raw = base.copy()
    raw.raw = base
    raw.X = np.log1p(counts.toarray())
    for name, table in {"x": base, "layer": logged, "raw": raw}.items():
        table.write_h5ad(tmp_path / f"{name}.h5ad")
        adata = read_expression(row(tmp_path / f"{name}.h5ad"))
        assert list(adata.var_names) == ["A", "B"]
        np.testing.assert_array_equal(adata[:, "A"].X.toarray().ravel(), COUNTS[:, 0] + COUNTS[:, 2])


@given(
    st.lists(st.sampled_from(["A", "B", "C", "MT-X", "ERCC-1", "NegControlProbe_3"]), min_size=1, max_size=12),
    st.integers(0, 1000),
)
def test_equal_symbols_are_summed(symbols: list[str], seed: int) -> None:
    counts = np.random.default_rng(seed).poisson(1.0, (4, len(symbols)))
    matrix, var = tidy_genes(sparse.csr_matrix(counts), symbols)
    slow: dict[str, np.ndarray] = {}
    for i, symbol in enumerate(symbols):
        slow[symbol] = slow.get(symbol, 0) + counts[:, i]
    assert list(var.index) == list(slow)
    np.testing.assert_array_equal(matrix.toarray(), np.stack(list(slow.values()), axis=1))
    assert var[keys.CONTROL].tolist() == [s in {"ERCC-1", "NegControlProbe_3"} for s in slow]
    assert var[keys.MITOCHONDRIAL].tolist() == [s == "MT-X" for s in slow]


@given(st.floats(0, 6.28), st.booleans(), st.floats(5, 400), st.integers(0, 100))
def test_pitch_of_a_square_array_turned_mirrored_and_with_holes(
    angle: float, mirrored: bool, pitch: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    grid = np.array([(x, y) for x in range(12) for y in range(10)])
    grid = grid[rng.random(len(grid)) > 0.3]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = (grid * [-1 if mirrored else 1, 1]) @ turn.T * pitch + rng.normal(0, 0.02 * pitch, grid.shape) + 5000
    adata = ad.AnnData(
        sparse.csr_matrix((len(grid), 1)),
        obs=pd.DataFrame(grid[:, ::-1], columns=["array_row", "array_col"], index=[f"{x}x{y}" for x, y in grid]),
    )
    adata.obsm[keys.SPATIAL] = places
    found = mpp_from_pitch(row(Path("a.tsv"), technology="st"), adata)
    assert found == pytest.approx(200 / pitch, rel=0.01)


def test_a_square_array_in_a_folder_of_visium_has_no_pitch() -> None:
    """ST written as Visium's files was read at a third of its scale, as if it were printed 100 µm apart in hexagons."""
    grid = np.indices((9, 9)).reshape(2, -1).T.astype(np.float64)
    obs = pd.DataFrame(grid, columns=["array_row", "array_col"], index=[str(i) for i in range(81)])
    adata = ad.AnnData(sparse.csr_matrix((81, 1), dtype=np.float32), obs=obs)
    adata.obsm["spatial"] = 290.0 * grid[:, ::-1]
    assert spot_pitch(adata, "hexagonal") is None
    assert spot_pitch(adata, "square") == pytest.approx(290.0)


@pytest.mark.parametrize("off", [[[20, 5], [-9, 30], [8, 8]], [[2, 1], [0, 0], [0, -2]]], ids=["far", "near"])
def test_pitch_of_a_hexagonal_array_with_spots_out_of_place(off: list[list[int]]) -> None:
    """Visium's columns go in steps of two, its rows are √3/2 of the pitch apart; three spots do not lie there."""
    rng = np.random.default_rng(0)
    grid = np.array([(r, c) for r in range(12) for c in range(20) if (r + c) % 2 == 0])[rng.random(120) > 0.2]
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    places = 137.0 * np.column_stack([grid[:, 1] / 2, grid[:, 0] * np.sqrt(3) / 2]) @ turn.T + 900
    places[[3, 40, 61]] += 137.0 * np.array(off)
    adata = ad.AnnData(
        sparse.csr_matrix((len(grid), 1)),
        obs=pd.DataFrame(grid, columns=["array_row", "array_col"], index=[str(i) for i in range(len(grid))]),
    )
    adata.obsm[keys.SPATIAL] = places
    assert spot_pitch(adata, "hexagonal") == pytest.approx(137.0, rel=1e-6)


def test_spots_without_array_are_as_far_apart_and_as_large_as_their_neighbours_say() -> None:
    pairs = np.array([[0, 0], [3, 4], [100, 0], [100, 2], [300, 0], [300, 9.0]])
    assert distance_between(pairs) == 5  # of 5, 5, 2, 2, 9, 9
    assert distance_between(pairs[:1]) == distance_between(np.zeros((2, 2))) == 1
    y, x = np.divmod(np.arange(100), 10)
    assert spot_diameter(np.column_stack([x, y]) * 80.0) == 80  # squares that touch
    # Visium: spots of 55 µm every 100
    assert spot_diameter(np.column_stack([x + y % 2 / 2, y * np.sqrt(0.75)]) * 100) == pytest.approx(55)


def test_every_second_place_is_a_checkerboard() -> None:
    def array(places: list[tuple[int, int]]) -> ad.AnnData:
        names = [str(i) for i in range(len(places))]
        obs = pd.DataFrame(places, columns=["array_row", "array_col"], index=names)
        return ad.AnnData(sparse.csr_matrix((len(places), 1)), obs=obs)

    odd = [(x, y) for x in range(6) for y in range(6) if (x + y) % 2]
    assert is_checkerboard(array(odd))
    assert not is_checkerboard(array([*odd, (0, 0)]))
    assert not is_checkerboard(array(odd[:9]))  # too few to tell


def test_a_denser_array_is_not_taken_for_the_usual_one() -> None:
    grid = np.array([(x, y) for x in range(12) for y in range(10) if (x + y) % 2 == 0])
    obs = pd.DataFrame(grid, columns=["array_col", "array_row"], index=[str(i) for i in range(len(grid))])
    adata = ad.AnnData(sparse.csr_matrix((len(grid), 1)), obs=obs)
    adata.obsm[keys.SPATIAL] = grid * 100.0
    assert mpp_from_pitch(row(Path("a.tsv"), technology="st"), adata) is None
    assert spot_pitch(adata, "square") == pytest.approx(100 * np.sqrt(2))  # the nearest is across the corner


def test_every_technology_stands_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "start.md").read_text()
    column = next(line for line in text.splitlines() if line.startswith("| `technology` |"))
    for name in READERS:
        assert f"`{name}`" in column
        assert f"\n| `{name}` | " in text


def write_h5ad(path: Path, **obs: object) -> ad.AnnData:
    table = ad.AnnData(sparse.csr_matrix(np.eye(3, dtype="f")), obs=pd.DataFrame(obs, index=list("abc")))
    table.obsm["spatial"] = np.arange(6.0).reshape(3, 2)
    table.write_h5ad(path)
    return table


def test_h5ad_with_yes_and_no_as_text(tmp_path: Path) -> None:
    (tmp_path / "wsis").mkdir()
    (tmp_path / "st").mkdir()
    write_h5ad(tmp_path / "st" / "a.h5ad", in_tissue=["True", "False", "True"], array_row=["0", "1", "2"])
    adata = read_expression(row(tmp_path / "st" / "a.h5ad"))
    assert list(adata.obs_names) == ["a", "c"]
    assert adata.obs[keys.ARRAY_ROW].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.obs.__setitem__("array_row", ["0", "one", "2"]), r"obs\['array_row'\] holds 'one', not a number"),
        (lambda t: t.__setattr__("X", None), r"neither X nor layers\['counts'\] is there \(raw counts are needed\)"),
        (lambda t: t.obsm.__setitem__("spatial", np.ones((3, 1))), r"obsm\['spatial'\] has the shape \(3, 1\)"),
    ],
)
def test_h5ad_that_lacks_numbers(tmp_path: Path, spoil: Callable[[ad.AnnData], None], message: str) -> None:
    table = write_h5ad(tmp_path / "a.h5ad")
    spoil(table)
    table.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=r"a\.h5ad: " + message):
        read_expression(row(tmp_path / "a.h5ad"))


def test_a_table_cut_at_the_wrong_marks_has_a_short_message(tmp_path: Path) -> None:
    names = [f"GENE{i}" for i in range(20_000)]
    (tmp_path / "a.tsv").write_text(",".join(["", *names]) + "\n" + ",".join(["1x1"] + ["1"] * 20_000) + "\n")
    (tmp_path / "spots.tsv").write_text(",".join(names) + "\n" + ",".join(["1"] * 20_000) + "\n")
    with pytest.raises(InputError) as raised:
        read_expression(row(tmp_path / "a.tsv", positions=tmp_path / "spots.tsv"))
    assert "spots.tsv: column 'x', 'y', 'pixel_x', 'pixel_y' is missing (found GENE0,GENE1," in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("named", [True, False])
def test_parquet_with_the_ids_in_its_index(tmp_path: Path, named: bool) -> None:
    """``table.to_parquet`` of a table whose rows are named, as most are."""
    table = pd.DataFrame({"B": [0.25, 1.0, 0.5], "T": [0.75, 0.0, 0.5]}, index=list("abc"))
    table.rename_axis("spot" if named else None).to_parquet(tmp_path / "types.parquet")
    write_h5ad(tmp_path / "a.h5ad")
    adata = read_expression(row(tmp_path / "a.h5ad", cell_types=tmp_path / "types.parquet"))
    pd.testing.assert_frame_equal(adata.obsm[keys.CELL_TYPES], table, check_names=False)
    labels = pd.DataFrame({"label": ["x", "y", "x"]}, index=list("abc")).rename_axis("spot" if named else None)
    labels.to_parquet(tmp_path / "labels.parquet")
    adata = read_expression(row(tmp_path / "a.h5ad", annotations=tmp_path / "labels.parquet"))
    assert adata.obs[keys.ANNOTATION].tolist() == ["x", "y", "x"]
