"""TRIPLEX: a tile, the tiles around it and the whole section, fused by attention; trained by squared error.

Chung et al., "Accurate Spatial Gene Expression Prediction by integrating Multi-resolution features", CVPR 2024
(arXiv 2403.07592). What is from the paper and its code, and what is ours, stands in docs/methods.md.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from hescribe.methods.base import Batch, Depth, Method, MethodConfig, Optimisation, RegressionModel, Shapes, Width
from hescribe.methods.layers import Standardise
from hescribe.types import Context

_ROWS = 256  #: rows at once in a prediction, since one holds fifty feature vectors
_NEVER = -1e4  #: added to a logit that should have no weight; finite, so that a row without any key stays a number


class TriplexConfig(MethodConfig):
    """Settings of TRIPLEX."""

    neighbours: Literal[3, 5, 7] = Field(5, description="side of the square of tiles around a spot, itself among them")
    raster: int = Field(5, ge=1, le=32, description="side of the raster of section tokens")
    dim: Width = Field(256, description="length of a token; a multiple of the heads")
    heads: Depth = 8
    neighbour_depth: Depth = 2
    section_depth: Depth = Field(2, ge=2, description="one layer before the positions are encoded, the others after")
    fusion_depth: Depth = 2
    mlp_ratio: Depth = 2
    dropout: float = Field(0.1, ge=0, lt=1)
    alpha: float = Field(0.3, ge=0, le=1, description="share of the fused prediction in what a branch learns from")
    optimisation: Optimisation = Optimisation(
        epochs=100, batch_size=128, learning_rate=1e-4, final_learning_rate=7e-5, weight_decay=0.0, patience=10
    )

    @model_validator(mode="after")
    def _heads_share_a_token(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} cannot share dim = {self.dim}: dim is a multiple of heads")
        return self

    @property
    def context(self) -> Context:
        """What of a tile is described: its neighbours, the section, and where in it the tile is."""
        return Context(grid=self.neighbours, raster=self.raster, position=True)


class Tokens(NamedTuple):
    """Parts of rows of features.

    Attributes
    ----------
    target
        (n, d) the tile.
    neighbours
        (n, side², d) the square around it, the tile in the middle; left to right, then top to bottom.
    section
        (n, raster², d) cells of the section, in the same order.
    occupied
        (n, raster²) whether a cell holds tiles.
    position
        (n, 2) of the tile in the section, x and y from 0 to 1.
    """

    target: Tensor
    neighbours: Tensor
    section: Tensor
    occupied: Tensor
    position: Tensor


def split(rows: Tensor, side: int, raster: int) -> Tokens:
    """Rows as `hescribe.types.Context` lays them out: tile, neighbours, raster, occupied cells, position."""
    cells, around = raster**2, side**2 - 1
    width = (rows.shape[1] - cells - 2) // (1 + around + cells)
    target, neighbours, section, occupied, position = rows.split(
        [width, around * width, cells * width, cells, 2], dim=1
    )
    beside = neighbours.unflatten(1, (around, width))
    square = torch.cat([beside[:, : around // 2], target[:, None], beside[:, around // 2 :]], dim=1)
    return Tokens(target, square, section.unflatten(1, (cells, width)), occupied > 0.5, position)


class SharedScale(Standardise):
    """Every tile of a row, its neighbours and the section's cells are scaled as the tile itself.

    Mean and spread of each column by itself would not do: the raster is one and the same for all spots of a section,
    so its columns vary over as many values as there are sections.

    Parameters
    ----------
    width
        Length of a row.
    tile
        Length of one tile's features.
    tiles
        How many of them begin a row; what follows is left as it is.
    """

    def __init__(self, width: int, tile: int, tiles: int) -> None:
        super().__init__(width)
        self._tile, self._tiles = tile, tiles

    def learn(self, features: Tensor) -> None:
        """Take mean and spread of the tiles themselves, the beginning of (n, width) rows."""
        own = Standardise(self._tile)
        own.learn(features[:, : self._tile])
        end = self._tile * self._tiles
        self.mean[:end] = own.mean.repeat(self._tiles)
        self.scale[:end] = own.scale.repeat(self._tiles)


class Attention(nn.Module):
    """Multi-head attention of queries to keys, ``softmax(QKᵀ/√d_head + bias) V``; dropout on the output."""

    def __init__(self, config: TriplexConfig) -> None:
        super().__init__()
        self._heads = config.heads
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        self.key = nn.Linear(config.dim, config.dim, bias=False)
        self.value = nn.Linear(config.dim, config.dim, bias=False)
        self.output = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries: Tensor, keys: Tensor, bias: Tensor | None = None) -> Tensor:
        """(n, q, dim), (n, k, dim) and a bias that broadcasts to (n, heads, q, k) → (n, q, dim)."""
        q, k, v = (
            layer(x).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, keys), (self.value, keys))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.dropout(self.output(attended.transpose(1, 2).flatten(-2)))


class Block(nn.Module):
    """A transformer layer that normalises first; queries and keys share the normalisation, as in the code."""

    def __init__(self, config: TriplexConfig) -> None:
        super().__init__()
        hidden = config.dim * config.mlp_ratio
        self.before = nn.LayerNorm(config.dim)
        self.attention = Attention(config)
        self.after = nn.LayerNorm(config.dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, config.dim),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor, keys: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """(n, q, dim) → (n, q, dim), attending to itself or to (n, k, dim) keys."""
        normed = self.before(x)
        x = x + self.attention(normed, normed if keys is None else self.before(keys), bias)
        return x + self.mlp(self.after(x))


class NeighbourEncoder(nn.Module):
    """Self-attention over the square of tiles around a spot.

    Two tiles attend to each other with a learned bias for the distance between them in rows and columns (|Δ|), and
    each place of the square has a learned vector, without which left and right would be the same.
    """

    def __init__(self, width: int, config: TriplexConfig) -> None:
        super().__init__()
        side = config.neighbours
        self.project = nn.Linear(width, config.dim)
        self.place = nn.Parameter(torch.randn(side**2, config.dim) * 0.02)
        self.bias = nn.Parameter(torch.zeros(config.neighbour_depth, config.heads, side**2))
        self.register_buffer("distance", distances(side), persistent=False)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.neighbour_depth))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, square: Tensor) -> Tensor:
        """(n, side², d) → (n, side², dim)."""
        x = self.project(square) + self.place
        for layer, bias in zip(self.layers, self.bias, strict=True):
            x = layer(x, bias=bias[None, :, self.distance])
        return self.norm(x)


def distances(side: int) -> Tensor:
    """(side², side²) index of ``(|Δ row|, |Δ column|)`` of each pair of places of a square."""
    place = torch.arange(side**2)
    row, column = place // side, place % side
    return (row[:, None] - row).abs() * side + (column[:, None] - column).abs()


class SectionEncoder(nn.Module):
    """A tile's token with the whole section in view.

    The cells of the section's raster attend to each other, a convolution over the raster encodes where they are
    (APEG), and the tile, from its own features and the raster at its place, attends to them.
    """

    def __init__(self, width: int, config: TriplexConfig) -> None:
        super().__init__()
        self._side = config.raster
        self.project = nn.Linear(width, config.dim)
        self.first = Block(config)
        self.position = nn.Conv2d(config.dim, config.dim, 3, padding=1, groups=config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.section_depth - 1))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, tokens: Tokens) -> Tensor:
        """(n, dim)."""
        # Rows of one section hold the same raster: it is encoded once
        first, which = distinct(torch.cat([tokens.section.flatten(1), tokens.occupied.to(tokens.section)], dim=1))
        cells = self._encode(tokens.section[first], tokens.occupied[first])[which]
        here = weights_at(tokens.position, self._side) * tokens.occupied
        here = here / here.sum(dim=1, keepdim=True).clamp_min(1e-6)
        x = (self.project(tokens.target) + (here[:, None] @ cells).squeeze(1))[:, None]
        for layer in self.layers:
            x = layer(x, cells, _bias(tokens.occupied))
        return self.norm(x).squeeze(1)

    def _encode(self, cells: Tensor, occupied: Tensor) -> Tensor:
        x = self.first(self.project(cells), bias=_bias(occupied)) * occupied[..., None]
        image = x.transpose(1, 2).unflatten(2, (self._side, self._side))
        return x + self.position(image).flatten(2).transpose(1, 2)


def _bias(occupied: Tensor) -> Tensor:
    return torch.where(occupied, 0.0, _NEVER)[:, None, None]


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """First occurrence of each different row of (n, d), and for each row which of them it equals."""
    which = torch.full((len(rows),), -1, device=rows.device)
    first: list[int] = []
    while (left := (which < 0).nonzero().flatten()).numel():
        same = left[(rows[left] == rows[left[0]]).all(dim=1)]
        which[same] = len(first)
        which[left[0]] = len(first)  # also where a row holds NaN, which equals nothing
        first.append(int(left[0]))
    return torch.tensor(first, device=rows.device), which


def weights_at(position: Tensor, side: int) -> Tensor:
    """(n, side²) weights of bilinear interpolation between the centres of a raster's cells, at (n, 2) x and y."""
    place = (position * side - 0.5).clamp(0, side - 1)
    near = (1 - (place[..., None] - torch.arange(side, device=position.device)).abs()).clamp_min(0)
    x, y = near.unbind(1)
    return (y[:, :, None] * x[:, None, :]).flatten(1)


class Predictions(NamedTuple):
    """Of the fusion and of each branch, (n, g)."""

    fused: Tensor
    target: Tensor
    neighbours: Tensor
    section: Tensor


class Triplex(RegressionModel):
    """Three branches, a linear layer each, and one over their fusion.

    Parameters
    ----------
    tower
        Scales rows of features.
    shapes
        Sizes.
    config
        Settings.
    """

    def __init__(self, tower: nn.Module, shapes: Shapes, config: TriplexConfig) -> None:
        super().__init__()
        tiles = config.neighbours**2 + config.raster**2
        width = (shapes.features - config.raster**2 - 2) // tiles
        self.tower = SharedScale(shapes.features, width, tiles) if isinstance(tower, Standardise) else tower
        self._config = config
        self.target = nn.Linear(width, config.dim)
        self.neighbours = NeighbourEncoder(width, config)
        self.section = SectionEncoder(width, config)
        self.fusion = nn.ModuleList(Block(config) for _ in range(config.fusion_depth))
        self.norm = nn.LayerNorm(config.dim)
        self.outputs = nn.ModuleDict({name: nn.Linear(config.dim, shapes.genes) for name in Predictions._fields})

    def start_from(self, mean: Tensor) -> None:
        """Every branch predicts the mean before it has learned anything: at 1e-4 this takes fifteen epochs."""
        state = {name: mean if name.endswith("bias") else 0 * w for name, w in self.outputs.state_dict().items()}
        self.outputs.load_state_dict(state)

    def encode(self, rows: Tensor) -> Predictions:
        """The (n, dim) tokens that predictions are linear in."""
        tokens = split(self.tower(rows), self._config.neighbours, self._config.raster)
        target = self.target(tokens.target)
        neighbours = self.neighbours(tokens.neighbours)
        section = self.section(tokens)
        fused = self.norm(self._fuse(section, target[:, None]) + self._fuse(section, neighbours))
        return Predictions(fused, target, neighbours.mean(dim=1), section)

    def _fuse(self, section: Tensor, keys: Tensor) -> Tensor:
        """The section's token asks the tokens of another branch; both branches share the layers."""
        x = section[:, None]
        for layer in self.fusion:
            x = layer(x, keys)
        return x.squeeze(1)

    def predict_expression(self, images: Tensor) -> Tensor:
        """(n, …) → (n, g) of the fusion; not below zero, since log-normalised expression is not."""
        parts = [self.outputs["fused"](self.encode(rows).fused) for rows in images.split(_ROWS)]
        return torch.cat(parts).clamp_min(0.0)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Squared error of the fusion, and of each branch to the truth (1 − α) and to the fusion (α)."""
        encoded = self.encode(batch.images)._asdict()
        predicted = {name: self.outputs[name](token).float() for name, token in encoded.items()}
        fused = predicted.pop("fused")
        alpha = self._config.alpha
        return {"fused": F.mse_loss(fused, batch.expression)} | {
            name: (1 - alpha) * F.mse_loss(own, batch.expression) + alpha * F.mse_loss(own, fused)
            for name, own in predicted.items()
        }


def _build(tower: nn.Module, shapes: Shapes, config: MethodConfig) -> nn.Module:
    assert isinstance(config, TriplexConfig)  # noqa: S101 - the table pairs them
    return Triplex(tower, shapes, config)


TRIPLEX = Method(
    name="triplex",
    summary="tile, 5 × 5 neighbours and section tokens fused by attention, squared error",
    source="Chung et al., CVPR 2024",
    config=TriplexConfig,
    build=_build,
    can_fine_tune=False,
)
