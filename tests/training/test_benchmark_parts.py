"""What a benchmark is made of: fewer spots, costs, scores on disk, names."""

from __future__ import annotations

import mmap
import pickle
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hescribe.datasets.synthetic import make_synthetic
from hescribe.encoders import Extraction, describe_tiles, load_encoder
from hescribe.errors import HescribeWarning, LeakageError, OutputError
from hescribe.evaluation.scores import score_section
from hescribe.sections import Section, SomeSpots, read_sections
from hescribe.training import TrainConfig, train
from hescribe.training.benchmark import benchmark
from hescribe.training.benchmark.cost import measured
from hescribe.training.benchmark.kept import read_scores, write_scores
from hescribe.training.benchmark.plan import Run, encoder_label, file_name
from hescribe.training.benchmark.record import held
from hescribe.training.benchmark.spots import some_spots
from hescribe.types import Context

CONFIG = TrainConfig(method="mean", encoder="stain", inner_folds=0, genes="hvg:30", min_detected=0.0)


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("synthetic")
    manifest = make_synthetic(folder, n_patients=2, n_sections=1, side_um=700.0, mpp=1.0, n_genes=60, seed=1)
    return read_sections(manifest)


def test_smaller_shares_are_parts_of_larger_ones(sections: list[Section]) -> None:
    def names(share: float, seed: int = 0) -> list[set[str]]:
        return [set(s.adata.obs_names) for s in some_spots(sections[:2], share, seed=seed)]

    tenth, half, whole = names(0.1), names(0.5), names(1)
    for a, b, c, section in zip(tenth, half, whole, sections, strict=False):
        n = section.adata.n_obs
        assert (len(a), len(b), len(c)) == (int(np.ceil(n / 10)), int(np.ceil(n / 2)), n)
        assert a < b < c
    assert names(0.5, seed=1) != half
    # The choice of one section does not hang on which others there are
    (alone,) = some_spots(sections[1:2], 0.5, seed=0)
    assert set(alone.adata.obs_names) == half[1]


def test_transcriptomes_without_image_stay_whole(sections: list[Section]) -> None:
    row = sections[0].row
    unpaired = Section(row.__class__(**{**vars(row), "image": None}))
    assert some_spots([unpaired], 0.1, seed=0) == [unpaired]


def test_some_spots_are_those_of_the_section(sections: list[Section]) -> None:
    whole = sections[0]
    (part,) = some_spots([whole], 0.3, seed=0)
    assert isinstance(part, SomeSpots)
    rows = whole.adata.obs_names.get_indexer(part.adata.obs_names)
    assert (whole.adata.X[rows] != part.adata.X).nnz == 0
    # Sparser spots lie wider apart, which must not be taken for another scale
    assert part.mpp == whole.mpp
    assert part.tiles().fingerprint() != whole.tiles().fingerprint()
    np.testing.assert_array_equal(part.tiles().centres, part.adata.obsm["spatial"])
    # Their surroundings are image, and stay whole
    how = Extraction(batch_size=64, context=Context(scales=(1.0,), spreads_um=(200.0,), centred=True))
    encoder = load_encoder("stain")
    described, among = (describe_tiles(s.tiles(), encoder, how, use_cache=False) for s in (part, whole))
    np.testing.assert_array_equal(described.full, among.full[rows])
    np.testing.assert_array_equal(described.colours, among.colours[rows])


def test_another_process_gets_the_same_spots(sections: list[Section]) -> None:
    (part,) = some_spots(sections[:1], 0.3, seed=0)
    there = pickle.loads(pickle.dumps(part.unread()))  # noqa: S301 - as multiprocessing hands it over
    assert list(there.adata.obs_names) == list(part.adata.obs_names)
    assert "adata" not in vars(sections[0].unread())


def test_time_and_memory_are_those_of_the_work() -> None:
    with measured() as spent:
        # Pages that are new for certain: an array may get what the process had freed and kept
        held = mmap.mmap(-1, 120_000_000)
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        time.sleep(0.1)
        held.close()
    assert 0.1 <= spent.seconds < 10
    assert spent.memory - spent.before > 100
    with measured() as idle:
        time.sleep(0.05)
    assert idle.memory - idle.before < 20
    assert "gpu" not in idle.known()


def test_scores_come_back_as_they_were(sections: list[Section], tmp_path: Path) -> None:
    section = sections[0].adata
    noise = np.random.default_rng(0).normal(1, 1, section.shape).astype(np.float32)
    prediction = section.copy()
    prediction.X = noise
    scores = score_section(prediction, section, method="noise", markers=[section.var_names[0]])
    assert scores.cell_types is not None
    write_scores(scores, tmp_path / "s", markers=["A"])
    again = read_scores(tmp_path / "s", markers=["A"])
    assert again is not None
    pd.testing.assert_frame_equal(again.per_gene, scores.per_gene)
    pd.testing.assert_frame_equal(again.summary, scores.summary)
    pd.testing.assert_frame_equal(again.cell_types, scores.cell_types)
    for name, values in scores.resamples.items():
        np.testing.assert_array_equal(again.resamples[name], values)
    assert again.to_dict() == scores.to_dict()
    assert read_scores(tmp_path / "s", markers=["B"]) is None
    (tmp_path / "s" / "genes.parquet").write_bytes(b"")
    assert read_scores(tmp_path / "s", markers=["A"]) is None


def test_names_of_folders_and_encoders() -> None:
    assert encoder_label("timm:resnet50@/a/b/c.imagenet.safetensors") == "timm:resnet50@c.imagenet"
    assert encoder_label("stain") == "stain"
    assert file_name("P-1_a.b") == "P-1_a.b"
    hard = ["../up", "a/b", "a_b", "a b", ".hidden", "ö"]
    made = [file_name(n) for n in hard]
    assert len(set(made)) == len(hard)
    assert all(Path(n).name == n and not n.startswith(".") for n in made)
    run = Run("ridge", "timm:x@w", "leave-one-patient-out", 2, 0.25)
    assert run.folder(Path("b")).parts[-2:] == ("seed-2", "share-0.25")


def test_two_at_once_in_one_folder_are_refused(sections: list[Section], tmp_path: Path) -> None:
    """Each would have lost the other's runs from its tables."""
    with held(tmp_path / "b"), pytest.raises(OutputError, match="is being written by another process"):
        benchmark(sections, ["mean"], CONFIG, output=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_one_section_under_two_names_is_a_leak(sections: list[Section], tmp_path: Path) -> None:
    first = sections[0]
    named = {"section_id": "copy", "patient_id": "somebody else", "expression": tmp_path / "copy.tsv"}
    again = Section(first.row.__class__(**{**vars(first.row), **named}))
    vars(again).update(adata=first.adata.copy(), mpp=first.mpp)
    given = [s for s in sections if s.image is not None]
    with pytest.raises(
        LeakageError, match="'copy' and 'P1_S1' have the same counts, and stand in training and in test"
    ):
        benchmark([*given, again], ["mean"], CONFIG, output=tmp_path / "b")
    again.adata.X = again.adata.X * 2
    with pytest.raises(LeakageError, match="'copy' and 'P1_S1' are the same spots of one image"):
        benchmark([*given, again], ["mean"], CONFIG, output=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_mean_over_all_spots_is_told_of(sections: list[Section], tmp_path: Path) -> None:
    given = [s for s in sections if s.image is not None]
    few = [SomeSpots(s.row, s, np.arange(12)) for s in given]
    config = CONFIG.model_copy(update={"method": "knn"})
    with pytest.warns(HescribeWarning, match="knn averages over 50 spots and has 24 to learn from"):
        train(few, config, output=tmp_path / "few")
    fewer = config.model_copy(update={"options": {"retrieval": {"k": 5}}})
    with warnings.catch_warnings():
        warnings.simplefilter("error", HescribeWarning)
        train(few, fewer, output=tmp_path / "fewer")
