"""What the page is told: places and trust of the tiles, the list of genes, and a gene's values on demand."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import anndata as ad
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd

from hescribe import keys
from hescribe.io.predictions.stored import StoredPrediction
from hescribe.plots.ground import find_ground, told_number
from hescribe.plots.style import EXPRESSION_COLOURS
from hescribe.report.viewer.pyramid import PICTURE_PX, Pyramid
from hescribe.types import Level0Px

_KEPT_BYTES = 256 * 2**20  #: of genes that were looked at
_LARGEST_RASTER = 2**25  #: cells of a grid that is drawn as one picture
_OFF_GRID = 0.02  #: of a step, by which a tile of a grid may be off
_TOLD = ("slide", "patient", "method", "encoder", "bundle", "version", "mpp", "tile_um", "stride_um", "unit", "source")


@dataclass(eq=False)
class Scene:
    """A prediction as the page reads it.

    Attributes
    ----------
    stored
        The prediction.
    pyramid
        Its slide; None where that is not at hand.
    notice
        Why there is no slide, for the page to say.
    """

    stored: StoredPrediction
    pyramid: Pyramid | None = None
    notice: str = ""
    _kept: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    @cached_property
    def facts(self) -> bytes:
        """Everything small, as JSON."""
        shape, side = self._tiles
        grid = find_grid(self.stored.centres, side) if shape == "square" else None
        width, height = self._size(side)
        told = self.stored.provenance
        facts = {
            "name": str(told.get("slide") or self.stored.path.stem),
            "about": [[k, str(told[k])] for k in _TOLD if k in told and str(told[k])],
            "remark": _remark(told),
            "notice": self.notice,
            "mpp": told_number(told.get("mpp")),
            "unit": str(told.get("unit", "")),
            "width": width,
            "height": height,
            "pictures": {"side": PICTURE_PX, "levels": self.pyramid.levels} if self.pyramid is not None else None,
            "tiles": {"count": len(self.stored.obs), "shape": shape, "side": side, "grid": grid},
            "genes": [str(g) for g in self.stored.var.index],
            "expected": _listed(self.stored.var, keys.EXPECTED_PCC),
            "interval": _listed(self.stored.var, keys.INTERVAL),
            "colours": np.asarray(mpl.colormaps[EXPRESSION_COLOURS](np.arange(256), bytes=True))[:, :3].tolist(),
        }
        return json.dumps(facts, allow_nan=False, separators=(",", ":")).encode()

    @cached_property
    def arrays(self) -> dict[str, bytes]:
        """By name, little-endian float32, a number (of places two) a tile."""
        columns = {name: _column(self.stored.obs, name) for name in (keys.NOVELTY, keys.INTERVAL_SCALE)}
        return {name: _coded(values) for name, values in {"places": self.stored.centres, **columns}.items()}

    def gene(self, number: int) -> Iterator[bytes]:
        """A gene's values, little-endian float32, in pieces as they are read."""
        with self._lock:
            known = self._kept.get(number)
            if known is not None:
                self._kept.move_to_end(number)
        if known is not None:
            yield known
            return
        pieces: list[bytes] = []
        for values in self.stored.gene_pieces(number):
            yield from pieces[-1:]
            pieces.append(_coded(values))
        with self._lock:
            self._kept[number] = b"".join(pieces)
            size = 4 * len(self.stored.obs)
            while len(self._kept) > max(1, _KEPT_BYTES // size):
                self._kept.popitem(last=False)
        yield from pieces[-1:]  # not before it is kept: who has it all may ask again at once

    @cached_property
    def _tiles(self) -> tuple[str, Level0Px]:
        """Shape and side of a tile as drawn: a grid's fill it, spots have their own size."""
        shell = ad.AnnData(obs=pd.DataFrame(index=self.stored.obs.index))
        shell.obsm[keys.SPATIAL] = self.stored.centres
        shell.uns.update({k: self.stored.uns[k] for k in (keys.SPATIAL, keys.PROVENANCE) if k in self.stored.uns})
        ground = find_ground(shell)
        return ground.shape, float(ground.diameter_px)

    def _size(self, side: Level0Px) -> tuple[int, int]:
        if self.pyramid is not None:
            return self.pyramid.slide.width, self.pyramid.slide.height
        width, height = np.ceil(self.stored.centres.max(axis=0) + side).astype(int).tolist()
        return width, height


def find_grid(centres: npt.NDArray[np.float64], step: Level0Px) -> dict[str, float] | None:
    """The grid on which all tiles lie, none upon another: centre of its first cell, step, columns and rows."""
    first = centres.min(axis=0)
    places = (centres - first) / step
    cells = np.rint(places).astype(np.int64)
    columns, rows = (cells.max(axis=0) + 1).tolist()
    off = float(np.abs(places - cells).max()) if len(cells) else 1.0
    if off > _OFF_GRID or columns * rows > _LARGEST_RASTER:
        return None
    if len(np.unique(cells[:, 1] * columns + cells[:, 0])) < len(cells):
        return None
    return {"x": float(first[0]), "y": float(first[1]), "step": float(step), "columns": columns, "rows": rows}


def _remark(told: dict[str, Any]) -> str:
    if told.get("seen_in_training"):
        return "This section was part of the training: its prediction looks better than one of a new section would."
    if told.get("patient_seen_in_training"):
        return "Other sections of this patient were part of the training."
    return ""


def _column(table: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    if name not in table:
        return np.full(len(table), np.nan)
    return table[name].to_numpy(dtype=np.float64)


def _listed(table: pd.DataFrame, name: str) -> list[float | None]:
    return [round(v, 4) if np.isfinite(v) else None for v in _column(table, name).tolist()]


def _coded(values: npt.NDArray[Any]) -> bytes:
    return np.ascontiguousarray(values, dtype="<f4").tobytes()
