"""Encoders: image tile → feature vector."""

from hescribe.encoders.context import Described, describe_tiles
from hescribe.encoders.extract import Extraction, extract_features
from hescribe.encoders.maps.parts import has_parts, train_only
from hescribe.encoders.maps.tokens import MeanOfTokens, TokenTower, mean_of_tokens
from hescribe.encoders.record import Encoder, resolve_device
from hescribe.encoders.registry import ENCODERS, EncoderEntry, is_trainable, load_encoder

__all__ = [
    "ENCODERS",
    "Described",
    "Encoder",
    "EncoderEntry",
    "Extraction",
    "MeanOfTokens",
    "TokenTower",
    "describe_tiles",
    "extract_features",
    "has_parts",
    "is_trainable",
    "load_encoder",
    "mean_of_tokens",
    "resolve_device",
    "train_only",
]
