"""Registration of serial sections, and a section left out, on real data.

    python benchmarks/volume.py HER2ST_FOLDER MOB_FOLDER [--predictions FOLDER] [-o volume.csv]

HER2ST's C2–C5 are consecutive sections of one tumour, the three MOB sections lie at different angles. Printed are, for
each way of registering: Dice of tissue masks and correlation of haematoxylin between neighbours before and after;
correlation of measured expression between neighbours' nearest spots, as they lie on their slides, with centroids laid
on each other, and registered (mean over genes detected in 10 % of the spots of both, and over the 50 of them with
the highest mean and variance in the first); what remains when MOB1 → MOB2 →
MOB3 → MOB1 are registered pair by pair and chained (µm); seconds; and, with every second section of each pair turned
by random angles and every other time flipped, how often that is found and how far the tissue then lies from where it
lies unturned (µm). Then C4 left out: its measured expression against
(a) interpolation of the measured C3 and C5, (b) predictions from its image alone, (c) the nearest spot of C3, and of
C5; mean correlation over the 50 most expressed and the 50 most variable genes of C4.

The folder of predictions holds ``C4.zarr`` (made by a model trained on C2, C3 and C5: it has seen the neighbours) and
``C4-from-B.zarr`` (trained on another patient).
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import anndata as ad
import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from hescribe import tl
from hescribe.downstream.volume.placement import IDENTITY, Placement
from hescribe.downstream.volume.planes import Picture
from hescribe.evaluation import write_table
from hescribe.inference.predict import read_prediction
from hescribe.io.expression import log_normalise
from hescribe.io.manifest import ManifestRow
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.metrics.gene_sets import detected_genes, gene_moments, top_genes
from hescribe.sections import Section

UM = 12.0  #: a pixel of the pictures registered
THICKNESS_UM = 16.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("her2st", type=Path)
    parser.add_argument("mob", type=Path)
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--models", default="rigid,affine,bspline")
    parser.add_argument("--turns", type=int, default=4, help="random angles a pair")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    her2st = [her2st_section(args.her2st, name) for name in ("C2", "C3", "C4", "C5")]
    mob = [mob_section(args.mob, name) for name in ("MOB1", "MOB2", "MOB3")]
    for sections in (her2st, mob):
        pictures = [picture(s) for s in sections]
        for model in args.models.split(","):
            start = time.process_time()
            found = tl.register_sections(pictures, model=model)
            seconds = time.process_time() - start
            print(f"\n{model}: {seconds:.0f} s\n{found.pairs.round(2).to_string(index=False)}", flush=True)
            rows += neighbours(sections, pictures, found.placements, model)
            if sections is her2st:
                rows += left_out(sections, found.placements, model, args.predictions)
        if sections is mob:
            print(f"\nMOB1 → MOB2 → MOB3 → MOB1, rigid, each pair by itself: {round_trip(pictures):.0f} µm")
        print(pd.DataFrame(rows).to_string(index=False), flush=True)
        if args.turns:
            rows_turned = turned(pictures, args.turns)
            print(pd.DataFrame(rows_turned).round(2).to_string(index=False), flush=True)
    if args.output:
        write_table(pd.DataFrame(rows), args.output)


def her2st_section(folder: Path, name: str) -> Section:
    image = next((folder / "ST-imgs" / name[0] / name).glob("*.jpg"))
    spots = folder / "ST-spotfiles" / f"{name}_selection.tsv"
    return Section(ManifestRow(name, name[0], image, folder / "ST-cnts" / f"{name}.tsv.gz", "st", spots))


def mob_section(folder: Path, name: str) -> Section:
    spots = folder / f"{name}_selection.tsv"
    return Section(ManifestRow(name, name, folder / f"{name}.jpg", folder / f"{name}.tsv.gz", "st", spots, mpp=3.4))


def picture(section: Section) -> Picture:
    longest = max(section.slide.width, section.slide.height)
    image, downsampling = section.thumbnail(round(longest * section.mpp / UM)) or (None, 0.0)
    return Picture(section.section_id, image, downsampling * section.mpp)


def spots_um(section: Section) -> npt.NDArray[np.float64]:
    return np.asarray(section.adata.obsm["spatial"], dtype=float) * section.mpp


def neighbours(
    sections: list[Section], pictures: list[Picture], placements: list[Placement], model: str
) -> list[dict[str, object]]:
    """Correlation between neighbours' nearest spots, over genes detected in both."""
    out: list[dict[str, object]] = []
    for i, (one, other) in enumerate(pairwise(sections)):
        centred = [Placement("", np.column_stack([np.eye(2), -p.plane.centroid])) for p in pictures[i : i + 2]]
        ways = {
            "on their slides": [Placement("", IDENTITY)] * 2,
            "centroids": centred,
            model: placements[i : i + 2],
        }
        for way, two in ways.items():
            places = [p.to_common(spots_um(s)) for p, s in zip(two, (one, other), strict=True)]
            for kind, r in nearest_correlation(one, other, places).items():
                out.append({"what": f"{one.section_id}–{other.section_id}, {kind}", "how": way, "of": model, "pcc": r})
    return out


def nearest_correlation(one: Section, other: Section, places: list[npt.NDArray[np.float64]]) -> dict[str, float]:
    """By gene set, over all spots of one section and the nearest spot of the other, however far."""
    detected = [s.adata.var_names[detected_genes(gene_moments(s.adata.X).detected)] for s in (one, other)]
    genes = detected[0].intersection(detected[1])
    a, b = (log_normalise(s.adata.X)[:, s.adata.var_names.get_indexer(genes)] for s in (one, other))
    r = pearson_per_gene(b[cKDTree(places[1]).query(places[0])[1]], a)
    moments = gene_moments(a)
    sets = {"HEG-50": moments.mean, "HVG-50": moments.variance}
    chosen = {"detected": np.ones(len(genes), dtype=bool)} | {k: top_genes(v, genes) for k, v in sets.items()}
    return {k: float(np.nanmean(r[mask])) for k, mask in chosen.items()}


def left_out(
    sections: list[Section], placements: list[Placement], model: str, predictions: Path | None
) -> list[dict[str, object]]:
    """C4 measured, against what the rest says of it."""
    tables = {s.section_id: s.adata for s in sections}
    stack = tl.stack_sections(
        tables, placements, np.arange(4) * THICKNESS_UM, mpp={s.section_id: s.mpp for s in sections}
    )
    own = stack[stack.obs["section_id"] == "C4"]
    genes = chosen_genes(own)
    named = sorted(set(genes["HEG-50"]) | set(genes["HVG-50"]))
    around = stack[stack.obs["section_id"].isin(["C3", "C5"])]
    given = {"(a) C3 and C5 interpolated": tl.interpolate_at(around, own.obsm["spatial_3d"], named)}
    given["(a) the same, smoother"] = tl.interpolate_at(around, own.obsm["spatial_3d"], named, sigma_um=200)
    for name in ("C3", "C5"):
        part = stack[stack.obs["section_id"] == name]
        nearest = cKDTree(part.obsm["spatial"]).query(own.obsm["spatial"])[1]
        given[f"(c) nearest spot of {name}"] = part[:, named].X.toarray()[nearest]
    spots = [n.removeprefix("C4_") for n in own.obs_names]
    for file, label in (("C4", "(b) predicted, trained on C2, C3, C5"), ("C4-from-B", "(b) predicted, trained on B4")):
        if predictions is not None and (predictions / f"{file}.zarr").exists():
            table = read_prediction(predictions / f"{file}.zarr")
            given[label] = dense(table[spots].to_df().reindex(columns=named, fill_value=0.0).to_numpy())
    truth = pd.DataFrame(dense(own[:, named].X), columns=named)
    known = np.all([np.isfinite(v).all(axis=1) for v in given.values()], axis=0)
    rows = []
    for label, values in given.items():
        for kind, some in genes.items():
            columns = [named.index(g) for g in some]
            r = np.nanmean(pearson_per_gene(values[known][:, columns], truth[some].to_numpy()[known]))
            rows.append({"what": f"C4 left out, {kind}", "how": label, "of": model, "pcc": float(r)})
    print(f"C4 left out: {known.sum()} of {len(known)} spots have neighbours above and below")
    return rows


def chosen_genes(section: ad.AnnData) -> dict[str, list[str]]:
    moments = gene_moments(section.X)
    sets = {"HEG-50": moments.mean, "HVG-50": moments.variance}
    return {k: list(section.var_names[top_genes(v, section.var_names)]) for k, v in sets.items()}


def dense(matrix: object) -> npt.NDArray[np.float64]:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float64)


def turned(pictures: list[Picture], count: int) -> list[dict[str, object]]:
    """Each second section at random angles, every other time flipped."""
    rng = np.random.default_rng(0)
    out: list[dict[str, object]] = []
    for fixed, moving in pairwise(pictures):
        points = moving.plane.points()
        there = tl.register_pair(fixed, moving, model="rigid").to_common(points)
        for i in range(count):
            angle, flip = float(rng.uniform(0, 360)), bool(i % 2)
            image, place = turn(moving.image, angle, flip=flip)
            found = tl.register_pair(fixed, Picture(moving.name, image, moving.um), model="rigid")
            moved = (points / moving.um - 0.5) @ place[:, :2].T + place[:, 2] + 0.5
            apart = np.linalg.norm(found.to_common(moved * moving.um) - there, axis=1).mean()
            pair = f"{fixed.name}–{moving.name}"
            out.append({"pair": pair, "angle": angle, "flip": flip, "found": found.flipped == flip, "um": float(apart)})
    return out


def turn(
    image: npt.NDArray[np.uint8], angle: float, *, flip: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """The picture turned on a larger glass, and the map (2, 3) of its pixels."""
    height, width = image.shape[:2]
    side = int(np.hypot(height, width)) + 2
    place = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    place[:, 2] += [side / 2 - width / 2, side / 2 - height / 2]
    if flip:
        place = np.column_stack([place[:, :2] @ np.diag([-1, 1]), place[:, 2] + place[:, 0] * (width - 1)])
    glass = [float(v) for v in np.median(image.reshape(-1, 3), axis=0)]
    return np.asarray(cv2.warpAffine(image, place, (side, side), borderValue=glass), dtype=np.uint8), place


def round_trip(pictures: list[Picture]) -> float:
    """1 → 2 → 3 → 1, every pair registered by itself."""
    points = start = pictures[0].plane.points()
    for moving, fixed in ((0, 1), (1, 2), (2, 0)):
        points = tl.register_pair(pictures[fixed], pictures[moving], model="rigid").to_common(points)
    return float(np.linalg.norm(points - start, axis=1).mean())


if __name__ == "__main__":
    main()
