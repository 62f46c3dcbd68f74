"""Training data: all paired sections side by side, on their shared genes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import InputError
from hescribe.evaluation.splits import is_paired, patient_key
from hescribe.io.expression import log_normalise
from hescribe.methods.base import Origin
from hescribe.sections import Section
from hescribe.training.config import TrainConfig
from hescribe.training.inputs.panel import choose_panel, gene_table, shared_genes
from hescribe.types import Centres, Features, SparseExpression

_FEWEST_SPOTS = 10


@dataclass(frozen=True)
class TrainingData:
    """Spots of all training sections, in the order of the sections.

    Attributes
    ----------
    sections
        The sections.
    expression
        (n, g) float32 CSR, log-normalised on each section's full gene set.
    genes
        (g rows) output genes with their training statistics and ``in_panel``.
    section
        (n,) index into ``sections``.
    centres
        (n, 2) full-resolution pixels.
    measured
        Genes measured in every section, also those too rare to be predicted.
    """

    sections: tuple[Section, ...]
    expression: SparseExpression
    genes: pd.DataFrame
    section: npt.NDArray[np.intp]
    centres: Centres
    measured: tuple[str, ...] = ()

    @property
    def panel(self) -> npt.NDArray[np.bool_]:
        """(g,) mask of the embedding's panel."""
        return self.genes[keys.IN_PANEL].to_numpy(dtype=bool)

    @property
    def origin(self) -> Origin:
        """Section and patient of each spot."""
        patients = [patient_key(s.patient_id) for s in self.sections]
        names = list(dict.fromkeys(patients))
        return Origin(self.section, np.array([names.index(p) for p in patients])[self.section])

    def obs(self) -> pd.DataFrame:
        """Section and patient of each spot."""
        ids = np.array([s.section_id for s in self.sections], dtype=object)[self.section]
        patients = np.array([s.patient_id for s in self.sections], dtype=object)[self.section]
        spots = np.concatenate([np.asarray(s.adata.obs_names, dtype=object) for s in self.sections])
        index = pd.Index([f"{section}:{spot}" for section, spot in zip(ids, spots, strict=True)])
        return pd.DataFrame({keys.SECTION: ids.astype(str), keys.PATIENT: patients.astype(str)}, index=index)


def assemble(sections: Sequence[Section], config: TrainConfig) -> TrainingData:
    """Read and normalise the paired sections and choose genes from them.

    Raises
    ------
    InputError
        No paired section, one that is given twice, too few spots, or no shared gene, or none that is seen in enough
        spots.
    """
    ids = [s.section_id for s in sections]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):  # left out, it would still be learned from
        raise InputError(f"section {', '.join(map(repr, twice))} is given twice")
    paired = tuple(s for s in sections if is_paired(s))
    if not paired:
        raise InputError("no section has both an image and expression", fix="training needs at least one such row")
    tables = [s.adata for s in paired]
    measured = shared_genes(tables)
    logged = sparse.vstack(
        [_columns(log_normalise(t.X, target_sum=config.target_sum), t.var_names, measured) for t in tables],
        format="csr",
    )
    if logged.shape[0] < _FEWEST_SPOTS:
        raise InputError(f"only {logged.shape[0]} spots to learn from", fix=f"at least {_FEWEST_SPOTS} are needed")
    section = np.repeat(np.arange(len(paired)), [t.n_obs for t in tables])
    ensembl = tables[0].var.get(keys.ENSEMBL)
    genes = gene_table(logged, measured, ensembl, section)
    supported = genes["detected"].to_numpy() >= config.min_detected
    panel = choose_panel(config.genes, logged, section, genes.index, supported)
    kept = supported | panel
    if not panel.any():
        share = f"no gene is seen in {config.min_detected:.0%} of the {logged.shape[0]} training spots"
        raise InputError(share, path="--min-detected", fix=f"at most {genes['detected'].max():.2g}")
    genes[keys.IN_PANEL] = panel
    centres = np.concatenate([np.asarray(t.obsm[keys.SPATIAL], dtype=np.float64) for t in tables])
    return TrainingData(paired, logged[:, kept].tocsr(), genes[kept].copy(), section, centres, tuple(measured))


def check_features(features: Features, section: Section, encoder: str) -> None:
    """Refuse features that no method can learn from; InputError names the section and the encoder."""
    if not np.isfinite(features).all():
        raise InputError(
            f"section {section.section_id!r}: the encoder gives features that are no finite numbers",
            path=encoder,
            fix="are its weights whole?",
        )


def _columns(matrix: SparseExpression, names: pd.Index, wanted: list[str]) -> SparseExpression:
    return matrix.tocsc()[:, names.get_indexer(pd.Index(wanted))].tocsr()
