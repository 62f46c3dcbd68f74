"""The tissue between the nuclei: collagen, cytoplasm, fat, lumens, necrosis, glass."""

from __future__ import annotations

import cv2
import numpy as np

from hescribe.datasets.synthetic.block import Field, Tissue, smooth_noise
from hescribe.datasets.synthetic.cells import (
    ADIPOCYTE,
    ADIPOCYTE_RADIUS_UM,
    TUMOUR_CELL,
    Cells,
    keep_apart,
    rim_distance,
)
from hescribe.datasets.synthetic.image.fibres import fibre_texture
from hescribe.types import Mpp

_F = np.float32
_FINEST_UM = 1.1  #: half of the finest fibre


def ground(tissue: Tissue, cells: Cells, rng: np.random.Generator, *, mpp: Mpp, side_px: int) -> tuple[Field, Field]:
    """Haematoxylin and eosin of everything but nuclei, (side_px, side_px) float32 each.

    Drawn at half the resolution where the finest fibre still has two pixels there, then enlarged and grained.
    """
    shrink = 2 if 2 * mpp <= _FINEST_UM else 1
    small = -(-side_px // shrink)
    um = shrink * mpp
    layers = _Layers(tissue, small)
    h, e = _stroma(layers, rng, um)
    _tumour(layers, cells, rng, um=um, h=h, e=e)
    _lymphoid(layers, rng, h, e)
    _cores(layers, rng, um, h, e)
    _vessels(layers, rng, um, h, e)
    _fat(layers, cells, um=um, h=h, e=e)
    inside = layers.inside("outline", 420)
    inside *= 1 + _F(0.09) * rng.standard_normal((small, small), dtype=np.float32)
    return _enlarge(h * inside, side_px), _enlarge(e * inside, side_px)


def _enlarge(dye: Field, side_px: int) -> Field:
    grown = np.asarray(cv2.resize(dye, (side_px, side_px), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
    return np.maximum(grown, 0, out=grown)


class _Layers:
    """A section's fields, enlarged to the drawing's grid when asked for."""

    def __init__(self, tissue: Tissue, side: int) -> None:
        self.tissue = tissue
        self.side = side

    def field(self, name: str) -> Field:
        grown = cv2.resize(getattr(self.tissue, name), (self.side, self.side), interpolation=cv2.INTER_CUBIC)
        return np.asarray(grown, dtype=np.float32)

    def inside(self, name: str, steepness: float) -> Field:
        """1 inside the structure, 0 outside, a soft edge between."""
        return np.clip(self.field(name) * _F(steepness) + _F(0.5), 0, 1)


def _blotches(rng: np.random.Generator, side: int, sigma_px: float) -> Field:
    """Noise of mean 0 and variance about 1."""
    if sigma_px > 3:
        return smooth_noise(rng, side, sigma_px)
    noise = cv2.GaussianBlur(rng.standard_normal((side, side), dtype=np.float32), (0, 0), sigma_px)
    return np.asarray(noise * _F(1 / noise.std()), dtype=np.float32)


def _mix(dye: Field, other: Field | float, share: Field) -> None:
    """Lay ``other`` over ``dye`` in place."""
    dye += share * (other - dye)


def _stroma(layers: _Layers, rng: np.random.Generator, um: float) -> tuple[Field, Field]:
    """Wavy bundles of collagen with clefts; denser and pinker where fibroblasts are active."""
    direction = layers.tissue.direction
    doubled = [cv2.resize(f(2 * direction), (layers.side, layers.side)) for f in (np.cos, np.sin)]
    angle = _F(0.5) * np.arctan2(doubled[1], doubled[0])
    bundles = fibre_texture(rng, angle, width_px=5 / um, length_px=80 / um)
    fibres = fibre_texture(rng, angle, width_px=2.2 / um, length_px=40 / um)
    active = layers.field("activation")
    density = _F(0.33) + _F(0.26) * active
    e = density * (1 + _F(0.24) * bundles + _F(0.17) * fibres)
    # Loose stroma opens into clefts between the bundles
    cleft = np.clip((bundles + _F(0.6) * fibres + _F(0.75) + _F(1.3) * active) * _F(1.2), 0, 1)
    e *= _F(0.3) + _F(0.7) * cleft
    h = _F(0.05) + _F(0.02) * fibres
    return np.maximum(h, 0), np.maximum(e, _F(0.03))


def _tumour(layers: _Layers, cells: Cells, rng: np.random.Generator, *, um: float, h: Field, e: Field) -> None:
    """Granular, slightly blue cytoplasm with cell borders; the nest has come off the stroma here and there."""
    score = layers.field("tumour")
    loose = _blotches(rng, layers.side, 14 / um)
    cleft = np.exp(-np.square((score + _F(0.07)) / _F(0.045))) * np.clip(loose - _F(0.1), 0, 1)
    e *= 1 - _F(0.85) * cleft
    inside = np.clip(score * _F(16) + _F(0.5), 0, 1)
    grain = _blotches(rng, layers.side, 1.1 / um)
    program = layers.field("program")
    borders = _cell_borders(cells, layers.side, um)
    _mix(e, _F(0.34) + _F(0.045) * grain + _F(0.17) * borders, inside)
    _mix(h, _F(0.15) + _F(0.13) * program + _F(0.03) * grain - _F(0.05) * borders, inside)


def _cell_borders(cells: Cells, side: int, um: float) -> Field:
    """1 on the borders between tumour cells, as Voronoi edges of their nuclei."""
    xy = np.floor(cells.of(TUMOUR_CELL).xy_um / um).astype(int).clip(0, side - 1)
    if not len(xy):
        return np.zeros((side, side), dtype=np.float32)
    empty = np.ones((side, side), dtype=np.uint8)
    empty[xy[:, 1], xy[:, 0]] = 0
    labels = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    edge = np.zeros((side, side), dtype=np.float32)
    edge[:, 1:] += labels[:, 1:] != labels[:, :-1]
    edge[1:] += labels[1:] != labels[:-1]
    return np.minimum(cv2.GaussianBlur(edge, (0, 0), 0.7), 1)


def _lymphoid(layers: _Layers, rng: np.random.Generator, h: Field, e: Field) -> None:
    inside = layers.inside("lymphoid", 2.2)
    grain = _blotches(rng, layers.side, 1.5)
    _mix(e, _F(0.2) + _F(0.05) * grain, inside * _F(0.85))
    _mix(h, _F(0.13) + _F(0.02) * grain, inside)


def _cores(layers: _Layers, rng: np.random.Generator, um: float, h: Field, e: Field) -> None:
    """The middle of the nests: a gland's lumen with some secretion, or necrosis with nuclear dust."""
    if layers.tissue.core.max() <= 0:
        return
    score = layers.field("core")
    if not layers.tissue.core_is_necrosis:
        inside = np.clip(score * _F(14) + _F(0.5), 0, 1)
        rim = np.exp(-np.square((score + _F(0.03)) / _F(0.035)))
        e += _F(0.16) * rim
        secretion = np.asarray(_F(0.28) * np.clip(_blotches(rng, layers.side, 9 / um) - _F(0.7), 0, 1), np.float32)
        _mix(e, secretion, inside)
        _mix(h, 0.02, inside)
        return
    inside = np.clip(score * _F(5) + _F(0.5), 0, 1)
    debris = _blotches(rng, layers.side, 1.6 / um)
    lumps = _blotches(rng, layers.side, 7 / um)
    dust = np.clip(_blotches(rng, layers.side, 0.9 / um) - _F(2.15) + _F(0.25) * lumps, 0, 1)
    _mix(e, _F(0.62) + _F(0.13) * debris + _F(0.1) * lumps, inside)
    _mix(h, (_F(0.1) + _F(0.04) * debris + _F(1.6) * dust).astype(np.float32, copy=False), inside)


def _fat(layers: _Layers, cells: Cells, *, um: float, h: Field, e: Field) -> None:
    """Vacuoles that left empty, in thin pink rims."""
    adipocytes = cells.of(ADIPOCYTE).xy_um
    if not len(adipocytes):
        return
    coarse = -(-layers.side // 2)
    near = np.zeros((coarse, coarse), dtype=np.uint8)
    for x, y in np.rint(adipocytes / (2 * um)).astype(int).tolist():
        cv2.circle(near, (x, y), round(1.5 * ADIPOCYTE_RADIUS_UM / (2 * um)), 1, -1)
    rows, columns = np.nonzero(near)
    small = np.full((coarse, coarse), -20.0, dtype=np.float32)
    small[rows, columns] = rim_distance(
        (np.column_stack([columns, rows]) + 0.5).astype(np.float64) * 2 * um, adipocytes
    )
    depth = cv2.resize(small, (layers.side, layers.side), interpolation=cv2.INTER_CUBIC)
    vacuole = np.clip((depth - _F(0.7)) / _F(0.9), 0, 1)
    rim = np.exp(-np.square((depth + _F(0.1)) / _F(1.0)))
    inside = layers.inside("fat", 8)
    _mix(e, e * _F(0.75) + _F(0.12), inside)
    e += _F(0.22) * rim
    e *= 1 - vacuole
    h *= 1 - vacuole


def _vessels(layers: _Layers, rng: np.random.Generator, um: float, h: Field, e: Field) -> None:
    """A muscular wall, an empty lumen, some red cells in it."""
    score = layers.field("vessel")
    wall = np.exp(-np.square((score + _F(0.18)) / _F(0.14)))
    e += _F(0.2) * wall
    inside = np.clip(score * _F(9) + _F(0.5), 0, 1)
    filled = (_blotches(rng, layers.side, 40 / um) > -0.1).astype(np.float32)
    red = _red_cells(rng, inside * filled, um)
    _mix(e, _F(0.05) + _F(0.95) * red, inside)
    _mix(h, 0.0, inside)


def _red_cells(rng: np.random.Generator, lumen: Field, um: float) -> Field:
    """Discs of 6.5 µm, paler in the middle, crowded in the lumens."""
    rows, columns = np.nonzero((lumen > 0.95) & (rng.random(lumen.shape, dtype=np.float32) < 0.06 * um**2))
    centres = np.column_stack([rows, columns]).astype(np.float64)
    kept = centres[keep_apart(centres, np.full(len(centres), 2.7 / um), rng)].astype(int)
    empty = np.ones(lumen.shape, dtype=np.uint8)
    empty[kept[:, 0], kept[:, 1]] = 0
    if not len(kept):
        return np.zeros(lumen.shape, dtype=np.float32)
    distance = cv2.distanceTransform(empty, cv2.DIST_L2, 5) * _F(um)
    disc = np.clip((_F(3.1) - distance) / _F(0.8), 0, 1)
    return disc * (_F(0.72) + _F(0.28) * np.minimum(distance / _F(2.2), 1))
