"""The tools under the short name that scanpy's users type: ``hescribe.tl``; each is imported when first used."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from hescribe.survival.features import patient_features, slide_features
    from hescribe.survival.outcome import survival

__getattr__, __dir__, _ = lazy_loader.attach(
    "hescribe",
    submod_attrs={
        "survival.features": ["patient_features", "slide_features"],
        "survival.outcome": ["survival"],
    },
)

__all__ = ["patient_features", "slide_features", "survival"]
