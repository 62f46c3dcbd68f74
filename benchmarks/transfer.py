"""Genes that the paired sections never measured, carried over from sections without image, on HER2ST.

    python benchmarks/transfer.py HER2ST_FOLDER ENCODER -o results/transfer [--genes 300] [--test C5]
                                 [--min-detected 0.02]

The paired sections keep their most variable genes alone; the sections of the other patients, without image, keep all.
Scored are the genes hidden from the paired sections: HEG-50 and HVG-50 among them and all that a tenth of the test
section's spots have, beside the mean over 100 shuffles of which gene is which.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from hescribe import keys
from hescribe.inference import predict
from hescribe.io.expression import log_normalise
from hescribe.io.manifest import ManifestRow
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.sections import Section
from hescribe.training import TrainConfig, train

PAIRED = ("C2", "C3", "C4")


def section(folder: Path, name: str) -> Section:
    """A section, with its image where it has one."""
    image = next((folder / "ST-imgs").glob(f"*/{name}/*.jpg"), None)
    expression, positions = folder / "ST-cnts" / f"{name}.tsv.gz", folder / "ST-spotfiles" / f"{name}_selection.tsv"
    return Section(ManifestRow(name, name[0], image, expression, technology="st", positions=positions))


def most_variable(sections: list[Section], count: int) -> set[str]:
    """Genes with the largest variance within the sections, on average."""
    tables = [s.adata for s in sections]
    shared = sorted(set.intersection(*(set(t.var_names) for t in tables)))
    variance = np.mean(
        [log_normalise(t.X)[:, t.var_names.get_indexer(shared)].toarray().var(axis=0) for t in tables], axis=0
    )
    return {shared[i] for i in np.argsort(-variance)[:count]}


def restricted(section: Section, genes: set[str], folder: Path) -> Section:
    """The section as if a panel of some genes had been measured; the cut counts lie in the folder."""
    table = section.adata[:, section.adata.var_names.isin(list(genes))].copy()
    table.uns.clear()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{section.section_id}.h5ad"
    table.write_h5ad(path)
    return Section(ManifestRow(section.section_id, section.patient_id, section.image, path, "h5ad", mpp=section.mpp))


def score(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean correlation over sets of genes, and of the same sets under shuffled names."""
    sets = {
        "heg50": np.argsort(-truth.mean(axis=0))[:50],
        "hvg50": np.argsort(-truth.var(axis=0))[:50],
        "detected10": np.flatnonzero((truth > 0).mean(axis=0) > 0.1),
    }
    rng, out = np.random.default_rng(0), {"scored": float(truth.shape[1])}
    for name, genes in sets.items():
        out[name] = float(np.nanmean(pearson_per_gene(predicted[:, genes], truth[:, genes])))
        shuffled = [
            pearson_per_gene(predicted[:, rng.permutation(predicted.shape[1])[: len(genes)]], truth[:, genes])
            for _ in range(100)
        ]
        out[f"{name} shuffled"] = float(np.nanmean(shuffled))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("encoder")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--test", default="C5")
    parser.add_argument("--min-detected", type=float, default=0.03, help="share of transcriptomes that show a gene")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = sorted(p.name.removesuffix(".tsv.gz") for p in (args.folder / "ST-cnts").glob("[D-H]?.tsv.gz"))
    paired, tested = [section(args.folder, name) for name in PAIRED], section(args.folder, args.test)
    panel = most_variable(paired, args.genes)
    fitting = [restricted(s, panel, args.output / "cut") for s in paired] + [
        section(args.folder, name) for name in names
    ]
    config = TrainConfig(
        method="carhe",
        encoder=args.encoder,
        genes="all",
        min_detected=args.min_detected,
        inner_folds=0,
        seed=args.seed,
    )
    bundle = train(fitting, config, output=args.output / "bundle")
    carried = bundle.genes.index[bundle.genes[keys.TRANSFERRED] & bundle.genes.index.isin(tested.adata.var_names)]
    truth = log_normalise(tested.adata.X)[:, tested.adata.var_names.get_indexer(carried)].toarray()
    predicted = predict(bundle, tested)
    written = {"written": float(predicted.n_vars), "measured in the pairs": float(len(panel))}
    table = pd.Series(written | score(np.asarray(predicted[:, carried].X), truth)).round(3)
    table.to_csv(args.output / "table.csv")
    print(table.to_string())


if __name__ == "__main__":
    main()
