"""Read the spatial transcriptome off an H&E slide."""

from hescribe.version import __version__

__all__ = ["__version__"]
