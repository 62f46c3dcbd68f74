"""Learning from sections."""

from hescribe.training.config import TrainConfig
from hescribe.training.train import train

__all__ = ["TrainConfig", "train"]
