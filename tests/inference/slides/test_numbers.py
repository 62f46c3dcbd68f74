"""The numbers of a slide are those of the path that predicts at spots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import zarr
from scipy import sparse
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from hescribe import keys
from hescribe.encoders import Extraction, describe_tiles
from hescribe.encoders.context import gaussian_weights
from hescribe.errors import InputError, OutputError
from hescribe.inference import read_prediction
from hescribe.inference.slides import expression, features, predict_slide, prepared
from hescribe.inference.slides.expression import block_rows, moments
from hescribe.inference.slides.plan import SlideOptions
from hescribe.io.rows import RowFile
from hescribe.methods import METHODS
from hescribe.plots.ground import find_ground
from hescribe.slides.blocks.sweep import Batch
from hescribe.slides.reader import open_slide
from hescribe.slides.tiles import SlideTiles
from hescribe.types import Context, Views
from tests.inference.slides.made import GENES, MPP, draw_slide, make_bundle, write_slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "slide.tif", draw_slide())


@pytest.fixture
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks, blocks and sources, as on a large slide."""
    for module in (features, expression):
        monkeypatch.setattr(module, "CHUNK", 96)
    monkeypatch.setattr(features, "BATCH", 16)
    monkeypatch.setattr(expression, "_PAIRS", 3000)
    monkeypatch.setattr(expression, "_SOURCES", 50)
    monkeypatch.setattr(expression, "_BLOCK_ROWS", (32, 32))


CONTEXTS = {
    "plain": Context(),
    "everything": Context((1.0, 2.0), (150.0, 300.0), centred=True, position=True),
    "centred": Context(centred=True),
    "around": Context((1.0,), (200.0,)),
    "beside": Context((1.0, 2.0), (150.0,), centred=True, grid=3, raster=4),
    "beside, as it is": Context(grid=5, raster=3, position=True),
}


@pytest.mark.usefixtures("_small_steps")
@pytest.mark.parametrize("method", METHODS)
def test_as_at_spots(method: str, slide: Path, tmp_path: Path) -> None:
    check(make_bundle(method), slide, tmp_path)


@pytest.mark.usefixtures("_small_steps")
@pytest.mark.parametrize("name", CONTEXTS)
def test_whatever_is_described(name: str, slide: Path, tmp_path: Path) -> None:
    # Where the stride is the tile's side, a neighbour is another tile of the grid
    stride_um = 112.0 if "beside" in name else 80.0
    check(make_bundle("ridge", context=CONTEXTS[name], views=4), slide, tmp_path, stride_um=stride_um)


def test_other_views_than_trained(slide: Path, tmp_path: Path) -> None:
    bundle, out = make_bundle("ridge", views=4), tmp_path / "out.zarr"
    found = check(bundle, slide, tmp_path, views=1)
    assert found.uns[keys.PROVENANCE]["views"] == 1
    as_trained = check(bundle, slide, tmp_path / "four")
    assert np.abs(found.X - as_trained.X).max() > 1e-3  # the encoder tells a tile from its mirror image
    with pytest.raises(OutputError, match="another --views"):
        predict_slide(bundle, slide, out, stride_um=80.0, precision="fp32")
    with pytest.raises(InputError, match="--views: 3 is none of 1, 4, 8"):
        predict_slide(bundle, slide, tmp_path / "b.zarr", views=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--views: 3 is none of 1, 4, 8"):
        SlideOptions(views=3)  # type: ignore[arg-type]  # a cohort asks before it starts workers
    with pytest.raises(InputError, match="--views: 3 is none of 1, 4, 8"):
        bundle.with_views(3)  # type: ignore[arg-type]


def check(  # type: ignore[no-untyped-def]
    bundle, slide: Path, folder: Path, *, stride_um: float = 80.0, views: Views | None = None
) -> ad.AnnData:
    path = predict_slide(bundle, slide, folder / "out.zarr", stride_um=stride_um, precision="fp32", views=views)
    bundle, found = bundle.with_views(views), read_prediction(path)
    assert found.n_obs > 150
    tiles = SlideTiles(slide, found.obsm[keys.SPATIAL], mpp=MPP, slide_id="s")
    described = describe_tiles(tiles, bundle.encoder, bundle.extraction, use_cache=False)
    expected = bundle.predictor(use_cache=False).head(described.full, tiles)
    # Another batch size through the encoder, and JPEG decoded by another library
    np.testing.assert_allclose(found.X, expected, atol=2e-4, rtol=1e-3)
    novelty = bundle.novelty.percentile(described.plain, described.colours)
    assert np.abs(found.obs[keys.NOVELTY] - novelty).max() <= 2.0  # a percentile of 60
    np.testing.assert_array_equal(
        found.obs[keys.INTERVAL_SCALE], bundle.trust.interval_scale(found.obs[keys.NOVELTY].to_numpy())
    )
    return found


@pytest.mark.usefixtures("_small_steps")
@pytest.mark.parametrize("name", ["everything", "beside", "beside, as it is"])
def test_descriptions_are_those_of_the_encoders_room(name: str, slide: Path, tmp_path: Path) -> None:
    """With the same batches the description is equal to 1e-6, chunk by chunk."""
    seen = []
    bundle = make_bundle("ridge", context=CONTEXTS[name])
    bundle = replace(bundle, extraction=replace(bundle.extraction, batch_size=16))
    watched = expression.Descriptions.full
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expression.Descriptions, "full", lambda *a: seen.append(watched(*a)) or seen[-1])
        path = predict_slide(bundle, slide, tmp_path / "out.zarr", precision="fp32")
    tiles = SlideTiles(slide, read_prediction(path).obsm[keys.SPATIAL], mpp=MPP, slide_id="s")
    expected = describe_tiles(tiles, bundle.encoder, bundle.extraction, use_cache=False).full
    assert len(seen) > 2
    np.testing.assert_allclose(np.concatenate(seen), expected, atol=1e-6, rtol=1e-5)


def test_a_dense_grid_has_the_means_of_a_thinned_one() -> None:
    """As many tiles as say something, and the same means: features change over the width of a tile, 112 µm."""
    side, stride_um, spread_um = 108, 16.0, 200.0
    noise = np.random.default_rng(0).normal(size=(side, side, 3))
    features = gaussian_filter(noise, (112 / 12**0.5 / stride_um,) * 2 + (0,)).reshape(-1, 3)
    centres = (np.mgrid[:side, :side][::-1].reshape(2, -1).T + 0.5) * stride_um
    rows = expression.thin(centres, stride_um, spread_um)
    assert len(rows) == (side / 3) ** 2
    some = np.random.default_rng(1).choice(len(centres), 400, replace=False)
    found = gaussian_weights(cKDTree(centres[rows]), centres[some], spread_um) @ features[rows]
    expected = gaussian_weights(cKDTree(centres), centres[some], spread_um) @ features
    off = np.abs(found - expected)
    assert off.max() < 0.01 * features.std()
    assert len(expression.thin(centres, 112.0, spread_um)) == len(centres)
    assert len(expression.thin(centres[[7]], stride_um, spread_um)) == 1  # where no row of the lattice meets it


@pytest.mark.parametrize(("stride_um", "every"), [(25.0, 1), (20.0, 1), (16.0, 3), (12.0, 3), (10.0, 5), (8.0, 5)])
def test_one_tile_stands_for_those_around_it(stride_um: float, every: int) -> None:
    """At most a quarter of 200 µm wide, and an odd number each way, so that it lies in their middle."""
    side = 15
    centres = (np.mgrid[:side, :side][::-1].reshape(2, -1).T + 0.5) * stride_um
    rows = expression.thin(centres, stride_um, 200.0)
    middles = (np.mgrid[: side // every, : side // every][::-1].reshape(2, -1).T + 0.5) * every * stride_um
    np.testing.assert_allclose(centres[rows], middles)


def test_means_over_some_of_the_tiles_are_of_just_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expression, "_SOURCES", 4)  # held at once, of ten
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(40, width)).astype("f") for width in (3, 2)]
    own = [RowFile(tmp_path / f"{i}.npy", v.shape) for i, v in enumerate(values)]
    for table, v in zip(own, values, strict=True):
        table.write(0, v)
    rows = np.sort(rng.choice(40, 10, replace=False))
    weights = rng.random((6, 10)) * (rng.random((6, 10)) < 0.6)
    weights[:, 2] = 0  # that no tile is near to
    found = expression._weigh(sparse.csr_matrix(weights), rows, own)
    np.testing.assert_allclose(found, weights @ np.hstack(values)[rows], rtol=1e-5, atol=1e-6)


def test_moments_of_blocks_where_the_mean_is_large() -> None:
    values = np.random.default_rng(0).normal(1e4, 0.5, (1000, 3)).astype("f")
    mean, spread = moments(values[i : i + 37] for i in range(0, 1000, 37))
    np.testing.assert_allclose(mean, values.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(spread, values.std(axis=0, dtype=np.float64), rtol=1e-9)


def test_the_contract(slide: Path, tmp_path: Path) -> None:
    bundle = make_bundle()
    path = predict_slide(bundle, slide, tmp_path / "a" / "out.zarr", min_pcc=0.2, dtype="float16", patient=" p1")
    found = read_prediction(path)
    assert found.X.dtype == np.float16
    assert list(found.var_names) == list(bundle.genes.index[bundle.genes[keys.EXPECTED_PCC] >= 0.2])
    assert found.obs_names.is_unique
    told = found.uns[keys.PROVENANCE]
    assert (told["slide"], told["bundle"], told["precision"], told["batch"]) == ("slide", bundle.hash, "fp32", 64)
    assert told["stride_um"] == told["tile_um"] == 112.0
    assert bool(told["patient_seen_in_training"])
    assert told["mpp"] == pytest.approx(MPP)
    # Nothing but the output and the empty file of the lock
    assert {p.name for p in path.parent.iterdir()} == {"out.zarr", ".out.zarr.lock"}
    assert not list(path.rglob("*.partial"))


def test_a_patient_who_is_known_is_predicted_otherwise(slide: Path, tmp_path: Path) -> None:
    bundle = make_bundle("fusion")
    new, known = (
        read_prediction(predict_slide(bundle, slide, tmp_path / f"{p}.zarr", patient=p)).X for p in ("P9", "P1")
    )
    assert np.abs(new - known).max() > 1e-3


def test_cell_types_come_along(slide: Path, tmp_path: Path) -> None:
    import pandas as pd

    bundle = make_bundle("bleep")
    shares = np.random.default_rng(0).dirichlet(np.ones(3), len(bundle.reference.embedding))
    types = pd.DataFrame(shares, columns=["tumour", "stroma", "immune"])
    bundle = replace(bundle, reference=replace(bundle.reference, cell_types=types))
    found = read_prediction(predict_slide(bundle, slide, tmp_path / "out.zarr"))
    tiles = SlideTiles(slide, found.obsm[keys.SPATIAL], mpp=MPP, slide_id="s")
    described = describe_tiles(tiles, bundle.encoder, Extraction(112.0, batch_size=64), use_cache=False)
    head = bundle.predictor(use_cache=False).head
    expected = bundle.reference.blend_cell_types(head.weights(described.full))
    assert list(found.obsm[keys.CELL_TYPES].columns) == list(types.columns)
    np.testing.assert_allclose(found.obsm[keys.CELL_TYPES], expected, atol=1e-5)


def test_two_devices_give_the_same_bits_as_one(slide: Path, tmp_path: Path) -> None:
    bundle = make_bundle("fusion")
    one, two = (
        read_prediction(
            predict_slide(bundle, slide, tmp_path / f"{d}.zarr", stride_um=60.0, device=d, precision="fp32")
        )
        for d in ("cpu", "cpu,cpu")
    )
    np.testing.assert_array_equal(one.X, two.X)


@pytest.mark.parametrize("kind", ["png", "jpg", "strips"])
def test_plain_images_are_slides_too(kind: str, tmp_path: Path) -> None:
    import cv2

    image = draw_slide(700)
    path = tmp_path / ("slide.tif" if kind == "strips" else f"slide.{kind}")
    if kind == "strips":
        write_slide(path, image, mpp=None, tile=None)
    else:
        cv2.imwrite(str(path), image[:, :, ::-1])
    with pytest.raises(InputError, match=r"µm per pixel is not known \(pass --mpp"):
        predict_slide(make_bundle(), path, tmp_path / "out.zarr")
    found = read_prediction(predict_slide(make_bundle(), path, tmp_path / "out.zarr", mpp=MPP))
    tiles = SlideTiles(path, found.obsm[keys.SPATIAL], mpp=MPP, slide_id="s")
    bundle = make_bundle()
    described = describe_tiles(tiles, bundle.encoder, Extraction(112.0, batch_size=64), use_cache=False)
    np.testing.assert_allclose(found.X, bundle.predictor(use_cache=False).head(described.full, tiles), atol=1e-5)


def test_blocks_of_expression_are_small_however_many_genes() -> None:
    for genes in (1, 200, 1000, 18_000, 60_000):
        rows = block_rows(genes)
        assert 32 <= rows <= 1024
        assert rows & (rows - 1) == 0
        assert rows * genes * 4 <= 16 * 2**20


def test_expression_is_stored_in_chunks(slide: Path, tmp_path: Path) -> None:
    path = predict_slide(make_bundle(), slide, tmp_path / "out.zarr")
    array = zarr.open_array(path / "X", mode="r")
    assert array.chunks == (min(1024, array.shape[0]), GENES)


class TestPrecision:
    """bf16 is taken where it is quicker and the same."""

    @staticmethod
    def settle(choice: str, monkeypatch: pytest.MonkeyPatch, *, seconds: float, noise: float) -> str:
        import torch

        plain = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 8)))
        odd = plain.clone()
        odd[5] += noise * plain[5].norm() * torch.eye(8)[0]

        def measure(_m, _i, _v, precision, **_kw):  # type: ignore[no-untyped-def]
            return (plain, 1.0) if precision == "fp32" else (odd, seconds)

        class Fake:
            placements = (type("P", (), {"corners": np.empty((1000, 2))}),)

            def batches(self, *_args, **_kw):  # type: ignore[no-untyped-def]
                yield Batch(0, [np.zeros((64, 8, 8, 3), np.uint8)])

        monkeypatch.setattr(prepared, "_measure", measure)
        monkeypatch.setattr(prepared, "lacks_bf16", lambda *_: False)
        return prepared.PreparedEncoder(make_bundle().encoder).settle_precision(choice, Fake(), views=1, device="cpu")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("choice", "seconds", "noise", "expected"),
        [
            ("auto", 0.5, 0.0, "bf16"), ("auto", 0.9, 0.0, "fp32"), ("auto", 0.5, 0.2, "fp32"),
            ("fp32", 0.1, 0.0, "fp32"), ("bf16", 2.0, 1.0, "bf16"),
        ],
    )  # fmt: skip
    def test_choice(self, choice: str, seconds: float, noise: float, expected: str, monkeypatch) -> None:  # type: ignore[no-untyped-def]
        assert self.settle(choice, monkeypatch, seconds=seconds, noise=noise) == expected

    def test_a_processor_that_has_none_is_not_tried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A MobileNet's first four tiles in bf16 took forty seconds there, longer than the slide."""
        import torch

        def measure(*_args, **_kw):  # type: ignore[no-untyped-def]
            raise AssertionError("measured")

        sweep = type("S", (), {})()
        sweep.placements = (type("P", (), {"corners": np.empty((1000, 2))}),)
        sweep.batches = lambda *_a, **_k: iter([Batch(0, [np.zeros((4, 8, 8, 3), np.uint8)])])
        monkeypatch.setattr(prepared, "_measure", measure)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        assert (
            prepared.PreparedEncoder(make_bundle().encoder).settle_precision("auto", sweep, views=1, device="cpu")
            == "fp32"
        )
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        with pytest.raises(AssertionError, match="measured"):
            prepared.PreparedEncoder(make_bundle().encoder).settle_precision("auto", sweep, views=1, device="cpu")

    def test_an_encoder_without_weights_stays_in_fp32(self) -> None:
        """On a processor without bf16 the first tiles of ``stain`` took minutes."""
        from hescribe.encoders import load_encoder

        sweep = type("S", (), {})()
        sweep.placements = (type("P", (), {"corners": np.empty((1000, 2))}),)
        sweep.batches = lambda *_a, **_k: iter([Batch(0, [np.zeros((4, 224, 224, 3), np.uint8)])])
        assert (
            prepared.PreparedEncoder(load_encoder("stain")).settle_precision("auto", sweep, views=1, device="cpu")
            == "fp32"
        )
        with pytest.raises(InputError, match="no weights to use in bf16"):
            prepared.PreparedEncoder(load_encoder("stain")).settle_precision("bf16", sweep, views=1, device="cpu")

    def test_an_operation_that_is_missing_is_no_obstacle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def measure(_m, images, _v, precision, **_kw):  # type: ignore[no-untyped-def]
            if precision == "bf16":
                raise RuntimeError("not implemented for 'BFloat16'")
            return images, 1.0

        sweep = type("S", (), {})()
        sweep.placements = (type("P", (), {"corners": np.empty((1000, 2))}),)
        sweep.batches = lambda *_a, **_k: iter([Batch(0, [np.zeros((4, 8, 8, 3), np.uint8)])])
        monkeypatch.setattr(prepared, "_measure", measure)
        monkeypatch.setattr(prepared, "lacks_bf16", lambda *_: False)
        assert (
            prepared.PreparedEncoder(make_bundle().encoder).settle_precision("auto", sweep, views=1, device="cpu")
            == "fp32"
        )

    def test_it_is_kept(self, slide: Path, tmp_path: Path) -> None:
        path = predict_slide(make_bundle(), slide, tmp_path / "out.zarr", precision="bf16")
        assert json.loads(str(read_prediction(path).uns[keys.PROVENANCE]["plan"]))["precision"] == "bf16"
        predict_slide(make_bundle(), slide, tmp_path / "out.zarr", precision="auto")  # whatever was settled
        with pytest.raises(OutputError, match="another --precision"):
            predict_slide(make_bundle(), slide, tmp_path / "out.zarr", precision="fp32")


def test_a_prediction_keeps_a_small_picture(slide: Path, tmp_path: Path) -> None:
    """For scanpy, and for reports where the slide has gone."""
    import matplotlib as mpl
    import scanpy as sc

    prediction = read_prediction(predict_slide(make_bundle(), slide, tmp_path / "p.zarr"))
    library = prediction.uns[keys.SPATIAL][slide.stem]
    small, whole = library["images"]["lowres"], open_slide(slide)
    assert max(small.shape) == 600
    assert library["scalefactors"]["tissue_lowres_scalef"] == pytest.approx(600 / max(whole.width, whole.height))
    np.testing.assert_array_equal(small, whole.thumbnail(600))
    with mpl.rc_context({"backend": "agg"}):
        (axes,) = sc.pl.spatial(prediction, color="G0", show=False)
    assert axes.get_images()[0].get_array().shape == small.shape
    ground = find_ground(prediction)  # squares that fill the grid, though scanpy is told of a diameter
    assert (ground.shape, ground.diameter_px) == ("square", library["scalefactors"][keys.SPOT_DIAMETER])
