"""Images of every kind, pixel by pixel."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hescribe.errors import HescribeWarning, InputError
from hescribe.slides.reader import open_slide, resolve_mpp
from hescribe.slides.tiles import SlideTiles, SomeTiles

PIXELS = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)


def write(path: Path) -> Path:
    """The pixels as the format its name says."""
    kind = path.stem
    if kind == "strips":
        tifffile.imwrite(path, PIXELS, rowsperstrip=16)
    elif kind == "tiled":
        tifffile.imwrite(path, PIXELS, tile=(128, 128), resolution=(20000, 20000), resolutionunit="CENTIMETER")
    elif kind == "pyramid":
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(PIXELS, tile=(128, 128), subfiletype=0)
            tiff.write(PIXELS[::2, ::2], tile=(128, 128), subfiletype=1)
    else:
        Image.fromarray(PIXELS).save(path)
    return path


@pytest.mark.parametrize("name", ["plain.png", "strips.tif", "tiled.tif", "pyramid.tif"])
@pytest.mark.parametrize("corner", [(0, 0), (37, 21), (-20, -10), (380, 290), (900, 900)])
def test_regions_are_the_pixels_and_white_beyond(tmp_path: Path, name: str, corner: tuple[int, int]) -> None:
    slide = open_slide(write(tmp_path / name))
    assert (slide.width, slide.height) == (400, 300)
    x, y = corner
    padded = np.full((2400, 2400, 3), 255, dtype=np.uint8)
    padded[1000:1300, 1000:1400] = PIXELS
    expected = padded[1000 + y : 1050 + y, 1000 + x : 1060 + x]
    np.testing.assert_array_equal(slide.read_region(x, y, 60, 50), expected)


def test_jpeg_is_as_another_decoder_reads_it(tmp_path: Path) -> None:
    slide = open_slide(write(tmp_path / "plain.jpg"))
    expected = np.asarray(Image.open(tmp_path / "plain.jpg"))
    np.testing.assert_allclose(slide.read_region(10, 20, 50, 40).astype(int), expected[20:60, 10:60], atol=2)


def test_microns_per_pixel_of_metadata(tmp_path: Path) -> None:
    assert open_slide(write(tmp_path / "tiled.tif")).mpp == pytest.approx(0.5)
    assert open_slide(write(tmp_path / "plain.png")).mpp is None


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "strips"])
@pytest.mark.parametrize(("size", "unit"), [(0.5, "µm"), (0.0005, "mm"), (500, "nm")])
def test_microns_per_pixel_of_ome(tmp_path: Path, tiled: bool, size: float, unit: str) -> None:
    path, tile = tmp_path / "a.ome.tif", {"tile": (128, 128)} if tiled else {}
    side = {f"PhysicalSize{axis}": size for axis in "XY"} | {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    image = np.full((300, 280, 3), 200, dtype=np.uint8)
    tifffile.imwrite(path, image, photometric="rgb", metadata={"axes": "YXS", **side}, **tile)
    assert open_slide(path).mpp == pytest.approx(0.5)


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "strips"])
def test_pixels_that_are_not_square_are_refused(tmp_path: Path, tiled: bool) -> None:
    image, tile = np.full((300, 280, 3), 200, dtype=np.uint8), {"tile": (128, 128)} if tiled else {}
    how = {"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", **how, **tile)
    with pytest.raises(InputError, match=r"pixels of 0\.5 × 1 µm are not square"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize("how", [{"ome": True}, {"imagej": True}], ids=["ome", "imagej"])
def test_channels_in_pages_are_not_read_as_grey(tmp_path: Path, how: dict[str, bool]) -> None:
    image = np.full((3, 300, 280), 200, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", metadata={"axes": "CYX"}, **how)
    with pytest.raises(InputError, match="channels in pages of their own"):
        open_slide(tmp_path / "a.tif")


def test_what_is_no_file_and_what_cannot_be_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(InputError, match=r"pipe\.tif: not a file"):
        open_slide(tmp_path / "pipe.tif")
    odd = tmp_path / "bad\udcff.png"
    Image.new("RGB", (50, 50)).save(odd)
    with pytest.raises(InputError, match="its name is not UTF-8"):
        open_slide(odd)


def test_what_is_transparent_is_white_as_glass(tmp_path: Path) -> None:
    image = np.dstack([PIXELS, np.where(np.arange(400) < 100, 0, 255)[None].repeat(300, 0)]).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "clear.png")
    region = open_slide(tmp_path / "clear.png").read_region(0, 0, 400, 300)
    assert (region[:, :100] == 255).all()
    np.testing.assert_array_equal(region[:, 100:], PIXELS[:, 100:])


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[:, :, 0]).save(tmp_path / "grey.png")
    region = open_slide(tmp_path / "grey.png").read_region(0, 0, 400, 300)
    np.testing.assert_array_equal(region, PIXELS[:, :, :1].repeat(3, axis=2))


@pytest.mark.parametrize("name", ["plain.jpg", "plain.png", "strips.tif", "tiled.tif"])
def test_a_truncated_image_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=name):
        slide = open_slide(path)
        slide.read_region(0, 0, slide.width, slide.height)


def test_a_preview_in_the_header_does_not_hide_truncation(tmp_path: Path) -> None:
    """The end marker of an embedded thumbnail was taken for that of the picture."""
    Image.fromarray(PIXELS).save(tmp_path / "small.jpg")
    thumbnail = (tmp_path / "small.jpg").read_bytes()[:60000]
    body = (tmp_path / "small.jpg").read_bytes()
    segment = b"\xff\xe1" + (len(thumbnail[:60000]) + 2).to_bytes(2, "big") + thumbnail[:60000]
    whole = body[:2] + segment + body[2:]
    (tmp_path / "camera.jpg").write_bytes(whole)
    open_slide(tmp_path / "camera.jpg").read_region(0, 0, 400, 300)
    (tmp_path / "cut.jpg").write_bytes(whole[: 2 + len(segment) + 3000])
    with pytest.raises(InputError, match="truncated"):
        open_slide(tmp_path / "cut.jpg").read_region(0, 0, 400, 300)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "plain.png")
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="too many to decode"):
        open_slide(path)


@pytest.mark.parametrize("name", ["plain.png", "pyramid.tif"])
def test_a_tile_at_its_own_scale_is_cut_out_exactly(tmp_path: Path, name: str) -> None:
    tiles = SlideTiles(write(tmp_path / name), np.array([[200.0, 150.0], [5.0, 150.0]]), mpp=0.5, slide_id="s")
    cut = tiles.read(np.array([1, 0]), tile_um=32.0, size_px=64)
    np.testing.assert_array_equal(cut[1], PIXELS[118:182, 168:232])
    assert (cut[0][:, :27] == 255).all()
    np.testing.assert_array_equal(cut[0][:, 27:], PIXELS[118:182, :37])


def test_some_tiles_are_those_of_their_rows(tmp_path: Path) -> None:
    centres = np.array([[200.0, 150.0], [5.0, 150.0], [90.0, 80.0]])
    tiles = SlideTiles(write(tmp_path / "plain.png"), centres, mpp=0.5, slide_id="s")
    some = SomeTiles(tiles, np.array([2, 0]))
    assert len(some) == 2
    np.testing.assert_array_equal(some.centres, centres[[2, 0]])
    whole = tiles.read(np.arange(3), tile_um=32.0, size_px=64)
    np.testing.assert_array_equal(some.read(np.array([1, 0, 1]), tile_um=32.0, size_px=64), whole[[0, 2, 0]])
    assert len({tiles.fingerprint(), some.fingerprint(), SomeTiles(tiles, np.array([0, 2])).fingerprint()}) == 3


def test_larger_tiles_come_from_the_level_that_fits(tmp_path: Path) -> None:
    tiles = SlideTiles(write(tmp_path / "pyramid.tif"), np.array([[200.0, 150.0]]), mpp=0.5, slide_id="s")
    # 128 full-resolution pixels for 64: exactly the second level
    cut = tiles.read(np.array([0]), tile_um=64.0, size_px=64)[0]
    np.testing.assert_array_equal(cut, PIXELS[::2, ::2][43:107, 68:132])


def test_the_fingerprint_changes_with_what_a_tile_shows(tmp_path: Path) -> None:
    centres = np.array([[200.0, 150.0]])
    path = write(tmp_path / "plain.png")
    first = SlideTiles(path, centres, mpp=0.5, slide_id="s").fingerprint()
    assert SlideTiles(path, centres, mpp=0.5, slide_id="other").fingerprint() == first
    assert SlideTiles(path, centres + 1, mpp=0.5, slide_id="s").fingerprint() != first
    assert SlideTiles(path, centres, mpp=0.6, slide_id="s").fingerprint() != first
    Image.fromarray(255 - PIXELS).save(path)
    assert SlideTiles(path, centres, mpp=0.5, slide_id="s").fingerprint() != first


def test_spots_outside_the_image_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "plain.png")
    for bad in ([[401.0, 5.0]], [[-1.0, 5.0]], [[float("nan"), 5.0]]):
        with pytest.raises(InputError, match="1 of 1 spots lie outside"):
            SlideTiles(path, np.array(bad), mpp=0.5, slide_id="s").check_inside()


@pytest.mark.parametrize("name", ["tagged.png", "tagged.jpg"])
def test_the_resolution_tag_of_a_plain_image_is_the_last_to_be_believed(tmp_path: Path, name: str) -> None:
    """A PNG that an analysis wrote at 0.5 µm per pixel was refused for want of a scale; a screen's 72 dpi are none."""
    path = tmp_path / name
    Image.fromarray(PIXELS).save(path, dpi=(50_800, 50_800))
    slide = open_slide(path)
    assert slide.mpp is None
    assert slide.tag_mpp == pytest.approx(0.5, rel=1e-4)
    assert resolve_mpp(metadata=None, tag=slide.tag_mpp, path=path) == slide.tag_mpp
    with pytest.warns(HescribeWarning, match="0.700 by the manifest but 0.500 by the image's resolution tag; 0.700"):
        assert resolve_mpp(metadata=None, manifest=0.7, tag=slide.tag_mpp, path=path) == 0.7
    for dpi in ((72, 72), (600, 600), (50_800, 25_400)):
        Image.fromarray(PIXELS).save(path, dpi=dpi)
        assert open_slide(path).tag_mpp is None


def test_microns_per_pixel_in_order_of_trust() -> None:
    path = Path("slide.tif")
    assert resolve_mpp(metadata=0.5, pitch=0.51, manifest=0.49, path=path) == 0.5
    assert resolve_mpp(metadata=None, pitch=0.51, manifest=0.49, path=path) == 0.51
    assert resolve_mpp(metadata=None, pitch=None, manifest=0.49, path=path) == 0.49
    with pytest.warns(HescribeWarning, match="0.500 by the image's metadata but 0.600 by the spots' pitch"):
        assert resolve_mpp(metadata=0.5, pitch=0.6, manifest=None, path=path) == 0.5
    with pytest.raises(InputError, match="µm per pixel is not known"):
        resolve_mpp(metadata=None, pitch=float("nan"), manifest=None, path=path)
    with pytest.raises(InputError, match=r"µm per pixel is 200 by the spots' pitch, where 0.02 to 50 can be"):
        resolve_mpp(metadata=None, pitch=200.0, path=path)
