"""One section onto another with SimpleITK: rigid, then affine, then a B-spline.

SimpleITK's transforms map positions of the *fixed* picture to positions of the *moving* one, and so does everything
here that is called ``to_moving``. Lengths are given to it in pixels of the fixed picture, so that its steps are of the
size it is made for. All pixels are used and one thread adds them up: the same pictures give the same numbers.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
import SimpleITK as sitk

from hescribe.downstream.volume.placement import Affine, Spline, compose
from hescribe.downstream.volume.planes import Plane
from hescribe.types import Microns

Linear = Literal["rigid", "affine"]

_MARGIN = 0.2  #: of the tissue's size, kept around it
_CONTROL_UM = (300.0, 800.0)  #: least and largest distance between control points of a spline
_CONTROLS = 8  #: across the picture, where these bounds leave the choice
_SPLINE_UM = 24.0  #: a pixel; what bends over 800 µm needs no finer ones
_LEAST_JACOBIAN = 0.3  #: of a spline; less is a fold, or nearly


def shrink(plane: Plane, um: Microns) -> Plane:
    """The plane at coarser pixels, averaged; itself where its own are as coarse."""
    factor = um / plane.um
    if factor < 1.3:
        return plane
    size = tuple(max(8, round(n / factor)) for n in plane.mask.shape[::-1])
    density = np.asarray(cv2.resize(plane.density, size, interpolation=cv2.INTER_AREA), dtype=np.float32)
    mask = np.asarray(cv2.resize(plane.mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)) >= 0.5
    return Plane(density, mask, plane.um * plane.mask.shape[1] / size[0]) if mask.any() else plane


def refine(fixed: Plane, moving: Plane, start: Affine, kind: Linear, *, coarse: bool = False) -> Affine:
    """A better map from fixed to moving, starting from one that is nearly right.

    Parameters
    ----------
    fixed, moving
        Planes.
    start
        (2, 3) from the fixed section's µm to the moving one's.
    kind
        ``"rigid"`` adds a turn and a shift, ``"affine"`` any linear map.
    coarse
        Only at the pictures' own resolution and with few steps, to choose between starts.

    Returns
    -------
    ndarray
        (2, 3).
    """
    unit = fixed.um
    transform = sitk.Euler2DTransform() if kind == "rigid" else sitk.AffineTransform(2)
    transform.SetCenter(list(fixed.centroid / unit))
    method = _method(levels=1 if coarse else 3)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=2e-2 if coarse else 2e-3, numberOfIterations=30 if coarse else 100
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetMovingInitialTransform(_to_itk(start, unit))
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(_image(fixed, unit), _image(moving, unit))
    return compose(start, _from_itk(transform, unit))


def refine_spline(fixed: Plane, moving: Plane, start: Affine) -> Spline | None:
    """What a smooth bending of the fixed plane's coordinates adds to an affine map; None where it folds the tissue.

    A position x of the fixed plane then belongs to ``start`` of x + s(x) on the moving section.
    """
    fixed, moving = (shrink(p, _SPLINE_UM) for p in (fixed, moving))
    unit = fixed.um
    image = _image(fixed, unit)
    extent = [n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    distance = np.clip(max(extent) * unit / _CONTROLS, *_CONTROL_UM)
    mesh = [max(2, round(e * unit / distance)) for e in extent]
    transform = sitk.BSplineTransformInitializer(image, mesh, 3)
    method = _method(levels=2)
    method.SetOptimizerAsLBFGSB(
        gradientConvergenceTolerance=1e-5,
        numberOfIterations=40,
        maximumNumberOfFunctionEvaluations=60,
        costFunctionConvergenceFactor=1e9,
    )
    method.SetMovingInitialTransform(_to_itk(start, unit))
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(image, _image(moving, unit))
    spline = spline_from_itk(transform, unit)
    return spline if _least_jacobian(spline) > _LEAST_JACOBIAN else None


def spline_from_itk(transform: sitk.BSplineTransform, unit: Microns) -> Spline:
    """The same displacement in µm, from a transform whose lengths are in ``unit`` µm."""
    fixed = transform.GetFixedParameters()
    columns, rows = (int(n) for n in fixed[:2])
    coefficients = np.array(transform.GetParameters()).reshape(2, rows, columns)
    return Spline(np.array(fixed[2:4]) * unit, np.array(fixed[4:6]) * unit, coefficients * unit)


def _method(*, levels: int) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsCorrelation()
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([2**i for i in reversed(range(levels))])
    method.SetSmoothingSigmasPerLevel([0.7 * (2**i - 1) for i in reversed(range(levels))])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    return method


def _image(plane: Plane, unit: Microns) -> sitk.Image:
    """The tissue with glass around it, also where the picture ends: pixels outside a picture would not be compared."""
    rows, columns = np.nonzero(plane.mask)
    edge = int(np.ceil(_MARGIN * max(np.ptp(rows), np.ptp(columns)))) + 4
    padded = np.pad(plane.density, edge)
    top, left = rows.min(), columns.min()
    cut = padded[top : rows.max() + 2 * edge + 1, left : columns.max() + 2 * edge + 1]
    image = sitk.GetImageFromArray(np.ascontiguousarray(cut))
    step = plane.um / unit
    image.SetSpacing([step, step])
    image.SetOrigin([(left - edge + 0.5) * step, (top - edge + 0.5) * step])
    return image


def _to_itk(affine: Affine, unit: Microns) -> sitk.AffineTransform:
    out = sitk.AffineTransform(2)
    out.SetMatrix(affine[:, :2].ravel().tolist())
    out.SetTranslation((affine[:, 2] / unit).tolist())
    return out


def _from_itk(transform: Any, unit: Microns) -> Affine:
    matrix = np.array(transform.GetMatrix()).reshape(2, 2)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    return np.column_stack([matrix, (shift + centre - matrix @ centre) * unit])


def _least_jacobian(spline: Spline) -> float:
    """The least determinant of x → x + s(x) between the control points."""
    rows, columns = spline.coefficients.shape[1:]
    x = spline.origin[0] + spline.spacing[0] * np.linspace(1.05, columns - 2.05, 4 * columns)
    y = spline.origin[1] + spline.spacing[1] * np.linspace(1.05, rows - 2.05, 4 * rows)
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    moved = grid + spline.displacement(grid.reshape(-1, 2)).reshape(grid.shape)
    along_y, along_x = (np.gradient(moved, axis, axis=i) for i, axis in enumerate((y, x)))
    return float((along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]).min())
