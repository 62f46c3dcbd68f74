"""Making a cohort: patients, their sections, and the manifest that lists them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hescribe.datasets.synthetic.block import Tissue, cut_section
from hescribe.datasets.synthetic.cells import Cells, place_cells
from hescribe.datasets.synthetic.counts import draw_counts, expect, lay_spots
from hescribe.datasets.synthetic.image.render import render_section
from hescribe.datasets.synthetic.patients import Patient, make_patient
from hescribe.datasets.synthetic.signatures import make_signatures, of_patient
from hescribe.datasets.synthetic.write import write_slide, write_spaceranger, write_tables, write_truth
from hescribe.errors import InputError
from hescribe.io.store import write_atomically
from hescribe.types import Microns, Mpp

_COLUMNS = ["section_id", "patient_id", "image", "expression", "technology", "cell_types", "annotations", "z"]
_SMALLEST_UM, _LARGEST_UM = 400.0, 8000.0
_AT_ONCE = 2  #: sections in memory: each takes about 0.5 GB at 2 mm


@dataclass(frozen=True)
class Cohort:
    """What is to be made.

    Attributes
    ----------
    n_patients, n_sections
        Patients, and consecutive sections of each.
    side_um
        Side of the square picture.
    mpp
        µm per pixel of the picture.
    n_genes
        Genes measured.
    depth
        Median counts per spot.
    spacing_um
        Height between consecutive sections.
    seed
        All randomness follows from it.
    """

    n_patients: int = 3
    n_sections: int = 2
    side_um: Microns = 2000.0
    mpp: Mpp = 0.5
    n_genes: int = 1200
    depth: float = 5000.0
    spacing_um: Microns = 20.0
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be made (`InputError`)."""
        limits = {
            "n_patients": (1, 999),
            "n_sections": (1, 99),
            "side_um": (_SMALLEST_UM, _LARGEST_UM),
            "mpp": (0.2, 2.0),
            "n_genes": (30, 40_000),
            "depth": (1.0, 1e6),
            "spacing_um": (0.0, 1000.0),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}, outside {low:g} to {high:g}", path="synthetic")


@dataclass(frozen=True)
class SyntheticSection:
    """One section before it is drawn or measured."""

    patient: Patient
    index: int
    tissue: Tissue
    cells: Cells
    z_um: Microns

    @property
    def section_id(self) -> str:
        """``P1_S1`` and so on."""
        return f"{self.patient.patient_id}_S{self.index + 1}"


def make_synthetic(
    folder: str | Path,
    *,
    n_patients: int = Cohort.n_patients,
    n_sections: int = Cohort.n_sections,
    side_um: Microns = Cohort.side_um,
    mpp: Mpp = Cohort.mpp,
    n_genes: int = Cohort.n_genes,
    depth: float = Cohort.depth,
    spacing_um: Microns = Cohort.spacing_um,
    seed: int = Cohort.seed,
) -> Path:
    """H&E sections with measured expression whose truth is known, in real formats.

    Patients differ in tumour subtype (HER2, luminal, basal in turn), composition, expression and stain; consecutive
    sections of a patient are neighbouring cuts through one block. Counts follow from the cells that are drawn
    beneath a spot, so what is expressed can be read off the picture, up to counting noise.

    Parameters
    ----------
    folder
        Made if needed: ``slides/<id>.tiff``, ``expression/<id>/`` as spaceranger writes, ``tables/``,
        ``truth/<id>.h5ad`` and ``sections.csv``, which is written last.
    n_patients, n_sections, side_um, mpp, n_genes, depth, spacing_um, seed
        As in `Cohort`. The same values give the same counts and pixels.

    Returns
    -------
    Path
        The manifest, ``sections.csv``.

    Raises
    ------
    InputError
        A number outside what can be made.
    OutputError
        The folder cannot be written.

    Examples
    --------
    >>> make_synthetic("demo", n_patients=2, side_um=800)  # doctest: +SKIP
    PosixPath('demo/sections.csv')
    """
    cohort = Cohort(n_patients, n_sections, side_um, mpp, n_genes, depth=depth, spacing_um=spacing_um, seed=seed)
    cohort.check()
    root = Path(folder)
    manifest = root / "sections.csv"
    manifest.unlink(missing_ok=True)  # an older manifest must not name sections that are being replaced
    # Sections outermost: threads that run side by side work on different patients
    jobs = [(patient, section) for section in range(n_sections) for patient in range(n_patients)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        rows = list(pool.map(lambda job: _make_section(root, cohort, *job), jobs))
    rows.sort(key=lambda row: (len(str(row["patient_id"])), str(row["patient_id"])))  # sections stay in order
    with write_atomically(manifest) as temporary:
        pd.DataFrame(rows, columns=_COLUMNS).to_csv(temporary, index=False)
    return manifest


def plan_section(cohort: Cohort, patient: int, section: int) -> SyntheticSection:
    """The tissue and cells of a section."""
    person = make_patient(patient, cohort.seed)
    z_um = section * cohort.spacing_um
    tissue = cut_section(person, z_um, cohort.side_um, section=section)
    cells = place_cells(tissue, person, person.rng(4, section))
    return SyntheticSection(person, section, tissue, cells, z_um)


def _make_section(root: Path, cohort: Cohort, patient: int, section: int) -> dict[str, object]:
    """Draw, measure and write one section; its row of the manifest."""
    planned = plan_section(cohort, patient, section)
    person, name = planned.patient, planned.section_id
    image = render_section(planned.tissue, planned.cells, person, section=section, mpp=cohort.mpp)
    signatures = of_patient(make_signatures(cohort.n_genes, cohort.seed), person.subtype.name, person.rng(7))
    spots = lay_spots(planned.tissue)
    rng = person.rng(8, section)
    truth = expect(planned.tissue, planned.cells, spots, signatures, rng, depth=cohort.depth)
    counts = draw_counts(truth, rng)
    row: dict[str, object] = {"section_id": name, "patient_id": person.patient_id, "technology": "visium"}
    places = {
        "image": f"slides/{name}.tiff",
        "expression": f"expression/{name}",
        "cell_types": f"tables/{name}_cell_types.csv",
        "annotations": f"tables/{name}_annotations.csv",
    }
    write_slide(image, root / places["image"], mpp=cohort.mpp)
    write_spaceranger(root / places["expression"], spots, counts, signatures.genes, mpp=cohort.mpp, image=image)
    tables = {key: root / places[key] for key in ("cell_types", "annotations")}
    write_tables(spots, truth, **tables)
    write_truth(root / "truth" / f"{name}.h5ad", spots, truth, signatures.genes, mpp=cohort.mpp)
    return row | places | {"z": planned.z_um}
