"""How far a bundle's statements of trust hold on sections it has not seen.

    python benchmarks/trust.py BUNDLE SECTIONS.csv --only C5,B4 [-o trust.csv]

For each section: coverage of the 90 % interval by gene set and by tercile of novelty; rank correlation of expected_pcc
with the correlation reached; and how well novelty separates disturbed tiles from the section's own (AUROC).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import stats
from skimage.color import hed2rgb, rgb2hed

from hescribe import keys
from hescribe.encoders.extract import encode_batch, to_tensor
from hescribe.encoders.stain import load_colours
from hescribe.evaluation import select_sections, write_table
from hescribe.evaluation.scores import score_section
from hescribe.inference import Bundle, load_bundle, predict
from hescribe.io.expression import log_normalise
from hescribe.sections import Section, read_sections

Tiles = npt.NDArray[np.uint8]
SETS = ("all", "detected10", "heg50", "hvg50")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("sections", type=Path)
    parser.add_argument("--only", required=True, help="sections, with commas")
    parser.add_argument("--tiles", type=int, default=80, help="tiles of each kind")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    rows = []
    for section in select_sections(read_sections(args.sections), args.only.split(",")):
        found = coverage(bundle, section) | separation(bundle, section, args.tiles)
        rows += [{"section": section.section_id, "what": k, "value": v} for k, v in found.items()]
        print(pd.DataFrame(rows).query("section == @section.section_id").to_string(index=False), flush=True)
    if args.output:
        write_table(pd.DataFrame(rows), args.output)


def coverage(bundle: Bundle, section: Section) -> dict[str, float]:
    prediction = predict(bundle, section)
    table = score_section(prediction, section.adata, allow_same_patient=True, n_resamples=2).per_gene
    out = {}
    novelty = prediction.obs[keys.NOVELTY].to_numpy()
    tercile = np.searchsorted(np.quantile(novelty, (1 / 3, 2 / 3)), novelty, side="right")
    truth = log_normalise(section.adata.X, target_sum=1e4)[:, section.adata.var_names.get_indexer(table.index)]
    error = np.abs(np.asarray(prediction[:, table.index].X) - truth.toarray())
    width = prediction.var.loc[table.index, keys.INTERVAL].to_numpy()
    inside = error <= width * prediction.obs[keys.INTERVAL_SCALE].to_numpy()[:, None]
    for name in SETS:
        genes = np.ones(len(table), bool) if name == "all" else table[name].to_numpy(bool)
        out[f"coverage, {name}"] = float(inside[:, genes].mean())
        for i in range(3):
            out[f"coverage, {name}, novelty tercile {i + 1}"] = float(inside[tercile == i][:, genes].mean())
        pair = table.loc[genes, ["expected_pcc", "pcc"]].dropna()
        out[f"expected_pcc, rank correlation, {name}"] = float(stats.spearmanr(pair)[0])
    return out


def separation(bundle: Bundle, section: Section, count: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    tiles = section.tiles()
    chosen = rng.permutation(len(tiles))
    size = bundle.encoder.input_px
    own = tiles.read(chosen[:count], tile_um=bundle.extraction.tile_um, size_px=size)
    others = tiles.read(chosen[count : 2 * count], tile_um=bundle.extraction.tile_um, size_px=size)
    real = novelty_of(bundle, own)
    return {
        f"novelty AUROC, {name}": auroc(novelty_of(bundle, disturb(others.copy(), rng)), real)
        for name, disturb in DISTURBED.items()
    }


def novelty_of(bundle: Bundle, tiles: Tiles) -> npt.NDArray[np.float32]:
    how, module = bundle.extraction, bundle.encoder.module.to(memory_format=torch.channels_last).eval()
    look = load_colours(bundle.encoder.input_px).module
    features, colours = [], []
    for part in np.array_split(tiles, max(1, len(tiles) // how.batch_size)):
        images = to_tensor(part, "cpu")
        features.append(encode_batch(module, images, views=how.views, precision=how.precision).numpy())
        colours.append(encode_batch(look, images).numpy())
    return bundle.novelty.percentile(np.concatenate(features), np.concatenate(colours))


def auroc(strange: npt.NDArray[np.float32], real: npt.NDArray[np.float32]) -> float:
    return float(stats.mannwhitneyu(strange, real).statistic / (len(strange) * len(real)))


def blurred(sigma: float) -> Callable[[Tiles, np.random.Generator], Tiles]:
    return lambda tiles, _: np.stack([cv2.GaussianBlur(t, (0, 0), sigma) for t in tiles])


def pen_marked(tiles: Tiles, rng: np.random.Generator) -> Tiles:
    """A stroke of blue, green or black ink, an eighth to a third of the tile wide."""
    size = tiles.shape[1]
    for tile in tiles:
        ink = [(20, 60, 160), (20, 120, 60), (15, 15, 20)][rng.integers(3)]
        start, end = (tuple(int(v) for v in rng.integers(0, size, 2)) for _ in range(2))
        cv2.line(tile, start, end, ink, int(rng.integers(size // 8, size // 3)))
    return tiles


def stained(haematoxylin: float, eosin: float, dab: float = 0.0) -> Callable[[Tiles, np.random.Generator], Tiles]:
    """Other amounts of each stain; with ``dab`` the eosin becomes the brown of immunohistochemistry."""

    def disturb(tiles: Tiles, _: np.random.Generator) -> Tiles:
        hed = rgb2hed(tiles)
        mixed = np.stack([hed[..., 0] * haematoxylin, hed[..., 1] * eosin, np.abs(hed[..., 1]) * dab], axis=-1)
        return np.asarray(np.clip(hed2rgb(mixed), 0, 1) * 255, dtype=np.uint8)

    return disturb


def flat(level: float, spread: float) -> Callable[[Tiles, np.random.Generator], Tiles]:
    return lambda tiles, rng: np.clip(rng.normal(level, spread, tiles.shape), 0, 255).astype(np.uint8)


def dusty_glass(tiles: Tiles, rng: np.random.Generator) -> Tiles:
    out = flat(238, 3)(tiles, rng)
    for tile in out:
        for _ in range(6):
            centre = tuple(int(v) for v in rng.integers(0, tile.shape[0], 2))
            cv2.circle(tile, centre, int(rng.integers(2, 12)), (int(rng.integers(30, 120)),) * 3, -1)
    return out


DISTURBED: dict[str, Callable[[Tiles, np.random.Generator], Tiles]] = {
    "blurred (σ 2 px)": blurred(2),
    "blurred (σ 4 px)": blurred(4),
    "pen": pen_marked,
    "stain × 0.4": stained(0.4, 0.4),
    "stain × 1.6": stained(1.6, 1.6),
    "more eosin": stained(0.5, 1.7),
    "brown (DAB)": stained(1.0, 0.0, 1.0),
    "grey": lambda tiles, _: np.repeat(tiles.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1),
    "glass": flat(238, 3),
    "black": flat(12, 4),
    "dusty glass": dusty_glass,
}


if __name__ == "__main__":
    main()
