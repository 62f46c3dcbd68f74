"""Encoders: features that mean something, identities that follow the weights, errors that help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter

from hescribe.encoders import ENCODERS, Extraction, extract_features, is_trainable, load_encoder
from hescribe.encoders.extract import _key, dihedral_views
from hescribe.errors import EncoderError

SMALL = "timm:test_resnet"  # timm's own tiny architecture


class ArrayTiles:
    """Tiles from an array, counting how often they are read."""

    slide_id = "array"
    mpp = 0.5

    def __init__(self, tiles: np.ndarray) -> None:
        self._tiles = tiles
        self.centres = np.zeros((len(tiles), 2))
        self.reads = 0

    def __len__(self) -> int:
        return len(self._tiles)

    def fingerprint(self) -> str:
        return str(hash(self._tiles.tobytes()))

    def read(self, indices, *, tile_um, size_px):  # type: ignore[no-untyped-def]
        self.reads += 1
        return self._tiles[indices]


@pytest.fixture
def tiles() -> ArrayTiles:
    return ArrayTiles(np.random.default_rng(0).integers(0, 255, (5, 224, 224, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HESCRIBE_CACHE", str(tmp_path / "cache"))


def weights_file(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    state = load_encoder(SMALL, pretrained=False).module.backbone.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def test_the_table_is_complete() -> None:
    for name, entry in ENCODERS.items():
        assert entry.width > 0, name
        assert entry.input_px > 0, name
        assert entry.licence, name
        assert not entry.gated or entry.url.startswith("https://"), name


def test_stain_width_is_what_the_table_says() -> None:
    assert load_encoder("stain").width == ENCODERS["stain"].width


def test_stain_sees_stain_and_texture() -> None:
    """More haematoxylin raises its mean; stripes are more coherent than noise; both in the expected columns."""
    rng = np.random.default_rng(0)
    white = np.full((224, 224, 3), 250, np.uint8)
    purple = np.broadcast_to(np.array([80, 60, 140], np.uint8), (224, 224, 3))
    noise = np.repeat(rng.integers(60, 255, (224, 224, 1), dtype=np.uint8), 3, axis=2)
    stripes = np.repeat(np.tile(np.where(np.arange(224) // 8 % 2, 80, 240).astype(np.uint8), (224, 1))[..., None], 3, 2)
    batch = torch.from_numpy(np.stack([white, purple, noise, stripes])).permute(0, 3, 1, 2)
    out = load_encoder("stain").module(batch)
    assert torch.isfinite(out).all()
    glass, haematoxylin = out[:, 0], out[:, 7]
    assert glass[0] == 1
    assert glass[1] == 0
    assert haematoxylin[1] > haematoxylin[0]
    coherence = 23 + 4  # moments, correlation, then per scale: 2 + 2 numbers before it
    assert out[3, coherence] > 0.9
    assert out[2, coherence] < 0.2


def test_all_numbers_of_stain_by_a_plain_transcription() -> None:
    """Features are cached under a version of the formula: whoever changes a number raises it, and writes it here anew."""
    side = 64
    rng = np.random.default_rng(1)
    texture = gaussian_filter(rng.uniform(-3000, 3000, (side, side, 3)), (3, 1, 0))
    tile = np.clip(np.array([190, 120, 170]) + texture, 0, 255).astype(np.uint8)
    density = -np.log10((tile.astype(float) + 1) / 256)
    vectors = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
    stains = density @ np.linalg.inv(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    expected = [(density.mean(axis=2) < 0.06).mean()]
    expected += [*density.mean((0, 1)), *density.std((0, 1), ddof=1), *stains.mean((0, 1)), *stains.std((0, 1), ddof=1)]
    expected += np.quantile(stains, (0.1, 0.5, 0.9), axis=(0, 1)).ravel().tolist()
    finer = stains[..., :2]
    expected.append(np.corrcoef(finer.reshape(-1, 2).T)[0, 1])
    for sigma in (1, 2, 4, 8):
        blurred = gaussian_filter(stains[..., :2], (sigma, sigma, 0), mode="mirror", truncate=3)
        expected += (finer - blurred).std((0, 1), ddof=1).tolist()
        dy, dx = (g[1:-1, 1:-1] for g in np.gradient(blurred, axis=(0, 1)))
        expected += np.sqrt((dx**2 + dy**2).mean((0, 1))).tolist()
        for stain in range(2):
            # Eigenvalues of the structure tensor, their difference over their sum
            pair = np.stack([dx[..., stain].ravel(), dy[..., stain].ravel()])
            low, high = np.linalg.eigvalsh(pair @ pair.T)
            expected.append((high - low) / (high + low))
        expected += np.quantile(blurred, (0.05, 0.95), axis=(0, 1)).ravel().tolist()
        finer = blurred
    (found,) = load_encoder("stain").module(torch.from_numpy(tile).permute(2, 0, 1)[None]).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_stain_features_ignore_mirror_images() -> None:
    batch = torch.randint(0, 255, (3, 3, 224, 224), dtype=torch.uint8)
    module = load_encoder("stain").module
    torch.testing.assert_close(module(batch), module(batch.flip(3)), atol=2e-3, rtol=2e-3)


def test_local_weights_are_loaded(tmp_path: Path) -> None:
    first = load_encoder(f"{SMALL}@{weights_file(tmp_path / 'a.safetensors', 0)}")
    again = load_encoder(f"{SMALL}@{weights_file(tmp_path / 'b.safetensors', 0)}")
    other = load_encoder(f"{SMALL}@{weights_file(tmp_path / 'c.safetensors', 1)}")
    assert first.identity == again.identity != other.identity
    assert "@" not in first.name


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    file = weights_file(tmp_path / "a.safetensors")
    with pytest.raises(EncoderError, match="another architecture"):
        load_encoder(f"timm:test_vit@{file}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "unknown encoder 'nonsense'"),
        ("timm:nonsense", "no architecture 'nonsense'"),
        (f"{SMALL}@/nowhere.safetensors", "no such file"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder(name)


def test_a_file_that_is_not_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"pickle?")
    with pytest.raises(EncoderError, match="not a readable safetensors"):
        load_encoder(f"{SMALL}@{path}")


def test_features_are_cached_by_content(tiles: ArrayTiles) -> None:
    encoder, how = load_encoder("stain"), Extraction(batch_size=2)
    first = extract_features(tiles, encoder, how)
    reads = tiles.reads
    np.testing.assert_array_equal(first, extract_features(tiles, encoder, how))
    assert tiles.reads == reads
    changed = ArrayTiles(tiles._tiles[::-1].copy())
    np.testing.assert_allclose(extract_features(changed, encoder, how), first[::-1], atol=1e-4)


def test_cache_key_follows_everything_that_matters(tiles: ArrayTiles) -> None:
    encoder = load_encoder("stain")
    ways = [
        Extraction(),
        Extraction(tile_um=50),
        Extraction(views=4),
        Extraction(batch_size=3),
        Extraction(precision="bf16"),
    ]
    found = {_key(tiles, encoder, how, "cpu") for how in ways}  # type: ignore[arg-type]
    found.add(_key(tiles, load_encoder(SMALL, pretrained=False), Extraction(), "cpu"))  # type: ignore[arg-type]
    assert len(found) == len(ways) + 1


def test_views_are_the_eight_symmetries() -> None:
    square = torch.arange(9.0).view(1, 1, 3, 3)
    seen = {tuple(v.flatten().tolist()) for v in dihedral_views(square, 8)}
    assert len(seen) == 8


def test_averaging_views_makes_features_rotation_free(tiles: ArrayTiles) -> None:
    torch.manual_seed(0)
    encoder = load_encoder(SMALL, pretrained=False)
    turned = ArrayTiles(np.rot90(tiles._tiles, axes=(1, 2)).copy())
    one = [extract_features(t, encoder, Extraction()) for t in (tiles, turned)]
    four = [extract_features(t, encoder, Extraction(views=4)) for t in (tiles, turned)]
    assert np.abs(one[0] - one[1]).max() > 1e-3
    np.testing.assert_allclose(four[0], four[1], atol=1e-4)


def test_a_transformer_from_scratch_starts_by_the_seed() -> None:
    zero, again, one = (load_encoder("cmrcnet-vit", seed=seed).identity for seed in (0, 0, 1))
    assert zero == again != one


@pytest.mark.parametrize("name", ["stain", "cmrcnet-vit", SMALL])
def test_gradients_reach_an_encoder_that_is_called_trainable(name: str) -> None:
    encoder = load_encoder(name, pretrained=False)
    features = encoder.module(torch.zeros(2, 3, encoder.input_px, encoder.input_px, dtype=torch.uint8))
    assert is_trainable(name) == features.requires_grad
