"""Tables of cell-type proportions: what is read, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hescribe import keys
from hescribe.errors import HescribeWarning, InputError
from hescribe.io.manifest import ManifestRow
from hescribe.sections import Section

TABLE = pd.DataFrame({"T/NK cells ": [0.25, 0.5, 1.0], "CAF": [0.75, 0.5, 0.0]}, index=["9x9", "4x3", "2x3"])


@pytest.fixture
def counts(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "a.tsv").write_text("\tTP53\tACTB\n2x3\t1\t0\n4x3\t5\t1\n6x3\t7\t1\n")
    (tmp_path / "spots.tsv").write_text("x\ty\tpixel_x\tpixel_y\n2\t3\t10\t5\n4\t3\t15\t5\n6\t3\t20\t5\n")
    return {"expression": tmp_path / "a.tsv", "positions": tmp_path / "spots.tsv"}


def section(counts: dict[str, Path], cell_types: Path | None) -> Section:
    return Section(ManifestRow("s", "p", None, technology="st", cell_types=cell_types, **counts))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["t.tsv", "t.tsv.gz", "t.csv", "t.parquet"])
def test_proportions_follow_the_spots_of_the_counts(counts: dict[str, Path], tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        TABLE.rename_axis("spot").reset_index().to_parquet(tmp_path / name)
    else:
        TABLE.to_csv(tmp_path / name, sep="," if name.endswith("csv") else "\t")
    found = section(counts, tmp_path / name)
    assert found.cell_types is not None
    assert list(found.cell_types.index) == ["2x3", "4x3", "6x3"]
    # Zarr has no place for a slash in a name
    assert list(found.cell_types.columns) == ["T-NK cells", "CAF"]
    np.testing.assert_array_equal(found.cell_types.to_numpy(), [[1, 0], [0.5, 0.5], [np.nan, np.nan]])
    assert found.cell_types is found.adata.obsm[keys.CELL_TYPES]


def test_without_a_table(counts: dict[str, Path]) -> None:
    assert section(counts, None).cell_types is None


def test_counts_of_cells_become_proportions_and_a_warning(counts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("spot,A,B\n2x3,30,10\n4x3,0,0\n6x3,0.5,0.5\n")
    with pytest.warns(HescribeWarning, match=r"t\.csv: 2 of 3 rows are far from sum 1"):
        found = section(counts, tmp_path / "t.csv").cell_types
    assert found is not None
    np.testing.assert_allclose(found.to_numpy(), [[0.75, 0.25], [np.nan, np.nan], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spot,A,B\n2x3,-0.5,1.5\n", r"the proportion of 'A' in spot '2x3' is negative \(-0\.5\)"),
        ("spot,A,B\n2x3,much,0.5\n", "column 'A' holds 'much', not a number"),
        ("spot,A,B\n2x3,,0.5\n", "column 'A' holds nan, not a number"),
        ("spot,A,B\n2x3,inf,0.5\n", "column 'A' holds inf"),
        ("spot,A,B\n1x1,0.5,0.5\n", "no spot of this table is in the section's counts"),
        ("spot,A,B\n2x3,0.5,0.5\n2x3,0.5,0.5\n", "'2x3' stands there twice"),
        ("spot\n2x3\n", "no column of proportions"),
        ("spot,A/B,A-B\n2x3,0.5,0.5\n", "cell type 'A-B' stands there twice"),
    ],
)
def test_nonsense_is_refused_in_one_line(counts: dict[str, Path], tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        _ = section(counts, tmp_path / "t.csv").adata
    assert "t.csv" in str(caught.value)
    assert "\n" not in str(caught.value)
