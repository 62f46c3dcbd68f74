"""The tools under the short name that scanpy's users type: ``hescribe.tl``."""

from __future__ import annotations

__all__: list[str] = []
