"""CMRCNet and ST-Net, against slow transcriptions of their equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hescribe.encoders import TokenTower, load_encoder, mean_of_tokens
from hescribe.methods.base import Batch, Optimisation, Shapes
from hescribe.methods.baselines.stnet import Stnet
from hescribe.methods.cmrcnet import Cmrcnet, CmrcnetConfig, FusionLayer
from hescribe.training.module import Training


def model(**config: object) -> Cmrcnet:
    torch.manual_seed(0)
    return Cmrcnet(nn.Identity(), Shapes(12, 6, 9), CmrcnetConfig(**{"dim": 16, **config}))  # type: ignore[arg-type]


def batch(n: int = 10, tokens: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, tokens, 12, generator=generator)
    genes = images.mean(1)[:, :6] + 0.1 * torch.randn(n, 6, generator=generator)
    return Batch(images, genes, torch.zeros(n, dtype=torch.int64))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_the_losses_by_the_published_equations() -> None:
    net, data = model(mask_ratio=0.0).eval(), batch()
    found = {k: float(v.detach()) for k, v in net.losses(data).items()}
    v = net.embed_images(data.images).detach().double().numpy()
    x = net.embed_expression(data.expression).detach().double().numpy()
    target = softmax((v @ v.T + x @ x.T) / 2)
    logits = x @ v.T
    rows = -(target * np.log(softmax(logits))).sum(axis=1)
    columns = -(target.T * np.log(softmax(logits.T))).sum(axis=1)
    assert found["contrastive"] == pytest.approx(np.mean(np.log(1 + (rows + columns) / 2)), abs=1e-5)
    rebuilt = net.reconstruct(data.images, data.expression).detach().double().numpy()
    assert found["reconstruction"] == pytest.approx(np.log(1 + np.mean((rebuilt - v) ** 2)), abs=1e-5)


def test_a_fusion_layer_by_its_equations() -> None:
    torch.manual_seed(2)
    layer = FusionLayer(16, dropout=0.1).eval()
    image, genes = torch.randn(3, 5, 16), torch.randn(3, 8, 16)
    h = image + layer.attention(*[layer.norm_attention(image)] * 3)[0]
    h = h + layer.mlp(layer.norm_mlp(h))
    q, k = torch.relu(layer.query(h)), torch.relu(layer.key(genes))
    v1, v2 = layer.value_image(q), layer.value_gene(k)
    expected = h.clone()
    for head in range(8):
        part = slice(2 * head, 2 * head + 2)
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / np.sqrt(2), dim=-1)
        expected[..., part] += v1[..., part] + weights @ v2[..., part]
    torch.testing.assert_close(layer(image, genes), expected, atol=1e-5, rtol=1e-5)


def layer(module: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ module.weight.detach().numpy().T + module.bias.detach().numpy()


def normed(module: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return (x - x.mean(axis=-1, keepdims=True)) / spread * module.weight.detach().numpy() + module.bias.detach().numpy()


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """``softmax(Q Kᵀ / √d) V``, one head beside the other."""
    cut = [np.split(x, heads, axis=-1) for x in (q, k, v)]
    size = q.shape[-1] // heads
    return np.concatenate(
        [softmax(a @ b.swapaxes(1, 2) / np.sqrt(size)) @ c for a, b, c in zip(*cut, strict=True)], axis=-1
    )


def multihead(module: nn.MultiheadAttention, query: np.ndarray, key: np.ndarray, heads: int) -> np.ndarray:
    weights = np.split(module.in_proj_weight.detach().numpy(), 3)
    biases = np.split(module.in_proj_bias.detach().numpy(), 3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, key), weights, biases, strict=True))
    return layer(module.out_proj, attend(q, k, v, heads))


def test_the_reconstruction_by_its_equations() -> None:
    """Masked image tokens ask eight gene tokens; then one and the same block twice; then the mean over tokens."""
    net = model(dim=256).eval().double()
    data = batch(3)
    tokens, expression = data.images.double(), data.expression.double()
    kept = torch.rand(3, 5, 256) < 0.5
    net.masked = lambda x: x * kept  # type: ignore[method-assign]
    x = layer(net.gene_block[0], expression.numpy())  # type: ignore[arg-type]
    genes = np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1).reshape(3, 8, 256)
    image = layer(net.image_tokens, tokens.numpy()) * kept.numpy()
    h = multihead(net.cross_attention, image, genes, 4)  # nothing of the image is added to it
    block = net.fusion[0]
    first, second = block.mlp[0], block.mlp[3]
    for _ in range(2):
        inner = normed(block.norm_attention, h)
        h = h + multihead(block.attention, inner, inner, 8)
        inner = torch.from_numpy(layer(first, normed(block.norm_mlp, h)))
        h = h + layer(second, (0.5 * inner * (1 + torch.erf(inner / 2**0.5))).numpy())
        q, k = np.maximum(layer(block.query, h), 0), np.maximum(layer(block.key, genes), 0)
        v1, v2 = layer(block.value_image, q), layer(block.value_gene, k)
        taken = np.concatenate(
            [
                softmax(q[..., p : p + 32] @ k[..., p : p + 32].swapaxes(1, 2) / np.sqrt(32)) @ v2[..., p : p + 32]
                for p in range(0, 256, 32)
            ],
            axis=-1,
        )
        h = h + v1 + taken
    found = net.reconstruct(tokens, expression).detach().numpy()
    np.testing.assert_allclose(found, h.mean(axis=1), atol=1e-9)


@pytest.mark.parametrize("mask", ["elements", "tokens"])
def test_the_mask_removes_the_share_it_says(mask: str) -> None:
    torch.manual_seed(3)
    kept = model(mask=mask, mask_ratio=0.3).masked(torch.ones(200, 50, 16)) > 0
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.02)
    whole = kept.all(dim=2) | ~kept.any(dim=2)
    assert bool(whole.all()) == (mask == "tokens")


def test_shared_layers_are_one_set_of_weights() -> None:
    count = {
        shared: sum(p.numel() for p in model(shared_fusion=shared).fusion.parameters()) for shared in (True, False)
    }
    assert count[False] == 2 * count[True]


def test_gradient_reaches_both_branches_and_the_target_only_if_asked() -> None:
    net, data = model(), batch()
    net.losses(data)["reconstruction"].backward()
    reached = {
        name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert {"image_tokens", "gene_block", "cross_attention", "fusion", "image_head"} <= reached
    assert "expression_head" not in reached
    net = model(detach_target=True)
    net.losses(data)["reconstruction"].backward()
    assert all(p.grad is None for p in net.image_head.parameters())
    net.losses(data)["contrastive"].backward()
    assert any(p.grad is not None for p in net.expression_head.parameters())


@pytest.mark.parametrize("detached", [True, False])
def test_reconstruction_is_learned(detached: bool) -> None:
    """The published target moves along and could be met by shrinking it, but for the rest of the loss."""
    net, data = model(detach_target=detached), batch(40)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    course = []
    for _ in range(80):
        optimiser.zero_grad()
        losses = net.losses(data)
        (losses["reconstruction"] if detached else sum(losses.values())).backward()  # type: ignore[union-attr]
        optimiser.step()
        course.append(float(losses["reconstruction"].detach()))
    assert np.mean(course[-10:]) < 0.7 * np.mean(course[:10])


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_the_pooled_feature_is_the_mean_of_the_tokens(name: str) -> None:
    torch.manual_seed(4)
    encoder = mean_of_tokens(load_encoder(f"timm:{name}", pretrained=False))
    tiles = torch.randint(0, 255, (2, 3, encoder.input_px, encoder.input_px), dtype=torch.uint8)
    tower = TokenTower(encoder.module)  # type: ignore[arg-type]
    with torch.inference_mode():
        tokens, pooled = tower(tiles), encoder.module(tiles)
        assert tokens.shape[::2] == (2, encoder.width)
        torch.testing.assert_close(tokens.mean(dim=1), pooled)
        net = Cmrcnet(nn.Identity(), Shapes(encoder.width, 6, 9), CmrcnetConfig(dim=16)).eval()
        torch.testing.assert_close(net.embed_images(tokens), net.embed_images(pooled), atol=1e-5, rtol=1e-5)


def test_the_published_image_encoder() -> None:
    encoder = load_encoder("cmrcnet-vit")
    assert encoder.identity == load_encoder("cmrcnet-vit").identity
    tokens = mean_of_tokens(encoder).module.tokens(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert tokens.shape == (1, 50, 768)
    backbone = encoder.module.backbone
    assert len(backbone.blocks) == 8
    found = {name: (float(p.detach().std()), float(p.detach().abs().max())) for name, p in backbone.named_parameters()}
    assert found["blocks.0.attn.qkv.weight"][0] == pytest.approx(0.01, rel=0.05)
    # The class token was next to nothing, and the patches' projection began six times as large
    assert found["cls_token"][0] == pytest.approx(0.02, rel=0.15)
    assert found["pos_embed"][0] == pytest.approx(0.02, rel=0.05)
    assert found["patch_embed.proj.weight"][0] == pytest.approx((2 / (768 * 32 * 32)) ** 0.5, rel=0.02)
    assert found["patch_embed.proj.bias"][1] == found["blocks.7.mlp.fc1.bias"][1] == 0


def test_the_rate_falls_along_a_cosine() -> None:
    settings = Optimisation(epochs=60, learning_rate=1e-4, final_learning_rate=1e-5)
    module = Training(nn.Linear(2, 2), settings, stain_jitter=0.0, seed=0)
    made = module.configure_optimizers()
    rates = []
    for _ in range(61):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"].step()
    assert rates[0] == pytest.approx(1e-4)
    assert rates[30] == pytest.approx((1e-4 + 1e-5) / 2)
    assert rates[60] == pytest.approx(1e-5)


def test_a_rate_below_the_last_one_stays() -> None:
    """It used to rise along the cosine, to the method's own last rate."""
    module = Training(
        nn.Linear(2, 2),
        Optimisation(epochs=3, learning_rate=1e-6, final_learning_rate=1e-5),
        stain_jitter=0.0,
        seed=0,
    )
    made = module.configure_optimizers()
    for _ in range(3):
        assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(1e-6)
        made["optimizer"].step()
        made["lr_scheduler"].step()


def test_the_running_mean_of_weights_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    module = Training(layer, Optimisation(average=0.9), stain_jitter=0.0, seed=0)
    expected = None
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(layer.weight, value)
        module.on_train_batch_end(None, None, 0)
        # The first value is taken as it is
        expected = value if expected is None else 0.9 * expected + 0.1 * value
    module.keep_average()
    assert float(layer.weight) == pytest.approx(expected)


def test_st_net_is_a_linear_layer_with_squared_error() -> None:
    torch.manual_seed(5)
    net = Stnet(nn.Identity(), Shapes(12, 6, 9))
    x, y = torch.randn(7, 12), torch.rand(7, 9)
    w, b = net.output.weight.detach().numpy(), net.output.bias.detach().numpy()
    expected = x.numpy() @ w.T + b
    loss = net.losses(Batch(x, y, torch.zeros(7, dtype=torch.int64)))["squared_error"]
    assert float(loss.detach()) == pytest.approx(np.mean((expected - y.numpy()) ** 2), abs=1e-6)
    np.testing.assert_allclose(net.predict_expression(x).detach(), np.maximum(expected, 0), atol=1e-5)


def test_st_net_begins_at_the_mean() -> None:
    """As its code does. Scaled features have a mean of zero, so a level of 5 had to be learned by the bias alone."""
    net, mean = Stnet(nn.Identity(), Shapes(12, 6, 3)), torch.tensor([0.0, 0.4, 5.0])
    net.start_from(mean)
    torch.testing.assert_close(net.predict_expression(torch.randn(7, 12)), mean.expand(7, 3))
    # The first step already tells spots apart: the error by which the weights move is of the map, not of the level
    x = torch.randn(7, 12)
    loss = net.losses(Batch(x, mean + x[:, :3], torch.zeros(7, dtype=torch.int64)))["squared_error"]
    assert float(loss.detach()) == pytest.approx(float(x[:, :3].square().mean()), abs=1e-6)
