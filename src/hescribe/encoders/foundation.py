"""Pathology foundation models, loaded through lazyslide-models where it is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hescribe.encoders.record import Encoder, Normalised, weights_identity
from hescribe.errors import EncoderError, GatedModelError, MissingExtraError

if TYPE_CHECKING:
    from hescribe.encoders.registry import EncoderEntry


class _Vision(nn.Module):
    """A lazyslide model behind the interface of a backbone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network = model.model
        self._encode = model.encode_image

    def forward(self, images: Tensor) -> Tensor:
        return self._encode(images)


def load_foundation(entry: EncoderEntry) -> Encoder:
    """Load the foundation model of a table row.

    Raises
    ------
    MissingExtraError
        lazyslide-models is not installed.
    GatedModelError
        The weights are gated and this user has no access; says where to ask.
    EncoderError
        The weights could not be had for another reason.
    """
    try:
        from lazyslide_models import MODEL_REGISTRY
    except ImportError as error:
        raise MissingExtraError("lazyslide-models", "foundation") from error
    model = _create(MODEL_REGISTRY[entry.source], entry)
    module = Normalised(_Vision(model), mean=entry.mean, std=entry.std).eval()
    return Encoder(
        name=entry.name,
        module=module,
        width=entry.width,
        input_px=entry.input_px,
        mpp=entry.mpp,
        identity=weights_identity(entry.name, module),
        licence=entry.licence,
        redistributable=not entry.gated,
    )


def _create(factory: Any, entry: EncoderEntry) -> Any:
    from huggingface_hub.errors import GatedRepoError

    try:
        with torch.inference_mode():
            return factory()
    except GatedRepoError as error:
        raise GatedModelError(
            f"the weights of {entry.name!r} are gated and this account has no access",
            path="--encoder",
            fix=f"ask for it at {entry.url}, then run 'hf auth login'",
        ) from error
    except ImportError as error:
        raise EncoderError(f"{entry.name!r} needs another package: {error}", path="--encoder") from error
    except Exception as error:  # the hub client raises a dozen kinds where there is no network
        remedy = f"the machine needs access to the model hub; the weights are at {entry.url}"
        if entry.gated:
            remedy += ", gated: ask there for access, then run 'hf auth login'"
        raise EncoderError(
            f"the weights of {entry.name!r} could not be loaded ({type(error).__name__})", path="--encoder", fix=remedy
        ) from error
