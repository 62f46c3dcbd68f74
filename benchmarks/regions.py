"""Tumour read off marker scores: against annotated expression clusters, and against a pathologist's labels.

    python benchmarks/regions.py HER2ST_FOLDER [PREDICTIONS_FOLDER] -o results/regions

HER2ST. PREDICTIONS_FOLDER holds ``<section>.zarr`` of models that have not seen the section. AUROC of a spot's score for
lying in a cluster annotated as cancer (ST-cluster; predicted and measured expression), and, for measured expression of
the sections with labels, in what the pathologist calls cancer, immune infiltrate, adipose or connective tissue: the
tool's own upper bound. Beside it the AUROC of two scores that know no marker: the spot's total count, and its mean over
all genes. Intervals are of a bootstrap over blocks of tissue (95 %).

Second table: the labels themselves, as ``hescribe regions`` gives them with its defaults. Of the spots called tumour
the share that is (precision), of those that are the share called so (recall), the F1 of both beside that of calling
every spot tumour, and the adjusted Rand index of the clusters with the annotated ones.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from hescribe import keys
from hescribe.downstream.gene_sets import log_expression, marker_sets, score_gene_sets
from hescribe.downstream.regions import regions
from hescribe.errors import HescribeWarning
from hescribe.evaluation import markdown
from hescribe.inference import read_prediction
from hescribe.io.manifest import ManifestRow
from hescribe.metrics.resampling import percentile_interval
from hescribe.sections import Section

CLUSTERED = ("C2", "C3", "C4", "C5", "B4")
LABELLED = ("D1", "E1", "F1", "G2", "H1")
LABELS = {"tumour": "cancer", "immune": "immune", "fat": "adipose", "stroma": "connective"}
BLOCKS, RESAMPLES = 4, 500


def measured(folder: Path, name: str) -> ad.AnnData:
    row = ManifestRow(
        name, name[0], None, folder / "ST-cnts" / f"{name}.tsv.gz", technology="st",
        positions=folder / "ST-spotfiles" / f"{name}_selection.tsv",
    )  # fmt: skip
    return Section(row).adata


def cancer_clusters(folder: Path, name: str) -> tuple[pd.Series, pd.Series]:
    """Spot → whether its cluster is annotated as cancer, and the cluster; the annotation itself may hold commas."""
    lines = [line.split(",") for line in (folder / "ST-cluster" / "motivation.csv").read_text().splitlines()[1:]]
    cancer = {int(c) for p, c, what, *_ in lines if p == name[0] and what.startswith("cancer")}
    unknown = {int(c) for p, c, what, *_ in lines if p == name[0] and what.startswith("unknown")}
    table = pd.read_csv(folder / "ST-cluster" / f"{name}-cluster-annotation.tsv.gz", sep="\t", index_col=0)
    table = table[~table["label"].isin(unknown)]
    spots = table["x"].astype(str) + "x" + table["y"].astype(str)
    return pd.Series(table["label"].isin(cancer).to_numpy(), spots), pd.Series(table["label"].to_numpy(), spots)


def pathologist(folder: Path, name: str) -> pd.Series:
    """Spot → label; spots whose label is missing or undetermined are left out."""
    table = pd.read_csv(folder / "ST-pat" / f"{name}_labeled_coordinates.tsv", sep="\t").dropna(subset=["x", "y"])
    spots = [f"{x:.0f}x{y:.0f}" for x, y in zip(table["x"], table["y"], strict=True)]
    labels = pd.Series(table["label"].to_numpy(), index=spots).dropna()
    return labels[(labels != "undetermined") & ~labels.index.duplicated()]


def auroc(score: np.ndarray, truth: np.ndarray, places: np.ndarray) -> tuple[float, float, float]:
    """With a 95 % interval over blocks of tissue."""
    low, high = places.min(axis=0), places.max(axis=0)
    cell = np.minimum(((places - low) / (high - low + 1e-9) * BLOCKS).astype(int), BLOCKS - 1)
    block = cell[:, 0] * BLOCKS + cell[:, 1]
    members = [np.flatnonzero(block == b) for b in np.unique(block)]
    rng, draws = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        if 0 < truth[rows].sum() < len(rows):
            draws.append(roc_auc_score(truth[rows], score[rows]))
    return (roc_auc_score(truth, score), *percentile_interval(np.array(draws)))


def scores(adata: ad.AnnData, wanted: str) -> dict[str, np.ndarray]:
    sets = marker_sets("breast")
    expression = log_expression(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HescribeWarning)
        table = score_gene_sets(adata, {wanted: sets[wanted]})
    found = {"markers": table[wanted].to_numpy(), "mean of all genes": np.asarray(expression.mean(axis=1)).ravel()}
    if keys.EXPECTED_PCC not in adata.var:
        found["total count"] = np.asarray(adata.X.sum(axis=1)).ravel()
    return found


def label_row(adata: ad.AnnData, inside_of: pd.Series, clusters: pd.Series | None, **facts: str) -> dict[str, object]:
    """How good the names and the clusters of regions are on one section."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HescribeWarning)
        found = regions(adata, marker_sets("breast")).obs
    spots = found.index.intersection(inside_of.index)
    inside = inside_of.reindex(spots).to_numpy(dtype=bool)
    called = (found.loc[spots, keys.REGION] == "tumour").to_numpy()
    both, share = (inside & called).sum(), inside.mean()
    row: dict[str, object] = {
        **facts, "spots": len(spots), "share": share, "called": called.mean(),
        "precision": both / max(called.sum(), 1), "recall": both / max(inside.sum(), 1),
        "F1": 2 * both / max(called.sum() + inside.sum(), 1), "F1 of all": 2 * share / (1 + share),
    }  # fmt: skip
    if clusters is not None:
        row["ARI"] = adjusted_rand_score(clusters.reindex(spots), found.loc[spots, keys.REGION_CLUSTER])
    return row


def rows(adata: ad.AnnData, inside_of: pd.Series, wanted: str, **facts: str) -> list[dict[str, object]]:
    spots = adata.obs_names[adata.obs_names.isin(inside_of.index)]
    inside = inside_of.reindex(spots).to_numpy(dtype=bool)
    if inside.sum() < 5 or (~inside).sum() < 5:
        return []
    places = np.asarray(adata[spots].obsm[keys.SPATIAL])[:, :2]
    out = []
    for name, score in scores(adata, wanted).items():
        value, low, high = auroc(pd.Series(score, adata.obs_names)[spots].to_numpy(), inside, places)
        out.append(
            {
                **facts,
                "score": name,
                "spots": len(spots),
                "share": inside.mean(),
                "auroc": value,
                "low": low,
                "high": high,
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("predictions", type=Path, nargs="?")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/regions"))
    args = parser.parse_args()
    found: list[dict[str, object]] = []
    named: list[dict[str, object]] = []
    for name in CLUSTERED:
        truth, clusters = cancer_clusters(args.folder, name)
        given = {"measured": measured(args.folder, name)}
        for path in sorted(args.predictions.glob(f"{name}*.zarr")) if args.predictions else []:
            given[f"predicted, {path.stem}"] = read_prediction(path)
        for expression, adata in given.items():
            facts = {"section": name, "expression": expression, "truth": "cancer clusters"}
            found += rows(adata, truth, "tumour", **facts)
            named.append(label_row(adata, truth, clusters, **facts))
    for name in LABELLED:
        labels, adata = pathologist(args.folder, name), measured(args.folder, name)
        facts = {"section": name, "expression": "measured", "truth": "pathologist: cancer"}
        named.append(label_row(adata, labels.str.contains("cancer"), labels, **facts))
        for wanted, what in LABELS.items():
            found += rows(
                adata,
                labels.str.contains(what),
                wanted,
                section=name,
                expression="measured",
                truth=f"pathologist: {what}",
            )
    args.output.mkdir(parents=True, exist_ok=True)
    for file, table in (("auroc", pd.DataFrame(found)), ("labels", pd.DataFrame(named))):
        table.to_csv(args.output / f"{file}.csv", index=False)
        (args.output / f"{file}.md").write_text(markdown(table, digits=2))
        print(markdown(table, digits=2))


if __name__ == "__main__":
    main()
