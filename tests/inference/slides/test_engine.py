"""Which engine runs the encoder is measured, noted and held to."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hescribe import keys
from hescribe.errors import InputError, OutputError
from hescribe.inference import read_prediction
from hescribe.inference.slides import features, job, predict_slide, predict_slides, prepared
from hescribe.inference.slides.plan import Work
from hescribe.slides.blocks.sweep import Batch
from tests.inference.slides.made import draw_slide, make_bundle, write_slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "slide.tif", draw_slide())


class Sweep:
    """Enough tiles to be worth a measurement."""

    placements = (type("P", (), {"corners": np.empty((1000, 2))}),)

    def batches(self, *_args, **_kw):  # type: ignore[no-untyped-def]
        yield Batch(0, [np.zeros((4, 8, 8, 3), np.uint8)])


@pytest.mark.parametrize(
    ("seconds", "noise", "precision", "expected"),
    [
        (0.5, 0.0, "fp32", "openvino 1"), (0.97, 0.0, "fp32", "torch"), (0.5, 0.1, "fp32", "torch"),
        (0.5, 0.02, "fp32", "torch"), (0.5, 0.02, "bf16", "openvino 1"), (0.5, 0.1, "bf16", "torch"),
    ],
)  # fmt: skip
def test_choice(seconds: float, noise: float, precision: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 8)))
    odd = exact.clone()
    odd[1] += noise * exact[1].norm() * torch.eye(8)[0]
    compiled = torch.nn.Identity()
    monkeypatch.setattr(prepared, "openvino_name", lambda: "openvino 1")
    monkeypatch.setattr(prepared, "openvino_has_bf16", lambda: True)
    monkeypatch.setattr(prepared, "compile_module", lambda *_: compiled)
    monkeypatch.setattr(prepared, "encode_batch", lambda *_a, **_k: exact)
    monkeypatch.setattr(prepared, "_measure", lambda m, *_: (odd, seconds) if m is compiled else (exact, 1.0))
    settled = prepared.PreparedEncoder(make_bundle().encoder).settle_engine(precision, Sweep(), views=1, device="cpu")  # type: ignore[arg-type]
    assert settled == expected
    if precision == "bf16":
        monkeypatch.setattr(prepared, "openvino_has_bf16", lambda: False)  # where it would quietly use fp32
    else:
        monkeypatch.setattr(prepared, "openvino_name", lambda: "")
    settled = prepared.PreparedEncoder(make_bundle().encoder).settle_engine(precision, Sweep(), views=1, device="cpu")  # type: ignore[arg-type]
    assert settled == "torch"


@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        ({"torch": [1.0], "openvino": [3.0, 0.5]}, "openvino 1"),  # a hiccup in its first turn
        ({"torch": [1.0, 0.6], "openvino": [3.0, 0.7]}, "torch"),  # both were slow, and it is the slower
        ({"torch": [1.0], "openvino": [3.0, 3.0, 0.5]}, "openvino 1"),
        ({"torch": [1.0], "openvino": [3.0, 3.0, 3.0, 0.5]}, "torch"),  # no end of turns
    ],
)
def test_one_slow_moment_does_not_choose(
    timings: dict[str, list[float]], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine that is half as fast again was left for torch once, when a shared machine was slow in its turn."""
    exact, compiled = torch.ones(4, 8), torch.nn.Identity()

    def measure(module: torch.nn.Module, *_: object) -> tuple[torch.Tensor, float]:
        own = timings["openvino" if module is compiled else "torch"]
        return exact, own.pop(0) if len(own) > 1 else own[0]

    monkeypatch.setattr(prepared, "openvino_name", lambda: "openvino 1")
    monkeypatch.setattr(prepared, "compile_module", lambda *_: compiled)
    monkeypatch.setattr(prepared, "encode_batch", lambda *_a, **_k: exact)
    monkeypatch.setattr(prepared, "_measure", measure)
    settled = prepared.PreparedEncoder(make_bundle().encoder).settle_engine("fp32", Sweep(), views=1, device="cpu")  # type: ignore[arg-type]
    assert settled == expected


@pytest.mark.parametrize(("slower", "engine"), [(0.5, "openvino 1"), (2.0, "torch")])
def test_each_module_is_prepared_once(
    slower: float, engine: str, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is what runs, on the next slide too: OpenVINO used to be compiled twice for each slide."""
    counted = {"folded": 0, "compiled": 0}

    def fold(module, _example):  # type: ignore[no-untyped-def]
        counted["folded"] += 1
        return module

    def compile_module(module, *_):  # type: ignore[no-untyped-def]
        counted["compiled"] += 1
        return copy.deepcopy(module)

    def measure(module, images, views, *_a, **_k):  # type: ignore[no-untyped-def]
        return prepared.encode_batch(module, images, views=views), next(seconds)

    seconds = itertools.cycle([1.0, slower])
    monkeypatch.setattr(prepared, "fold_normalisation", fold)
    monkeypatch.setattr(prepared, "compile_module", compile_module)
    monkeypatch.setattr(prepared, "openvino_name", lambda: "openvino 1")
    monkeypatch.setattr(prepared, "lacks_bf16", lambda *_: True)
    monkeypatch.setattr(prepared, "_measure", measure)
    monkeypatch.setattr(prepared, "_FEWEST", 1)  # else the slide is too small to be measured
    another = shutil.copy(slide, tmp_path / "another.tif")
    for path in predict_slides(make_bundle(), [slide, another], tmp_path / "out"):
        assert read_prediction(path).uns[keys.PROVENANCE]["engine"] == engine
    assert counted == {"folded": 1, "compiled": 1}


def test_a_small_slide_after_a_large_one_is_what_it_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the order of slides would decide its numbers."""
    monkeypatch.setattr(prepared, "openvino_name", lambda: "openvino 1")
    monkeypatch.setattr(prepared, "compile_module", lambda module, *_: copy.deepcopy(module))
    monkeypatch.setattr(prepared, "lacks_bf16", lambda *_: True)
    monkeypatch.setattr(prepared, "_QUICKER", 0.0)
    small, encoder = Sweep(), prepared.PreparedEncoder(make_bundle().encoder)
    small.placements = (type("P", (), {"corners": np.empty((20, 2))}),)
    settle = partial(encoder.settle, "auto", "auto", views=1, device="cpu")
    assert [settle(sweep=s) for s in (small, Sweep(), small, Sweep())] == [  # type: ignore[arg-type]
        ("fp32", "torch"), ("fp32", "openvino 1"), ("fp32", "torch"), ("fp32", "openvino 1"),
    ]  # fmt: skip


def test_that_openvino_is_missing_is_logged(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepared, "openvino_name", lambda: "")
    with caplog.at_level("DEBUG", logger="hescribe"):
        predict_slide(make_bundle(), slide, tmp_path / "out.zarr")
    assert sum("OpenVINO is not installed" in record.message for record in caplog.records) == 1


def test_asked_for_and_not_there(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "openvino_name", lambda: "")
    with pytest.raises(InputError, match="not installed"):
        predict_slide(make_bundle(), slide, tmp_path / "out.zarr", engine="openvino")


def test_openvino_in_bf16(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the precision that was asked for, or not at all: without bf16, OpenVINO would quietly compute in fp32."""
    pytest.importorskip("openvino")
    from hescribe.encoders import load_encoder

    bundle = make_bundle(encoder=load_encoder("timm:mobilenetv3_small_050", pretrained=False))
    compiled = []
    compile_module = prepared.compile_module
    monkeypatch.setattr(prepared, "openvino_has_bf16", lambda: False)
    with pytest.raises(InputError, match="no bf16"):
        predict_slide(bundle, slide, tmp_path / "a.zarr", engine="openvino", precision="bf16")
    monkeypatch.setattr(prepared, "openvino_has_bf16", lambda: True)
    monkeypatch.setattr(
        prepared, "compile_module", lambda m, side, precision: compiled.append(precision) or compile_module(m, side, precision)
    )  # fmt: skip
    found = read_prediction(predict_slide(bundle, slide, tmp_path / "a.zarr", engine="openvino", precision="bf16"))
    assert compiled == ["bf16"]
    plan = json.loads(str(found.uns[keys.PROVENANCE]["plan"]))
    assert plan["precision"] == "bf16"
    assert plan["engine"].startswith("openvino ")


def test_openvino_has_the_numbers_of_torch_and_is_noted(slide: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from hescribe.encoders import load_encoder

    bundle = make_bundle(encoder=load_encoder("timm:mobilenetv3_small_050", pretrained=False))
    found = read_prediction(predict_slide(bundle, slide, tmp_path / "a.zarr", engine="openvino"))
    expected = read_prediction(predict_slide(bundle, slide, tmp_path / "b.zarr", engine="torch"))
    np.testing.assert_allclose(found.X, expected.X, atol=2e-4, rtol=1e-3)
    told = found.uns[keys.PROVENANCE]
    assert str(told["engine"]).startswith("openvino ")
    assert json.loads(str(told["plan"]))["engine"] == told["engine"]
    assert expected.uns[keys.PROVENANCE]["engine"] == "torch"
    predict_slide(bundle, slide, tmp_path / "a.zarr")  # whatever was settled
    with pytest.raises(OutputError, match="another --engine"):
        predict_slide(bundle, slide, tmp_path / "a.zarr", engine="torch")


def test_begun_with_another_version(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, output = make_bundle(), tmp_path / "out.zarr"

    def stop(*_a, **_k):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "encode_slide", stop)
        patch.setattr(prepared.PreparedEncoder, "settle_engine", lambda *_a, **_k: "openvino 1")
        with pytest.raises(KeyboardInterrupt):
            predict_slide(bundle, slide, output)
    assert (Work.beside(output).plan or {})["engine"] == "openvino 1"
    with pytest.raises(OutputError, match="another --engine, or version"):
        predict_slide(bundle, slide, output)
    assert predict_slide(bundle, slide, output, overwrite=True) == output


def test_who_stops_does_not_wait_for_batches_that_were_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """They used to be encoded to the last before Ctrl-C was heard."""
    encoded, running, stopped = [], threading.Event(), threading.Event()

    def encode(_module: object, images: torch.Tensor, **_: object) -> torch.Tensor:
        encoded.append(len(images))
        if len(encoded) > 2:  # each batch is looked at twice: by the encoder, and for its colours
            running.set()
            stopped.wait(5)
        return torch.zeros(len(images), 1)

    monkeypatch.setattr(features, "encode_batch", encode)
    encoder = prepared.PreparedEncoder(make_bundle().encoder)
    batches = (Batch(i, [np.zeros((1, 8, 8, 3), np.uint8)]) for i in range(20))
    going = features.encode_in_order(batches, encoder, 1, "fp32", devices=["cpu"])
    next(going)
    assert running.wait(30)  # the next one has begun
    threading.Timer(0.5, stopped.set).start()
    going.close()
    assert len(encoded) == 4  # the one given out, and the one that was running
