"""Read the spatial transcriptome off an H&E slide."""

__version__ = "0.1.0"
