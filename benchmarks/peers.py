"""Whole slides against peers, in one run on one slide with the same encoder and weights.

    python benchmarks/peers.py bleep     [--encoder timm:resnet50] [--side 10000] [--literal-tiles 256]
    python benchmarks/peers.py lazyslide [--encoder timm:mobilenetv1_100] [--side 10000]
    python benchmarks/peers.py imputation [--queries 2378]

``bleep``: a literal transcription of the published inference: fp32, an image in memory, one tile at a time, then a
Python loop over the tiles for retrieval's mean. Ours reads the slide's file, finds tissue, encodes, imputes, writes.
``imputation``: that loop alone against ours, at the published sizes (6,992 spots of 3,467 genes, K = 50).
``lazyslide``: feature extraction alone by LazySlide (``pip install lazyslide``), by default and with its mixed
precision, against ours with imputation and writing. Tiles per second, and their ratio; each is run ``--rounds`` times
in turns, the best counts. Slides are made by ``whole_slide.py``; weights are random where no file is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zarr
from scipy import sparse
from torch import nn
from whole_slide import Work, make_bundle, make_slide, random_encoder, texture

from hescribe import keys
from hescribe.inference.bundle import Bundle
from hescribe.inference.slides import predict_slide
from hescribe.io.rows import read_uns
from hescribe.methods.base import Retrieval
from hescribe.reference import Reference

SPOTS, GENES = 6992, 3467  #: of the published model's reference


def literal(module: nn.Module, head: nn.Module, reference: Reference, image: np.ndarray, corners: list) -> np.ndarray:
    """The published inference, step by step."""
    side, embedded = 224, []
    device = next(module.parameters()).device
    with torch.no_grad():
        for y, x in corners:
            tile = torch.from_numpy(np.ascontiguousarray(image[y : y + side, x : x + side])).permute(2, 0, 1)
            embedded.append(head(module(tile[None].to(device))).cpu())
    return literal_imputation(reference.embedding, reference.expression.toarray(), torch.cat(embedded).numpy())


def literal_imputation(spots: np.ndarray, expression: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Cosine similarity, top 50, then the mean of each query's neighbours."""
    return literal_means(spots, expression, literal_search(spots, queries))


def literal_search(spots: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(n, 50) nearest spots, nearest first."""
    spot_keys = torch.nn.functional.normalize(torch.tensor(spots), p=2, dim=-1)
    query_keys = torch.nn.functional.normalize(torch.tensor(queries), p=2, dim=-1)
    return torch.topk(query_keys @ spot_keys.T, k=50).indices.numpy()


def literal_means(spots: np.ndarray, expression: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The loop over tiles; the published one averages the embeddings beside the expression."""
    out, embedded = np.zeros((len(found), expression.shape[1])), np.zeros((len(found), spots.shape[1]))
    for i in range(len(found)):
        embedded[i] = np.average(spots[found[i]], axis=0)
        out[i] = np.average(expression[found[i]], axis=0)
    return out


def ours(bundle: Bundle, slide: Path, output: Path, precision: str, device: str) -> tuple[float, str]:
    """Tiles per second from the file to the finished store, and the precision and engine that were chosen."""
    for old in (output, Work.beside(output).folder):
        shutil.rmtree(old, ignore_errors=True)
    start = time.perf_counter()
    predict_slide(bundle, slide, output, precision=precision, device=device)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    tiles = zarr.open_array(output / "X", mode="r").shape[0]
    told = read_uns(output, keys.PROVENANCE)
    return tiles / seconds, f"{told['precision']}, {told['engine']}"


def against_bleep(args: argparse.Namespace) -> dict[str, object]:
    encoder = random_encoder(args.encoder)
    bundle = make_bundle(encoder, GENES, "bleep", SPOTS)
    assert bundle.reference is not None  # noqa: S101 - bleep has one
    slide = make_slide(args.cache, args.side)
    image = texture(args.cache)
    corners = [(y, x) for y in range(0, len(image) - 224, 224) for x in range(0, image.shape[1] - 224, 224)]
    corners = corners[: args.literal_tiles]
    module = encoder.module.float().eval().to(args.device)
    head = nn.Sequential(bundle.model.tower, bundle.model.image_head).eval().to(args.device)  # type: ignore[union-attr, arg-type]

    def published() -> float:
        start = time.perf_counter()
        literal(module, head, bundle.reference, image, corners)  # type: ignore[arg-type]
        return len(corners) / (time.perf_counter() - start)

    whole: list[tuple[float, str]] = []

    def mine() -> float:
        whole.append(ours(bundle, slide, args.cache / "peers.zarr", args.precision, args.device))
        return whole[-1][0]

    theirs, own = in_turns(args.rounds, published, mine)
    return {"literal tiles/s": theirs, "hescribe tiles/s": own, "chosen": whole[-1][1], "ratio": own / theirs}


def imputation(args: argparse.Namespace) -> dict[str, object]:
    rng = np.random.default_rng(0)
    expression = sparse.random(SPOTS, GENES, density=0.2, random_state=0, dtype=np.float32, format="csr")
    bundle = make_bundle(random_encoder("stain"), GENES, "bleep", SPOTS)
    reference = bundle.reference
    assert reference is not None  # noqa: S101 - bleep has one
    reference = Reference(reference.embedding, expression, reference.genes, reference.obs)
    queries = rng.normal(size=(args.queries, 256)).astype("f")
    dense = expression.toarray()
    how = Retrieval(k=50)

    found = literal_search(reference.embedding, queries)
    weights = reference.weights(queries, how)

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def rate() -> float:
            start = time.perf_counter()
            work()
            return args.queries / (time.perf_counter() - start)

        return rate

    same = np.abs(
        reference.impute(queries, how, device=args.device) - literal_imputation(reference.embedding, dense, queries)
    ).max()
    loop, blend, theirs, own = in_turns(
        args.rounds,
        timed(lambda: literal_means(reference.embedding, dense, found)),
        timed(lambda: reference.blend_expression(weights, device=args.device)),
        timed(lambda: literal_imputation(reference.embedding, dense, queries)),
        timed(lambda: reference.impute(queries, how, device=args.device)),
    )
    return {
        "literal loop/s": loop, "ours/s": blend, "ratio": blend / loop, "with search, literal/s": theirs,
        "with search, ours/s": own, "with search, ratio": own / theirs, "largest difference": float(same),
    }  # fmt: skip


class AsFloat(nn.Module):
    """LazySlide takes features to numpy, which knows no bf16."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.float()


def against_lazyslide(args: argparse.Namespace) -> dict[str, object]:
    import lazyslide as zs
    from wsidata import open_wsi

    encoder = random_encoder(args.encoder)
    bundle = make_bundle(encoder, args.genes, args.method)
    slide = make_slide(args.cache, args.side)
    wsi = open_wsi(str(slide), store=str(args.cache / "lazyslide.zarr"))
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, encoder.input_px, mpp=0.5)
    tiles = len(wsi.shapes["tiles"])
    module = nn.Sequential(encoder.module.float(), AsFloat()).eval()

    def extract(*, amp: bool) -> float:
        start = time.perf_counter()
        options = {"amp": True, "autocast_dtype": torch.bfloat16} if amp else {}
        zs.tl.feature_extraction(
            wsi, module, model_name="peer", device=args.device, pbar=False, **options,
            transform=lambda tile: torch.from_numpy(np.array(tile)).permute(2, 0, 1),
        )  # fmt: skip
        return tiles / (time.perf_counter() - start)

    whole: list[tuple[float, str]] = []

    def mine() -> float:
        whole.append(ours(bundle, slide, args.cache / "peers.zarr", args.precision, args.device))
        return whole[-1][0]

    theirs = {"lazyslide tiles/s": lambda: extract(amp=False)}
    if not args.plain_only:
        theirs["lazyslide bf16 tiles/s"] = lambda: extract(amp=True)
    *rates, own = in_turns(args.rounds, *theirs.values(), mine)
    ratios = {f"ratio to {name}": own / rate for name, rate in zip(theirs, rates, strict=True)}
    told = {"hescribe tiles/s": own, "chosen": whole[-1][1]}
    return {"lazyslide": zs.__version__, "tiles": tiles, **dict(zip(theirs, rates, strict=True)), **told, **ratios}


def in_turns(rounds: int, *timed: Callable[[], float]) -> list[float]:
    """The best of each; neighbours in time see the same load of the machine."""
    return [max(column) for column in zip(*([one() for one in timed] for _ in range(rounds)), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bleep", "lazyslide", "imputation"])
    parser.add_argument("--encoder", default="timm:mobilenetv1_100")
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--method", default="ridge")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=2378)
    parser.add_argument("--literal-tiles", type=int, default=256)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu", help="of both; the published loops over spots are on the processor")
    parser.add_argument(
        "--plain-only", action="store_true", help="no mixed precision: without bf16 a tile takes seconds"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("build/whole-slide"))
    args = parser.parse_args()
    found = {"bleep": against_bleep, "lazyslide": against_lazyslide, "imputation": imputation}[args.what](args)
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}))


if __name__ == "__main__":
    main()
