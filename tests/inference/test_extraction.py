"""How features are computed survives a bundle's JSON, also that of bundles written before a setting was there."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from hescribe.encoders import Extraction
from hescribe.inference.bundle import _read_extraction
from hescribe.types import Context

CONTEXTS = [Context(), Context((1.0, 2.0), (200.0,), centred=True), Context(grid=5, raster=3, position=True)]


@pytest.mark.parametrize("context", CONTEXTS)
def test_it_comes_back_as_it_was(context: Context) -> None:
    how = Extraction(60.0, views=4, context=context)
    assert _read_extraction(json.loads(json.dumps(asdict(how)))) == how


def test_a_context_from_before_grids_is_read() -> None:
    facts = asdict(Extraction()) | {
        "context": {"scales": [1.0, 2.0], "spreads_um": [200.0], "centred": True, "position": False}
    }
    assert _read_extraction(facts).context == Context((1.0, 2.0), (200.0,), centred=True)
