"""What becomes of a bundle's figures when the slide was scanned more coarsely, or more finely, than it learned from.

    python benchmarks/resolution.py BUNDLE SECTIONS.csv --only B4 [--factors 1,0.6,0.4,0.25] [-o resolution.csv]

The section's image is resampled and its positions with it; the model is the same. Images are written to a temporary
folder as JPEG, quality 85.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from hescribe import keys
from hescribe.evaluation import section_table, select_sections, write_table
from hescribe.inference import load_bundle
from hescribe.inference.evaluate import evaluate
from hescribe.sections import Section, read_sections

SETS = ("heg50", "hvg50", "detected10", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("sections", type=Path)
    parser.add_argument("--only", required=True, help="sections with plain images, with commas")
    parser.add_argument("--factors", default="1,0.6,0.4,0.25", help="pixels along a side, to the image's own")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    bundle = load_bundle(args.bundle)
    found = []
    for section in select_sections(read_sections(args.sections), args.only.split(",")):
        for factor in (float(f) for f in args.factors.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                other = resampled(section, factor, Path(folder))
                table = section_table(evaluate(bundle, [other], seed=0))
                found.append(table[table["set"].isin(SETS)].assign(factor=factor, mpp=other.mpp))
            print(found[-1][["section_id", "mpp", "set", "pcc"]].to_string(index=False, header=False), flush=True)
    if args.output:
        write_table(pd.concat(found), args.output)


def resampled(section: Section, factor: float, folder: Path) -> Section:
    """The section with ``factor`` times as many pixels along a side."""
    with Image.open(section.image) as image:
        size = tuple(round(factor * side) for side in image.size)
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(folder / "image.jpg", quality=85)
    adata = section.adata.copy()
    adata.obsm[keys.SPATIAL] = factor * np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)
    adata.write_h5ad(folder / "counts.h5ad")
    row = {
        "section_id": section.section_id,
        "patient_id": section.patient_id,
        "image": folder / "image.jpg",
        "expression": folder / "counts.h5ad",
        "technology": "h5ad",
        "mpp": section.mpp / factor,
    }
    pd.DataFrame([row]).to_csv(folder / "sections.csv", index=False)
    return read_sections(folder / "sections.csv")[0]


if __name__ == "__main__":
    main()
