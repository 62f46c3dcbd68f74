"""Visium HD against runs written as spaceranger writes them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from hescribe import keys
from hescribe.errors import HescribeWarning, InputError
from hescribe.io.manifest import ManifestRow
from hescribe.io.readers import read_expression, technology_of
from hescribe.sections import Section
from tests.io.tenx_files import Matrix, write_bins, write_mex

MPP = 0.2738242950835738
TURN = np.deg2rad(1.3)
SIDE_UM = 192
KINDS = ["Gene Expression"] * 4 + ["Antibody Capture"]


def row(expression: Path, **more: object) -> ManifestRow:
    return ManifestRow("s", "p", more.pop("image", None), expression, **more)  # type: ignore[arg-type]


def bins(size_um: int) -> tuple[pd.DataFrame, Matrix]:
    """All bins of an array that is slightly turned; the outermost are beside the tissue, and have no counts."""
    n = SIDE_UM // size_um
    rows, columns = (a.ravel() for a in np.mgrid[:n, :n])
    x, y = (columns + 0.5) * size_um / MPP, (rows + 0.5) * size_um / MPP
    under = (rows > 0) & (columns > 0) & (rows < n - 1) & (columns < n - 1)
    positions = pd.DataFrame(
        {
            "barcode": [f"s_{size_um:03}um_{r:05}_{c:05}-1" for r, c in zip(rows, columns, strict=True)],
            "in_tissue": under,
            "array_row": rows,
            "array_col": columns,
            "pxl_row_in_fullres": x * np.sin(TURN) + y * np.cos(TURN) + 30,
            "pxl_col_in_fullres": x * np.cos(TURN) - y * np.sin(TURN) + 60,
        }
    )
    rng = np.random.default_rng(size_um)
    barcodes = list(rng.permutation(positions["barcode"][under]))
    counts = rng.poisson(0.7, (len(barcodes), 5)).astype(np.int32)
    return positions, Matrix(counts, barcodes, [f"ENSG{i}" for i in range(5)], ["A", "MT-B", "C", "A", "CD3"], KINDS)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for size in (2, 8, 16):
        folder = tmp_path / "run" / "outs" / "binned_outputs" / f"square_{size:03}um"
        write_bins(folder, *bins(size), size_um=size, mpp=MPP)
    (tmp_path / "run" / "outs" / "spatial").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("", 16),
        ("outs", 16),
        ("outs/binned_outputs", 16),
        ("outs/binned_outputs/square_016um", 16),
        ("outs/binned_outputs/square_008um", 8),
        ("outs/binned_outputs/square_002um", 2),
    ],
)
def test_bins_are_chosen_by_pointing_at_them(run: Path, given: str, size: int) -> None:
    place = row(run / given)
    assert technology_of(place) == "visium_hd"
    adata = read_expression(place)
    positions, matrix = bins(size)
    assert list(adata.obs_names) == matrix.barcodes
    assert list(adata.var_names) == ["A", "MT-B", "C"]
    np.testing.assert_array_equal(adata[:, "A"].X.toarray().ravel(), matrix.counts[:, 0] + matrix.counts[:, 3])
    truth = positions.set_index("barcode").loc[matrix.barcodes]
    np.testing.assert_array_equal(adata.obsm[keys.SPATIAL][:, 0], truth["pxl_col_in_fullres"])
    np.testing.assert_array_equal(adata.obsm[keys.SPATIAL][:, 1], truth["pxl_row_in_fullres"])
    np.testing.assert_array_equal(adata.obs[[keys.ARRAY_ROW, keys.ARRAY_COL]], truth[["array_row", "array_col"]])
    factors = adata.uns["spatial"]["s"]["scalefactors"]
    assert factors["bin_size_um"] == size
    assert factors["spot_diameter_fullres"] == pytest.approx(size / MPP)


def test_scanpy_reads_the_same_from_these_files(run: Path) -> None:
    import scanpy as sc

    folder = run / "outs" / "binned_outputs" / "square_016um"
    theirs = sc.read_10x_h5(folder / "filtered_feature_bc_matrix.h5")
    theirs.var_names_make_unique()
    ours = read_expression(row(folder))
    assert list(theirs.obs_names) == list(ours.obs_names)
    for ours_name, theirs_names in {"A": ["A", "A-1"], "MT-B": ["MT-B"], "C": ["C"]}.items():
        expected = theirs[:, theirs_names].X.toarray().sum(axis=1)
        np.testing.assert_array_equal(ours[:, ours_name].X.toarray().ravel(), expected)


def test_the_folder_of_tables_does_for_the_matrix(run: Path) -> None:
    folder = run / "outs" / "binned_outputs" / "square_016um"
    before = read_expression(row(folder))
    (folder / "filtered_feature_bc_matrix.h5").unlink()
    write_mex(folder / "filtered_feature_bc_matrix", bins(16)[1])
    after = read_expression(row(folder))
    np.testing.assert_array_equal(before.X.toarray(), after.X.toarray())
    assert list(before.obs_names) == list(after.obs_names)


def slide(path: Path, width: int, height: int) -> Path:
    cv2.imwrite(str(path), np.full((height, width, 3), 200, np.uint8))
    return path


def test_scalefactors_say_how_large_a_pixel_is(run: Path, tmp_path: Path) -> None:
    section = Section(row(run, image=slide(tmp_path / "he.jpg", 900, 900)))
    assert section.mpp == MPP
    assert section.adata.n_obs == 100
    assert len(section.tiles()) == 100
    with pytest.warns(HescribeWarning, match="0.274 by the files of the spots but 0.500 by the manifest"):
        assert Section(row(run, image=tmp_path / "he.jpg", mpp=0.5)).mpp == MPP


def test_bins_beyond_the_image_are_left_out(run: Path, tmp_path: Path) -> None:
    place = row(run, image=slide(tmp_path / "he.jpg", 500, 900))
    x = read_expression(place).obsm[keys.SPATIAL][:, 0]
    section = Section(place)
    with pytest.warns(HescribeWarning, match=f"{(x >= 500).sum()} of 100 bins lie outside the image of 500 × 900 px"):
        adata = section.adata
    assert adata.n_obs == (x < 500).sum() > 50
    assert len(section.tiles()) == section.adata.n_obs
    with pytest.raises(InputError, match="bins lie outside the image of 200 × 200 px"):
        Section(row(run, image=slide(tmp_path / "small.jpg", 200, 200))).adata  # noqa: B018


def edit_factors(folder: Path, **changes: object) -> None:
    file = folder / "spatial" / "scalefactors_json.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no matrix": (lambda f: (f / "filtered_feature_bc_matrix.h5").unlink(), "neither filtered_feature_bc_matrix.h5"),
    "damaged matrix": (
        lambda f: (f / "filtered_feature_bc_matrix.h5").write_bytes(b"no"),
        "not a readable 10x matrix",
    ),
    "no positions": (lambda f: (f / "spatial" / "tissue_positions.parquet").unlink(), "none of tissue_positions"),
    "damaged positions": (
        lambda f: (f / "spatial" / "tissue_positions.parquet").write_bytes(b"no"),
        "tissue_positions.parquet: not a readable table",
    ),
    "no scalefactors": (lambda f: (f / "spatial" / "scalefactors_json.json").unlink(), "json is missing"),
    "no scale": (lambda f: edit_factors(f, microns_per_pixel=0), "'microns_per_pixel' is 0.0, not a positive number"),
    "no size": (lambda f: edit_factors(f, bin_size_um=-1), "'bin_size_um' is -1.0, not a positive number"),
    "another image": (lambda f: edit_factors(f, microns_per_pixel=0.5), "bins are 58.4 px apart, but 32 by scale"),
    "another run": (
        lambda f: (
            write_bins(f / "x", *bins(8), size_um=8, mpp=MPP)
            or (f / "x/spatial/tissue_positions.parquet").replace(f / "spatial/tissue_positions.parquet")
        ),
        "no spot in common with tissue_positions.parquet",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(run: Path, mistake: str) -> None:
    make, told = MISTAKES[mistake]
    make(run / "outs" / "binned_outputs" / "square_016um")
    with pytest.raises(InputError) as error:
        read_expression(row(run, technology="visium_hd"))
    assert told in str(error.value)
    assert str(run) in str(error.value)


def test_another_size_is_not_taken_silently(run: Path) -> None:
    (run / "outs" / "binned_outputs" / "square_016um").rename(run / "elsewhere")
    with pytest.raises(InputError, match=r"square_016um is not here \(found square_002um, square_008um\) \(give the"):
        read_expression(row(run))


def test_hd_is_not_read_as_visium(run: Path) -> None:
    for given in ("", "outs/binned_outputs/square_008um"):
        with pytest.raises(InputError, match=r"bins of Visium HD, not spots of Visium.*technology: visium_hd"):
            read_expression(row(run / given, technology="visium"))


def test_a_run_of_visium_is_no_hd(tmp_path: Path) -> None:
    write_bins(tmp_path / "a", *bins(16), size_um=16, mpp=MPP)
    (tmp_path / "a" / "spatial" / "scalefactors_json.json").write_text('{"spot_diameter_fullres": 80.0}')
    assert technology_of(row(tmp_path / "a")) == "visium"
    with pytest.raises(InputError, match=r"'bin_size_um' is missing.*spaceranger 3 or later"):
        read_expression(row(tmp_path / "a", technology="visium_hd"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder of spaceranger"):
        read_expression(row(tmp_path / "file", technology="visium_hd"))


def test_a_single_bin_has_no_pitch(tmp_path: Path) -> None:
    positions, matrix = bins(16)
    one = Matrix(matrix.counts[:1], matrix.barcodes[:1], matrix.ids, matrix.names, matrix.kinds)
    write_bins(tmp_path / "a", positions, one, size_um=16, mpp=MPP)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_expression(row(tmp_path / "a")).n_obs == 1
