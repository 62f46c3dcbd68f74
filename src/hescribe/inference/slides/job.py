"""One slide on its way to a prediction: what was asked for, what was begun, what is there."""

from __future__ import annotations

import glob
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from hescribe import keys
from hescribe.encoders.context import places_beside
from hescribe.encoders.engines.openvino import openvino_name
from hescribe.errors import InputError, OutputError
from hescribe.inference.bundle import Bundle
from hescribe.inference.predict import PICTURE_PX, describe_origin, trusted_genes
from hescribe.inference.slides.expression import Beside, describe_slide, express_slide
from hescribe.inference.slides.features import encode_slide
from hescribe.inference.slides.plan import (
    BATCH,
    FORMAT,
    TORCH,
    SlideOptions,
    Stamp,
    Work,
    find_difference,
    hash_names,
    read_finished,
)
from hescribe.inference.slides.prepared import PreparedEncoder, lacks_bf16
from hescribe.io.predictions.stored import open_prediction
from hescribe.io.rows import GrowingTable
from hescribe.io.schema import add_picture
from hescribe.io.store import check_free, publish, remove
from hescribe.slides.blocks.cells import Cells, open_cells
from hescribe.slides.blocks.sweep import Sweep
from hescribe.slides.grid import lay_grid, reading_order, stride_px
from hescribe.slides.reader import open_slide, resolve_mpp
from hescribe.slides.slide import Slide, shrunk
from hescribe.slides.tiles import SlideTiles, place_tiles
from hescribe.slides.tissue import find_tissue
from hescribe.types import Centres, Mpp

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlideJob:
    """One slide on its way.

    Attributes
    ----------
    bundle, path, output, options, devices
        As given.
    slide, mpp
        The open slide, and its scale.
    genes
        Which are written.
    stamp
        Of the slide's file.
    encoder
        The bundle's, with what was prepared for other slides.
    source
        Where the file was copied from.
    """

    bundle: Bundle
    path: Path
    output: Path
    options: SlideOptions
    devices: tuple[str, ...]
    slide: Slide
    mpp: Mpp
    genes: list[str]
    stamp: Stamp
    encoder: PreparedEncoder
    source: str

    @classmethod
    def prepare(
        cls,
        bundle: Bundle,
        path: Path,
        output: Path,
        options: SlideOptions,
        *,
        devices: tuple[str, ...],
        encoder: PreparedEncoder,
        source: str,
    ) -> SlideJob:
        """Open the slide and find out what its prediction depends on."""
        bundle = bundle.with_views(options.views)
        known = bool(options.patient) and bundle.knows_patient(options.patient)
        genes = trusted_genes(bundle, options.min_pcc, known_patient=known)
        slide = open_slide(path)
        mpp = resolve_mpp(
            metadata=slide.mpp, option=options.mpp, tag=slide.tag_mpp, refused=slide.refused_mpp, path=path
        )
        there = (read_finished(output) if output.exists() else None) or Work.beside(output).plan or {}
        earlier = Stamp(**there["stamp"]) if "stamp" in there else None
        try:
            stamp = Stamp.of(path, earlier)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror or error})", path=path) from error
        return cls(bundle, path, output, options, devices, slide, mpp, genes, stamp, encoder, source)

    @property
    def known_patient(self) -> bool:
        """Whether the patient named is one of the bundle's training sections."""
        return bool(self.options.patient) and self.bundle.knows_patient(self.options.patient)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything the numbers depend on that is known beforehand."""
        facts = {
            "format": FORMAT,
            "bundle": self.bundle.hash,
            "content": self.stamp.content,
            "mpp": float(self.mpp),
            "stride_um": float(self.options.stride_um or self.bundle.extraction.tile_um),
            "genes": hash_names(self.genes),
            "dtype": self.options.dtype,
            "patient": self.options.patient,
            "known_patient": self.known_patient,
            "views": self.bundle.extraction.views,
        }
        if self.options.precision != "auto":  # whatever was settled is right where none is asked for
            facts["precision"] = self.options.precision
        if self.options.engine != "auto":
            facts["engine"] = TORCH if self.options.engine == TORCH else openvino_name()
        return facts

    def run(self, *, overwrite: bool) -> Path:
        """Predict, or go on where it stopped, or do nothing where it is done."""
        work = Work.beside(self.output)
        if overwrite:
            check_free(self.output, overwrite=True, like="zarr.json")
        if self.output.exists() and not overwrite:
            self._check_finished()
            self._tidy(work)
            return self.output
        began = time.perf_counter()
        cells = open_cells(self.slide)
        try:
            plan = self._resume(work, overwrite=overwrite) or self._begin(work, cells)
            tiles = self._predict(work, cells, plan)
            self._check_unchanged()
        except InputError as error:
            if not isinstance(error.__cause__, OSError):  # nothing can be made of a slide that is damaged
                work.discard()
            raise
        publish(work.prediction, self.output)
        self._tidy(work)
        seconds = time.perf_counter() - began
        logger.info(
            f"{self.path.name}: {tiles:,} tiles × {len(self.genes):,} genes in {seconds:.0f} s "
            f"({tiles / seconds:.0f} tiles/s, {plan['precision']}, {plan['engine']}) → {self.output}"
        )
        return self.output

    def _check_unchanged(self) -> None:
        """Refuse tiles of two slides under the name of one: the file was written over while it was read."""
        try:
            now = Stamp.of(self.path, self.stamp)
        except OSError:  # gone since; what was read was whole, since the file was held open
            return
        if now.content != self.stamp.content:
            raise InputError("the slide has changed while it was read", path=self.path, fix="run it again")

    def _tidy(self, work: Work) -> None:
        """Remove what is of no use beside a finished output, also what a run left that was killed at its very end."""
        work.discard()
        for old in self.output.parent.glob(f".{glob.escape(self.output.name)}.*.old"):
            remove(old)

    def _check_finished(self) -> None:
        finished = read_finished(self.output)
        if finished is None:
            raise OutputError(f"{self.output} is no prediction of a slide (choose another output or pass --overwrite)")
        open_prediction(self.output)  # refused where files of it were lost
        if difference := find_difference(self.facts, {"engine": TORCH, **finished}):
            raise OutputError(
                f"{self.output} holds a prediction of {difference} (choose another output or pass --overwrite)"
            )
        logger.info(f"{self.path.name}: finished before → {self.output}")

    def _resume(self, work: Work, *, overwrite: bool) -> dict[str, Any] | None:
        """The plan of what was begun, if it is this."""
        plan = work.plan
        if plan is None:
            return None
        plan = {**plan, "engine": plan.get("engine", TORCH)}  # in its order: the output holds the plan
        here = {"device": torch.device(self.devices[0]).type}
        if plan["engine"] != TORCH:
            here["engine"] = openvino_name()  # another version may round otherwise
        difference = find_difference({**self.facts, **here}, plan)
        if difference and overwrite:
            return None
        if difference:
            raise OutputError(
                f"{self.output}: a prediction of {difference} was begun there "
                "(choose another output or pass --overwrite)"
            )
        measured = (self.options.precision, plan["precision"]) == ("auto", "bf16")
        if measured and lacks_bf16(self.devices[0], plan["engine"]):
            logger.info(f"{self.path.name}: begun in bf16, which this processor does not have: begun anew")
            return None
        return plan

    def _begin(self, work: Work, cells: Cells) -> dict[str, Any]:
        tissue = find_tissue(self.slide, mpp=self.mpp, read=cells.read_region)
        size = {"width": self.slide.width, "height": self.slide.height}
        centres = lay_grid(tissue, mpp=self.mpp, stride_um=self.facts["stride_um"], **size)
        if not len(centres):
            raise InputError("no tissue found that a tile would fit on", path=self.path, fix="try a finer --stride-um")
        centres = self._in_reading_order(cells, centres)
        kind = torch.device(self.devices[0]).type
        how = {**self._settle(self._sweep(cells, centres)), "batch": BATCH, "device": kind}
        plan = {**self.facts, **how, "stamp": asdict(self.stamp)}
        picture = tissue.picture
        if max(picture.shape) < PICTURE_PX:
            picture = self.slide.thumbnail(PICTURE_PX, read=cells.read_region)
        work.begin(plan, centres, shrunk(picture, PICTURE_PX))
        return plan

    def _settle(self, sweep: Sweep) -> dict[str, str]:
        """Precision and engine of the encoder."""
        options, views = self.options, self.bundle.extraction.views
        precision, engine = self.encoder.settle(
            options.precision, options.engine, sweep, views=views, device=self.devices[0]
        )
        return {"precision": precision, "engine": engine}

    def _sweep(self, cells: Cells, centres: Centres, scales: Sequence[float] | None = None) -> Sweep:
        how, size_px = self.bundle.extraction, self.bundle.encoder.input_px
        placements = [
            place_tiles(self.slide.downsamples, centres, side_px=how.tile_um * scale / self.mpp, size_px=size_px)
            for scale in scales or how.context.scales
        ]
        return Sweep(cells, placements, size_px)

    def _predict(self, work: Work, cells: Cells, plan: dict[str, Any]) -> int:
        centres, bundle = work.centres, self.bundle
        how = bundle.extraction
        encode = partial(
            encode_slide,
            work,
            prepared=self.encoder,
            views=how.views,
            precision=plan["precision"],
            devices=self.devices,
            engine=plan["engine"],
        )
        features = encode(sweep=self._sweep(cells, centres))
        beside = None
        if how.context.grid:
            further, which = self._places_beside(cells, centres)
            sweep = self._sweep(cells, further, (1.0,))
            beside = Beside(encode(sweep=sweep, stage="beside")[0] if len(further) else None, which)
        stride_um = stride_px(plan["stride_um"], self.mpp) * self.mpp  # as the grid was laid
        grid: dict[str, Any] = {"centres": centres, "mpp": self.mpp, "stride_um": stride_um}
        described = describe_slide(work, features, beside, how.context, **grid)
        head = bundle.predictor(device=self.devices[0], use_cache=False, patient=self.options.patient).head
        # For heads that look at the tiles once more
        tiles = SlideTiles(self.path, centres, mpp=self.mpp, slide_id=self.path.stem)
        table = express_slide(work, described, head, tiles, bundle=bundle, genes=self.genes, dtype=self.options.dtype)
        self._finish(work, table, centres, plan)
        return len(centres)

    def _places_beside(self, cells: Cells, centres: Centres) -> tuple[Centres, npt.NDArray[np.intp]]:
        """Where tiles beside the slide's own lie that are none of them, and (n, grid² − 1) rows of own and further."""
        how = self.bundle.extraction
        places, which = places_beside(centres, how.tile_um / self.mpp, how.context.grid)
        row = {(x, y): i for i, (x, y) in enumerate(centres.tolist())}
        own = np.array([row.get((x, y), -1) for x, y in places.tolist()], dtype=np.intp)
        further = self._in_reading_order(cells, places[own < 0])
        row = {(x, y): i for i, (x, y) in enumerate(further.tolist(), start=len(centres))}
        rows = np.array(
            [i if i >= 0 else row[x, y] for i, (x, y) in zip(own, places.tolist(), strict=True)], dtype=np.intp
        )
        return further, rows[which]

    def _in_reading_order(self, cells: Cells, centres: Centres) -> Centres:
        level = self._sweep(cells, centres).placements[0].level
        width, height = cells.size(level)
        scale = self.slide.downsamples[level]
        return reading_order(centres, (width * scale, height * scale))

    def _finish(self, work: Work, table: GrowingTable, centres: Centres, plan: dict[str, Any]) -> None:
        n = len(centres)
        novelty = work.rows("novelty", (n, 1)).read(0, n)[:, 0]
        scale = self.bundle.interval_scale(novelty, known_patient=self.known_patient)
        obs = pd.DataFrame(
            {keys.NOVELTY: novelty, keys.INTERVAL_SCALE: scale}, index=pd.Index([f"tile_{i}" for i in range(n)])
        )
        origin = describe_origin(
            self.bundle,
            slide=self.path.stem,
            patient=self.options.patient,
            image=self.path,
            mpp=self.mpp,
        )
        origin |= {k: plan[k] for k in ("stride_um", "precision", "engine", "batch", "device")}
        if self.source:
            origin["source"] = self.source
        origin |= {"slide_hash": self.stamp.content, "plan": json.dumps(plan)}
        var = self.bundle.var(known_patient=self.known_patient).loc[self.genes]
        obsm: dict[str, Any] = {keys.SPATIAL: centres}
        reference = self.bundle.reference
        if reference is not None and reference.cell_types is not None:
            names = reference.cell_types.columns
            types = work.rows("cell_types", (n, len(names))).read(0, n).astype(np.float64)
            obsm[keys.CELL_TYPES] = pd.DataFrame(types, index=obs.index, columns=names)
        library: dict[str, Any] = {"scalefactors": {keys.SPOT_DIAMETER: stride_px(plan["stride_um"], self.mpp)}}
        add_picture(library, work.picture, self.slide.width / work.picture.shape[1], name="lowres")
        uns = {keys.PROVENANCE: origin, keys.SPATIAL: {self.path.stem: library}}
        table.finish(obs=obs, var=var, obsm=obsm, uns=uns)
