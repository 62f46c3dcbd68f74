"""Where a report finds the slide of a prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hescribe.inference import read_prediction
from hescribe.inference.present import find_picture
from hescribe.inference.slides import predict_slide
from hescribe.io.manifest import ManifestRow
from hescribe.sections import Section
from hescribe.slides.reader import open_slide
from tests.inference.slides.made import MPP, draw_slide, make_bundle, write_slide


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    (tmp_path / "slides").mkdir()
    return write_slide(tmp_path / "slides" / "a b.tif", draw_slide())


def test_the_slide_where_it_was_then_what_the_prediction_keeps(slide: Path, tmp_path: Path) -> None:
    path = predict_slide(make_bundle(), slide, tmp_path / "p" / "p.zarr")
    prediction = read_prediction(path)
    whole = open_slide(slide)
    shown = find_picture(prediction, None, path) or pytest.fail("no picture")
    np.testing.assert_array_equal(shown[0], whole.thumbnail(1500))
    assert shown[1] == whole.width / shown[0].shape[1]
    # Copied to where it was predicted, as from a slow disk, and removed there
    elsewhere = slide.rename(tmp_path / "a b.tif.original")
    told = prediction.uns["hescribe"]
    told["source"] = elsewhere.as_uri()
    np.testing.assert_array_equal((find_picture(prediction, None, path) or [0])[0], shown[0])
    told["source"] = ""
    kept = find_picture(prediction, None, path) or pytest.fail("no picture")
    np.testing.assert_array_equal(kept[0], whole.thumbnail(600))
    assert kept[1] == pytest.approx(whole.width / kept[0].shape[1])
    # Another, smaller file of that name is not the slide
    write_slide(slide, draw_slide()[:200, :200])
    np.testing.assert_array_equal((find_picture(prediction, None, path) or [0])[0], kept[0])
    del prediction.uns["spatial"]
    assert find_picture(prediction, None, path) is None


def test_the_manifest_comes_first(slide: Path, tmp_path: Path) -> None:
    path = predict_slide(make_bundle(), slide, tmp_path / "p.zarr")
    other = write_slide(tmp_path / "other.tif", 255 - draw_slide())
    section = Section(ManifestRow("a b", "P", other, None, mpp=MPP))
    shown = find_picture(read_prediction(path), section, path) or pytest.fail("no picture")
    np.testing.assert_array_equal(shown[0], open_slide(other).thumbnail(1500))
    without = Section(replace(section.row, image=None))
    shown = find_picture(read_prediction(path), without, path) or pytest.fail("no picture")
    np.testing.assert_array_equal(shown[0], open_slide(slide).thumbnail(1500))
