"""Nuclei as stamps: small pictures of how much haematoxylin and eosin a cell of each type takes up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from hescribe.datasets.synthetic.block import Field
from hescribe.datasets.synthetic.cells import (
    ADIPOCYTE,
    B_CELL,
    ENDOTHELIAL,
    FIBROBLAST,
    MACROPHAGE,
    PLASMA,
    T_CELL,
    TUMOUR_CELL,
)
from hescribe.types import Microns, Mpp


@dataclass(frozen=True)
class Style:
    """How the nuclei of a type look.

    Attributes
    ----------
    length_um, width_um
        Mean axes.
    spread
        Relative standard deviation of the size.
    irregular
        Amplitude of the outline's waves, relative to the radius.
    dark
        Mean optical density of the chromatin in units of haematoxylin.
    clumps
        How coarse the chromatin is, 0 to 1.
    rim
        How much darker the nuclear membrane is.
    nucleoli
        Mean number of them.
    cytoplasm_um
        Radius of a visible cytoplasm; 0 where the tissue around draws it.
    cytoplasm
        Its haematoxylin and eosin.
    """

    length_um: Microns
    width_um: Microns
    spread: float
    irregular: float
    dark: float
    clumps: float
    rim: float
    nucleoli: float = 0.0
    cytoplasm_um: Microns = 0.0
    cytoplasm: tuple[float, float] = (0.0, 0.0)


STYLES: dict[int, Style] = {
    TUMOUR_CELL: Style(9.6, 7.6, 0.10, 0.05, 0.86, 0.5, 0.45, nucleoli=1.3),
    FIBROBLAST: Style(14.5, 2.5, 0.24, 0.08, 1.12, 0.25, 0.15),
    T_CELL: Style(6.3, 5.8, 0.07, 0.03, 1.45, 0.5, 0.15),
    B_CELL: Style(7.0, 6.6, 0.07, 0.03, 1.22, 0.55, 0.2),
    PLASMA: Style(6.8, 6.2, 0.07, 0.03, 1.3, 0.75, 0.35, cytoplasm_um=5.6, cytoplasm=(0.2, 0.26)),
    MACROPHAGE: Style(9.0, 6.0, 0.12, 0.12, 0.62, 0.35, 0.3, 0.4, cytoplasm_um=7.0, cytoplasm=(0.03, 0.16)),
    ENDOTHELIAL: Style(11.0, 2.7, 0.15, 0.04, 1.15, 0.25, 0.1),
    ADIPOCYTE: Style(8.0, 1.9, 0.12, 0.03, 1.1, 0.1, 0.1),
}

N_ANGLES = 24  #: of spindles, over half a turn
N_PROGRAMS = 4  #: steps of the program that can be seen
_VARIANTS = {TUMOUR_CELL: 28, FIBROBLAST: 3, ENDOTHELIAL: 2, ADIPOCYTE: 2}
_SPINDLES = {FIBROBLAST, ENDOTHELIAL, ADIPOCYTE}
_CYTOPLASM_EDGE = 0.35


@dataclass(frozen=True)
class Stamp:
    """A cell's picture, square, odd side.

    Attributes
    ----------
    cover
        How far the nucleus hides what lies beneath, 0 to 1.
    haematoxylin
        What the nucleus adds.
    cytoplasm_h, cytoplasm_e
        What the cytoplasm adds; None where the tissue around draws it.
    """

    cover: Field
    haematoxylin: Field
    cytoplasm_h: Field | None
    cytoplasm_e: Field | None


class StampBook:
    """All stamps of a patient.

    Parameters
    ----------
    pleomorphism
        Of the tumour, see `Subtype`.
    mpp
        µm per pixel.
    """

    def __init__(self, rng: np.random.Generator, *, pleomorphism: float, mpp: Mpp) -> None:
        self._stamps: dict[tuple[int, int, int], list[Stamp]] = {}
        for kind, style in STYLES.items():
            steps = N_PROGRAMS if kind in {TUMOUR_CELL, FIBROBLAST} else 1
            for step in range(steps):
                shown = _show_program(style, kind, (step + 0.5) / steps if steps > 1 else 0.5, pleomorphism)
                for angle in range(N_ANGLES if kind in _SPINDLES else 1):
                    turn = np.pi * angle / N_ANGLES if kind in _SPINDLES else None
                    number = _VARIANTS.get(kind, 20)
                    self._stamps[kind, step, angle] = [draw_stamp(rng, shown, turn, mpp=mpp) for _ in range(number)]
        self._mitoses = [draw_mitosis(rng, mpp=mpp) for _ in range(12)]

    def pick(self, kind: int, program: float, angle: float, chance: float) -> Stamp:
        """A stamp for a cell; ``chance`` in [0, 1) chooses among those that fit."""
        steps = N_PROGRAMS if kind in {TUMOUR_CELL, FIBROBLAST} else 1
        if kind == TUMOUR_CELL and chance < 0.022 * max(0.0, program - 0.35):
            return self._mitoses[int(chance * 7919) % len(self._mitoses)]
        step = min(int(program * steps), steps - 1)
        turn = round(angle / np.pi * N_ANGLES) % N_ANGLES if kind in _SPINDLES else 0
        stamps = self._stamps[kind, step, turn]
        return stamps[int(chance * len(stamps))]


def _show_program(style: Style, kind: int, program: float, pleomorphism: float) -> Style:
    """What can be seen of it: growing tumour nuclei are larger, darker and coarser, active fibroblasts plumper."""
    up = program - 0.5
    if kind == TUMOUR_CELL:
        size = (1 + 0.26 * up) * (0.92 + 0.3 * pleomorphism)
        return replace(
            style,
            length_um=style.length_um * size,
            width_um=style.width_um * size,
            spread=0.06 + 0.17 * pleomorphism,
            irregular=0.04 + 0.07 * pleomorphism,
            dark=style.dark * (1 + 0.6 * up) * (1 - 0.1 * pleomorphism),
            clumps=style.clumps + 0.5 * up + 0.2 * pleomorphism,
            nucleoli=style.nucleoli * (0.5 + program) * (0.5 + pleomorphism),
        )
    if kind == FIBROBLAST:
        return replace(style, width_um=style.width_um * (1 + 0.7 * up), dark=style.dark * (1 - 0.35 * up))
    return style


def draw_stamp(rng: np.random.Generator, style: Style, angle: float | None, *, mpp: Mpp) -> Stamp:
    """One nucleus: an ellipse with a wavy outline, a membrane, clumped chromatin and nucleoli."""
    half_length, half_width = _axes(rng, style, mpp)
    reach = int(np.ceil(max(half_length * 1.2, style.cytoplasm_um / mpp))) + 2
    x = np.arange(-reach, reach + 1, dtype=np.float32)[None]
    y = x.T
    turn = rng.uniform(0, np.pi) if angle is None else angle
    along, across = np.cos(turn) * x + np.sin(turn) * y, -np.sin(turn) * x + np.cos(turn) * y
    if angle is not None:  # spindles are bent a little
        across = across + rng.normal(0, 0.12) * half_width * np.square(along / half_length) * 2
    depth = _depth(rng, along / half_length, across / half_width, style.irregular) * min(half_length, half_width)
    cover = np.clip(depth + 0.5, 0, 1)
    chromatin = _chromatin(rng, depth, style, mpp) * style.dark * np.exp(rng.normal(0, 0.09))
    if style.nucleoli:
        chromatin += _nucleoli(rng, x, y, style, reach=0.5 * half_width, mpp=mpp)
    cytoplasm = (None, None) if not style.cytoplasm_um else _cytoplasm(rng, x, y, style, mpp)
    return Stamp(cover.astype(np.float32), (cover * chromatin).astype(np.float32), *cytoplasm)


def _axes(rng: np.random.Generator, style: Style, mpp: Mpp) -> tuple[float, float]:
    size = np.exp(rng.normal(0, style.spread))
    stretch = np.exp(rng.normal(0, 0.5 * style.spread + 0.03))
    return style.length_um / 2 / mpp * size * stretch, style.width_um / 2 / mpp * size / stretch


def _depth(rng: np.random.Generator, u: Field, v: Field, irregular: float) -> Field:
    """Distance inside the outline in units of the smaller axis; negative outside."""
    radius, phi = np.hypot(u, v), np.arctan2(v, u)
    outline = np.ones_like(radius)
    for k in range(2, 6):
        outline += irregular * rng.normal() / (k - 1) ** 1.3 * np.cos(k * phi + rng.uniform(0, 2 * np.pi))
    return np.asarray(outline - radius)


def _chromatin(rng: np.random.Generator, depth: Field, style: Style, mpp: Mpp) -> Field:
    """Relative density, about 1: coarse clumps, a dark membrane and a paler inside."""
    noise = rng.standard_normal(depth.shape).astype(np.float32)
    clumps = cv2.GaussianBlur(noise, (0, 0), (0.55 + 0.35 * style.clumps) / mpp)
    clumps = np.asarray(clumps / (clumps.std() + 1e-6), dtype=np.float32)
    membrane = np.exp(-np.square((depth - 0.5 / mpp) / (0.55 / mpp)))
    return np.asarray(np.clip(1 + 0.42 * style.clumps * clumps + style.rim * membrane - 0.12 * style.rim, 0.25, 2.2))


def _nucleoli(rng: np.random.Generator, x: Field, y: Field, style: Style, *, reach: float, mpp: Mpp) -> Field:
    out = np.zeros((x.size, x.size), dtype=np.float32)
    for _ in range(rng.poisson(style.nucleoli)):
        cx, cy = rng.uniform(-reach, reach, 2)
        size = rng.uniform(0.55, 1.0) / mpp
        out += 0.95 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * (0.7 * size) ** 2))
    return out


def _cytoplasm(rng: np.random.Generator, x: Field, y: Field, style: Style, mpp: Mpp) -> tuple[Field, Field]:
    """An eccentric blob: the nucleus of a plasma cell or a macrophage lies at one side."""
    radius = style.cytoplasm_um / mpp
    side = rng.uniform(0, 2 * np.pi)
    shift = 0.3 * radius
    distance = np.hypot(x - shift * np.cos(side), (y - shift * np.sin(side)) * rng.uniform(1.0, 1.3))
    body = np.clip((0.85 * radius - distance) * _CYTOPLASM_EDGE + 0.5, 0, 1).astype(np.float32)
    return body * np.float32(style.cytoplasm[0]), body * np.float32(style.cytoplasm[1])


def draw_mitosis(rng: np.random.Generator, *, mpp: Mpp) -> Stamp:
    """A metaphase plate or two anaphase plates in a cleared cell."""
    reach = int(np.ceil(7.5 / mpp))
    x = np.arange(-reach, reach + 1, dtype=np.float32)[None]
    y = x.T
    turn = rng.uniform(0, np.pi)
    along, across = np.cos(turn) * x + np.sin(turn) * y, -np.sin(turn) * x + np.cos(turn) * y
    apart = rng.choice([0.0, 2.6]) / mpp
    plate = np.full((x.size, x.size), -9.0, dtype=np.float32)
    for side in (-1, 1):
        plate = np.maximum(plate, _depth(rng, along / (4.2 / mpp), (across - side * apart) / (1.7 / mpp), 0.16))
    chromatin = np.clip(plate * 1.5 / mpp + 0.5, 0, 1) * 1.75
    cleared = np.clip((5.6 / mpp - np.hypot(x, y)) * 0.3, 0, 1)
    return Stamp((0.75 * cleared).astype(np.float32), (chromatin + 0.06 * cleared).astype(np.float32), None, None)
