"""Where which tissue is: smooth random fields of a patient's block, cut at a height and laid on glass."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from hescribe.datasets.synthetic.patients import Patient
from hescribe.types import Centres, Microns

Field = npt.NDArray[np.float32]  #: (rows, columns) on the grid of GRID_UM

REGIONS = ("background", "stroma", "tumour", "lymphoid", "fat", "necrosis")
BACKGROUND, STROMA, TUMOUR, LYMPHOID, FAT, NECROSIS = range(len(REGIONS))

GRID_UM = 4.0  #: grid of the fields; they are smooth over at least 17 µm
_MARGIN_UM = 160.0  #: of the block around the image, so that a shifted section still has tissue
_DECAY_UM = 130.0  #: height over which the tissue changes: two sections at Δz correlate by cos(Δz / decay)


@dataclass(frozen=True)
class Tissue:
    """One section's fields, (n, n) float32 each on a grid of `GRID_UM`; a structure is where its score is above 0.

    Attributes
    ----------
    outline, tumour, lymphoid, fat, vessel, core
        Scores of the structures; ``core`` is the middle of a nest (lumen or necrosis).
    program
        Tumour's proliferation and hypoxia, in [0, 1].
    activation
        Fibroblasts' activation, in [0, 1].
    inflammation
        Factor on scattered immune cells, about 1.
    direction
        Angle of the collagen, radians.
    core_is_necrosis
        Otherwise it is a gland's lumen.
    """

    outline: Field
    tumour: Field
    lymphoid: Field
    fat: Field
    vessel: Field
    core: Field
    program: Field
    activation: Field
    inflammation: Field
    direction: Field
    core_is_necrosis: bool

    @property
    def side_um(self) -> Microns:
        """Side of the square section."""
        return self.outline.shape[0] * GRID_UM

    def regions(self) -> npt.NDArray[np.uint8]:
        """Index into `REGIONS` at each grid point, (n, n)."""
        labels = np.full(self.outline.shape, STROMA, dtype=np.uint8)
        labels[self.fat > 0] = FAT
        labels[self.lymphoid > 0] = LYMPHOID
        labels[self.tumour > 0] = TUMOUR
        if self.core_is_necrosis:
            labels[self.core > 0] = NECROSIS
        labels[self.outline <= 0] = BACKGROUND
        return labels


def sample(field: Field, xy_um: Centres) -> Field:
    """A field's values at points (n, 2) in µm, bilinear; (n,)."""
    points = np.asarray(np.asarray(xy_um) / GRID_UM - 0.5, dtype=np.float32).reshape(-1, 1, 2)
    out = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), 30_000):  # OpenCV's maps end at 32,767 rows
        part = points[start : start + 30_000]
        values = cv2.remap(field, part[..., 0], part[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        out[start : start + len(part)] = values[:, 0]
    return out


def smooth_noise(rng: np.random.Generator, side_px: int, length_px: float) -> Field:
    """Gaussian field of mean 0, variance about 1 and correlation length ``length_px``, (side_px, side_px)."""
    step = max(length_px / 2, 1.0)
    coarse = int(np.ceil(side_px / step)) + 10
    noise = cv2.GaussianBlur(rng.standard_normal((coarse, coarse)).astype(np.float32), (0, 0), length_px / step)
    noise = np.asarray(noise / noise.std(), dtype=np.float32)
    fine = cv2.resize(noise, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC) if step > 1 else noise
    start = (fine.shape[0] - side_px) // 2
    return np.ascontiguousarray(fine[start : start + side_px, start : start + side_px], dtype=np.float32)


def cut_section(patient: Patient, z_um: Microns, side_um: Microns, *, section: int) -> Tissue:
    """The patient's block at height ``z_um``, deformed as sections are on the glass.

    Every field is cos(z/d) A + sin(z/d) B of two fixed fields, so it keeps its distribution at all heights and
    neighbouring heights are alike.
    """
    side = round(side_um / GRID_UM)
    block = _block(patient, z_um, side + 2 * round(_MARGIN_UM / GRID_UM))
    warp = _deformation(patient.rng(2, section), side, block["tumour"].shape[0])
    fields = {
        name: np.asarray(cv2.remap(f, *warp, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT), dtype=np.float32)
        for name, f in block.items()
    }
    fields["direction"] = _fibre_direction(fields)
    return Tissue(**fields, core_is_necrosis=patient.subtype.core == "necrosis")


_LENGTHS_UM = {  #: correlation lengths of the independent fields; the tumour's is its subtype's
    "tumour": None,
    "nests": 26.0,
    "lymphoid": 62.0,
    "fat": 150.0,
    "vessel": 17.0,
    "program": 150.0,
    "activation": 120.0,
    "inflammation": 130.0,
    "outline": 130.0,
    "direction": 190.0,
    "wave": 30.0,
}


def _block(patient: Patient, z_um: Microns, side: int) -> dict[str, Field]:
    """Scores at a height; thresholds come from height 0, so that they are the same at all heights."""
    here: dict[str, Field] = {}
    at_zero: dict[str, Field] = {}
    angle = z_um / _DECAY_UM
    for i, (name, length) in enumerate(_LENGTHS_UM.items()):
        rng = patient.rng(1, i)
        px = (length or patient.subtype.nest_um) / GRID_UM
        a, b = smooth_noise(rng, side, px), smooth_noise(rng, side, px)
        here[name] = np.float32(np.cos(angle)) * a + np.float32(np.sin(angle)) * b
        at_zero[name] = a
    for noise in (here, at_zero):
        noise["tumour"] = noise["tumour"] + np.float32(0.42) * noise["nests"]
    inside = _outline(at_zero) > 0

    def score(name: str, share: float) -> Field:
        """Zero where ``share`` of the tissue at height 0 lies above."""
        return (here[name] - np.quantile(at_zero[name][inside], 1 - share)).astype(np.float32)

    tumour, lymphoid, fat, vessel = patient.subtype.composition
    scores = {
        "tumour": score("tumour", tumour),
        "core": score("tumour", tumour * patient.subtype.core_share),
        "lymphoid": score("lymphoid", lymphoid / (1 - tumour)),
        "fat": score("fat", 1.25 * fat / (1 - tumour)),  # some of it is lost to the tumour's rim
        "vessel": score("vessel", vessel),
    }
    return _kept_apart(scores, _outline(here)) | _states(here)


def _kept_apart(scores: dict[str, Field], outline: Field) -> dict[str, Field]:
    """Fat keeps a rim of stroma from the tumour, aggregates from both; vessels run in stroma."""
    tumour = scores["tumour"]
    scores["fat"] = np.minimum(scores["fat"], -0.3 - tumour)
    scores["lymphoid"] = np.minimum(scores["lymphoid"], -0.08 - tumour)
    # 0.6: the wall of a vessel reaches down to that score, and must not be drawn along anything else's edge
    for steep, other in ((2, tumour), (3, scores["lymphoid"]), (4, scores["fat"]), (20, -outline)):
        scores["vessel"] = np.minimum(scores["vessel"], -0.6 - steep * other)
    return scores | {"outline": outline}


def _states(noise: dict[str, Field]) -> dict[str, Field]:
    return {
        "program": _squash(noise["program"] + np.float32(0.4) * noise["nests"]),
        "activation": _squash(noise["activation"]),
        "inflammation": np.exp(np.float32(0.8) * noise["inflammation"]),
        "direction": np.float32(1.1) * noise["direction"] + np.float32(0.22) * noise["wave"],
    }


def _squash(noise: Field) -> Field:
    """To (0, 1), nearly even."""
    return np.asarray(1 / (1 + np.exp(np.float32(-1.7) * noise)))


def _outline(noise: dict[str, Field]) -> Field:
    """Score of the piece of tissue: a rounded square with an uneven edge."""
    side = len(noise["outline"])
    axis = np.linspace(-1, 1, side, dtype=np.float32) * np.float32(side / (side - 2 * _MARGIN_UM / GRID_UM))
    radius = (np.abs(axis[None]) ** 3.2 + np.abs(axis[:, None]) ** 3.2) ** (1 / 3.2)
    return (0.87 - radius + 0.065 * noise["outline"] + 0.007 * noise["nests"] + 0.005 * noise["vessel"]).astype(
        np.float32
    )


def _deformation(rng: np.random.Generator, side: int, block_side: int) -> tuple[Field, Field]:
    """Maps (x, y) for `cv2.remap`: a turn of up to 4°, a shift of up to 30 µm, and a smooth stretch."""
    angle = rng.uniform(-1, 1) * np.deg2rad(4)
    shift = rng.uniform(-1, 1, 2) * 30 / GRID_UM
    centred = np.arange(side, dtype=np.float32) - side / 2
    x, y = np.meshgrid(centred, centred)
    stretch = [smooth_noise(rng, side, 200 / GRID_UM) * np.float32(6 / GRID_UM) for _ in range(2)]
    map_x = np.cos(angle) * x - np.sin(angle) * y + block_side / 2 + shift[0] + stretch[0]
    map_y = np.sin(angle) * x + np.cos(angle) * y + block_side / 2 + shift[1] + stretch[1]
    return map_x.astype(np.float32), map_y.astype(np.float32)


def _fibre_direction(fields: dict[str, Field]) -> Field:
    """Collagen runs around nests and vessels where they are near, and by its own smooth field elsewhere."""
    score = cv2.GaussianBlur(np.maximum(fields["tumour"], 2 * fields["vessel"]), (0, 0), 3)
    gy, gx = np.gradient(score)
    along = np.arctan2(gx, -gy)
    near = np.exp(-np.square(np.minimum(score, 0)) / 0.35)
    # Angles of lines are averaged as doubled angles: a line has no head
    free = fields["direction"]
    x = near * np.cos(2 * along) + (1.05 - near) * np.cos(2 * free)
    y = near * np.sin(2 * along) + (1.05 - near) * np.sin(2 * free)
    return (0.5 * np.arctan2(y, x)).astype(np.float32)
