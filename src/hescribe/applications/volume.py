"""Serial sections → a folder: places, a stack of all spots, a volume for napari and ParaView, figures and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata as ad
import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from hescribe import keys, plots
from hescribe.downstream.volume.interpolate import GRID_UM, Volume, check_lengths, interpolate_volume, tissue_of
from hescribe.downstream.volume.placement import IDENTITY, Placement, save_placements
from hescribe.downstream.volume.planes import Picture, Plane, raster, warp
from hescribe.downstream.volume.register import Registration, check_model, is_poor, register_sections
from hescribe.downstream.volume.stack import THICKNESS_UM, heights, shared_genes, stack_sections
from hescribe.downstream.volume.write import write_ome_zarr, write_vti
from hescribe.errors import InputError
from hescribe.inference.predict import read_prediction
from hescribe.inference.present import find_predictions
from hescribe.io.store import check_free, plain_row, write_anndata, write_atomically
from hescribe.metrics.gene_sets import gene_moments
from hescribe.plots.maps import unit_of
from hescribe.plots.style import EXPRESSION_COLOURS
from hescribe.report.tools import PAGE, Chapter, Plate, write_tool_page
from hescribe.report.volume_view import MOST_SPOTS, VIEW, view_data, view_script
from hescribe.sections import Section
from hescribe.types import Microns
from hescribe.version import __version__

REGISTRATION_UM: Microns = 12.0  #: a pixel of the pictures that are registered
_LARGEST_PX = 1200  #: of their longer side
_SHOWN = 6  #: genes, where none are named
_OUTLINE_UM = 40.0  #: by which an outline in the view may be off

_NOTE = (
    "Expression between two sections is interpolated, not measured. Places come from the H&E images alone; what the "
    "knife and the glass did to a section beyond the chosen transform is not undone."
)


@dataclass(frozen=True, eq=False)
class _Made:
    """What the page is about."""

    registration: Registration
    planes: dict[str, Plane]
    stack: ad.AnnData
    volume: Volume
    pictures: dict[str, Picture]

    @property
    def placements(self) -> dict[str, Placement]:
        return {p.name: p for p in self.registration.placements}


def volume(
    sections: Sequence[Section],
    output: str | Path,
    *,
    predictions: str | Path | None = None,
    genes: Sequence[str] = (),
    registration: str = "affine",
    grid_um: Microns = GRID_UM,
    thickness_um: Microns = THICKNESS_UM,
    registration_um: Microns = REGISTRATION_UM,
    overwrite: bool = False,
) -> Path:
    """Register serial sections and lay their expression on a regular grid.

    Parameters
    ----------
    sections
        Three or more with images; from the lowest to the highest, or with the manifest's column ``z`` (µm).
    output
        Folder: ``transforms.json``, ``stack.zarr``, ``volume.ome.zarr``, ``volume.vti``, ``figures`` and
        ``index.html``. Written as a whole or not at all.
    predictions
        Folder with ``<section_id>.zarr`` of each section; otherwise what was measured is used.
    genes
        On the grid; by default six that vary most among those that can be trusted.
    registration
        ``"rigid"``, ``"affine"`` or ``"bspline"``.
    grid_um
        Distance between voxels in the plane.
    thickness_um
        Distance between consecutive sections where the manifest has no ``z``.
    registration_um
        µm per pixel of the thumbnails that are registered.
    overwrite
        Replace what is there.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        Fewer than three sections, one without image, expression or tissue, no gene in common, an unknown gene, z for
        some sections only.
    OutputError
        The folder is there already or cannot be written.
    """
    check_free(output, overwrite=overwrite, like=PAGE)
    check_lengths(**{"--grid-um": grid_um, "--registration-um": registration_um})
    if len(sections) < 3:
        raise InputError(f"{len(sections)} sections do not make a volume", fix="at least three are needed")
    model = check_model(registration)
    height = heights([s.section_id for s in sections], [s.row.z for s in sections], thickness_um=thickness_um)
    ordered = [sections[i] for i in np.argsort(height, kind="stable")]
    tables = {s.section_id: _expression(s, predictions) for s in ordered}
    if genes:
        _check_genes(genes, tables)
    pictures = {s.section_id: _picture(s, registration_um) for s in ordered}
    planes = {name: p.plane for name, p in pictures.items()}
    found = register_sections(list(pictures.values()), model=model)
    stack = stack_sections(tables, found.placements, np.sort(height), mpp={s.section_id: s.mpp for s in ordered})
    chosen = list(dict.fromkeys(genes)) or interesting_genes(stack)
    tissue = {p.name: tissue_of(planes[p.name], p) for p in found.placements}
    made = _Made(found, planes, stack, interpolate_volume(stack, chosen, tissue=tissue, grid_um=grid_um), pictures)
    provenance = {
        "sections": ", ".join(planes),
        "expression": "measured" if predictions is None else f"predicted ({Path(predictions).name})",
        "registration": f"{registration}, into the coordinates of {found.reference}",
        "grid": " × ".join(f"{s:g}" for s in made.volume.spacing_um[::-1]) + " µm (x, y, z)",
        "hescribe": __version__,
    }
    with write_atomically(output, overwrite=overwrite, like=PAGE) as folder:
        folder.mkdir()
        _write(made, folder, provenance)
    return Path(output) / PAGE


def interesting_genes(stack: ad.AnnData) -> list[str]:
    """Genes of largest variance; of a prediction, among the tenth with the highest expected correlation."""
    moments = gene_moments(stack.X)
    score = np.where(moments.detected >= 0.1, moments.variance, 0)
    if keys.EXPECTED_PCC in stack.var:
        expected = np.nan_to_num(stack.var[keys.EXPECTED_PCC].to_numpy(dtype=float), nan=-1.0)
        score = np.where(expected >= np.quantile(expected, 0.9), score, 0)
    order = np.argsort(-score, kind="stable")[:_SHOWN]
    return [str(g) for g in stack.var_names[order]]


def _expression(section: Section, predictions: str | Path | None) -> ad.AnnData:
    if section.image is None:
        raise InputError(
            f"section {section.section_id!r} has no image", fix="registration needs the H&E of every section"
        )
    if predictions is None:
        return section.adata
    path = Path(predictions) / f"{section.section_id}.zarr"
    if not path.exists():
        there = ", ".join(p.stem for p in find_predictions(predictions))
        raise InputError(f"no prediction of section {section.section_id!r} (there is {there})", path=predictions)
    return read_prediction(path)


def _check_genes(genes: Sequence[str], tables: Mapping[str, ad.AnnData]) -> None:
    """Before the minutes of registration."""
    shared = shared_genes(tables)
    if unknown := [g for g in genes if g not in shared]:
        raise InputError(f"no gene {unknown[0]!r} among the {len(shared)} that all sections share", path="--genes")


def _picture(section: Section, um: Microns) -> Picture:
    longest = max(section.slide.width, section.slide.height)
    small = section.thumbnail(int(np.clip(longest * section.mpp / um, 32, _LARGEST_PX)))
    if small is None:
        raise InputError(f"section {section.section_id!r} has tiles but no slide to register", path=section.image)
    image, downsampling = small
    return Picture(section.section_id, image, downsampling * section.mpp)


def _write(made: _Made, folder: Path, provenance: Mapping[str, Any]) -> None:
    pairs = made.registration.pairs
    save_placements(
        made.registration.placements,
        folder / "transforms.json",
        about={"reference": made.registration.reference, "pairs": [plain_row(r) for r in pairs.to_dict("records")]},
    )
    write_anndata(made.stack, folder / "stack.zarr")
    write_ome_zarr(made.volume, folder / "volume.ome.zarr")
    write_vti(made.volume, folder / "volume.vti")
    genes = made.volume.genes
    write_tool_page(
        folder,
        _chapters(made),
        title="Volume from serial sections",
        lead=f"{len(made.planes)} sections, {made.stack.n_obs:,} spots, {made.stack.n_vars:,} genes in common; "
        f"{', '.join(genes)} on a grid.",
        cautions=_cautions(pairs),
        cards={
            "Overlap of neighbours, before": f"{pairs['dice_before'].mean():.2f} (Dice)",
            "Overlap of neighbours, registered": f"{pairs['dice_after'].mean():.2f} (Dice)",
            "Haematoxylin of neighbours, registered": f"{pairs['correlation_after'].mean():.2f} (correlation)",
        },
        provenance=provenance,
        script=view_script(),
        data=view_data(made.stack, genes, {n: _outline(made, n) for n in made.planes}),
    )


def _cautions(pairs: pd.DataFrame) -> list[str]:
    poor = [r for r in pairs.to_dict("records") if is_poor(r)]
    return [
        f"{r['fixed']} and {r['moving']} fit poorly (Dice {r['dice_after']:.2f}, correlation "
        f"{r['correlation_after']:.2f}); what lies between them is not to be believed before you have looked at them."
        for r in poor
    ] + [_NOTE]


def _chapters(made: _Made) -> list[Chapter]:
    genes = made.volume.genes
    spots = made.stack.n_obs
    thinned = f" {MOST_SPOTS:,} of {spots:,} spots are shown." if spots > MOST_SPOTS else ""
    slides = {n: _slide(made, n) for n in made.planes}
    stacked = [
        Plate(plots.stacked_sections(made.stack, g, pictures=slides), f"stack_{g}", f"Sections stacked, with {g}.",
              f"{g} on the registered sections.", colours=EXPRESSION_COLOURS)
        for g in genes
    ]  # fmt: skip
    cuts = [
        Plate(plots.orthogonal_cuts(made.volume, g, unit=unit_of(made.stack)), f"cuts_{g}", f"Orthogonal cuts of {g} through the volume.",
              f"{g}: cuts at right angles through the middle; dashed lines show where.", colours=EXPRESSION_COLOURS)
        for g in genes
    ]  # fmt: skip
    overlay = Plate(
        plots.neighbour_overlay(_overlays(made)),
        "neighbours",
        "Neighbouring sections on each other, before and after registration.",
        "Haematoxylin of neighbours, one blue and one orange; where both lie it is dark.",
    )
    quality = made.registration.pairs.drop(columns="lead").replace({"flipped": {True: "yes", False: "no"}})
    return [
        Chapter(
            "In space",
            [f"Drag or use the arrow keys to turn, wheel or + and − to zoom, 0 to start again.{thinned}"],
            view=VIEW,
        ),
        Chapter("Stacked sections", plates=stacked),
        Chapter("Cuts", plates=cuts),
        Chapter(
            "Registration",
            [
                "Before: as the sections lie on their slides. Dice: the overlap of two sections' tissue, 1 where both have one "
                "outline, 0 where they do not meet. Correlation: of their haematoxylin where both have tissue. Closure: how far a pair's own map lies from the places on "
                "which all pairs together were settled; large values mean that the pairs contradict each other."
            ],
            [overlay],
            [("Neighbours", quality.rename(columns=_HEADINGS))],
        ),
    ]


_HEADINGS = {
    "fixed": "section", "moving": "laid onto it", "angle": "turned by (°)", "flipped": "flipped",
    "dice_before": "Dice before", "dice_after": "Dice after", "correlation_before": "correlation before",
    "correlation_after": "correlation after", "closure_um": "closure (µm)",
}  # fmt: skip


def _overlays(made: _Made) -> list[plots.Overlay]:
    out = []
    for (one, other), row in zip(pairwise(made.planes), made.registration.pairs.to_dict("records"), strict=True):
        unplaced = [Placement(n, IDENTITY) for n in (one, other)]
        before, before_um = _both(made, unplaced)
        after, after_um = _both(made, [made.placements[n] for n in (one, other)])
        dice = (float(row["dice_before"]), float(row["dice_after"]))
        out.append(plots.Overlay(one, other, before, after, dice, (before_um, after_um)))
    return out


def _both(
    made: _Made, placements: Sequence[Placement]
) -> tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], Microns]:
    """Two sections' haematoxylin on one raster around both."""
    boxes = np.concatenate([p.to_common(_corners(made.planes[p.name])) for p in placements])
    um = max(made.planes[p.name].um for p in placements)
    where = raster(boxes.min(axis=0), boxes.max(axis=0), um)
    one, other = (warp(made.planes[p.name], p.to_section, where).density for p in placements)
    return (one, other), um


def _corners(plane: Plane) -> npt.NDArray[np.float64]:
    (left, top), (right, bottom) = plane.box
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _slide(made: _Made, name: str) -> tuple[npt.NDArray[np.uint8], tuple[float, float, float, float]]:
    """A section's picture in common coordinates, transparent where there is no tissue."""
    placement, plane, picture = made.placements[name], made.planes[name], made.pictures[name]
    corners = placement.to_common(_corners(plane))
    where = raster(corners.min(axis=0), corners.max(axis=0), plane.um)
    pixels = (placement.to_section(where.reshape(-1, 2)).reshape(where.shape) / plane.um - 0.5).astype(np.float32)
    image = np.dstack([picture.image, 255 * plane.mask.astype(np.uint8)])
    shown = np.asarray(
        cv2.remap(image, pixels[..., 0], pixels[..., 1], cv2.INTER_LINEAR, borderValue=(255, 255, 255, 0))
    )
    low, high = where[0, 0] - plane.um / 2, where[-1, -1] + plane.um / 2
    return shown.astype(np.uint8), (float(low[0]), float(high[0]), float(low[1]), float(high[1]))


def _outline(made: _Made, name: str) -> list[npt.NDArray[np.float64]]:
    """Rings around a section's tissue in common coordinates."""
    plane = made.planes[name]
    rings, _ = cv2.findContours(plane.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    simple = [cv2.approxPolyDP(r, _OUTLINE_UM / plane.um, closed=True)[:, 0] for r in rings]
    return [made.placements[name].to_common((r + 0.5) * plane.um) for r in simple if len(r) > 2]
