"""A section as it looks under the microscope: ground tissue first, then every cell."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hescribe.datasets.synthetic.block import Field, Tissue
from hescribe.datasets.synthetic.cells import ADIPOCYTE, Cells
from hescribe.datasets.synthetic.image.ground import ground
from hescribe.datasets.synthetic.image.nuclei import Stamp, StampBook
from hescribe.datasets.synthetic.image.optics import photograph
from hescribe.datasets.synthetic.patients import Patient, vary_stain
from hescribe.types import Mpp, TileArray

_NUCLEUS_HIDES_EOSIN = 0.62


def render_section(tissue: Tissue, cells: Cells, patient: Patient, *, section: int, mpp: Mpp) -> TileArray:
    """The H&E picture of a section, (n, n, 3) uint8 RGB at ``mpp`` µm per pixel."""
    side = round(tissue.side_um / mpp)
    haematoxylin, eosin = ground(tissue, cells, patient.rng(5, section), mpp=mpp, side_px=side)
    book = _stamp_book(patient, mpp)
    rng = patient.rng(6, section)
    _stamp_all(haematoxylin, eosin, cells, book, rng, mpp=mpp)
    stain = vary_stain(patient.stain, rng)
    return photograph(haematoxylin, eosin, stain, rng, mpp=mpp)


@lru_cache(maxsize=8)
def _stamp_book(patient: Patient, mpp: Mpp) -> StampBook:
    return StampBook(patient.rng(3), pleomorphism=patient.subtype.pleomorphism, mpp=mpp)


def _stamp_all(
    haematoxylin: Field, eosin: Field, cells: Cells, book: StampBook, rng: np.random.Generator, *, mpp: Mpp
) -> None:
    drawn = cells[cells.kind != ADIPOCYTE]
    centres = np.floor(drawn.xy_um / mpp).astype(int)
    chances = rng.random(len(drawn))
    # Some lie above or below the focus and are paler
    focus = np.clip(rng.normal(1.0, 0.09, len(drawn)), 0.7, 1.2).astype(np.float32)
    for (x, y), kind, program, angle, chance, strength in zip(
        centres, drawn.kind, drawn.program, drawn.angle, chances, focus, strict=True
    ):
        stamp = book.pick(int(kind), float(program), float(angle), float(chance))
        _press(haematoxylin, eosin, stamp, (int(x), int(y)), strength)


def _press(haematoxylin: Field, eosin: Field, stamp: Stamp, centre: tuple[int, int], strength: np.float32) -> None:
    reach = stamp.cover.shape[0] // 2
    left, top = centre[0] - reach, centre[1] - reach
    rows = slice(max(top, 0), max(min(top + 2 * reach + 1, haematoxylin.shape[0]), 0))
    columns = slice(max(left, 0), max(min(left + 2 * reach + 1, haematoxylin.shape[1]), 0))
    part = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    h, e, cover = haematoxylin[rows, columns], eosin[rows, columns], stamp.cover[part]
    if stamp.cytoplasm_h is not None and stamp.cytoplasm_e is not None:
        h += stamp.cytoplasm_h[part]
        np.maximum(e, e * np.float32(0.4) + stamp.cytoplasm_e[part] * np.float32(1.4), out=e)
    h *= 1 - cover
    h += stamp.haematoxylin[part] * strength
    e *= 1 - np.float32(_NUCLEUS_HIDES_EOSIN) * cover
