"""All methods, and fusion without each of its parts, on real sections: without leakage, over seeds, with intervals.

    python benchmarks/methods.py her2st FOLDER ENCODER -o results [--methods "ridge;fusion"] [--seeds 0,1,2]
    python benchmarks/methods.py mob FOLDER ENCODER -o results

FOLDER is that of the public data: HER2ST in its repository's layout (ST-cnts, ST-imgs, ST-spotfiles), or the three
mouse olfactory bulbs of STUtility. Each method, split and seed is trained and scored once; a run that was interrupted
goes on; ``benchmarks/results`` holds what the tables in docs/benchmarks.md are made of. Writes ``runs.csv`` (a row for each section, gene set and seed) and ``table.md`` (means over seeds, then over
the sections of a protocol; the interval is of a bootstrap over sections and blocks of tissue) and
``behind_fusion.md`` (differences, paired by section and resample).
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hescribe import keys
from hescribe.evaluation import (
    markdown,
    mean_over_seeds,
    method_table,
    section_table,
    select_sections,
    write_table,
)
from hescribe.evaluation.scores import SETS as ALL_SETS
from hescribe.evaluation.scores import SectionScores
from hescribe.evaluation.tables import bootstrap_mean
from hescribe.inference.evaluate import evaluate
from hescribe.metrics.resampling import percentile_interval
from hescribe.sections import Section, read_sections
from hescribe.training import TrainConfig, train

METHODS = {
    "mean": {"method": "mean", "inner_folds": 0},
    "coordinate-knn": {"method": "coordinate-knn"},
    "knn": {"method": "knn"},
    "ridge-hest": {"method": "ridge-hest"},
    "ridge": {"method": "ridge"},
    "ridge, 4 views": {"method": "ridge", "views": 4},
    "stnet": {"method": "stnet", "inner_folds": 1},
    "bleep": {"method": "bleep", "inner_folds": 1},
    "bleep, 4 views": {"method": "bleep", "views": 4, "inner_folds": 1},
    "cmrcnet": {"method": "cmrcnet", "inner_folds": 1},
    "cmrcnet, all tokens": {"method": "cmrcnet", "inner_folds": 1, "options": {"tokens": True}},
    "triplex": {"method": "triplex", "inner_folds": 1},
    "carhe": {"method": "carhe", "inner_folds": 1},
    "carhe, more transcriptomes": {"method": "carhe", "inner_folds": 1},
    "carhe, 30 prototypes": {"method": "carhe", "inner_folds": 1, "options": {"prototypes": 30}},
    "carhe, 30 prototypes, more transcriptomes": {"method": "carhe", "inner_folds": 1, "options": {"prototypes": 30}},
    "carhe, 200 prototypes": {"method": "carhe", "inner_folds": 1, "options": {"prototypes": 200}},
    "carhe, 200 prototypes, more transcriptomes": {"method": "carhe", "inner_folds": 1, "options": {"prototypes": 200}},
    "carhe refined": {"method": "carhe", "inner_folds": 1, "options": {"refinement": {}}},
    "carhe refined, none dropped": {
        "method": "carhe",
        "inner_folds": 1,
        "options": {"refinement": {"rounds": 1, "threshold": 0.0}},
    },
    "carhe, alpha": {"method": "carhe", "inner_folds": 1, "options": {"alpha": 0.1}},
    "carhe, alpha within clusters too": {
        "method": "carhe",
        "inner_folds": 1,
        "options": {"alpha": 0.1, "same_cluster": 0.1},
    },
    "carhe-clip": {"method": "carhe-clip", "inner_folds": 1},
    "fusion": {"method": "fusion"},
    "fusion, more transcriptomes": {"method": "fusion"},
    "fusion, no retrieval": {"method": "fusion", "options": {"retrieval": False}},
    "fusion, tile alone": {"method": "fusion", "options": {"context": {"scales": [1.0], "spreads_um": []}}},
    "fusion, as deep as measured": {"method": "fusion", "options": {"shallow": 0}},
    "fusion, everybody's map": {"method": "fusion", "options": {"own": False}},
    "fusion, 1 view": {"method": "fusion", "views": 1},
    "fusion, as for a known patient": {
        "method": "fusion",
        "options": {"new": {"programs": 20, "penalty": 0.01}, "retrieval": False},
    },
    "bleep fine-tuned": {"method": "bleep", "fine_tune": True, "epochs": 15, "inner_folds": 0},
    "bleep fine-tuned, batches of 128": {
        "method": "bleep",
        "fine_tune": True,
        "epochs": 15,
        "inner_folds": 0,
        "options": {"optimisation": {"batch_size": 128, "fewest_steps": 4}},
    },
    "cmrcnet fine-tuned": {"method": "cmrcnet", "fine_tune": True, "epochs": 15, "inner_folds": 0},
    "stnet fine-tuned": {"method": "stnet", "fine_tune": True, "epochs": 15, "inner_folds": 0},
    # The published schedules, the encoder trained too: for a GPU. CMRCNet's transformer starts from chance, as published
    "bleep, published": {"method": "bleep", "fine_tune": True, "inner_folds": 1},
    "cmrcnet, published": {
        "method": "cmrcnet",
        "encoder": "cmrcnet-vit",
        "fine_tune": True,
        "inner_folds": 1,
        "options": {"optimisation": {"patience": 60}},
    },
    "cmrcnet, tokens of the encoder": {"method": "cmrcnet", "fine_tune": True, "inner_folds": 1},
    "stnet, published": {"method": "stnet", "fine_tune": True, "inner_folds": 1},
}
#: learn from the sections without image as well, on HER2ST
WITHOUT_IMAGE = {name for name in METHODS if name.endswith("more transcriptomes")}
FIRST = "fusion"  #: the method the others are compared with
SETS = ("heg50", "hvg50", "detected10", "all")
#: closed form: every seed gives the same figures, so one is enough
SEEDLESS = {"mean", "coordinate-knn", "knn", "ridge-hest", "ridge", "fusion"}


@dataclass(frozen=True)
class Split:
    """Sections to learn from and to test on, and the protocol the split is part of."""

    protocol: str
    fitting: tuple[str, ...]
    testing: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{'+'.join(self.fitting)}-to-{'+'.join(self.testing)}"


def leave_one_out(protocol: str, ids: Sequence[str]) -> list[Split]:
    return [Split(protocol, tuple(i for i in ids if i != held), (held,)) for held in ids]


_C = ("C2", "C3", "C4", "C5")
SPLITS = {
    "her2st": [
        *leave_one_out("known patient", _C),
        *[Split("known patient, B learned from too", (*s.fitting, "B4"), s.testing) for s in leave_one_out("", _C)],
        Split("new patient, C to B", _C, ("B4",)),
        Split("new patient, B to C", ("B4",), _C),
    ],
    "mob": leave_one_out("leave one section out", ("MOB1", "MOB2", "MOB3")),
}


def her2st_rows(folder: Path) -> list[dict[str, object]]:
    images = {image.parent.name: image.absolute() for image in (folder / "ST-imgs").glob("*/*/*.jpg")}
    rows = []
    for counts in sorted((folder / "ST-cnts").glob("*.tsv.gz")):
        name = counts.name.split(".")[0]
        row = {"section_id": name, "patient_id": name[0], "image": images.get(name, ""), "technology": "st"}
        positions = (folder / "ST-spotfiles" / f"{name}_selection.tsv").absolute()
        rows.append(row | {"expression": counts.absolute(), "positions": positions if positions.exists() else ""})
    return rows


def mob_rows(folder: Path) -> list[dict[str, object]]:
    return [
        {
            "section_id": image.stem,
            "patient_id": image.stem,  # the source does not say whether the replicates are of one mouse
            "image": image.absolute(),
            "expression": (folder / f"{image.stem}.tsv.gz").absolute(),
            "positions": (folder / f"{image.stem}_selection.tsv").absolute(),
            "technology": "st",
            "mpp": 3.4,  # not stated in the source; an array of 6.5 mm
        }
        for image in sorted(folder.glob("MOB*.jpg"))
    ]


ROWS = {"her2st": her2st_rows, "mob": mob_rows}


def main() -> None:
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.output.mkdir(parents=True, exist_ok=True)
    manifest = args.output / "sections.csv"
    pd.DataFrame(ROWS[args.data](args.folder)).to_csv(manifest, index=False)
    sections = read_sections(manifest)
    for name in args.methods.split(";"):
        seeds = args.seeds.split(",")
        for seed in seeds[:1] if METHODS[name]["method"] in SEEDLESS else seeds:
            given = {"encoder": args.encoder, "tile_um": args.tile_um, "seed": int(seed), "device": args.device}
            given["precision"] = args.precision
            config = TrainConfig(**(given | METHODS[name]))
            for split in SPLITS[args.data]:
                if args.protocols and split.protocol not in args.protocols.split(";"):
                    continue
                if args.splits and split.name not in args.splits.split(";"):
                    continue
                record = args.output / "runs" / f"{split.name}, {name}, {args.tile_um:g} um, seed {seed}"
                if not record.with_suffix(".json").is_file():
                    run(sections, split, name, config, record)
    summarise(args.output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(SPLITS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("encoder")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--tile-um", type=float, default=112.0)
    parser.add_argument(
        "--methods",
        default=";".join(
            n
            for n in METHODS
            if not {"fine-tuned", "published", "tokens", "refined", "transcriptomes", "prototypes", "alpha"}
            & set(n.replace(",", "").split())
        ),
        help="with semicolons",
    )
    parser.add_argument("--protocols", default="", help="with semicolons; default: all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", help="or bf16")
    parser.add_argument("--splits", default="", help="with semicolons, as C2+C3+C4-to-C5; default: all")
    return parser.parse_args()


def run(sections: list[Section], split: Split, name: str, config: TrainConfig, record: Path) -> None:
    """Train, predict and score once; the record is written last."""
    start = time.perf_counter()
    fitting = select_sections(sections, split.fitting)
    if name in WITHOUT_IMAGE:  # of patients that no split has
        fitting += [s for s in sections if s.image is None]
    bundle = train(fitting, config, output=record.with_suffix(".bundle"))
    seconds = time.perf_counter() - start
    testing = select_sections(sections, split.testing)
    measured = bundle.genes.index[~bundle.genes[keys.TRANSFERRED]]  # the same for all methods
    scores = evaluate(bundle, testing, genes=measured, allow_same_patient=True, device=config.device, seed=0)
    table = section_table(scores).assign(method=name, protocol=split.protocol, seed=config.seed, seconds=seconds)
    table = table[table["set"].isin(SETS)]
    facts = {"table": table.to_dict("records"), "resamples": [_resamples(s) for s in scores]}
    record.with_suffix(".json").write_text(json.dumps(facts))
    print(table[["protocol", "method", "section_id", "set", "pcc", "seconds"]].to_string(index=False, header=False))


def _resamples(score: SectionScores) -> dict[str, list[float]]:
    return {name: np.round(score.resamples[name], 4).tolist() for name in SETS}


Draws = dict[tuple[str, str], list[SectionScores]]  #: protocol, method → each section's mean over seeds


def summarise(folder: Path) -> None:
    """Tables over everything that has been run so far."""
    rows: list[dict[str, object]] = []
    of_seeds: dict[tuple[str, str], dict[str, list[SectionScores]]] = {}
    for path in sorted((folder / "runs").glob("*.json")):
        facts = json.loads(path.read_text())
        rows += facts["table"]
        for score in scores_of(facts):
            sections = of_seeds.setdefault((facts["table"][0]["protocol"], score.method), {})
            sections.setdefault(score.section_id, []).append(score)
    scores = {key: [mean_over_seeds(s) for s in sections.values()] for key, sections in of_seeds.items()}
    runs = pd.DataFrame(rows)
    write_table(runs, folder / "runs.csv")
    wide = means(runs, scores)
    write_table(wide, folder / "table.csv")
    wide["figure"] = wide.apply(lambda r: f"{r['pcc']:.3f} [{r['low']:.2f}, {r['high']:.2f}]", axis=1)
    table = wide.pivot_table(
        index=["protocol", "method", "seeds", "minutes"], columns="set", values="figure", aggfunc="first"
    )[list(SETS)]
    (folder / "table.md").write_text(markdown(table.reset_index(), digits=1))
    (folder / "behind_fusion.md").write_text(markdown(behind(FIRST, scores), digits=3))


def scores_of(facts: dict[str, Any]) -> list[SectionScores]:
    """As much of a run's scores as its record holds: no genes."""
    sections = pd.DataFrame(facts["table"]).groupby("section_id", sort=False)
    return [
        SectionScores(
            section_id=str(section),
            # A resample draws sections, not patients: a protocol's test sections are of one patient
            patient_id="",
            method=part["method"].iloc[0],
            same_patient=bool(part["same_patient"].iloc[0]),
            per_gene=pd.DataFrame(columns=list(ALL_SETS)),
            summary=part.set_index("set").select_dtypes("number").reindex(ALL_SETS),
            resamples={name: np.asarray(resamples.get(name, [np.nan] * len(resamples["all"]))) for name in ALL_SETS},
            n_spots=0,
            n_unmatched=0,
        )
        for (section, part), resamples in zip(sections, facts["resamples"], strict=True)
    ]


def means(runs: pd.DataFrame, scores: Draws) -> pd.DataFrame:
    """A row for each protocol, method and gene set."""
    out = []
    for (protocol, method), own in scores.items():
        part = runs[(runs["protocol"] == protocol) & (runs["method"] == method)]
        by_seed = part.groupby(["set", "seed"])["pcc"].mean()
        for _, row in method_table(sorted(own, key=lambda s: s.section_id)).iterrows():
            seeds = by_seed[row["set"]]
            out.append(
                {"protocol": protocol, "method": method, "set": row["set"], "sections": row["n_sections"]}
                | {"seeds": len(seeds)}
                | {name: row[name] for name in ("pcc", "ceiling", "coverage", "expected_pcc_spearman")}
                | {"low": row["pcc_low"], "high": row["pcc_high"], "seed_spread": seeds.max() - seeds.min()}
                | {"minutes": part["seconds"].max() / 60}
            )
    return pd.DataFrame(out)


def behind(first: str, scores: Draws) -> pd.DataFrame:
    """How far each method is behind one of them: paired by section and resample of its blocks of tissue."""
    out = []
    for (protocol, method), own in scores.items():
        ahead = {s.section_id: s for s in scores.get((protocol, first), ())}
        pairs = [(ahead[s.section_id], s) for s in own if s.section_id in ahead]
        if method == first or not pairs:
            continue
        for name in SETS:
            paired = np.stack([a.resamples[name] - b.resamples[name] for a, b in pairs])
            sections = [b.section_id for _, b in pairs]
            low, high = percentile_interval(bootstrap_mean(paired, sections, n_resamples=1000, seed=0))
            row = {"protocol": protocol, "method": method, "set": name, "sections": len(pairs)}
            out.append(row | {"difference": float(np.mean(paired)), "low": low, "high": high})
    return pd.DataFrame(out)


if __name__ == "__main__":
    main()
