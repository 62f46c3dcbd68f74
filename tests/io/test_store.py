"""Writing is all or nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from hescribe.errors import OutputError
from hescribe.io.expression import log_normalise
from hescribe.io.store import check_free, without_secrets, write_atomically


def test_an_error_midway_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), write_atomically(target) as path:
        path.write_text("half")
        raise RuntimeError("midway")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), write_atomically(tmp_path / "out") as path:
        path.mkdir()
        (path / "part").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in ("first", "second"):
        with write_atomically(target) as path:
            path.mkdir()
            (path / name).write_text(name)
    assert [p.name for p in target.iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OutputError, match="already exists"), write_atomically(target, overwrite=False):
        pass


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for how in (check_free, lambda *a, **k: write_atomically(*a, **k).__enter__()):
        with pytest.raises(OutputError, match="holds something else, which would be lost"):
            how(tmp_path / "mine", overwrite=True, like="index.html")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    (tmp_path / "mine" / "index.html").write_text("an older page")
    check_free(tmp_path / "mine", overwrite=True, like="index.html")
    check_free(tmp_path / "none", overwrite=False, like="index.html")


def test_a_url_is_written_down_without_secrets() -> None:
    assert without_secrets("https://me:pw@host:8/a%20b.svs?token=x#y") == "https://host:8/a%20b.svs"
    assert without_secrets("s3://bucket/a?b#c.svs") == "s3://bucket/a?b#c.svs"
    assert without_secrets("/slides/a@b?.svs") == "/slides/a@b?.svs"


def test_log_normalisation_by_hand() -> None:
    counts = np.array([[1, 3], [0, 0], [10, 0]])
    expected = np.log1p([[2500, 7500], [0, 0], [10000, 0]])
    np.testing.assert_allclose(log_normalise(sparse.csr_matrix(counts)).toarray(), expected, rtol=1e-6)
    median = np.log1p(np.array([[1 / 4, 3 / 4], [0, 0], [1, 0]]) * 7.0)
    found = log_normalise(sparse.csr_matrix(counts), target_sum="median").toarray()
    np.testing.assert_allclose(found, median, rtol=1e-6)
    found = log_normalise(sparse.csr_matrix(counts), target_sum="counts").toarray()
    np.testing.assert_allclose(found, np.log1p(counts), rtol=1e-6)
