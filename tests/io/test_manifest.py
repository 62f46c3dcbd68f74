"""Manifests as people write them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hescribe.applications.inputs import is_manifest
from hescribe.errors import InputError
from hescribe.io.manifest import read_manifest

HEAD = "section_id,patient_id,image,expression\n"


def test_a_section_may_be_called_na(tmp_path: Path) -> None:
    file = tmp_path / "sections.csv"
    file.write_text(f"{HEAD}NA,null,a.jpg,\nB,nan,,b.h5ad\n")
    first, second = read_manifest(file)
    assert (first.section_id, first.patient_id, first.expression) == ("NA", "null", None)
    assert (second.section_id, second.patient_id, second.image) == ("B", "nan", None)


def test_rows_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    file = tmp_path / "sections.csv"
    file.write_text(f"{HEAD}A,P,a.jpg,\n\n \nB,,b.jpg,\n\n")
    with pytest.raises(InputError, match="row 5: patient_id is empty"):
        read_manifest(file)
    file.write_text(f"{HEAD}A,P,a.jpg,\n\n,,,\nB,P,b.jpg,\n\n")
    assert [row.section_id for row in read_manifest(file)] == ["A", "B"]


def test_numbers_as_ids_in_parquet(tmp_path: Path) -> None:
    """A column of whole numbers in which one is missing holds 1.0, and two sections ended up as one file."""
    table = pd.DataFrame(
        {"section_id": [1.0, 2.0, None], "patient_id": [7.0, 7.0, None], "image": ["a.jpg", "b.jpg", None]}
    )
    table.assign(expression=None, mpp=[0.5, 0.5, None]).to_parquet(tmp_path / "sections.parquet")
    rows = read_manifest(tmp_path / "sections.parquet")
    assert [(row.section_id, row.patient_id, row.mpp) for row in rows] == [("1", "7", 0.5), ("2", "7", 0.5)]


@pytest.mark.parametrize("name", ["sections.csv", "sections.tsv", "sections.txt", "SECTIONS.PARQUET"])
def test_what_is_taken_for_a_manifest(tmp_path: Path, name: str) -> None:
    assert is_manifest(tmp_path / name)
    assert not is_manifest(tmp_path / "slide.zarr")
