"""All encoders by name, in one table; to add one, add a line (and a loader, if it is of a new kind)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hescribe.encoders.foundation import load_foundation
from hescribe.encoders.record import IMAGENET_MEAN, IMAGENET_STD, Encoder
from hescribe.encoders.stain import STAIN_INPUT_PX, load_stain
from hescribe.encoders.timm import load_cmrcnet_vit, load_timm
from hescribe.errors import EncoderError
from hescribe.types import Mpp, TilePx

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_OPTIMUS_MEAN, _OPTIMUS_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)


@dataclass(frozen=True)
class EncoderEntry:
    """What is known of an encoder before it is loaded.

    Attributes
    ----------
    name
        What a user types.
    kind
        ``timm``, ``stain``, ``foundation`` or ``untrained``.
    source
        The name under which the loader knows it.
    width, input_px, mean, std, mpp
        Feature size; tile side in pixels; normalisation; µm per pixel of its training images.
    licence, gated, url
        Of the weights, and where to ask for them.
    """

    name: str
    kind: str
    source: str
    width: int
    input_px: TilePx
    mpp: Mpp | None
    licence: str
    gated: bool
    url: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


_HUB = "https://huggingface.co"
_NC = "CC-BY-NC-ND-4.0"

# fmt: off
ENCODERS: dict[str, EncoderEntry] = {entry.name: entry for entry in (
    EncoderEntry("stain", "stain", "stain", 63, STAIN_INPUT_PX, 0.5, "Apache-2.0", False, ""),
    EncoderEntry("resnet50", "timm", "resnet50", 2048, 224, None, "Apache-2.0", False, f"{_HUB}/timm/resnet50.a1_in1k"),
    EncoderEntry("cmrcnet-vit", "untrained", "cmrcnet-vit", 768, 224, None, "Apache-2.0", False, ""),
    EncoderEntry("uni", "foundation", "uni", 1024, 224, 0.5, _NC, True, f"{_HUB}/MahmoodLab/UNI"),
    EncoderEntry("uni2-h", "foundation", "uni2", 1536, 224, 0.5, _NC, True, f"{_HUB}/MahmoodLab/UNI2-h"),
    EncoderEntry("conch", "foundation", "conch", 512, 448, 0.5, _NC, True, f"{_HUB}/MahmoodLab/conch", _CLIP_MEAN, _CLIP_STD),
    EncoderEntry("virchow2", "foundation", "virchow2", 2560, 224, 0.5, _NC, True, f"{_HUB}/paige-ai/Virchow2"),
    EncoderEntry("gigapath", "foundation", "gigapath", 1536, 224, 0.5, "Apache-2.0 with conditions", True, f"{_HUB}/prov-gigapath/prov-gigapath"),
    EncoderEntry("h-optimus-0", "foundation", "h-optimus-0", 1536, 224, 0.5, "Apache-2.0", False, f"{_HUB}/bioptimus/H-optimus-0", _OPTIMUS_MEAN, _OPTIMUS_STD),
    EncoderEntry("h-optimus-1", "foundation", "h-optimus-1", 1536, 224, 0.5, _NC, True, f"{_HUB}/bioptimus/H-optimus-1", _OPTIMUS_MEAN, _OPTIMUS_STD),
    EncoderEntry("phikon", "foundation", "phikon", 768, 224, 0.5, "Owkin non-commercial", False, f"{_HUB}/owkin/phikon"),
    EncoderEntry("phikon-v2", "foundation", "phikonv2", 1024, 224, 0.5, "Owkin non-commercial", False, f"{_HUB}/owkin/phikon-v2"),
)}
# fmt: on


def is_trainable(name: str) -> bool:
    """Whether gradients reach the weights of the encoder of this name.

    The stain has none, and lazyslide-models runs its encoders in inference mode.
    """
    return name not in ENCODERS or ENCODERS[name].kind in {"timm", "untrained"}


def load_encoder(name: str, *, pretrained: bool = True, seed: int = 0) -> Encoder:
    """Load an encoder by name.

    Parameters
    ----------
    name
        A name of the table, ``timm:<architecture>`` or ``timm:<architecture>@<file.safetensors>``.
    pretrained
        Get the weights; without, the architecture alone, to be filled from a bundle.
    seed
        Of the first weights of an encoder that is trained from scratch.

    Raises
    ------
    EncoderError
        Unknown name, or weights that do not fit or cannot be had.

    Examples
    --------
    >>> load_encoder("stain").width
    63
    """
    if name.startswith("timm:"):
        architecture, _, file = name.removeprefix("timm:").partition("@")
        return load_timm(architecture, weights=Path(file).expanduser() if file else None, pretrained=pretrained)
    entry = ENCODERS.get(name)
    if entry is None:
        known = ", ".join(ENCODERS)
        raise EncoderError(f"unknown encoder {name!r}", path="--encoder", fix=f"one of {known}, or timm:<architecture>")
    if entry.kind == "stain":
        return load_stain()
    if entry.kind == "untrained":
        return load_cmrcnet_vit(seed=seed)
    if entry.kind == "timm":
        return load_timm(entry.source, pretrained=pretrained)
    return load_foundation(entry)
