"""What a recipe is: a record of facts, read from a file of the folder ``sets``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hescribe.types import Microns


@dataclass(frozen=True)
class RecipeSection:
    """One section of a data set.

    Attributes
    ----------
    section_id
        As the data set itself names it.
    patient_id
        The unit that is never on both sides of a split.
    names
        Other names by which its files may be found: placeholders in the patterns of a layout.
    """

    section_id: str
    patient_id: str
    names: Mapping[str, str] = field(default_factory=dict)

    def fill(self, pattern: str) -> str:
        """``"st/{id}.h5ad"`` with the section's names in place of the placeholders."""
        return pattern.format_map({"id": self.section_id, "patient": self.patient_id, **self.names})


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes
    ----------
    method
        Our name of the method where we have it, else the paper's.
    figure
        What was printed, in words.
    set
        Our name of the gene set where it is the same, else the paper's in words.
    pcc
        NaN where something else than a correlation was published.
    protocol, source
        How it was measured, and where it is printed.
    differs
        How that protocol differs from ours; empty where it does not.
    encoder
        Our name of the encoder it is of, which it may be compared on; empty where that is part of the method.
    """

    method: str
    figure: str
    set: str
    pcc: float
    protocol: str
    source: str
    differs: tuple[str, ...] = ()
    encoder: str = ""

    @property
    def comparable(self) -> bool:
        """Whether it may stand in one column with ours."""
        return not self.differs


@dataclass(frozen=True)
class Recipe:
    """A data set by exact section, and what is run on it.

    Attributes
    ----------
    source, download
        Where the data are, and the commands that fetch them; ``FOLDER`` stands for the user's folder.
    layout
        How the files lie, a name in `hescribe.datasets.recipes.layouts.LAYOUTS`.
    patients
        Where the sections' patients are from.
    folds
        The folds of the original, and whether they keep patients apart.
    target_sum
        Scale of the expression, as ``--target-sum`` has it.
    gene_list
        Pattern of a file with the set's own genes, where its download has one; it takes the place of ``genes``.
    protocols
        What we run, the headline first.
    figures
        Published ones.
    unverified
        What could not be checked against a source.
    """

    name: str
    summary: str
    licence: str
    citation: str
    source: str
    download: tuple[str, ...]
    layout: str
    patients: str
    folds: str
    tile_um: Microns
    genes: str
    encoder: str
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    markers: tuple[str, ...]
    sections: tuple[RecipeSection, ...]
    figures: tuple[Figure, ...] = ()
    unverified: tuple[str, ...] = ()
    gene_list: str = ""
    target_sum: str = "10000"

    @property
    def n_patients(self) -> int:
        """How many patients the sections are of."""
        return len({s.patient_id for s in self.sections})

    def shares_patients(self, protocol: str) -> bool:
        """Whether a protocol would have sections of a test patient in training."""
        return protocol == "leave-one-section-out" and len(self.sections) > self.n_patients > 1
