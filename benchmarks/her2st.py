"""All methods, and fusion without each of its parts, on HER2ST sections.

    python benchmarks/her2st.py HER2ST_FOLDER ENCODER -o results/her2st [--methods "ridge;fusion;bleep fine-tuned"]

HER2ST_FOLDER has the public repository's layout (ST-cnts, ST-imgs, ST-spotfiles). Splits: a section of a known
patient from its neighbours, and a section of a new patient. Writes a table of HEG-50, HVG-50 and all genes with 95 %
intervals (bootstrap over blocks of tissue), the ceilings, and the seconds each training took.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import pandas as pd

from hescribe.evaluation import section_table, select_sections, write_table
from hescribe.inference.evaluate import evaluate
from hescribe.sections import read_sections
from hescribe.training import TrainConfig, train

SPLITS = {
    "C2 C3 C4 → C5": (("C2", "C3", "C4"), ("C5",)),
    "C3 C4 C5 → C2": (("C3", "C4", "C5"), ("C2",)),
    "C2 C3 C4 C5 → B4": (("C2", "C3", "C4", "C5"), ("B4",)),
}
METHODS = {
    "mean": {"method": "mean", "inner_folds": 0},
    "coordinate-knn": {"method": "coordinate-knn"},
    "knn": {"method": "knn"},
    "ridge-hest": {"method": "ridge-hest"},
    "ridge": {"method": "ridge"},
    "ridge, 4 views": {"method": "ridge", "views": 4},
    "fusion": {"method": "fusion"},
    "fusion, no retrieval": {"method": "fusion", "options": {"retrieval": False}},
    "fusion, tile alone": {"method": "fusion", "options": {"context": {"centred": True}}},
    "fusion, 1 view": {"method": "fusion", "views": 1},
    "fusion, as for a known patient": {
        "method": "fusion",
        "options": {"new": {"programs": 20, "penalty": 0.01}, "retrieval": False},
    },
    "bleep frozen": {"method": "bleep"},
    "bleep fine-tuned": {"method": "bleep", "fine_tune": True, "epochs": 15, "inner_folds": 0},
}
QUICK = [name for name in METHODS if "fine-tuned" not in name]


def write_manifest(folder: Path, path: Path) -> Path:
    """A manifest of the sections that have an image."""
    rows = [
        {
            "section_id": image.parent.name,
            "patient_id": image.parent.name[0],
            "image": image.absolute(),
            "expression": (folder / "ST-cnts" / f"{image.parent.name}.tsv.gz").absolute(),
            "positions": (folder / "ST-spotfiles" / f"{image.parent.name}_selection.tsv").absolute(),
            "technology": "st",
        }
        for image in sorted((folder / "ST-imgs").glob("*/*/*.jpg"))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("encoder")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--tile-um", type=float, default=112.0)
    parser.add_argument("--methods", default=";".join(QUICK), help="with semicolons")
    parser.add_argument("--splits", default=",".join(SPLITS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sections = read_sections(write_manifest(args.folder, args.output / "sections.csv"))
    tables = []
    for split in args.splits.split(","):
        for name in args.methods.split(";"):
            config = TrainConfig(encoder=args.encoder, tile_um=args.tile_um, seed=args.seed, **METHODS[name])
            folder = args.output / f"{split}, {name}, {args.tile_um:g} µm, seed {args.seed}".replace(" ", "_")
            fitting, testing = (select_sections(sections, side) for side in SPLITS[split])
            start = time.perf_counter()
            bundle = train(fitting, config, output=folder)
            seconds = time.perf_counter() - start
            scores = evaluate(bundle, testing, allow_same_patient=True, seed=args.seed)
            table = section_table(scores).assign(split=split, method=name, tile_um=args.tile_um, seconds=seconds)
            tables.append(table[table["set"].isin(["heg50", "hvg50", "all", "detected10"])])
            print(
                tables[-1][["split", "method", "set", "pcc", "pcc_low", "pcc_high", "ceiling", "seconds"]].to_string()
            )
            write_table(pd.concat(tables, ignore_index=True), args.output / "table.csv")


if __name__ == "__main__":
    main()
