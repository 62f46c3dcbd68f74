"""Xenium against output folders written as the instrument writes them, truth by dictionaries and by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hescribe import keys
from hescribe.errors import HescribeWarning, InputError
from hescribe.io.formats.xenium import _read_alignment
from hescribe.io.manifest import ManifestRow
from hescribe.io.readers import read_expression, technology_of
from hescribe.sections import Section
from tests.io.tenx_files import Matrix, write_alignment, write_h5, write_xenium

KINDS = {
    "Gene Expression": ["ACTB", "CD3E", "KRT8"],
    "Negative Control Probe": ["NegControlProbe_00042"],
    "Negative Control Codeword": ["NegControlCodeword_0500"],
    "Genomic Control": ["Intergenic_Region_1"],
    "Unassigned Codeword": ["UnassignedCodeword_0037"],
    "Deprecated Codeword": ["DeprecatedCodeword_0321"],
}
NAMES = [n for names in KINDS.values() for n in names]
TYPES = [kind for kind, names in KINDS.items() for _ in names]
#: a quarter turn and two morphology pixels to an H&E pixel: x = 1000 − 2 y', y = 2 x' − 50
TURNED = [[0, -2, 1000], [2, 0, -50], [0, 0, 1]]


def row(expression: Path, **more: object) -> ManifestRow:
    return ManifestRow("s", "p", more.pop("image", None), expression, **more)  # type: ignore[arg-type]


def measured() -> tuple[Matrix, pd.DataFrame]:
    """60 cells on 200 × 150 µm; the table of cells is in another order, and lacks one."""
    rng = np.random.default_rng(4)
    ids = [str(i) for i in range(1, 61)]
    counts = rng.poisson(2, (60, len(NAMES))).astype(np.int32)
    matrix = Matrix(counts, ids, [f"ENSG{i:011}" for i in range(len(NAMES))], NAMES, TYPES)
    cells = pd.DataFrame({"cell_id": ids, "x_centroid": rng.random(60) * 200, "y_centroid": rng.random(60) * 150})
    cells["transcript_counts"], cells["cell_area"] = counts[:, :3].sum(axis=1), 50.5
    return matrix, cells.drop(index=20).sample(frac=1, random_state=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_xenium(tmp_path / "outs_x", *measured(), ids="text")
    return tmp_path / "outs_x"


@pytest.mark.parametrize("ids", ["text", "bytes", "numbers"])
@pytest.mark.parametrize("mex", [False, True])
@pytest.mark.parametrize("outs", [False, True])
def test_cells_are_summed_into_bins(tmp_path: Path, ids: str, mex: bool, outs: bool) -> None:
    matrix, cells = measured()
    write_xenium(tmp_path / "run" / "outs" if outs else tmp_path / "run", matrix, cells, ids=ids, mex=mex)
    assert technology_of(row(tmp_path / "run")) == "xenium"
    adata = read_expression(row(tmp_path / "run"))
    truth: dict[tuple[int, int], Counter[str]] = {}
    for cell in cells.itertuples():
        bin_ = truth.setdefault((int(cell.y_centroid // 55), int(cell.x_centroid // 55)), Counter())
        bin_["cells"] += 1
        for name, count in zip(NAMES[:3], matrix.counts[matrix.barcodes.index(cell.cell_id)], strict=False):
            bin_[name] += int(count)
    assert list(adata.var_names) == NAMES[:3]
    assert list(adata.obs_names) == [f"s_055um_{r:05}_{c:05}" for r, c in sorted(truth)]
    for i, (r, c) in enumerate(sorted(truth)):
        assert adata.X.toarray()[i].tolist() == [truth[r, c][n] for n in NAMES[:3]]
        assert adata.obs[keys.N_CELLS].iloc[i] == truth[r, c]["cells"]
        assert adata.obs[[keys.ARRAY_ROW, keys.ARRAY_COL]].iloc[i].tolist() == [r, c]
        # Without an image: pixels of the morphology image
        np.testing.assert_allclose(adata.obsm[keys.SPATIAL][i] * 0.2125, [c * 55 + 27.5, r * 55 + 27.5])
    assert adata.X.sum() == np.delete(matrix.counts, 20, axis=0)[:, :3].sum()


def test_bins_are_placed_on_a_turned_image_of_another_scale(folder: Path, tmp_path: Path) -> None:
    alignment = write_alignment(tmp_path / "matrix.csv", TURNED)
    adata = read_expression(row(folder, image=tmp_path / "he.jpg", positions=alignment))
    morphology_x = (adata.obs[keys.ARRAY_COL].to_numpy() + 0.5) * 55 / 0.2125
    morphology_y = (adata.obs[keys.ARRAY_ROW].to_numpy() + 0.5) * 55 / 0.2125
    np.testing.assert_allclose(adata.obsm[keys.SPATIAL][:, 0], (morphology_y + 50) / 2)
    np.testing.assert_allclose(adata.obsm[keys.SPATIAL][:, 1], (1000 - morphology_x) / 2)
    factors = adata.uns[keys.SPATIAL]["s"]["scalefactors"]
    assert factors[keys.MICRONS_PER_PIXEL] == pytest.approx(2 * 0.2125)
    assert factors[keys.SPOT_DIAMETER] == pytest.approx(55 / 0.425)
    assert adata.uns[keys.SPATIAL]["s"]["metadata"] == {"software_version": "xenium-2.0.0.10"}
    # As 10x states the matrix: a pixel of the H&E, multiplied by it, is a pixel of the morphology image
    there = np.column_stack([adata.obsm[keys.SPATIAL], np.ones(adata.n_obs)]) @ np.array(TURNED).T
    np.testing.assert_allclose(there[:, :2], np.column_stack([morphology_x, morphology_y]))


SHIFT = st.floats(-3000, 3000)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("x")
    write_xenium(folder, *measured(), ids="text")
    return folder


@given(angle=st.floats(0, 6.28), scale=st.floats(0.3, 4), mirrored=st.booleans(), shift=st.tuples(SHIFT, SHIFT))
def test_any_turn_scale_and_mirror(
    shared: Path, angle: float, scale: float, mirrored: bool, shift: tuple[float, float]
) -> None:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn * [-1, 1] if mirrored else turn
    matrix = np.block([[turn, np.array(shift)[:, None]], [np.zeros((1, 2)), np.ones((1, 1))]])
    alignment = write_alignment(shared / "m.csv", matrix)
    adata = read_expression(row(shared, image=shared / "he.jpg", positions=alignment))
    there = np.column_stack([adata.obsm[keys.SPATIAL], np.ones(adata.n_obs)]) @ matrix.T
    grid = adata.obs[[keys.ARRAY_COL, keys.ARRAY_ROW]].to_numpy()
    np.testing.assert_allclose(there[:, :2], (grid + 0.5) * 55 / 0.2125, rtol=1e-6, atol=1e-6)
    found = adata.uns[keys.SPATIAL]["s"]["scalefactors"][keys.MICRONS_PER_PIXEL]
    assert found == pytest.approx(0.2125 * scale)


def centres(place: ManifestRow) -> np.ndarray:
    adata: ad.AnnData = read_expression(place)
    return np.asarray(adata.obsm[keys.SPATIAL])


def test_where_the_alignment_stands(folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "images" / "S.1_he_image.ome.tif"
    image.parent.mkdir()
    place = row(folder, image=image)
    with pytest.raises(InputError, match=r"where on the H&E image the cells are is not known.*column 'positions'"):
        read_expression(place)
    plain = centres(row(folder))
    write_alignment(folder / "S_he_imagealignment.csv", [[2, 0, 0], [0, 2, 0], [0, 0, 1]])
    write_alignment(folder / "S_if_imagealignment.csv", TURNED)
    np.testing.assert_allclose(centres(place), plain / 2)
    write_alignment(folder / "T_he_imagealignment.csv", TURNED)
    with pytest.raises(InputError, match="several alignments are here"):
        read_expression(place)
    write_alignment(image.parent / "S.1_he_imagealignment.csv", [[4, 0, 0], [0, 4, 0], [0, 0, 1]])
    np.testing.assert_allclose(centres(place), plain / 4)
    identity = write_alignment(tmp_path / "identity.csv", np.eye(3))
    np.testing.assert_allclose(centres(row(folder, image=image, positions=identity)), plain)


def test_a_section_knows_its_scale_and_leaves_out_what_the_image_lacks(folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "he.png"
    cv2.imwrite(str(image), np.full((520, 300, 3), 200, np.uint8))
    place = row(folder, image=image, positions=write_alignment(tmp_path / "m.csv", TURNED))
    x = centres(place)[:, 0]
    assert 0 < (x >= 300).sum() < len(x) / 2
    section = Section(place)
    with pytest.warns(HescribeWarning, match="bins lie outside the image of 300 × 520 px; they are left out"):
        assert section.mpp == pytest.approx(0.425)
    assert section.adata.n_obs == (x < 300).sum()
    assert len(section.tiles()) == section.adata.n_obs
    # The inverse of the matrix leads far from the image
    write_alignment(tmp_path / "m.csv", np.linalg.inv(TURNED))
    with pytest.raises(InputError, match=r"outside the image of 300 × 520 px.*and the alignment, .* its own"):
        Section(place).adata  # noqa: B018


def rewrite(folder: Path, **changes: object) -> None:
    file = folder / "experiment.xenium"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def cells(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_parquet(folder / "cells.parquet")).to_parquet(folder / "cells.parquet", index=False)


def only_controls(folder: Path) -> None:
    matrix, _ = measured()
    kinds = ["Negative Control Probe"] * len(NAMES)
    write_h5(folder / "cell_feature_matrix.h5", Matrix(matrix.counts, matrix.barcodes, matrix.ids, NAMES, kinds))


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no experiment": (lambda f: (f / "experiment.xenium").unlink(), "experiment.xenium is missing (give the output"),
    "damaged experiment": (lambda f: (f / "experiment.xenium").write_text("{"), "pixel_size cannot be read"),
    "no pixel size": (lambda f: (f / "experiment.xenium").write_text("{}"), "pixel_size cannot be read (KeyError"),
    "no size": (lambda f: rewrite(f, pixel_size=0), "pixel_size is 0, not a positive number"),
    "no matrix": (lambda f: (f / "cell_feature_matrix.h5").unlink(), "neither cell_feature_matrix.h5 nor the folder"),
    "controls alone": (only_controls, "no feature is of the type 'Gene Expression' (found Negative Control Probe)"),
    "no cells": (lambda f: (f / "cells.parquet").unlink(), "none of cells.parquet, cells.csv.gz, cells.csv is here"),
    "damaged cells": (lambda f: (f / "cells.parquet").write_bytes(b"no"), "cells.parquet: not a readable table"),
    "no centroids": (
        lambda f: cells(f, lambda c: c.drop(columns="y_centroid")),
        "cells.parquet: column 'y_centroid' is missing",
    ),
    "a gap": (
        lambda f: cells(f, lambda c: c.assign(x_centroid=[np.nan, *c["x_centroid"][1:]])),
        "column 'x_centroid' holds nan, not a number",
    ),
    "other cells": (
        lambda f: cells(f, lambda c: c.assign(cell_id=[f"aaaa{i}-1" for i in c["cell_id"]])),
        "no spot in common with cells.parquet",
    ),
    "a cell twice": (lambda f: cells(f, lambda c: c.assign(cell_id="7")), "'7' stands there twice"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(folder: Path, mistake: str) -> None:
    make, told = MISTAKES[mistake]
    make(folder)
    with pytest.raises(InputError) as error:
        read_expression(row(folder, technology="xenium"))
    assert told in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1,0\n0,1\n", "2 rows and 2 columns, not a 3 × 3 matrix"),
        ("1,0,0\n0,1,0\n", "2 rows and 3 columns"),
        ("a,b,c\n1,0,0\n0,1,0\n", "holds 'a', not a number"),
        ("1,0,0\n0,1,0\n0,0.1,1\n", "the last row is not 0,0,1"),
        ("1,1,0\n1,1,0\n0,0,1\n", "one direction is scaled by 2"),
        ("1,0,0\n0,3,0\n0,0,1\n", "one direction is scaled by 3 and the one across by 1"),
        ("0,0,0\n0,0,0\n0,0,1\n", "one direction is scaled by 0"),
        ("nan,0,0\n0,1,0\n0,0,1\n", "not a number"),
        ("", "not a readable table"),
    ],
)
def test_what_is_no_alignment_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=r"m\.csv") as error:
        _read_alignment(tmp_path / "m.csv")
    assert told in str(error.value)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.h5").touch()
    with pytest.raises(InputError, match="not a folder of Xenium"):
        read_expression(row(tmp_path / "x.h5", technology="xenium"))
    with pytest.raises(InputError, match=r"the technology cannot be inferred.*visium_hd, xenium, hest"):
        read_expression(row(tmp_path))
