"""What the prediction of a slide depends on, and how far it has come.

Beside an output ``NAME.zarr`` stands, until it is complete, a folder ``.NAME.zarr.work``:

======================  ================================================================
``plan.json``           everything the numbers depend on; written last, so that without it nothing counts
``centres.npy``         tile centres
``picture.npy``         the slide, small
``progress.json``       tiles done in each stage; replaced after the tiles themselves are on the disk
``encoded-<i>.npy``     features at scale i, and last the colours of the tiles
``beside-0.npy``        features of tiles beside the outermost ones, where the method looks at them
``around-<i>.npy``      means over the neighbourhood, spread i
``novelty.npy``         one number a tile
``cell_types.npy``      proportions, where the reference knows them
``prediction.zarr``     the output as far as it has come
======================  ================================================================
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from filelock import FileLock, Timeout

from hescribe.errors import InputError, OutputError, check_choice
from hescribe.io.rows import RowFile, read_uns, sync_path
from hescribe.io.store import remove
from hescribe.keys import PROVENANCE
from hescribe.slides.grid import SMALLEST_STRIDE_UM
from hescribe.slides.slide import Rgb, hash_slide, slide_files
from hescribe.types import PLAUSIBLE_MPP, Centres, Dtype, Microns, Mpp, Views

FORMAT = 6  #: raised when the way a slide is predicted, or what is noted of it, changes
BATCH = 64  #: tiles at once through the encoder
CHUNK = 1024  #: tiles between two marks of progress

Stage = Literal["encoded", "beside", "surrounded", "written"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]
EngineChoice = Literal["auto", "torch", "openvino"]
TORCH = "torch"  #: the engine that is always there


@dataclass(frozen=True)
class SlideOptions:
    """How slides are predicted.

    Attributes
    ----------
    stride_um
        Distance between tile centres; none: the side of the bundle's tiles.
    mpp
        µm per pixel of slides whose metadata do not say.
    precision
        Of the encoder; auto measures both on the slide's first tiles.
    engine
        What runs the encoder; auto measures OpenVINO, where it is installed, against torch, unless a precision is
        named: then torch.
    dtype
        Of the prediction.
    min_pcc
        Only genes whose expected correlation is at least this.
    patient
        Whose slides they are; a patient of the bundle's training sections may be predicted more boldly.
    views
        As for ``Bundle.with_views``.
    """

    stride_um: Microns | None = None
    mpp: Mpp | None = None
    precision: PrecisionChoice = "auto"
    dtype: Dtype = "float32"
    min_pcc: float | None = None
    patient: str = ""
    engine: EngineChoice = "auto"
    views: Views | None = None

    def __post_init__(self) -> None:
        check_choice(self.precision, get_args(PrecisionChoice), "--precision")
        check_choice(self.dtype, get_args(Dtype), "--dtype")
        check_choice(self.engine, get_args(EngineChoice), "--engine")
        if self.views is not None:
            check_choice(self.views, get_args(Views), "--views")
        if self.stride_um is not None and not SMALLEST_STRIDE_UM <= self.stride_um < float("inf"):
            raise InputError(f"a stride of {self.stride_um:g} µm cannot be", path="--stride-um", fix="8 µm or more")
        low, high = PLAUSIBLE_MPP
        if self.mpp is not None and not low <= self.mpp <= high:
            raise InputError(f"{self.mpp:g} µm per pixel cannot be", path="--mpp", fix=f"{low:g} to {high:g}")


@dataclass(frozen=True)
class Stamp:
    """A slide's file, or files, as found.

    The content is what counts, all of it, so that a slide that was copied or touched is still the same and one that
    was changed in the middle is not; it costs a second per GB or so, little beside a prediction. Where size and time
    of change are those noted with an earlier hash, the file is not read again, so that skipping a thousand finished
    slides takes no time.
    """

    size: int
    changed: int
    content: str

    @classmethod
    def of(cls, path: Path, earlier: Stamp | None = None) -> Stamp:
        """The stamp of a file; ``earlier`` spares reading it where nothing has changed."""
        facts = [file.stat() for file in slide_files(path)]
        size, changed = sum(f.st_size for f in facts), max(f.st_mtime_ns for f in facts)
        if earlier is not None and (size, changed) == (earlier.size, earlier.changed):
            return earlier
        return cls(size, changed, hash_slide(path))


def hash_names(names: list[str]) -> str:
    """Hash of a list of names, in its order."""
    return hashlib.blake2b("\0".join(names).encode(), digest_size=8).hexdigest()


_WORDS = {
    "format": "another version of hescribe",
    "bundle": "another bundle",
    "content": "another slide, or the slide has changed",
    "genes": "another choice of genes (--min-pcc)",
    "known_patient": "another --patient",
    "precision": "another --precision",
    "engine": "another --engine, or version of it",
    "device": "another kind of device",
}


def find_difference(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """In words, the first fact of ``wanted`` that is otherwise in ``found``; empty where there is none."""
    for name, value in wanted.items():
        if found.get(name) != value:
            return _WORDS.get(name, f"another --{name.replace('_', '-')}")
    return ""


def read_finished(output: Path) -> dict[str, Any] | None:
    """The plan of a finished output, as noted in it; None where it is no prediction of a slide."""
    try:
        told = read_uns(output, PROVENANCE)
        return json.loads(str(told["plan"]))
    except Exception:  # zarr and anndata raise many kinds for what is not theirs
        return None


@dataclass(frozen=True)
class Work:
    """The folder of a prediction that is under way.

    Attributes
    ----------
    folder
        Where it is.
    """

    folder: Path

    @classmethod
    def beside(cls, output: Path) -> Work:
        """The one that belongs to an output."""
        return cls(output.with_name(f".{output.name}.work"))

    @property
    def plan(self) -> dict[str, Any] | None:
        """What was settled when it was begun; None where nothing was, or nothing is left to go on from."""
        try:
            plan = json.loads((self.folder / "plan.json").read_text())
        except (OSError, ValueError):
            return None
        # Killed between handing the output over and tidying up; since then the output has been removed
        return None if self.done("written") and not self.prediction.exists() else plan

    def begin(self, plan: dict[str, Any], centres: Centres, picture: Rgb) -> None:
        """Start anew."""
        self.discard()
        self.folder.mkdir(parents=True)
        for name, array in (("centres.npy", centres), ("picture.npy", picture)):
            np.save(self.folder / name, array)
            sync_path(self.folder / name)
        self._replace("plan.json", plan)

    def discard(self) -> None:
        """Remove it; the plan first, since one whose tables are half gone must not be gone on with."""
        remove(self.folder / "plan.json")
        remove(self.folder)

    @property
    def centres(self) -> Centres:
        """(n, 2) tile centres."""
        return np.load(self.folder / "centres.npy", allow_pickle=False)

    @property
    def picture(self) -> Rgb:
        """(rows, columns, 3) the slide, small."""
        return np.load(self.folder / "picture.npy", allow_pickle=False)

    @property
    def prediction(self) -> Path:
        """The output as far as it has come."""
        return self.folder / "prediction.zarr"

    def rows(self, name: str, shape: tuple[int, int]) -> RowFile:
        """A table of numbers, n tiles × d."""
        return RowFile(self.folder / f"{name}.npy", shape)

    def done(self, stage: Stage) -> int:
        """Tiles for which a stage is complete."""
        return int(self._progress().get(stage, 0))

    def mark(self, stage: Stage, tiles: int) -> None:
        """Note that the first ``tiles`` tiles are complete, and on the disk."""
        self._replace("progress.json", {**self._progress(), stage: tiles})

    def _progress(self) -> dict[str, int]:
        try:
            return json.loads((self.folder / "progress.json").read_text())
        except FileNotFoundError:
            return {}

    def _replace(self, name: str, facts: dict[str, Any]) -> None:
        temporary = self.folder / f"{name}.partial"
        temporary.write_text(json.dumps(facts))
        sync_path(temporary)
        os.replace(temporary, self.folder / name)


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Keep other processes off an output.

    The lock is the system's, so it ends with the process, however that ends; its empty file stays.

    Raises
    ------
    OutputError
        Another process is at it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as busy:
        raise OutputError(f"{output} is being written by another process") from busy
    try:
        yield
    finally:
        lock.release()
