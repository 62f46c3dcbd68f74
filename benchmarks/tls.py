"""How well scores of lymphoid structures find where B and T cells lie together, measured and predicted.

    python benchmarks/tls.py HER2ST_FOLDER PREDICTIONS_FOLDER [-o tls.csv]

HER2ST_FOLDER has the public layout (ST-cnts, ST-spotfiles, ST-deconv, ST-pat, TLS-pred). PREDICTIONS_FOLDER has
<section>.zarr of models that have not seen the section; <section>-from-<x>.zarr of models that have not seen its
patient either.

Truth: the product of a spot's proportions of B cells and T cells (stereoscope), as in Andersson et al. 2021; and, on the
sections that a pathologist labelled, the spots called immune infiltrate. The published model was fitted to that
product on these very sections: its figures on measured expression are circular.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata, spearmanr

from hescribe import keys
from hescribe.downstream.tls.call import TLSSettings, tls
from hescribe.downstream.tls.scores import model_score, read_coefficients, tls_scores
from hescribe.errors import HescribeWarning
from hescribe.io.expression import log_normalise
from hescribe.metrics.resampling import draw_blocks, percentile_interval, spatial_blocks

PITCH_UM = 200.0
BLOCKS, RESAMPLES = 10, 200
INFILTRATE = "immune infiltrate"
SEEN = {"B4": "predicted, new patient"}  # predicted from C alone; C2–C5 from the other sections of C


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("her2st", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", HescribeWarning)
    model = read_coefficients(args.her2st / "TLS-pred" / "coef-full.tsv.gz")
    sections = {f.name.split(".")[0]: f for f in sorted((args.her2st / "ST-cnts").glob("*.tsv.gz"))}
    rows, resampled, calls = [], [], []
    for name in sections:
        measured, truth, label = read(args.her2st, name)
        found = [("measured", measured)]
        for file in sorted(args.predictions.glob(f"{name}*.zarr")):
            new = file.stem != name
            kind = SEEN.get(name, "predicted, new patient" if new else "predicted, same patient")
            table = ad.read_zarr(file)
            found.append((kind, table[table.obs_names.isin(measured.obs_names)].copy()))
        for kind, table in found:
            which = measured.obs_names.get_indexer(table.obs_names)
            table.obsm["array"] = measured.obsm["array"][which]
            for score, values in all_scores(table, model).items():
                row, drawn = judge(values, truth[which], table.obsm["array"])
                if kind == "measured" and label is not None:
                    row["auroc_label"] = auroc(values, label)
                rows.append({"what": kind, "section": name, "score": score} | row)
                resampled.append((kind, score, drawn))
            calls.append({"what": kind, "section": name} | called(table, truth[which]))
    frame = pd.DataFrame(rows)
    print(summary(frame, resampled).to_string(index=False))
    print(called_summary(pd.DataFrame(calls)).to_string(index=False))
    print(false_positives().to_string(index=False))
    if args.output:
        frame.to_csv(args.output, index=False)


def read(folder: Path, name: str) -> tuple[ad.AnnData, npt.NDArray[np.float64], npt.NDArray[np.bool_] | None]:
    """Counts, product of proportions, and where a pathologist saw immune infiltrate."""
    counts = pd.read_csv(folder / "ST-cnts" / f"{name}.tsv.gz", sep="\t", index_col=0)
    shares = pd.read_csv(folder / "ST-deconv" / f"{name}-major.tsv", sep="\t", index_col=0)
    spots = pd.read_csv(folder / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t")
    spots.index = pd.Index([f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)])
    kept = counts.index[counts.index.isin(shares.index) & counts.index.isin(spots.index) & (counts.sum(axis=1) > 0)]
    counts, shares, spots = counts.loc[kept], shares.loc[kept], spots.loc[kept]
    table = ad.AnnData(sparse.csr_matrix(counts.to_numpy(dtype=np.float32)), obs=pd.DataFrame(index=kept))
    table.var_names = counts.columns
    table.obsm[keys.SPATIAL] = spots[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    table.obsm["array"] = spots[["x", "y"]].to_numpy(dtype=np.float64) * PITCH_UM
    labels = folder / "ST-pat" / f"{name}_labeled_coordinates.tsv"
    where = None
    if labels.is_file():
        seen = pd.read_csv(labels, sep="\t").dropna(subset=["x", "y", "label"])
        seen.index = pd.Index([f"{round(x)}x{round(y)}" for x, y in zip(seen["x"], seen["y"], strict=True)])
        known = seen[~seen.index.duplicated()]["label"].reindex(kept)
        where = np.where(known.isna(), np.nan, known == INFILTRATE)
    return table, (shares["B-cells"] * shares["T-cells"]).to_numpy(), where


def all_scores(table: ad.AnnData, model: pd.Series) -> dict[str, npt.NDArray[np.float64]]:
    scores = {str(k): v.to_numpy() for k, v in tls_scores(table, coefficients=model.to_dict()).items()}
    predicted = keys.EXPECTED_PCC in table.var
    if predicted:
        scores["model, all genes"] = model_score(table, model, min_pcc=None)
        scores["mean of all genes"] = np.asarray(table.X, dtype=np.float64).mean(axis=1)
    else:
        scores["total counts"] = np.asarray(table.X.sum(axis=1)).ravel()
        scores["mean of all genes"] = np.asarray(log_normalise(table.X).mean(axis=1)).ravel()
    return scores


def judge(
    values: npt.NDArray[np.float64], truth: npt.NDArray[np.float64], places: npt.NDArray[np.float64]
) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
    """Rank correlation and AUROC, and both on resamples of blocks of tissue."""
    top = top_decile(truth)
    blocks = spatial_blocks(places, BLOCKS)
    drawn = []
    for times in draw_blocks(BLOCKS, RESAMPLES, seed=0):
        spots = np.repeat(np.arange(len(truth)), times[blocks].astype(int))
        drawn.append((spearmanr(values[spots], truth[spots])[0], auroc(values[spots], top[spots])))
    return {"spots": len(truth), "spearman": spearmanr(values, truth)[0], "auroc": auroc(values, top)}, np.array(drawn)


def top_decile(truth: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (rankdata(-truth, method="ordinal") <= round(len(truth) / 10)).astype(float)


def auroc(values: npt.NDArray[np.float64], label: npt.NDArray[np.float64]) -> float:
    """Chance that a spot inside scores above one outside; unlabelled spots left out."""
    known = np.isfinite(label)
    rank, inside = rankdata(values[known]), label[known] > 0
    n, m = int(inside.sum()), int((~inside).sum())
    return float((rank[inside].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def called(table: ad.AnnData, truth: npt.NDArray[np.float64]) -> dict[str, float]:
    """Structures of the signature, and how many of their spots are in the truth's top decile."""
    top, out = top_decile(truth) > 0, {}
    for null, control in (("spots", "max"), ("spots", "fdr"), ("field", "max")):
        section = table.copy()
        section.obsm[keys.SPATIAL] = section.obsm["array"]
        found = tls(section, settings=TLSSettings(null=null, control=control, permutations=499), mpp=1.0)
        inside = section.obs[keys.TLS].to_numpy() > 0
        out |= {
            f"{null}/{control}: number": len(found),
            f"{null}/{control}: spots": int(inside.sum()),
            f"{null}/{control}: hits": int((inside & top).sum()),
        }
    return out | {"spots": len(truth)}


def summary(frame: pd.DataFrame, resampled: list[tuple[str, str, npt.NDArray[np.float64]]]) -> pd.DataFrame:
    rows = []
    for (kind, score), part in frame.groupby(["what", "score"], sort=False):
        draws = np.nanmean([d for k, s, d in resampled if (k, s) == (kind, score)], axis=0)
        row = {"what": kind, "score": score, "sections": len(part)}
        for i, column in enumerate(("spearman", "auroc")):
            low, high = percentile_interval(draws[:, i])
            row[column] = f"{part[column].mean():.2f} [{low:.2f}, {high:.2f}]"
            row[f"range of {column}"] = f"{part[column].min():.2f} … {part[column].max():.2f}"
        if "auroc_label" in part and part["auroc_label"].notna().any():
            row["label"] = f"{part['auroc_label'].mean():.2f} ({part['auroc_label'].notna().sum()})"
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def called_summary(calls: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for kind, part in calls.groupby("what", sort=False):
        for how in ("spots/max", "spots/fdr", "field/max"):
            spots, hits = part[f"{how}: spots"].sum(), part[f"{how}: hits"].sum()
            some = int((part[f"{how}: number"] > 0).sum())
            rows.append({
                "what": kind, "null/control": how, "sections with one": f"{some} of {len(part)}",
                "structures": part[f"{how}: number"].sum(), "share of spots": round(spots / part["spots"].sum(), 3),
                "of these in the top decile": round(hits / spots, 2) if spots else float("nan"),
            })  # fmt: skip
    return pd.DataFrame(rows)


def false_positives(n: int = 200) -> pd.DataFrame:
    """Share of simulated sections without any structure in which one is found at alpha = 0.05."""
    y, x = np.mgrid[0:15, 0:20]
    places = np.column_stack([x.ravel(), y.ravel()]) * PITCH_UM
    squared = ((places[:, None] - places[None]) ** 2).sum(axis=-1)
    root = np.linalg.cholesky(np.exp(-squared / (2 * 400.0**2)) + 1e-6 * np.eye(len(places)))
    rng, rows = np.random.default_rng(0), []
    tissues = {
        "noise": lambda: rng.exponential(size=300),
        "patches of 400 µm": lambda: root @ rng.standard_normal(300),
        "patches and noise": lambda: root @ rng.standard_normal(300) + rng.standard_normal(300),
    }
    for tissue, draw in tissues.items():
        for null in ("spots", "field"):
            hits = 0
            for seed in range(n):
                section = ad.AnnData(np.zeros((300, 1), dtype=np.float32), obsm={keys.SPATIAL: places})
                how = TLSSettings(permutations=99, min_spots=1, seed=seed, null=null)
                hits += len(tls(section, draw(), settings=how, mpp=1.0)) > 0
            rows.append({"tissue": tissue, "null": null, "found in": hits / n})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
