"""What a bundle is told apart by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hescribe import keys
from hescribe.inference.bundle import check_bundle
from tests.inference.slides.made import make_bundle


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("method_config", "retrieval", {"k": 3}), ("extraction", "views", 4), ("provenance", "sections", {"B": "P2"})],
)
def test_another_setting_is_another_bundle(part: str, name: str, value: object, tmp_path: Path) -> None:
    """A prediction depends on how the files are used, and a finished one is skipped by the bundle's hash."""
    folder = make_bundle("bleep").save(tmp_path / "bundle")
    before, config = check_bundle(folder), folder / keys.BUNDLE_CONFIG
    told = json.loads(config.read_text())
    assert told[part][name] != value
    told[part][name] = value
    config.write_text(json.dumps(told))
    assert check_bundle(folder) != before
    told["provenance"]["seconds"] = 1.0  # what nothing depends on
    same = check_bundle(folder)
    config.write_text(json.dumps(told))
    assert check_bundle(folder) == same


def test_who_may_read_a_bundle_may_read_all_of_it(tmp_path: Path) -> None:
    """The weights were readable for their owner alone, so nobody else could predict with a bundle on a shared disk."""
    folder = make_bundle("bleep").save(tmp_path / "bundle")
    assert len({file.stat().st_mode for file in folder.rglob("*") if file.is_file()}) == 1


def test_a_bundle_is_shown_on_one_line() -> None:
    """A notebook that ended a cell with one was filled with tables and weights."""
    bundle = make_bundle("bleep")
    assert repr(bundle).startswith(f"Bundle(bleep on {bundle.encoder.name}, {len(bundle.genes)} genes, learned from ")
    assert len(repr(bundle)) < 200
