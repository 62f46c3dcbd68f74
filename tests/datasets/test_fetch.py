"""Downloads are verified; a failure is one clear line and leaves nothing."""

import hashlib
import importlib
import warnings
from pathlib import Path

import pytest

from hescribe.datasets import Dataset, RemoteFile, fetch, list_datasets
from hescribe.datasets.fetch import MARKER
from hescribe.datasets.registry import DATASETS
from hescribe.errors import HescribeWarning, InputError


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch):
    def add(*files: RemoteFile, note: str = "") -> None:
        monkeypatch.setitem(DATASETS, "test", Dataset("test", "a test", "1 kB", "CC0-1.0", "nobody", files, note))

    return add


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_right_hash_is_unpacked_and_not_fetched_twice(server, register, tmp_path: Path) -> None:
    url, served = server
    register(RemoteFile("data.zip", f"{url}/data.zip", sha256(served / "data.zip"), "zip"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = fetch("test", tmp_path / "out")
    assert (folder / "inside" / "a.txt").read_text() == "counts"
    assert sorted(p.name for p in folder.iterdir()) == [MARKER, "inside"]
    (served / "data.zip").unlink()
    assert fetch("test", tmp_path / "out") == folder


def test_wrong_hash_is_one_error_and_leaves_nothing(server, register, tmp_path: Path) -> None:
    url, served = server
    register(RemoteFile("data.zip", f"{url}/data.zip", "0" * 64, "zip"))
    with pytest.raises(InputError, match=sha256(served / "data.zip")) as caught:
        fetch("test", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["served"]


def test_unknown_hash_warns_with_what_was_found(server, register, tmp_path: Path) -> None:
    url, served = server
    register(RemoteFile("data.zip", f"{url}/data.zip"))
    with pytest.warns(HescribeWarning, match=sha256(served / "data.zip")):
        folder = fetch("test", tmp_path / "out")
    assert (folder / "data.zip").is_file()


def test_note_is_said(server, register, tmp_path: Path) -> None:
    url, served = server
    register(RemoteFile("data.zip", f"{url}/data.zip", sha256(served / "data.zip")), note="ask for the password")
    with pytest.warns(HescribeWarning, match="password"):
        fetch("test", tmp_path / "out")


def test_unreachable_host_and_missing_file_leave_nothing(server, register, tmp_path: Path) -> None:
    url, served = server
    for broken in ("http://127.0.0.1:9/data.zip", f"{url}/nowhere.zip"):
        register(
            RemoteFile("first.zip", f"{url}/data.zip", sha256(served / "data.zip")), RemoteFile("data.zip", broken)
        )
        with pytest.raises(InputError, match="could not be downloaded") as caught:
            fetch("test", tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["served"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archive_leaves_nothing(server, register, tmp_path: Path, kind: str) -> None:
    url, served = server
    (served / "bad").write_bytes(b"not an archive")
    register(RemoteFile("bad", f"{url}/bad", sha256(served / "bad"), kind))
    with pytest.raises(InputError, match="does not unpack"):
        fetch("test", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_not_replaced(server, register, tmp_path: Path) -> None:
    url, served = server
    register(RemoteFile("data.zip", f"{url}/data.zip", sha256(served / "data.zip")))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        fetch("test", mine)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_unknown_name_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="synthetic, her2st"):
        fetch("nothing", tmp_path / "out")


def test_synthetic_is_made_into_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []

    def fake(folder: Path, *, seed: int) -> Path:
        made.append(seed)
        (folder / "sections.csv").write_text("section_id")
        return folder / "sections.csv"

    module = importlib.import_module("hescribe.datasets.fetch")  # the package's name is the function
    monkeypatch.setattr(module, "make_synthetic", fake)
    monkeypatch.setattr(module, "_cache", lambda: tmp_path / "cache")
    first = fetch("synthetic", seed=5)
    assert (first / "sections.csv").is_file()
    assert fetch("synthetic", seed=5) == first
    assert fetch("synthetic", seed=6) != first
    assert made == [5, 6]


@pytest.mark.parametrize("dataset", list_datasets(), ids=lambda d: d.name)
def test_every_entry_says_what_it_is(dataset: Dataset) -> None:
    assert DATASETS[dataset.name] is dataset
    assert dataset.summary
    assert dataset.licence
    assert dataset.citation
    assert dataset.size
    for file in dataset.files:
        assert file.url.startswith("https://")
        assert file.sha256 is None or len(file.sha256) == 64
        assert Path(file.name).name == file.name
