"""What runs in a process that will be killed: a small slide in many steps."""

from __future__ import annotations

from multiprocessing.synchronize import Semaphore
from pathlib import Path

import anndata  # noqa: F401 - imported in the server, so that children need not
import openslide  # noqa: F401
import tiffslide  # noqa: F401
import wsidata
import wsidata.reader  # noqa: F401
import zarr  # noqa: F401

from hescribe.inference.slides import expression, features, predict_slide
from hescribe.inference.slides.plan import Stage, Work
from tests.inference.slides.made import make_bundle


def run(slide: Path, output: Path, steps: Semaphore) -> None:
    """Predict; ``steps`` is raised once before the first step and after each mark of progress."""
    import torch

    torch.set_num_threads(1)
    for module in (features, expression):
        module.CHUNK = 32  # type: ignore[attr-defined]
    features.BATCH = 8
    expression._BLOCK_ROWS = (32, 32)
    bundle = make_bundle("fusion")
    mark = Work.mark

    def mark_and_tell(self: Work, stage: Stage, tiles: int) -> None:
        mark(self, stage, tiles)
        steps.release()

    Work.mark = mark_and_tell  # type: ignore[method-assign]
    steps.release()
    predict_slide(bundle, slide, output, stride_um=60.0, precision="fp32")
