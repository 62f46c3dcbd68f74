"""Cohorts: how much quicker two workers are than one.

    PYTHONPATH=. python benchmarks/cohort.py [--slides 8] [--side 3000] [--repeats 1]

Each number of workers predicts the same small slides (synthetic texture, ``stain``, fp32, one thread a worker: set OMP_NUM_THREADS=1). Workers
are timed from the first slide handed out to the last that came back, after each has done one slide to warm up, so
that starting processes and importing torch, which a cohort pays once, is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from distributed import LocalCluster
from tests.inference.slides.made import draw_slide, make_bundle, write_slide

from hescribe.encoders import load_encoder
from hescribe.inference.cohorts import predict_cohort


def measure(folder: Path, slides: list[Path], warm_up: list[Path], workers: int) -> float:
    """Tiles per second."""
    options = {"device": "cpu", "precision": "fp32"}
    with LocalCluster(
        n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=":0", silence_logs=50
    ) as cluster:
        address = cluster.scheduler_address
        predict_cohort(folder / "bundle", warm_up[:workers], folder / "warm", cluster=address, **options)
        summary = predict_cohort(folder / "bundle", slides, folder / "out", cluster=address, **options)
    summary.check()
    for name in ("warm", "out"):
        shutil.rmtree(folder / name)
    return summary.tiles_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--side", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_bundle(encoder=load_encoder("stain")).save(folder / "bundle")
        slides = [write_slide(folder / f"{i}.tif", draw_slide(given.side, seed=i)) for i in range(given.slides)]
        warm_up = [write_slide(folder / f"w{i}.tif", draw_slide(900, seed=i)) for i in range(2)]
        speeds = {n: [measure(folder, slides, warm_up, n) for _ in range(given.repeats)] for n in (1, 2)}
    best = {n: max(values) for n, values in speeds.items()}
    print(json.dumps({"tiles_per_second": speeds, "ratio": round(best[2] / best[1], 2)}, indent=2))


if __name__ == "__main__":
    main()
