"""Grad-CAM where the answer is known, and feature maps that make the encoder's own vector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hescribe.encoders import Encoder, load_encoder, mean_of_tokens
from hescribe.encoders.maps.attention import check_maps, class_activation, feature_map, grad_cam, prompt
from hescribe.encoders.record import Normalised
from hescribe.errors import EncoderError


class Colours(nn.Module):
    """Three maps: how red, green and blue each place of four by four pixels is; their means are the vector."""

    num_features = 3

    def forward_features(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 4)

    def forward_head(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class ElsewherePooled(Colours):
    """A network whose vector is not made of its last feature map alone."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + images.amax(dim=(2, 3))


def wrapped(backbone: nn.Module, input_px: int = 16) -> Encoder:
    module = Normalised(backbone, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    return Encoder("timm:mine", module, 3, input_px, None, "mine", "none")


def red_square() -> Tensor:
    """A dark tile of 16 px with a bright red square at places (1, 2), half as bright at (3, 0)."""
    tile = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    tile[0, 0, 4:8, 8:12] = 200
    tile[0, 0, 12:16, 0:4] = 100
    tile[0, 2, 0:4, 0:4] = 250
    return tile


def test_the_map_shows_what_the_score_is_made_of() -> None:
    seen = feature_map(wrapped(Colours()).module, red_square())
    expected = np.zeros((4, 4))
    expected[1, 2], expected[3, 0] = 1.0, 0.5
    np.testing.assert_allclose(grad_cam(seen.maps, seen.features[:, 0])[0], expected, atol=1e-6)


def test_an_inverted_score_shows_nothing_of_it() -> None:
    seen = feature_map(wrapped(Colours()).module, red_square())
    assert grad_cam(seen.maps, -seen.features[:, 0]).abs().max() == 0
    against = grad_cam(seen.maps, seen.features[:, 2] - seen.features[:, 0])[0]
    assert against[0, 0] == 1
    assert against.sum() == 1


def test_the_formula_by_hand() -> None:
    rng = np.random.default_rng(0)
    maps, gradients = rng.normal(size=(2, 3, 9, 5))
    found = class_activation(torch.from_numpy(maps), torch.from_numpy(gradients)).numpy()
    for tile in range(3):
        expected = np.zeros(9)
        for channel in range(5):
            expected += gradients[tile, :, channel].mean() * maps[tile, :, channel]
        expected = np.maximum(expected, 0)
        np.testing.assert_allclose(found[tile].ravel(), expected / expected.max(), atol=1e-6)


@pytest.mark.parametrize("pool", ["own", "tokens"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_vit2", "test_vit3"])
def test_the_maps_make_the_encoders_own_vector(name: str, pool: str) -> None:
    torch.manual_seed(0)
    encoder = load_encoder(f"timm:{name}", pretrained=False)
    encoder = mean_of_tokens(encoder) if pool == "tokens" else encoder
    check_maps(encoder)
    tiles = torch.randint(0, 255, (2, 3, encoder.input_px, encoder.input_px))
    seen = feature_map(encoder.module, tiles)
    with torch.no_grad():
        torch.testing.assert_close(seen.features.detach(), encoder.module(tiles), rtol=1e-4, atol=1e-5)
    attention = grad_cam(seen.maps, seen.features @ torch.randn(seen.features.shape[1]))
    assert attention.ndim == 3
    assert attention.shape[1] == attention.shape[2]
    assert attention.min() >= 0
    assert set(attention.amax(dim=(1, 2)).tolist()) <= {0.0, 1.0}
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in encoder.module.parameters())


def test_other_sizes_of_a_tile() -> None:
    module = load_encoder("timm:test_resnet", pretrained=False).module
    tiles = torch.randint(0, 255, (1, 3, 96, 96))
    seen = feature_map(module, tiles)
    assert seen.maps.shape[1] == 9
    torch.testing.assert_close(seen.features, module(tiles))


def test_gradients_through_a_class_token() -> None:
    """Against a graph of the whole network; the class token itself is no place."""
    torch.manual_seed(0)
    module = load_encoder("timm:test_vit", pretrained=False).module
    assert module.backbone.global_pool == "token"
    tiles = torch.randint(0, 255, (2, 3, 160, 160))
    direction = torch.randn(64)
    seen = feature_map(module, tiles)
    (found,) = torch.autograd.grad((seen.features @ direction).sum(), seen.maps)
    kept = []
    module.backbone.blocks[-1].norm1.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), kept.append(out))[0])
    (module(tiles) @ direction).sum().backward()
    torch.testing.assert_close(found, kept[0].grad[:, 1:])
    assert found.abs().max() > 0


def test_an_encoder_without_maps_is_refused_in_one_line() -> None:
    for encoder in (load_encoder("stain"), wrapped(ElsewherePooled()), wrapped(nn.Flatten())):
        with pytest.raises(EncoderError, match="no feature maps") as caught:
            check_maps(encoder)
        assert "\n" not in str(caught.value)
    check_maps(wrapped(Colours()))


def test_masked_tiles_fade_to_their_mean() -> None:
    tiles = torch.zeros(2, 3, 4, 4)
    tiles[:, 0, :, :2] = 200.0  # half red: mean 100
    attention = torch.tensor([[[1.0]], [[0.0]]])
    found = prompt(tiles, attention, floor=0.2)
    torch.testing.assert_close(found[0], tiles[0])
    torch.testing.assert_close(found[1, 0, 0], torch.tensor([120.0, 120.0, 80.0, 80.0]))


def test_a_place_of_the_attention_is_the_middle_of_its_pixels() -> None:
    """Two places over four pixels: at ¼, ¾, 1¼ and 1¾ of a place, and the middles lie at ½ and 1½."""
    tile = torch.tensor([0.0, 200.0, 0.0, 200.0]).expand(1, 3, 4, 4)
    found = prompt(tile, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), floor=0.0)
    expected = 100 + torch.tensor([1.0, 0.75, 0.25, 0.0]) * torch.tensor([-100.0, 100.0, -100.0, 100.0])
    torch.testing.assert_close(found, expected.expand(1, 3, 4, 4))
