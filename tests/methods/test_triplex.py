"""TRIPLEX: its parts against slow loops and cases by hand, and a gene that only the neighbours decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from hescribe.methods import METHODS
from hescribe.methods.base import Batch, Origin, Shapes
from hescribe.methods.baselines.ridge import Ridge, RidgeConfig
from hescribe.methods.baselines.triplex import (
    Attention,
    Block,
    NeighbourEncoder,
    Predictions,
    SectionEncoder,
    SharedScale,
    Triplex,
    TriplexConfig,
    distances,
    distinct,
    split,
    weights_at,
)
from hescribe.methods.layers import Standardise

SMALL = TriplexConfig(neighbours=3, raster=2, dim=16, heads=2, dropout=0.0)


def model(width: int, genes: int, config: TriplexConfig = SMALL, tower: nn.Module | None = None) -> Triplex:
    torch.manual_seed(0)
    return Triplex(tower or nn.Identity(), Shapes(config.context.width(width), 0, genes), config)


def rows(n: int, width: int, seed: int = 0) -> torch.Tensor:
    """Tiles and neighbours of noise; two sections with a raster each."""
    rng = np.random.default_rng(seed)
    raster = np.concatenate([rng.normal(size=(2, 4 * width)), np.ones((2, 4))], axis=1)
    raster[0, :width], raster[0, 4 * width] = 0, 0  # the first section has nothing at the top left
    section = np.arange(n) % 2
    position = rng.uniform(size=(n, 2))
    tiles = rng.normal(size=(n, 9 * width))
    return torch.tensor(np.concatenate([tiles, raster[section], position], axis=1), dtype=torch.float32)


def slow_attention(layer: Attention, q: torch.Tensor, k: torch.Tensor, bias: np.ndarray) -> np.ndarray:
    """One query at a time, one head at a time, in numpy."""
    heads, size = bias.shape[0], q.shape[1] // bias.shape[0]
    wq, wk, wv = (getattr(layer, n).weight.detach().numpy() for n in ("query", "key", "value"))
    out = np.zeros(q.shape)
    for i in range(len(q)):
        for h in range(heads):
            s = slice(h * size, (h + 1) * size)
            query = (wq @ q[i].numpy())[s]
            logits = [float(query @ (wk @ key.numpy())[s]) / np.sqrt(size) + bias[h, i, j] for j, key in enumerate(k)]
            weights = np.exp(logits) / np.exp(logits).sum()
            out[i, s] = sum(w * (wv @ key.numpy())[s] for w, key in zip(weights, k, strict=True))
    return out @ layer.output.weight.detach().numpy().T + layer.output.bias.detach().numpy()


def test_attention_by_a_slow_loop() -> None:
    torch.manual_seed(1)
    layer = Attention(SMALL).eval()
    q, k, bias = torch.randn(3, 16), torch.randn(5, 16), torch.randn(2, 3, 5)
    with torch.inference_mode():
        fast = layer(q[None], k[None], bias[None])[0]
    np.testing.assert_allclose(fast, slow_attention(layer, q, k, bias.numpy()), atol=1e-5)


def test_a_block_without_its_outputs_changes_nothing() -> None:
    block = Block(SMALL).eval()
    for last in (block.attention.output, block.mlp[3]):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(block(x, torch.randn(2, 4, 16)), x)


def test_keys_are_normalised_as_queries_are() -> None:
    torch.manual_seed(2)
    block = Block(SMALL).eval()
    x, keys = torch.randn(2, 3, 16), torch.randn(2, 4, 16)
    with torch.inference_mode():
        torch.testing.assert_close(block(x, 7 * keys + 3), block(x, keys), atol=1e-4, rtol=1e-4)


def test_distances_of_a_square_of_three() -> None:
    between = distances(3)
    assert between[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # from the top left, (row, column) as row * 3 + column
    assert between[4].tolist() == [4, 3, 4, 1, 0, 1, 4, 3, 4]  # from the middle
    assert torch.equal(between, between.T)


def test_rows_are_taken_apart_as_the_context_lays_them_out() -> None:
    # Width 1: the tile 100, neighbours 0..7, raster 10..13, cells 2 and 3 occupied, position
    row = torch.tensor([[100.0, *range(8), 10, 11, 12, 13, 0, 0, 1, 1, 0.25, 0.75]])
    tokens = split(row, side=3, raster=2)
    assert tokens.target.tolist() == [[100]]
    assert tokens.neighbours.flatten().tolist() == [0, 1, 2, 3, 100, 4, 5, 6, 7]
    assert tokens.section.flatten().tolist() == [10, 11, 12, 13]
    assert tokens.occupied.tolist() == [[False, False, True, True]]
    assert tokens.position.tolist() == [[0.25, 0.75]]


def test_weights_between_cells_by_hand() -> None:
    at = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.0, 1.0], [0.5, 0.25], [0.5, 0.5]])
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0.5, 0.5, 0, 0], [0.25] * 4]
    torch.testing.assert_close(weights_at(at, 2), torch.tensor(expected))
    torch.testing.assert_close(weights_at(torch.rand(50, 2), 5).sum(1), torch.ones(50))
    assert weights_at(at, 1).tolist() == [[1]] * 5


def test_distinct_rows_are_exact() -> None:
    a, b = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0 + 1e-6])
    first, which = distinct(torch.stack([a, b, a, a, b]))
    assert first.tolist() == [0, 1]
    assert which.tolist() == [0, 1, 0, 0, 1]
    assert distinct(torch.full((2, 1), float("nan")))[1].tolist() == [0, 1]


def test_a_cell_without_tiles_has_no_say() -> None:
    encoder = SectionEncoder(3, SMALL).eval()
    x = rows(6, 3)
    other = x.clone()
    other[::2, 27:30] = 1e3  # what stands in the empty cell of the first section
    with torch.inference_mode():
        torch.testing.assert_close(encoder(split(x, 3, 2)), encoder(split(other, 3, 2)))


def slow_section(encoder: SectionEncoder, features: torch.Tensor, side: int) -> torch.Tensor:
    """One row at a time, with the cells that hold tiles alone: nothing to be masked."""
    target, _, section, occupied, position = (part[0] for part in split(features, 3, side))
    there = occupied.nonzero().flatten().tolist()
    cells = dict(zip(there, encoder.first(encoder.project(section[there])[None])[0], strict=True))
    kernel, tokens = encoder.position.weight[:, 0], {}
    for cell in there:
        tokens[cell] = cells[cell] + encoder.position.bias
        for down, right in np.ndindex(3, 3):
            row, column = cell // side + down - 1, cell % side + right - 1
            if 0 <= row < side and 0 <= column < side and row * side + column in cells:
                tokens[cell] = tokens[cell] + kernel[:, down, right] * cells[row * side + column]
    x, y = (min(max(float(p) * side - 0.5, 0), side - 1) for p in position)
    near = {c: max(0, 1 - abs(x - c % side)) * max(0, 1 - abs(y - c // side)) for c in there}
    here = encoder.project(target) + sum(near[c] * tokens[c] for c in there) / sum(near.values())
    token = here[None, None]
    for layer in encoder.layers:
        token = layer(token, torch.stack([tokens[c] for c in there])[None])
    return encoder.norm(token)[0, 0]


def test_a_section_by_a_slow_loop_over_the_cells_that_hold_tiles() -> None:
    torch.manual_seed(3)
    encoder = SectionEncoder(3, TriplexConfig(neighbours=3, raster=3, dim=16, heads=2, section_depth=3)).eval()
    raster = torch.randn(9 * 3)
    occupied = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 0]] * 4)  # of one raster
    x = torch.cat([torch.randn(8, 27), raster.expand(8, -1), occupied, torch.rand(8, 2)], dim=1)
    with torch.inference_mode():
        expected = torch.stack([slow_section(encoder, row[None], 3) for row in x])
        torch.testing.assert_close(encoder(split(x, 3, 3)), expected, atol=1e-5, rtol=1e-4)


def test_the_section_has_a_say_and_so_has_the_place_in_it() -> None:
    encoder = SectionEncoder(3, SMALL).eval()
    x = rows(2, 3)
    elsewhere, another = x[:1].clone(), x[:1].clone()
    elsewhere[0, -2:] = 1 - elsewhere[0, -2:]
    another[0, 27:-2] = x[1, 27:-2]
    with torch.inference_mode():
        tokens = [encoder(split(row, 3, 2)) for row in (x[:1], elsewhere, another)]
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    assert (tokens[0] - tokens[2]).abs().max() > 1e-3


def test_left_is_not_right() -> None:
    encoder = NeighbourEncoder(3, SMALL).eval()
    square = torch.randn(1, 9, 3)
    mirrored = square.unflatten(1, (3, 3)).flip(2).flatten(1, 2)
    with torch.inference_mode():
        assert (encoder(square).mean(1) - encoder(mirrored).mean(1)).abs().max() > 1e-4


def test_the_bias_says_how_far_apart_tiles_look_at_each_other() -> None:
    encoder = NeighbourEncoder(3, SMALL.model_copy(update={"neighbour_depth": 1})).eval()
    nn.init.constant_(encoder.bias, -1e4)
    with torch.no_grad():
        encoder.bias[..., [0, 3]] = 0.0  # a tile itself, and the one beside it in the same column
    square = torch.randn(1, 9, 3)
    other = square.clone()
    other[0, 1] += 1.0  # the top of the middle column
    with torch.inference_mode():
        moved = (encoder(square) - encoder(other))[0].abs().amax(dim=1)
    assert (moved > 1e-3).nonzero().flatten().tolist() == [1, 4]


def test_the_neighbours_predict_by_their_mean() -> None:
    """Without places and distances no tile is told from another, so their order makes no difference."""
    net, x = model(3, 2).eval(), rows(4, 3)
    nn.init.zeros_(net.neighbours.place)
    turned = x.clone()
    turned[:, 3:27] = x[:, 3:27].unflatten(1, (8, 3)).flip(1).flatten(1)
    turned[:, :3], turned[:, 3:6] = turned[:, 3:6].clone(), x[:, :3]
    with torch.inference_mode():
        torch.testing.assert_close(net.encode(turned).neighbours, net.encode(x).neighbours, atol=1e-5, rtol=1e-4)


def test_it_starts_from_the_mean() -> None:
    net = model(3, 2).eval()
    mean = torch.tensor([0.25, 3.0])
    net.start_from(mean)
    with torch.inference_mode():
        torch.testing.assert_close(net.predict_expression(rows(5, 3)), mean.expand(5, 2))


def test_no_prediction_is_below_zero() -> None:
    net = model(3, 2).eval()
    net.start_from(torch.tensor([-0.5, 1.0]))
    with torch.inference_mode():
        torch.testing.assert_close(net.predict_expression(rows(5, 3)), torch.tensor([[0.0, 1.0]]).expand(5, 2))


def test_losses_by_hand() -> None:
    net = model(3, 2).eval()
    x, y = rows(5, 3), torch.rand(5, 2)
    with torch.inference_mode():
        terms = net.losses(Batch(x, y, torch.zeros(5, dtype=torch.int64)))
        p = Predictions(*(net.outputs[name](token) for name, token in net.encode(x)._asdict().items()))
    assert float(terms["fused"]) == pytest.approx(float(((p.fused - y) ** 2).mean()))
    for name in ("target", "neighbours", "section"):
        own = getattr(p, name)
        expected = 0.7 * ((own - y) ** 2).mean() + 0.3 * ((own - p.fused) ** 2).mean()
        assert float(terms[name]) == pytest.approx(float(expected), rel=1e-5)


def test_all_tiles_are_scaled_as_the_target() -> None:
    x = rows(40, 3) * 5 + 2
    net = model(3, 2, tower=Standardise(x.shape[1]))
    assert isinstance(net.tower, SharedScale)
    net.tower.learn(x)
    scaled = net.tower(x)
    own = (x[:, :3] - x[:, :3].mean(0)) / x[:, :3].std(0, unbiased=False)
    torch.testing.assert_close(scaled[:, :3], own, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        scaled[:, 27:30], (x[:, 27:30] - x[:, :3].mean(0)) / x[:, :3].std(0, unbiased=False), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(scaled[:, -6:], x[:, -6:])


def test_more_rows_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = model(3, 2).eval(), rows(11, 3)
    with torch.inference_mode():
        whole = net.predict_expression(x)
        monkeypatch.setattr("hescribe.methods.baselines.triplex._ROWS", 4)
        torch.testing.assert_close(net.predict_expression(x), whole)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.slow
def test_a_gene_of_the_neighbours_is_learned_and_the_tile_alone_does_not_know_it() -> None:
    """The first gene follows the tile on the left, the second the tile itself."""
    x, unseen = rows(600, 3), rows(300, 3, seed=1)

    def truth(r: torch.Tensor) -> torch.Tensor:
        tokens = split(r, 3, 2)
        return torch.stack([tokens.neighbours[:, 3, 0], tokens.target[:, 0]], dim=1) + 2

    net = model(3, 2)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(120):
        at = torch.arange(step * 64, (step + 1) * 64) % 600
        optimiser.zero_grad()
        sum(net.losses(Batch(x[at], truth(x[at]), at % 2)).values()).backward()
        optimiser.step()
    with torch.inference_mode():
        predicted = net.eval().predict_expression(unseen).numpy()
    expected = truth(unseen).numpy()
    ridge = Ridge(nn.Identity(), Shapes(3, 0, 2), RidgeConfig())
    ridge.solve(x[:, :3].numpy(), sparse.csr_matrix(truth(x).numpy()), Origin(np.arange(600) % 2, np.arange(600) % 2))
    alone = ridge.predict_expression(unseen[:, :3]).numpy()
    assert correlation(predicted[:, 0], expected[:, 0]) > 0.8
    assert correlation(predicted[:, 1], expected[:, 1]) > 0.8
    assert abs(correlation(alone[:, 0], expected[:, 0])) < 0.2
    assert correlation(alone[:, 1], expected[:, 1]) > 0.95


def test_it_asks_for_the_context_it_reads() -> None:
    context = METHODS["triplex"].config().context
    assert (context.grid, context.raster, context.position, context.scales) == (5, 5, True, (1.0,))
