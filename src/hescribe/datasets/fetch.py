"""Fetching a data set: download, verify, unpack, then mark complete."""

from __future__ import annotations

import json
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

from hescribe.datasets.registry import DATASETS, Dataset, RemoteFile
from hescribe.datasets.synthetic.make import make_synthetic
from hescribe.errors import HescribeWarning, InputError
from hescribe.io.store import write_atomically

MARKER = "hescribe-dataset.json"  #: stands in a complete data set's folder; written last
_TIMEOUT_S = 60


def fetch(name: str, folder: str | Path | None = None, *, seed: int = 0) -> Path:
    """A data set's folder; what is there already is not fetched again.

    Parameters
    ----------
    name
        One of `hescribe.datasets.list_datasets`.
    folder
        Where to put it; by default a folder of its own in the user's cache.
    seed
        Of ``synthetic``, which is made instead of downloaded.

    Returns
    -------
    Path
        The folder. That of ``synthetic`` holds ``sections.csv``.

    Raises
    ------
    InputError
        An unknown name, a host that cannot be reached, a file whose hash is not the registered one, a damaged
        archive, or a folder that holds something else. Nothing is left behind.
    OutputError
        The folder cannot be written.

    Warns
    -----
    HescribeWarning
        A file's hash is not registered; the text gives the one that was found.
    """
    if name not in DATASETS:
        raise InputError(f"no data set {name!r}", fix=f"one of {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    target = Path(folder) if folder is not None else _cache() / (name if dataset.files else f"{name}-{seed}")
    wanted = _describe(dataset, seed)
    if _is_there(target, wanted):
        return target
    with write_atomically(target) as temporary:
        temporary.mkdir(parents=True)
        hashes = _fill(temporary, dataset, seed)
        (temporary / MARKER).write_text(json.dumps(wanted | {"sha256": hashes}, indent=1))
    return target


def _cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("hescribe") / "datasets"


def _describe(dataset: Dataset, seed: int) -> dict[str, object]:
    """What makes a folder the one that was asked for."""
    files = [file.url for file in dataset.files]
    return {"name": dataset.name, "files": files} if files else {"name": dataset.name, "seed": seed}


def _is_there(target: Path, wanted: dict[str, object]) -> bool:
    """Whether the folder is complete; refuses one that holds anything else, since it would be replaced."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / MARKER).read_text())
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and all(found.get(key) == value for key, value in wanted.items()):
        return True
    raise InputError("something else is here already", path=target, fix="give a new or empty folder")


def _fill(folder: Path, dataset: Dataset, seed: int) -> dict[str, str]:
    """Download or make everything; name of each downloaded file → its SHA-256."""
    if not dataset.files:
        make_synthetic(folder, seed=seed)
        return {}
    hashes = {file.name: _download(file, folder) for file in dataset.files}
    for file in dataset.files:
        if file.unpack is not None:
            _unpack(folder / file.name, file)
    if dataset.note:
        warnings.warn(f"{dataset.name}: {dataset.note}", HescribeWarning, stacklevel=4)
    return hashes


def _download(file: RemoteFile, folder: Path) -> str:
    import pooch

    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_TIMEOUT_S)
    # pooch prints a hash it was not told; ours is the warning below
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(file.url, known_hash=None, fname=file.name, path=folder, downloader=downloader)
    except OSError as error:
        if error.errno is not None:  # the disk's, not the network's
            raise
        reason = type(getattr(error, "__context__", None) or error).__name__
        raise InputError(
            f"could not be downloaded ({reason}: {str(error)[:150]})", path=file.url, fix="is there a network?"
        ) from error
    found = str(pooch.file_hash(str(folder / file.name), alg="sha256"))
    if file.sha256 is None:
        warnings.warn(
            f"{file.name}: its SHA-256 is not registered, so it was not verified; found {found}",
            HescribeWarning,
            stacklevel=5,
        )
    elif found != file.sha256:
        raise InputError(
            f"SHA-256 is {found}, registered is {file.sha256}; nothing was kept",
            path=file.url,
            fix="try again; if it stays so, the file has changed",
        )
    return found


def _unpack(archive: Path, file: RemoteFile) -> None:
    """Unpack beside the archive and remove it; members that point outside the folder are refused."""
    try:
        if file.unpack == "zip":
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(archive.parent)  # noqa: S202 - zipfile drops '..' and absolute names by itself
        else:
            with tarfile.open(archive) as packed_tar:
                packed_tar.extractall(archive.parent, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise InputError(f"{file.name} does not unpack ({error})", path=file.url) from error
    archive.unlink()
