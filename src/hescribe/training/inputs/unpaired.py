"""Transcriptomes without image, brought to the genes and the scale of the paired sections."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from hescribe import keys
from hescribe.errors import HescribeWarning, InputError
from hescribe.evaluation.splits import patient_key
from hescribe.io.expression import log_normalise
from hescribe.sections import Section
from hescribe.training.config import TrainConfig
from hescribe.training.inputs.data import TrainingData
from hescribe.training.inputs.panel import gene_table, own_genes
from hescribe.types import Features, SparseExpression

_FEWEST_SHARED = 10  #: panel genes a source must have measured to be placed


@dataclass(frozen=True)
class UnpairedData:
    """Transcriptomes of sections without image and of single cells, source after source.

    Attributes
    ----------
    sections
        The sources.
    source
        (m,) index into ``sections``.
    shares
        (m, g) CSR: share of each gene of the training data in a transcriptome's counts of these genes; rows sum to 1.
    measured
        (sources, g) bool.
    extra
        (m, t) CSR, log-normalised on each source's own full gene set: genes that the paired sections lack.
    extra_measured
        (sources, t) bool.
    extra_genes
        (t rows) as ``TrainingData.genes``.
    scgpt
        (m, d) vectors made by scGPT, where every source has them.
    """

    sections: tuple[Section, ...]
    source: npt.NDArray[np.intp]
    shares: SparseExpression
    measured: npt.NDArray[np.bool_]
    extra: SparseExpression
    extra_measured: npt.NDArray[np.bool_]
    extra_genes: pd.DataFrame
    scgpt: Features | None

    def without(self, patients: Collection[str]) -> UnpairedData | None:
        """Less the sources of some patients (as `patient_key` writes them); None where none remains."""
        stays = np.array([patient_key(s) not in patients for s in self.sections], dtype=bool)
        if not stays.any():
            return None
        rows = stays[self.source]
        return replace(
            self,
            sections=tuple(s for s, stay in zip(self.sections, stays, strict=True) if stay),
            source=(np.cumsum(stays) - 1)[self.source[rows]],
            shares=self.shares[rows],
            measured=self.measured[stays],
            extra=self.extra[rows],
            extra_measured=self.extra_measured[stays],
            scgpt=None if self.scgpt is None else self.scgpt[rows],
        )

    def on_scale_of(self, paired: SparseExpression) -> SparseExpression:
        """(m, g) log expression as if from the paired sections.

        Counts per 10,000 of a panel of 300 genes cannot be compared with those of a whole transcriptome. Over the
        genes a source has in common with the paired sections, each of its transcriptomes gets the total that a paired
        spot has there on average.
        """
        linear = np.asarray(sparse.csr_matrix(paired, dtype=np.float64).expm1().mean(axis=0)).ravel()
        totals = self.measured @ linear
        out = self.shares.copy()
        out.data = np.log1p(out.data * np.repeat(totals[self.source], np.diff(out.indptr))).astype(np.float32)
        return out


def assemble_unpaired(
    sections: Sequence[Section], data: TrainingData, config: TrainConfig, *, cells: bool = True
) -> UnpairedData | None:
    """Read the rows that have expression and no image; None where there is none.

    A source that shares hardly a gene of the panel is left out, with a warning. ``cells``: also what has no positions.
    """
    sources = []
    for section in sections:
        if section.image is not None or not section.has_expression:
            continue
        if not cells and keys.SPATIAL not in section.adata.obsm:
            continue
        shared = int(data.genes.index[data.panel].isin(section.adata.var_names).sum())
        if shared < min(_FEWEST_SHARED, int(data.panel.sum())):
            told = f"section {section.section_id!r} has {shared} of the {int(data.panel.sum())} genes of the panel"
            warnings.warn(f"{told} and is not used", HescribeWarning, stacklevel=2)
            continue
        sources.append(section)
    if not sources:
        return None
    tables = [s.adata for s in sources]
    wanted = data.genes.index
    counts = sparse.vstack([_aligned(sparse.csr_matrix(t.X), t.var_names, wanted) for t in tables], format="csr")
    source = np.repeat(np.arange(len(tables)), [t.n_obs for t in tables])
    kept = np.asarray(counts.sum(axis=1)).ravel() > 0
    extra, genes, extra_measured = _extra(tables, data, config)
    scgpt = _scgpt(sources)
    return UnpairedData(
        tuple(sources),
        source[kept],
        _shares(counts[kept]),
        np.stack([wanted.isin(t.var_names) for t in tables]),
        extra[kept],
        extra_measured,
        genes,
        None if scgpt is None else scgpt[kept],
    )


def _extra(
    tables: Sequence[ad.AnnData], data: TrainingData, config: TrainConfig
) -> tuple[SparseExpression, pd.DataFrame, npt.NDArray[np.bool_]]:
    """Expression, table and (sources, t) presence of genes that not every paired section measured."""
    paired = set(data.measured)
    names = pd.Index(list(dict.fromkeys(g for t in tables for g in own_genes(t) if g not in paired)), dtype=object)
    logged = [_aligned(log_normalise(t.X, target_sum=config.target_sum), t.var_names, names) for t in tables]
    measured = np.stack([names.isin(t.var_names) for t in tables])
    matrix = sparse.vstack(logged, format="csr")
    ensembl = pd.concat([t.var[keys.ENSEMBL] for t in tables if keys.ENSEMBL in t.var])
    table = gene_table(
        matrix, list(names), ensembl[~ensembl.index.duplicated()], np.zeros(matrix.shape[0], dtype=np.intp)
    )
    # Statistics over the transcriptomes in which the gene was measured at all
    seen = np.maximum(measured.T @ np.array([t.n_obs for t in tables]) / matrix.shape[0], 1e-12)
    square = (table["variance"] + table["mean"] ** 2) / seen
    table["mean"], table["detected"] = table["mean"] / seen, table["detected"] / seen
    table["variance"] = np.maximum(square - table["mean"] ** 2, 0.0)
    table[keys.IN_PANEL] = False
    supported = table["detected"].to_numpy() >= config.min_detected
    return matrix[:, supported].tocsr(), table[supported].copy(), measured[:, supported]


def _aligned(matrix: SparseExpression, names: pd.Index, wanted: pd.Index) -> SparseExpression:
    """Columns in the wanted order; genes that are not there are zero."""
    where = names.get_indexer(wanted)
    there = np.flatnonzero(where >= 0)
    place = sparse.csr_matrix((np.ones(len(there), np.float32), (where[there], there)), shape=(len(names), len(wanted)))
    return sparse.csr_matrix(matrix @ place)


def _shares(counts: SparseExpression) -> SparseExpression:
    out = sparse.csr_matrix(counts, dtype=np.float64)
    totals = np.asarray(out.sum(axis=1)).ravel()
    out.data /= np.repeat(totals, np.diff(out.indptr))
    return out


def _scgpt(sections: Sequence[Section]) -> Features | None:
    """Vectors of the sections one below another; None where one has none or they differ in length."""
    vectors = [s.adata.obsm.get(keys.SCGPT) for s in sections]
    if any(v is None for v in vectors) or len({v.shape[1] for v in vectors}) > 1:
        return None
    return np.concatenate(vectors)


def ready_embedding(data: TrainingData, unpaired: UnpairedData | None, choice: str) -> Features | None:
    """(n, d) scGPT vectors of the paired spots, or None where an embedding is to be learned.

    Parameters
    ----------
    data, unpaired
        What is learned from.
    choice
        ``learned``: never. ``scgpt``: needed. ``auto``: where everything has them.

    Raises
    ------
    InputError
        They are needed and a section has none, or they differ in length.
    """
    if choice == "learned":
        return None
    others = unpaired.sections if unpaired is not None else ()
    found = _scgpt([*data.sections, *others])
    if found is None and choice == "scgpt":
        lacking = [s.section_id for s in [*data.sections, *others] if keys.SCGPT not in s.adata.obsm]
        told = f"section {', '.join(lacking)} has none" if lacking else "they differ in length between sections"
        raise InputError(
            f"gene_embedding = scgpt needs vectors in obsm[{keys.SCGPT!r}]: {told}", fix="gene_embedding = learned"
        )
    return None if found is None else found[: len(data.section)]
