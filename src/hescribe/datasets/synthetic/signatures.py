"""Genes and what each cell type makes of them, at both ends of its program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hescribe.datasets.synthetic.cells import (
    ADIPOCYTE,
    B_CELL,
    CELL_TYPES,
    ENDOTHELIAL,
    FIBROBLAST,
    MACROPHAGE,
    PLASMA,
    T_CELL,
    TUMOUR_CELL,
)

MARKERS: dict[int, str] = {
    TUMOUR_CELL: "EPCAM KRT8 KRT18 KRT19 KRT7 CDH1 CLDN4 MUC1 SPINT2 ELF3 TACSTD2 CLDN7 LCN2 CD24 KRT23 RAB25",
    FIBROBLAST: "COL1A1 COL3A1 DCN COL1A2 LUM COL6A3 PDGFRA PDGFRB FBLN1 SFRP2 COL5A1 MMP2 THY1 AEBP1 BGN SPARC",
    T_CELL: "CD3E CD3D TRAC CD2 IL7R CCR7 CD4 CD8A CCL19 CCL21 GZMK CD27 CXCR4 LTB TCF7 CCL5",
    B_CELL: "MS4A1 CD79A CXCL13 CD19 CD79B BANK1 CXCR5 PAX5 CD22 FCRLA TCL1A LINC00926 BLK CR2 VPREB3 HLA-DRA",
    PLASMA: "IGHG1 JCHAIN MZB1 IGKC IGLC2 IGHA1 IGHG3 DERL3 TNFRSF17 XBP1 SDC1 FKBP11 PRDX4 POU2AF1 IGHM SSR4",
    MACROPHAGE: "CD68 C1QA CD163 C1QB C1QC LYZ AIF1 TYROBP FCER1G MRC1 APOE MS4A7 CD14 SPP1 GPNMB FCGR3A",
    ENDOTHELIAL: "PECAM1 VWF CLDN5 CDH5 EMCN KDR PLVAP RAMP2 ESAM EGFL7 FLT1 ENG TIE1 ECSCR AQP1 CD34",
    ADIPOCYTE: "PLIN1 ADIPOQ FABP4 PLIN4 LEP CIDEC LIPE CIDEA GPD1 PCK1 LPL CD36 TUSC5 AQP7 ACSL1 G0S2",
}
PROGRAMS: dict[int, tuple[str, str]] = {  #: genes of a type that rise and fall with its program
    TUMOUR_CELL: (
        "MKI67 TOP2A VEGFA CA9 CDK1 CCNB1 BIRC5 TYMS PCNA STMN1 UBE2C TUBA1B LDHA SLC2A1 NDRG1 HK2 ADM PGK1",
        "PIP SCGB2A2 CITED2 TXNIP KLF6 ZFP36 MGP AZGP1 SLPI SERPINA3",
    ),
    FIBROBLAST: (
        "POSTN FAP ACTA2 COL11A1 INHBA MMP11 CTHRC1 TAGLN SULF1 COL10A1 COMP LRRC15",
        "CFD DPT PI16 GSN FBLN5 MFAP5 CLU IGFBP6 APOD C7",
    ),
}
SUBTYPES: dict[str, str] = {
    "her2": "ERBB2 GRB7 STARD3 MIEN1 PGAP3 TCAP FASN S100A9",
    "luminal": "ESR1 PGR TFF1 AGR2 GATA3 TFF3 CA12 BCL2",
    "basal": "KRT5 KRT17 EGFR KRT14 FOXC1 SOX10 VIM CDH3",
}
MITOCHONDRIAL = "MT-CO1 MT-CO2 MT-CO3 MT-ATP6 MT-ND1 MT-ND2 MT-ND3 MT-ND4 MT-ND4L MT-ND5 MT-ND6 MT-CYB MT-ATP8"
UBIQUITOUS = (
    "ACTB B2M EEF1A1 TPT1 FTL FTH1 RPLP0 RPS27 RPL13 RPS18 RPL10 GAPDH TMSB10 RPS6 RPL3 UBC HSP90AB1 PTMA "
    "RPS2 RPL7 RPLP1 RPS12 NACA HNRNPA1 CFL1 MYL6 SERF2 H3-3B PFN1 EIF1"
)

#: RNA of a cell relative to a tumour cell
CONTENT = np.array([1.0, 0.55, 0.28, 0.32, 0.85, 0.75, 0.5, 2.2])
_MITOCHONDRIAL_SHARE = 0.08
_MARKER_FOLD = 45.0


@dataclass(frozen=True)
class Signatures:
    """RNA per cell.

    Attributes
    ----------
    genes
        (g,) symbols.
    low, high
        (types, g) float64 mean of a cell whose program is 0 and 1; in between it is mixed.
    """

    genes: list[str]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def list_genes(n_genes: int) -> list[str]:
    """``n_genes`` symbols: markers of all types in turn, programs, subtypes, then genes made up, ``SYN0001`` on.

    The best known markers come first, so that few genes still have some of everything.
    """
    groups = [g.split() for g in MARKERS.values()]
    groups += [genes.split() for pair in PROGRAMS.values() for genes in pair]
    groups += [g.split() for g in SUBTYPES.values()] + [MITOCHONDRIAL.split(), UBIQUITOUS.split()]
    in_turn = [g[i] for i in range(max(map(len, groups))) for g in groups if i < len(g)]
    named = list(dict.fromkeys(in_turn))[:n_genes]
    return named + [f"SYN{i + 1:04d}" for i in range(n_genes - len(named))]


def make_signatures(n_genes: int, seed: int) -> Signatures:
    """Signatures of the cohort, before anything that is a patient's own."""
    genes = list_genes(n_genes)
    rng = np.random.default_rng(np.random.SeedSequence((seed, 1_000_000)))
    base = np.exp(rng.normal(0, 0.9, n_genes))
    base[np.isin(genes, UBIQUITOUS.split())] *= 6
    named = {g for group in MARKERS.values() for g in group.split()}
    base[np.isin(genes, list(named))] = 0.12 * np.exp(rng.normal(0, 0.4, len(named & set(genes))))
    # A third of the genes are much the same in all types, the others are not
    varying = rng.random(n_genes) < 0.67
    profile = base * np.exp(np.where(varying, rng.normal(0, 0.9, (len(CELL_TYPES), n_genes)), 0.0))
    for kind, symbols in MARKERS.items():
        of = np.isin(genes, symbols.split())
        profile[kind, of] = _MARKER_FOLD * 0.12 * np.exp(rng.normal(0.4, 0.7, of.sum()))
    low, high = _spread_programs(genes, profile, rng)
    return Signatures(genes, _to_content(genes, low), _to_content(genes, high))


def _spread_programs(
    genes: list[str], profile: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    low, high = profile.copy(), profile.copy()
    for kind, (up, down) in PROGRAMS.items():
        for symbols, raised, lowered in ((up, high, low), (down, low, high)):
            of = np.isin(genes, symbols.split())
            level = np.exp(rng.normal(1.1, 0.5, of.sum()))
            raised[kind, of], lowered[kind, of] = level, 0.08 * level
        touched = rng.random(len(genes)) < 0.3
        effect = np.where(touched, rng.normal(0, 0.4, len(genes)), 0.0)
        high[kind] *= np.exp(effect)
        low[kind] *= np.exp(-effect)
    return low, high


def of_patient(signatures: Signatures, subtype: str, rng: np.random.Generator) -> Signatures:
    """The cohort's signatures with the subtype's genes raised and every gene a little the patient's own."""
    own = np.exp(rng.normal(0, 0.15, len(signatures.genes)))
    low, high = signatures.low * own, signatures.high * own
    typical = np.median(signatures.low[TUMOUR_CELL])
    for name, symbols in SUBTYPES.items():
        of = np.isin(signatures.genes, symbols.split())
        level = typical * np.exp(rng.normal(2.2 if name == subtype else -1.5, 0.5, of.sum()))
        low[TUMOUR_CELL, of], high[TUMOUR_CELL, of] = level, level
    return Signatures(signatures.genes, low, high)


def _to_content(genes: list[str], profile: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows sum to the type's RNA content, a fixed share of it mitochondrial."""
    mitochondrial = np.isin(genes, MITOCHONDRIAL.split())
    shares = profile / profile[:, ~mitochondrial].sum(axis=1, keepdims=True)
    if mitochondrial.any():
        shares[:, mitochondrial] *= _MITOCHONDRIAL_SHARE / shares[:, mitochondrial].sum(axis=1, keepdims=True)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True) * CONTENT[:, None])
