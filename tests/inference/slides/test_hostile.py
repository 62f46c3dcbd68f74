"""Slides that are none: each one clear line, and the others go on."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hescribe.errors import HescribeError, InputError
from hescribe.inference import read_prediction
from hescribe.inference.slides import SlidesFailed, job, predict_slide, predict_slides
from hescribe.inference.slides.run import find_slides, resolve_devices
from hescribe.slides.slide import Slide
from hescribe.slides.tissue import find_tissue
from tests.inference.slides.made import MPP, draw_slide, make_bundle, write_slide

IMAGE = draw_slide(600)


def truncated(path: Path) -> None:
    write_slide(path, IMAGE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def damaged(path: Path) -> None:
    tifffile.imwrite(path, IMAGE, tile=(128, 128), photometric="rgb", compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        middle = tiff.pages.first.dataoffsets[12]
    data = bytearray(path.read_bytes())
    data[middle : middle + 300] = b"\xff" * 300
    path.write_bytes(bytes(data))


def claims_a_million_pixels(path: Path) -> None:
    write_slide(path, IMAGE)
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for i in range(count):
        at = start + 2 + 12 * i
        tag, _ = struct.unpack_from("<HH", data, at)
        if tag in {256, 257}:
            struct.pack_into("<HHII", data, at, tag, 4, 1, 1_000_000)
    path.write_bytes(bytes(data))


def no_permission(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    write_slide(path, IMAGE)
    path.chmod(0)


def four_channels(path: Path) -> None:
    tifffile.imwrite(path, np.dstack([IMAGE] * 2)[..., :4], tile=(128, 128), photometric="separated")


def with_channels(number: int) -> Callable[[Path], None]:
    """The slide's colours and further channels that nobody says what they are of."""

    def write(path: Path) -> None:
        pixels = np.dstack([IMAGE, IMAGE])[:, :, :number]
        tifffile.imwrite(
            path, pixels, photometric="rgb" if number > 2 else "minisblack", planarconfig="contig",
            extrasamples=["unspecified"] * (number - 3 if number > 2 else 1),
        )  # fmt: skip

    return write


def one_block(path: Path) -> None:
    tifffile.imwrite(path, IMAGE, tile=(8192, 8192), photometric="rgb", compression="deflate")


HOSTILE = {
    "truncated": (truncated, "truncated|damaged"),
    "damaged": (damaged, "cannot be (decoded|read)"),
    "empty": (lambda p: p.write_bytes(b""), r"empty \(0 bytes\)"),
    "text": (lambda p: p.write_text("no image at all\n" * 100), "not a readable TIFF"),
    "png-by-another-name": (lambda p: Image.fromarray(IMAGE).save(p, "PNG"), "not a readable TIFF"),
    "one-pixel": (lambda p: tifffile.imwrite(p, IMAGE[:1, :1], photometric="rgb"), "no tissue found"),
    "white": (lambda p: write_slide(p, np.full_like(IMAGE, 255)), "no tissue found"),
    "black": (lambda p: write_slide(p, np.zeros_like(IMAGE)), "no tissue found"),
    "cmyk": (four_channels, "SEPARATED is not supported"),
    "sixteen-bits": (
        lambda p: tifffile.imwrite(p, IMAGE.astype(np.uint16) * 257, tile=(128, 128), photometric="rgb"),
        "uint16 pixels are not supported",
    ),
    "two-channels": (with_channels(2), "2 channels that are not RGB are not supported"),
    "four-channels": (with_channels(4), "4 channels that are not RGB are not supported"),
    "five-channels": (with_channels(5), "5 channels that are not RGB are not supported"),
    "one-block": (one_block, "blocks of 8,192 × 8,192 px are too large"),
    "a-million-pixels": (claims_a_million_pixels, "1,000,000 × 1,000,000 px; no slide is that large"),
    "folder": (lambda p: p.mkdir(), "a folder"),
    "missing": (lambda _: None, "no such image"),
    "dangling": (lambda p: p.symlink_to("nowhere.tif"), "a link to a file that is not there"),
    "no-permission": (no_permission, "Permission denied"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_each_is_one_clear_line(name: str, tmp_path: Path) -> None:
    make, message = HOSTILE[name]
    path = tmp_path / f"{name}.tif"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        predict_slides(make_bundle(), [path], tmp_path / "out", mpp=MPP)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    left = {p.name for p in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert left <= {f".{name}.zarr.lock"}


@pytest.mark.parametrize("name", ["a-million-pixels", "sixteen-bits", "five-channels", "no-permission"])
def test_another_name_hides_nothing(name: str, tmp_path: Path) -> None:
    make, message = HOSTILE[name]
    path = tmp_path / f"{name}.svs"
    make(path)
    with pytest.raises(InputError, match=message):
        predict_slides(make_bundle(), [path], tmp_path / "out", mpp=MPP)


def test_without_scale(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.tif", IMAGE, mpp=None)
    with pytest.raises(InputError, match=r"µm per pixel is not known \(pass --mpp\)$"):
        predict_slide(make_bundle(), path, tmp_path / "out.zarr")
    for wrong in ({"mpp": -1.0}, {"stride_um": 7.9}, {"stride_um": float("inf")}, {"stride_um": float("nan")}):
        with pytest.raises(InputError, match="cannot be"):
            predict_slide(make_bundle(), path, tmp_path / "out.zarr", **wrong)
    assert read_prediction(predict_slide(make_bundle(), path, tmp_path / "out.zarr", mpp=MPP)).n_obs


@pytest.mark.parametrize("name", ["tiled.tif", "tiled.svs", "strips.tif"])
def test_a_scale_that_cannot_be_is_named(tmp_path: Path, name: str) -> None:
    """What an image editor wrote was passed over without a word: µm per pixel "is not known"."""
    path = write_slide(tmp_path / name, IMAGE, mpp=350.0, tile=None if "strips" in name else 128)
    told = r"µm per pixel is not known: its metadata say 350 µm per pixel, which cannot be \(pass --mpp\)$"
    with pytest.raises(InputError, match=told):
        predict_slide(make_bundle(), path, tmp_path / "out.zarr")
    assert read_prediction(predict_slide(make_bundle(), path, tmp_path / "out.zarr", mpp=MPP)).n_obs


def test_transparent_glass_is_glass(tmp_path: Path) -> None:
    alpha = np.where(np.abs(IMAGE.astype(int) - 245).max(axis=2) < 20, 0, 255).astype(np.uint8)
    black = np.where(alpha[..., None] > 0, IMAGE, 0)
    tifffile.imwrite(
        tmp_path / "s.tif", np.dstack([black, alpha]), tile=(128, 128), photometric="rgb", extrasamples=["unassalpha"]
    )
    path = predict_slide(make_bundle(), tmp_path / "s.tif", tmp_path / "out.zarr", mpp=MPP)
    centres = read_prediction(path).obsm["spatial"].astype(int)
    assert (alpha[centres[:, 1], centres[:, 0]] > 0).mean() > 0.9


def test_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [write_slide(tmp_path / f"{n}.tif", IMAGE) for n in ("a", "c")]
    (tmp_path / "b.tif").write_bytes(b"")
    given = [good[0], tmp_path / "b.tif", good[1]]
    with (
        caplog.at_level(logging.INFO, "hescribe"),
        pytest.raises(HescribeError, match=r"1 of 3 slides failed: .*b\.tif"),
    ):
        predict_slides(make_bundle(), given, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").glob("*.zarr")} == {"a.zarr", "c.zarr"}
    lines = [r.getMessage() for r in caplog.records]
    assert [line.split(":")[0] for line in lines] == ["a.tif", "error", "c.tif"]
    with pytest.raises(InputError, match="empty"):
        predict_slides(make_bundle(), [tmp_path / "b.tif", good[0]], tmp_path / "other", keep_going=False)
    assert not list((tmp_path / "other").glob("*.zarr"))


def test_a_folder_among_slides_does_not_stop_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = [write_slide(tmp_path / f"{n}.tif", IMAGE) for n in ("a", "d")]
    (tmp_path / "b.tif").mkdir()
    (tmp_path / "c.tif").symlink_to("nowhere.tif")
    with caplog.at_level(logging.ERROR, "hescribe"), pytest.raises(SlidesFailed, match="2 of 4") as failed:
        predict_slides(make_bundle(), [good[0], tmp_path / "b.tif", tmp_path / "c.tif", good[1]], tmp_path / "out")
    assert [p.name for p in failed.value.written] == ["a.zarr", "d.zarr"]
    assert ["a folder" in caplog.messages[0], "a link to a file" in caplog.messages[1]] == [True, True]
    assert find_slides([str(tmp_path / "*.tif")]) == [good[0], tmp_path / "c.tif", good[1]]
    # Whatever one slide meets, the others go on
    monkeypatch.setattr("hescribe.inference.slides.job.find_tissue", _trips_over("d.tif"))
    with pytest.raises(SlidesFailed, match="1 of 2"):
        predict_slides(make_bundle(), [good[1], good[0]], tmp_path / "other")
    assert (tmp_path / "other" / "a.zarr").exists()


def _trips_over(name: str) -> Callable[..., object]:
    def find(slide: Slide, **how: float) -> object:
        if slide.path.name == name:
            raise MemoryError("no more of it")
        return find_tissue(slide, **how)

    return find


def test_slides_are_found(tmp_path: Path) -> None:
    for name in ("b.tif", "a.svs", "notes.txt", ".hidden.tif"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    folder = tmp_path / "in"
    assert find_slides([folder]) == [folder / "a.svs", folder / "b.tif"]
    assert find_slides([str(folder / "*.tif"), folder]) == [folder / "b.tif", folder / "a.svs"]
    with pytest.raises(InputError, match="no file fits"):
        find_slides([str(folder / "*.ndpi")])
    with pytest.raises(InputError, match="without slides"):
        find_slides([tmp_path])
    (folder / "a.tif").write_bytes(b"x")
    with pytest.raises(InputError, match="same output"):
        find_slides([folder])


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cpu,cuda:99", ""])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(InputError, match="device"):
        resolve_devices(device)


def test_a_slide_written_over_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles read before and after are of two slides; they had stood under the name of the first."""
    path, out = write_slide(tmp_path / "s.tif", IMAGE), tmp_path / "out.zarr"
    encode = job.encode_slide

    def meanwhile(*args: object, **kwargs: object) -> object:
        features = encode(*args, **kwargs)  # type: ignore[arg-type]
        write_slide(path, 255 - IMAGE)
        return features

    with monkeypatch.context() as patch:
        patch.setattr(job, "encode_slide", meanwhile)
        with pytest.raises(InputError, match=r"s\.tif: the slide has changed while it was read \(run it again\)"):
            predict_slide(make_bundle(), path, out)
    assert {p.name for p in tmp_path.iterdir()} == {"s.tif", ".out.zarr.lock"}
    # One that was only touched is the same
    write_slide(path, IMAGE)
    monkeypatch.setattr(job, "encode_slide", lambda *a, **k: (encode(*a, **k), path.touch())[0])
    assert predict_slide(make_bundle(), path, out).is_dir()
