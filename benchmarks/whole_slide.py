"""Whole-slide prediction: how much slower than the encoder alone, and how much memory.

    python benchmarks/whole_slide.py speed  --side 40000 [--encoder timm:mobilenetv1_100@FILE]
    python benchmarks/whole_slide.py memory --sides 20000,80000 --genes 200,18000
    python benchmarks/whole_slide.py scaling --side 20000 --strides 224,70,22
    python benchmarks/whole_slide.py engines

``speed`` divides the tiles per second of a whole run (reading, encoding, neighbourhoods, expression, writing) by those
of the encoder on tensors that lie in memory, at the same precision and batch, before and after; a small slide goes
first, so that imports are not counted, while finding tissue and settling the engine are. ``memory`` runs each case in a process of
its own and reports its highest resident memory. ``scaling`` lays ever denser grids over one slide; what a million
tiles cost is a straight line through the last two, and marked as such. ``engines`` gives the encoder alone by torch and
by OpenVINO, in fp32 and bf16, with the smallest cosine of a tile's features with torch's in fp32. Slides are made once, in ``--cache``: synthetic tissue rendered by
``hescribe.datasets.synthetic``, laid out over a tiled, JPEG-compressed pyramid that is written block by block. Encoder
weights are random where no file is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import tifffile
import torch
from scipy import sparse

from hescribe import keys
from hescribe.datasets.synthetic.make import Cohort, plan_section
from hescribe.encoders import Encoder, Extraction, load_encoder
from hescribe.encoders.engines.openvino import openvino_has_bf16, openvino_name
from hescribe.encoders.extract import Precision, encode_batch, to_tensor
from hescribe.encoders.stain import load_colours
from hescribe.inference.bundle import Bundle
from hescribe.inference.slides import predict_slide
from hescribe.inference.slides.plan import BATCH, TORCH, Work
from hescribe.inference.slides.prepared import PreparedEncoder
from hescribe.inference.trust import Novelty
from hescribe.methods import METHODS
from hescribe.methods.base import JointModel, Origin, Shapes
from hescribe.methods.layers import Standardise
from hescribe.reference import Reference
from hescribe.types import Context

BLOCK, MPP, QUALITY = 256, 0.5, 80
TEXTURE_PX = 4096


def texture(cache: Path) -> np.ndarray:
    """A square of synthetic tissue without glass, whose sides fit each other as in a mirror."""
    path = cache / "texture.npy"
    if not path.exists():
        from hescribe.datasets.synthetic.image.render import render_section

        cohort = Cohort(n_patients=1, n_sections=1, side_um=TEXTURE_PX * MPP, mpp=MPP, n_genes=200, seed=0)
        made = plan_section(cohort, 0, 0)
        image = render_section(made.tissue, made.cells, made.patient, section=0, mpp=MPP)
        middle = image[image.shape[0] // 4 : -image.shape[0] // 4, image.shape[1] // 4 : -image.shape[1] // 4]
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, middle)
    half = np.load(path)
    half = half[: len(half) // BLOCK * BLOCK, : half.shape[1] // BLOCK * BLOCK]
    row = np.concatenate([half, half[:, ::-1]], axis=1)
    return np.concatenate([row, row[::-1]])


def make_slide(cache: Path, side: int) -> Path:
    """A pyramid of 1, 4, 16, 64; block by block, so that it never lies in memory."""
    path = cache / f"slide-{side}.tif"
    if path.exists():
        return path
    full = texture(cache)
    temporary = path.with_suffix(".partial")
    with tifffile.TiffWriter(temporary, bigtiff=True) as tiff:
        for factor in (1, 4, 16, 64):
            if side // factor < 2 * BLOCK and factor > 1:
                break
            small = cv2.resize(full, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
            per_cm = 1e4 / (MPP * factor)
            length = -(-side // factor)
            tiff.write(
                blocks(small, length), shape=(length, length, 3), dtype="uint8", tile=(BLOCK, BLOCK),
                photometric="rgb", compression="jpeg", compressionargs={"level": QUALITY}, maxworkers=len(os.sched_getaffinity(0)),
                resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", subfiletype=int(factor > 1), metadata=None,
            )  # fmt: skip
    temporary.rename(path)
    return path


def blocks(image: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Blocks of a level: an ellipse of repeated texture on glass, an eighth of the width of glass around it."""
    count = -(-length // BLOCK)
    across = np.arange(count * BLOCK)
    for row in range(count):
        y = across[row * BLOCK : (row + 1) * BLOCK]
        for column in range(count):
            x = across[column * BLOCK : (column + 1) * BLOCK]
            block = image[np.ix_(y % len(image), x % image.shape[1])]
            u, v = np.meshgrid(x / length - 0.5, y / length - 0.5)
            outside = (u / 0.42) ** 2 + (v / 0.40) ** 2 > 1
            if outside.any():
                block[outside] = 244
            yield block


def make_bundle(encoder: Encoder, genes: int, method: str, spots: int = 400, views: int = 1) -> Bundle:
    """A bundle of the right shapes, learned from noise: the time and memory it takes do not depend on what it says."""
    rng = np.random.default_rng(0)
    row = METHODS[method]
    config = row.config()
    context: Context = getattr(config, "context", Context())
    width = context.width(encoder.width)
    features = rng.normal(size=(spots, width)).astype("f")
    expression = sparse.random(spots, genes, density=0.2, random_state=0, dtype=np.float32, format="csr")
    origin = Origin(np.arange(spots) // 100, np.arange(spots) // 200)
    model = row.build(Standardise(width), Shapes(width, min(genes, 1000), genes), config)
    names = pd.Index([f"G{i}" for i in range(genes)])
    reference = None
    if isinstance(model, JointModel):
        model.tower.learn(torch.from_numpy(features))  # type: ignore[operator, union-attr]
        keys_of_spots = rng.normal(size=(spots, 256)).astype("f")
        obs = pd.DataFrame(index=pd.RangeIndex(spots).astype(str))
        reference = Reference(keys_of_spots, expression, tuple(names), obs)
    else:
        model.solve(features, expression, origin)  # type: ignore[operator]
    table = pd.DataFrame({keys.IN_PANEL: False, keys.EXPECTED_PCC: 0.1, keys.INTERVAL: 1.0}, index=names)
    colours = rng.normal(size=(spots, load_colours(encoder.input_px).width)).astype("f")
    novelty = Novelty.fit(rng.normal(size=(spots, encoder.width)).astype("f"), colours, origin.section)
    return Bundle(
        method, config, encoder, Extraction(views=views, context=context), model.eval(), reference, table, novelty, None,  # type: ignore[arg-type]
        pd.DataFrame(), {"sections": {}, "version": "0"}, hash=f"{method}-{genes}",
    )  # fmt: skip


def random_encoder(name: str) -> Encoder:
    return load_encoder(name) if "@" in name else load_encoder(name, pretrained=False)


class Peak:
    """Highest resident memory of this process, by looking often."""

    def __enter__(self) -> Peak:
        self.bytes, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._end.wait(0.02):
            self.bytes = max(self.bytes, process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def encoder_alone(
    encoder: Encoder, tiles: np.ndarray, precision: Precision, device: str, engine: str, *, seconds: float = 0
) -> tuple[float, torch.Tensor]:
    """Tiles per second of the encoder on batches in memory, and their features.

    The best of three rounds; or, after one that warms up, the mean over at least so many seconds.
    """
    module = PreparedEncoder(encoder).take(device, engine, precision)
    images = [to_tensor(tiles[i : i + BATCH], device) for i in range(0, len(tiles), BATCH)]
    rounds, features = [], torch.empty(0)
    while len(rounds) < 3 or sum(rounds[1:]) < seconds:
        start = time.perf_counter()
        features = torch.cat([encode_batch(module, batch, precision=precision).cpu() for batch in images])
        rounds.append(time.perf_counter() - start)
    return len(tiles) / (float(np.mean(rounds[1:])) if seconds else min(rounds)), features


def cut_texture(cache: Path, side: int) -> np.ndarray:
    """Tiles in memory, four batches."""
    pixels = texture(cache)
    corners = [(y, x) for y in range(0, len(pixels) - side, side) for x in range(0, pixels.shape[1] - side, side)]
    return np.stack([pixels[y : y + side, x : x + side] for y, x in corners[: 4 * BATCH]])


def engines(args: argparse.Namespace) -> None:
    encoder = random_encoder(args.encoder)
    tiles = cut_texture(args.cache, encoder.input_px)
    exact = None
    choices: list[tuple[str, Precision]] = [(TORCH, "fp32"), (TORCH, "bf16")]
    if name := openvino_name():
        choices.append((name, "fp32"))
        if openvino_has_bf16():
            choices.append((name, "bf16"))
    for engine, precision in choices:
        rate, features = encoder_alone(encoder, tiles, precision, args.device, engine)
        exact = features if exact is None else exact
        alike = torch.nn.functional.cosine_similarity(exact.double(), features.double()).min()
        told = {
            "engine": engine,
            "precision": precision,
            "tiles_per_s": round(rate, 1),
            "smallest_cosine": float(alike),
        }
        print(json.dumps(told), flush=True)


def run(args: argparse.Namespace, side: int, genes: int, stride_um: float | None = None) -> dict[str, object]:
    """One whole slide in this process."""
    encoder = random_encoder(args.encoder)
    bundle = make_bundle(encoder, genes, args.method, views=args.views)
    slide, output = make_slide(args.cache, side), args.cache / f"out-{side}-{genes}.zarr"
    for old in (output, Work.beside(output).folder):
        shutil.rmtree(old, ignore_errors=True)
    start = time.perf_counter()
    with Peak() as peak:
        predict_slide(bundle, slide, output, device=args.device, precision=args.precision, stride_um=stride_um)
    seconds = time.perf_counter() - start
    import zarr

    from hescribe.io.rows import read_uns

    tiles = zarr.open_array(output / "X", mode="r").shape[0]
    told = read_uns(output, keys.PROVENANCE)
    shutil.rmtree(output)
    return {
        "side": side, "genes": genes, "tiles": tiles, "images_a_tile": args.views * len(bundle.extraction.context.scales),
        "precision": str(told["precision"]), "engine": str(told["engine"]), "seconds": round(seconds, 1), "tiles_per_s": round(tiles / seconds, 2),
        "peak_gb": round(peak.bytes / 1e9, 3),
    }  # fmt: skip


def speed(args: argparse.Namespace) -> None:
    encoder = random_encoder(args.encoder)
    tiles = cut_texture(args.cache, encoder.input_px)
    warm_up = run(args, args.small, args.genes_speed)  # tells the precision and the engine
    how: tuple[Precision, str, str] = warm_up["precision"], args.device, str(warm_up["engine"])  # type: ignore[assignment]
    # Before and after, and for as long as a machine takes to change its pace: a whole run has its mean one
    before, _ = encoder_alone(encoder, tiles, *how, seconds=args.seconds)
    found = run(args, args.side, args.genes_speed)
    if (found["precision"], found["engine"]) != (warm_up["precision"], warm_up["engine"]):
        raise SystemExit("the small slide ran by another precision or engine: no ratio (try a larger --small)")
    after, _ = encoder_alone(encoder, tiles, *how, seconds=args.seconds)
    alone = 2 / (1 / before + 1 / after)
    # An encoder that looks at each tile at several scales, and turned, has as many images to encode
    share = float(found["tiles_per_s"]) * int(found["images_a_tile"]) / alone  # type: ignore[arg-type]
    print(json.dumps({**found, "encoder_images_per_s": round(alone, 2), "share": round(share, 3)}))


def apart(args: argparse.Namespace, side: int, genes: int, stride_um: float | None = None) -> dict[str, float]:
    """The same in a process of its own; printed, too."""
    command = [sys.executable, __file__, "one", "--side", str(side), "--genes-speed", str(genes)]
    for name in ("encoder", "method", "views", "device", "precision", "cache"):
        command += [f"--{name}", str(getattr(args, name))]
    if stride_um:
        command += ["--strides", str(stride_um)]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    print(line, flush=True)
    return json.loads(line)


def memory(args: argparse.Namespace) -> None:
    for side in (int(s) for s in args.sides.split(",")):
        make_slide(args.cache, side)
        for genes in (int(g) for g in args.genes.split(",")):
            apart(args, side, genes)


def scaling(args: argparse.Namespace) -> None:
    make_slide(args.cache, args.side)
    found = [apart(args, args.side, args.genes_speed, float(stride)) for stride in args.strides.split(",")]
    for row in found:
        print(f"{row['tiles']:>9,} tiles {row['seconds']:8.1f} s {1e3 * row['seconds'] / row['tiles']:7.2f} ms a tile")
    if len(found) > 1:
        one, other = found[-2:]
        slope = (other["seconds"] - one["seconds"]) / (other["tiles"] - one["tiles"])
        seconds = other["seconds"] + slope * (1e6 - other["tiles"])
        print(f"{1_000_000:>9,} tiles {seconds:8.0f} s {1e-3 * seconds:7.2f} ms a tile (extrapolated)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "scaling", "engines", "one"])
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--small", type=int, default=10_000, help="side of a slide that is run first, for speed")
    parser.add_argument("--seconds", type=float, default=15, help="of the encoder alone, before and after, for speed")
    parser.add_argument("--sides", default="20000,80000")
    parser.add_argument("--genes", default="200,18000", help="of memory")
    parser.add_argument("--genes-speed", type=int, default=1000, help="of speed")
    parser.add_argument("--strides", default="", help="of scaling: µm from tile to tile; one: a tile beside the other")
    parser.add_argument("--encoder", default="timm:mobilenetv1_100")
    parser.add_argument("--method", default="ridge")
    parser.add_argument(
        "--views", type=int, default=1, help="symmetries of a tile that are encoded; fusion trains on 4"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="of torch; none: its own choice")
    parser.add_argument("--cache", type=Path, default=Path("build/whole-slide"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "one":
        print(json.dumps(run(args, args.side, args.genes_speed, float(args.strides) if args.strides else None)))
    else:
        {"speed": speed, "memory": memory, "scaling": scaling, "engines": engines}[args.what](args)


if __name__ == "__main__":
    main()
