"""Read the spatial transcriptome off an H&E slide.

The names below are the public ones, each imported when first used::

    import hescribe as hs

    sections = hs.read_sections("sections.csv")
    bundle = hs.train(sections[:3], hs.TrainConfig(), output="bundle")
    prediction = hs.predict(bundle, sections[3])  # AnnData, spots × genes
"""

from typing import TYPE_CHECKING

import lazy_loader

from hescribe.version import __version__

if TYPE_CHECKING:
    from hescribe import datasets, pl, tl
    from hescribe.inference.bundle import Bundle, load_bundle
    from hescribe.inference.evaluate import evaluate
    from hescribe.inference.predict import predict, predict_sections, read_prediction
    from hescribe.inference.slides.run import predict_slide, predict_slides
    from hescribe.io.predictions import export_spatialdata
    from hescribe.report import build_report
    from hescribe.report.viewer import view
    from hescribe.sections import Section, read_sections
    from hescribe.training.benchmark import benchmark
    from hescribe.training.config import TrainConfig
    from hescribe.training.train import train

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submodules=["datasets", "pl", "tl"],
    submod_attrs={
        "inference.bundle": ["Bundle", "load_bundle"],
        "inference.evaluate": ["evaluate"],
        "inference.predict": ["predict", "predict_sections", "read_prediction"],
        "inference.slides.run": ["predict_slide", "predict_slides"],
        "io.predictions": ["export_spatialdata"],
        "report": ["build_report"],
        "report.viewer": ["view"],
        "sections": ["Section", "read_sections"],
        "training.benchmark": ["benchmark"],
        "training.config": ["TrainConfig"],
        "training.train": ["train"],
    },
)

__all__ = [
    "Bundle", "Section", "TrainConfig", "__version__", "benchmark", "build_report", "datasets", "evaluate",
    "export_spatialdata", "load_bundle", "pl", "predict", "predict_sections", "predict_slide", "predict_slides",
    "read_prediction", "read_sections", "tl", "train", "view",
]  # fmt: skip
