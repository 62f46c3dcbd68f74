"""Batches, augmentation, gene panels and batch correction."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch.utils.data import DataLoader

from hescribe.errors import HescribeWarning, InputError
from hescribe.io.manifest import ManifestRow
from hescribe.sections import Section
from hescribe.training.inputs.augment import jitter_stain, random_symmetry, random_view
from hescribe.training.inputs.batches import AheadLoader, SeededShuffle, Spots, ordered_loader, whole
from hescribe.training.inputs.data import check_features
from hescribe.training.inputs.harmony import harmonise
from hescribe.training.inputs.panel import choose_panel, gene_table


@given(st.integers(2, 60), st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_draws_each_row_at_most_once(rows: int, size: int, epoch: int) -> None:
    sampler = SeededShuffle(np.arange(100, 100 + rows), size, seed=1)
    sampler.set_epoch(epoch)
    drawn = [row for batch in sampler for row in batch]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(range(100, 100 + rows))
    # What is left over is less than a batch
    assert rows - len(drawn) < min(size, rows)
    assert len(list(sampler)) == len(sampler)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = SeededShuffle(np.arange(40), 8, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(1, 4)
    assert order(1, 3) != order(2, 3)


def test_spots_of_several_sections_keep_their_own_images() -> None:
    images = [np.full((3, 2), 1.0, np.float32), np.arange(8, dtype=np.float32).reshape(4, 2)]
    expression = sparse.csr_matrix(np.arange(14, dtype=np.float32).reshape(7, 2))
    spots = Spots(images, expression, np.array([0, 0, 0, 1, 1, 1, 1]))
    batches = list(ordered_loader(spots, np.array([6, 0, 4]), batch_size=2))
    assert [len(b.images) for b in batches] == [2, 1]
    np.testing.assert_array_equal(batches[0].images, [[6, 7], [1, 1]])
    np.testing.assert_array_equal(batches[1].images, [[2, 3]])
    np.testing.assert_array_equal(batches[0].expression, [[12, 13], [0, 1]])
    assert batches[0].section.tolist() == [1, 0]


def test_tiles_become_channel_first() -> None:
    tiles = np.random.default_rng(0).integers(0, 255, (2, 5, 5, 3), dtype=np.uint8)
    spots = Spots([tiles], sparse.csr_matrix((2, 1), dtype=np.float32), np.zeros(2, dtype=np.intp))
    batch = next(iter(ordered_loader(spots, np.array([1]), batch_size=1)))
    np.testing.assert_array_equal(batch.images[0].permute(1, 2, 0), tiles[1])


def test_all_eight_symmetries_and_no_other() -> None:
    image = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(1, 3, 4, 4)
    turned = random_symmetry(image.repeat(400, 1, 1, 1), torch.Generator().manual_seed(0)).numpy()
    square = image[0].permute(1, 2, 0).numpy()
    eight = {np.rot90(s, k).tobytes() for s in (square, square[:, ::-1]) for k in range(4)}
    found = [np.ascontiguousarray(t.transpose(1, 2, 0)).tobytes() for t in turned]
    assert set(found) == eight
    # Equally likely: 50 expected of each
    assert min(pd.Series(found).value_counts()) > 25


def test_free_turns_and_crops_on_every_other_image() -> None:
    """A disc stays a disc, 1.0 to 1.25 times as large in area; a mark beside it turns to all sides."""
    side, many = 96, 400
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    image = np.full((3, side, side), 255, np.uint8)
    image[0, np.hypot(x, y) < 20] = 0
    image[1, np.hypot(x - 30, y) < 6] = 0
    found = random_view(torch.from_numpy(image).repeat(many, 1, 1, 1), torch.Generator().manual_seed(0)).numpy()
    assert found.dtype == np.uint8
    same = (found == image).all(axis=(1, 2, 3))
    assert 0.4 < same.mean() < 0.6
    views = found[~same]
    area = (views[:, 0] < 128).sum(axis=(1, 2)) / (image[0] < 128).sum()
    assert 0.97 < area.min() < 1.05
    assert 1.15 < area.max() < 1.3
    # Nothing is brought in that was not there: the corners mirror the ground
    assert (views[:, 2] == 255).all()
    marks = [
        np.argwhere(v[1] < 128).mean(axis=0) - np.argwhere(v[0] < 128).mean(axis=0) for v in views if (v[1] < 128).any()
    ]
    angles = np.arctan2(*np.array(marks).T)
    assert len(marks) > 0.9 * len(views)
    assert np.histogram(angles, bins=8, range=(-np.pi, np.pi))[0].min() > 5
    again = random_view(torch.from_numpy(image).repeat(many, 1, 1, 1), torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_array_equal(found, again)


def test_a_view_is_a_rectangle_that_lies_within_the_turned_image() -> None:
    """Of an image whose colours are its coordinates, so that a view tells where each of its pixels is from."""
    side, many = 64, 200
    at = (np.arange(side) + 0.5) / side  # 0 to 1, the image's middle at a half
    image = (256 * np.stack(np.broadcast_arrays(at[None, :], at[:, None], 0.5))).astype(np.uint8)
    views = random_view(torch.from_numpy(image).repeat(many, 1, 1, 1), torch.Generator().manual_seed(0)).numpy()
    changed = views[(views != image).any(axis=(1, 2, 3))]
    inner = slice(side // 4, -side // 4)  # where a turn brings in nothing from outside
    y, x = np.meshgrid(2 * at[inner] - 1, 2 * at[inner] - 1, indexing="ij")
    design = np.column_stack([x.ravel(), y.ravel(), np.ones(x.size)])
    reach = []
    for view in changed:
        seen = view[:2, inner, inner].reshape(2, -1).T / 128 - 1
        *edges, middle = np.linalg.lstsq(design, seen, rcond=None)[0]
        lengths = np.linalg.norm(edges, axis=1)
        assert abs(edges[0] @ edges[1]) < 0.01
        assert 0.795 < lengths.prod() < 1.005
        assert 0.74 < lengths[0] / lengths[1] < 1.35
        place, room = np.array(edges) @ middle / lengths, 1 - lengths
        assert (np.abs(place) < room + 0.01).all()
        reach += (place / room)[room > 0.05].tolist()
    assert min(reach) < -0.9
    assert max(reach) > 0.9


def test_stain_jitter_changes_density_by_no_more_than_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(30, 220, (16, 3, 8, 8), generator=generator, dtype=torch.uint8)
    assert torch.equal(jitter_stain(images, 0.0, generator), images)
    changed = jitter_stain(images, 0.2, torch.Generator().manual_seed(1))
    assert (changed.float() - images.float()).abs().mean() > 2
    white = jitter_stain(torch.full((4, 3, 8, 8), 255, dtype=torch.uint8), 0.2, generator)
    assert white.float().mean() > 240, "glass stays nearly white"


def test_each_stain_is_scaled_and_shifted_by_as_much_as_asked_either_way() -> None:
    """Amounts are read off the densities of the changed image, from Ruifrok and Johnston's published vectors."""
    vectors = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    amounts = np.random.default_rng(0).uniform(0.1, 0.5, (1000, 3))  # of pixels
    pixels = np.rint(256 * np.exp(-amounts @ vectors) - 1).astype(np.uint8)
    images = torch.from_numpy(pixels.T.copy())[None, :, None].repeat(300, 1, 1, 1)
    changed = jitter_stain(images, 0.2, torch.Generator().manual_seed(0)).numpy()[:, :, 0].transpose(0, 2, 1)
    before, after = (-np.log((p + 1.0) / 256) @ np.linalg.inv(vectors) for p in (pixels, changed))
    for stain in range(3):
        scale, shift = np.polyfit(before[:, stain], after[:, :, stain].T, deg=1)
        for found, most in ((scale - 1, 0.2), (shift, 0.02)):
            assert -1.2 * most < found.min() < -0.9 * most
            assert 0.9 * most < found.max() < 1.2 * most
            assert abs(found.mean()) < 0.15 * most


def test_the_panel_is_the_union_over_sections() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.uniform(0.2, 4.0, 300), (200, 300)).astype(np.float32)
    counts[:100, 3] = rng.choice([0, 10], 100, p=[0.9, 0.1])  # variable in the first section alone
    counts[100:, 8] = rng.choice([0, 10], 100, p=[0.9, 0.1])  # in the second alone
    genes = pd.Index([f"G{i}" for i in range(300)])
    section = np.repeat([0, 1], 100)
    panel = choose_panel("hvg:10", sparse.csr_matrix(np.log1p(counts)), section, genes, np.ones(300, bool))
    assert panel[3]
    assert panel[8]
    assert 10 < panel.sum() <= 20


def test_a_section_in_which_no_gene_varies_has_no_voice_in_the_panel() -> None:
    counts = np.random.default_rng(0).poisson(1.0, (50, 300)).astype(np.float32)
    genes, supported = pd.Index([f"G{i}" for i in range(300)]), np.ones(300, bool)
    alone = choose_panel("hvg:10", sparse.csr_matrix(counts), np.zeros(50, dtype=int), genes, supported)
    for more in (np.zeros((4, 300)), counts[:1]):
        both, section = sparse.csr_matrix(np.vstack([counts, more])), np.repeat([0, 1], [50, len(more)])
        np.testing.assert_array_equal(choose_panel("hvg:10", both, section, genes, supported), alone)


def test_other_panels(tmp_path: Path) -> None:
    genes = pd.Index(["A", "B", "C"])
    nothing, none = sparse.csr_matrix((2, 3), dtype=np.float32), np.zeros(2, dtype=np.intp)
    supported = np.array([True, False, True])
    np.testing.assert_array_equal(choose_panel("all", nothing, none, genes, supported), supported)
    # No fewer genes than are asked for: none is variable because there is room
    np.testing.assert_array_equal(choose_panel("hvg:3", nothing, none, genes, supported), supported)
    file = tmp_path / "genes.txt"
    file.write_text("# markers\nB\nnone such\n")
    with pytest.warns(
        HescribeWarning, match="1 of 2 genes not measured in every training section, left out: none such"
    ):
        assert choose_panel(str(file), nothing, none, genes, supported).tolist() == [False, True, False]
    file.write_text("X\n")
    with pytest.raises(InputError, match="none of its 1 genes is measured"):
        choose_panel(str(file), nothing, none, genes, supported)


def test_gene_statistics_by_hand() -> None:
    matrix = np.array([[0, 1, 2], [0, 3, 0]], dtype=np.float32)
    table = gene_table(sparse.csr_matrix(matrix), ["A", "B", "C"], None, np.zeros(2, dtype=int))
    np.testing.assert_allclose(table["mean"], matrix.mean(0))
    np.testing.assert_allclose(table["variance"], matrix.var(0))
    assert table["detected"].tolist() == [0.0, 1.0, 0.5]
    two = gene_table(sparse.csr_matrix(np.vstack([matrix, matrix + 5])), ["A", "B", "C"], None, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(two["variance"], matrix.var(0), err_msg="how sections differ is no variance of a gene")


def test_harmony_brings_sections_together_and_leaves_the_rest_alone() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 240)
    section = np.repeat([0, 1, 2], 80)
    clean = np.stack([kind * 3.0, (1 - kind) * 3.0, rng.normal(size=240), rng.normal(size=240)], axis=1)
    shifted = clean + 2.0 * section[:, None] * np.array([1, 1, 0, 0]) + 0.1 * rng.normal(size=clean.shape)
    expression = sparse.csr_matrix(np.hstack([shifted, np.ones((240, 1))]).astype(np.float32))
    panel = np.array([True, True, True, True, False])
    rows = np.flatnonzero(section < 2)
    out = harmonise(expression, section, rows=rows, panel=panel, seed=0).toarray()

    def gap(values: np.ndarray) -> float:
        return float(np.abs(values[section == 0, :2].mean(0) - values[section == 1, :2].mean(0)).mean())

    assert gap(out) < 0.5 * gap(shifted)
    np.testing.assert_array_equal(out[section == 2], expression.toarray()[section == 2])
    np.testing.assert_array_equal(out[:, 4], 1.0)


def test_harmony_is_given_the_seed_and_keeps_rows_and_genes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many genes as spots: which side is which cannot be told by the shape."""
    import harmonypy

    asked: list[int] = []
    real = harmonypy.run_harmony

    def run_harmony(*given: object, random_state: int, **more: object) -> object:
        asked.append(random_state)
        return real(*given, random_state=random_state, **more)

    monkeypatch.setattr(harmonypy, "run_harmony", run_harmony)
    values = np.random.default_rng(0).poisson(3.0, (40, 40)) + 30.0 * np.eye(40)
    expression, section = sparse.csr_matrix(values.astype(np.float32)), np.repeat([0, 1], 20)
    out = harmonise(expression, section, rows=np.arange(40), panel=np.ones(40, bool), seed=11).toarray()
    assert asked == [11]
    np.testing.assert_array_equal(out.argmax(axis=1), np.arange(40))
    assert np.corrcoef(out.ravel(), values.ravel())[0, 1] > np.corrcoef(out.T.ravel(), values.ravel())[0, 1] + 0.02


def test_features_that_are_no_numbers_are_refused_by_name() -> None:
    """Weights cut short used to end in a traceback of LAPACK."""
    section = Section(ManifestRow("S7", "P", Path("s.png"), Path("s.h5ad")))
    check_features(np.zeros((3, 2), dtype="f"), section, "broken")
    with pytest.raises(InputError, match=r"broken.*'S7'.*no finite numbers"):
        check_features(np.array([[0, np.nan]], dtype="f"), section, "broken")


def test_a_loader_that_reads_ahead_gives_the_same_batches_in_the_same_order() -> None:
    """The way to a GPU."""
    features = np.arange(24, dtype="f").reshape(12, 2)
    spots = Spots([features], sparse.csr_matrix(np.eye(12, dtype="f")), np.zeros(12, dtype=np.intp))
    loaders = (
        kind(spots, batch_sampler=SeededShuffle(np.arange(12), 5, 0), collate_fn=whole)
        for kind in (DataLoader, AheadLoader)
    )
    one, other = ([batch.images.tolist() for batch in loader] for loader in loaders)
    assert one == other
    assert len(one) == 2


def test_a_loader_that_reads_ahead_may_be_left_early_and_says_what_went_wrong() -> None:
    """A thread that stayed behind would keep its batch, and an error in it must not end an epoch quietly."""

    class Broken(Spots):
        def __getitems__(self, indices: list[int]) -> Any:
            if 11 in indices:
                raise OSError("the disk is gone")
            return super().__getitems__(indices)

    before = threading.active_count()
    features = np.arange(24, dtype="f").reshape(12, 2)
    spots = Broken([features], sparse.csr_matrix(np.eye(12, dtype="f")), np.zeros(12, dtype=np.intp))
    loader = AheadLoader(spots, batch_sampler=[[0, 1], [2, 3], [4, 5], [10, 11]], collate_fn=whole)
    for _ in range(2):
        going = iter(loader)
        assert next(going).images.tolist() == features[:2].tolist()
        going.close()
        assert threading.active_count() == before
    seen = 0
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in loader:
            seen += len(batch.images)
    assert seen == 6
    assert threading.active_count() == before
