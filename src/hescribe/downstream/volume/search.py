"""Every angle, both faces, every shift: where one section may lie on another, before anything is refined.

The moving section is turned about its centroid, mirrored or not, and laid on the fixed one at all shifts at once by a
Fourier transform. The cosine between the two is the score; glass is 0, so outline and texture both count.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft

from hescribe.downstream.volume.placement import Affine, Points
from hescribe.downstream.volume.planes import Field, Plane
from hescribe.types import Microns

_ACROSS = 80  #: pixels of the coarse picture across the larger tissue
_STEP = 10  #: degrees
_EACH = 4  #: candidates kept of either face
_APART = 30  #: degrees between candidates of the same face


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to lay the moving section on the fixed one.

    Attributes
    ----------
    to_moving
        (2, 3) affine map from the fixed section's µm to the moving one's.
    flipped
        Whether the moving section is mirrored.
    angle
        Degrees by which it was turned.
    score
        Cosine of the two pictures, 0 to 1.
    """

    to_moving: Affine
    flipped: bool
    angle: float
    score: float


def find_candidates(fixed: Plane, moving: Plane) -> list[Candidate]:
    """The best few of either face, best first."""
    reach = max(float(np.linalg.norm(p.box[1] - p.box[0])) for p in (fixed, moving))
    um = max(reach / _ACROSS, fixed.um, moving.um)
    side = fft.next_fast_len(int(np.ceil(2 * reach / um)), real=True)
    spectrum, norm = _spectrum(_turned(fixed, np.eye(2), um, side))
    found: list[Candidate] = []
    for flipped in (False, True):
        tried = [
            _lay(moving, fixed.centroid, spectrum / norm, um=um, angle=a, flipped=flipped) for a in range(0, 360, _STEP)
        ]
        found += _distinct(sorted(tried, key=lambda c: -c.score))
    return sorted(found, key=lambda c: -c.score)


def rotation(angle: float, *, flipped: bool) -> npt.NDArray[np.float64]:
    """(2, 2): first mirrored in x, if flipped, then turned by ``angle`` degrees."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[c, -s], [s, c]])
    return turn @ np.diag([-1.0, 1.0]) if flipped else turn


def _lay(
    moving: Plane, onto: Points, spectrum: npt.NDArray[np.complex128], *, um: Microns, angle: float, flipped: bool
) -> Candidate:
    """The best shift at one angle."""
    side = spectrum.shape[0]
    back = np.asarray(np.linalg.inv(rotation(angle, flipped=flipped)), dtype=np.float64)
    own, norm = _spectrum(_turned(moving, back, um, side))
    score = fft.irfft2(spectrum * np.conj(own / norm), s=(side, side))
    row, column = np.unravel_index(int(score.argmax()), score.shape)
    # The second half of a Fourier axis holds the negative shifts
    shift = np.array([(column + side // 2) % side - side // 2, (row + side // 2) % side - side // 2]) * um
    offset = moving.centroid - back @ (onto + shift)
    return Candidate(np.column_stack([back, offset]), flipped, float(angle), float(score[row, column]))


def _turned(plane: Plane, matrix: npt.NDArray[np.float64], um: Microns, side: int) -> Field:
    """Centroid in the middle of a square, at ``um`` a pixel; a position c from the middle shows centroid + matrix c."""
    # Averaged first: a coarse picture must not pick single pixels
    blurred = cv2.GaussianBlur(plane.density, (0, 0), max(0.4 * um / plane.um, 0.1))
    step = matrix * (um / plane.um)
    middle = np.full(2, side / 2 - 0.5)
    start = plane.centroid / plane.um - 0.5 - step @ middle
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(blurred, np.column_stack([step, start]), (side, side), flags=flags))


def _spectrum(picture: Field) -> tuple[npt.NDArray[np.complex128], float]:
    values = picture.astype(np.float64)
    return np.asarray(fft.rfft2(values)), max(float(np.linalg.norm(values)), 1e-12)


def _distinct(ordered: list[Candidate]) -> list[Candidate]:
    """The first few that are not the same turn again."""
    kept: list[Candidate] = []
    for candidate in ordered:
        apart = [abs((candidate.angle - k.angle + 180) % 360 - 180) for k in kept]
        if not apart or min(apart) >= _APART:
            kept.append(candidate)
    return kept[:_EACH]
