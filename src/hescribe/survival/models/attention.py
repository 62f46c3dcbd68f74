"""Attention over a patient's tiles with Cox's loss: which tiles matter is learned along with how much.

Gated attention pooling (Ilse et al., ICML 2018): tile h_i gets the weight a_i ∝ exp(wᵀ(tanh(V h_i) ⊙ σ(U h_i))), the
patient is z = Σ a_i h_i, and the log hazard βᵀz plus that of the covariates. The loss is torchsurv's negative log
partial likelihood over all training patients at once, as a partial likelihood of small batches is another one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchsurv.loss.cox import neg_partial_log_likelihood

from hescribe.survival.models.cox import Scaling

Values = npt.NDArray[np.float64]  #: (n,)
Tiles = npt.NDArray[np.float32]  #: (tiles, d)

_HIDDEN = 16
_EPOCHS = 80
_RATE = 0.01
_MOST_TILES = 256  #: of a patient in an epoch; others are drawn in the next


@dataclass(frozen=True)
class Bags:
    """Tiles of each patient.

    Attributes
    ----------
    tiles
        One (tiles, d) array a patient, over all slides.
    covariates
        (n, c) numbers known of each patient besides; c may be 0.
    """

    tiles: Sequence[Tiles]
    covariates: npt.NDArray[np.float64]

    def of(self, rows: npt.NDArray[np.intp]) -> Bags:
        """Some of the patients."""
        return Bags([self.tiles[r] for r in rows], self.covariates[rows])


class GatedAttention(nn.Module):
    """Log hazards from tiles of all patients, laid end to end.

    Parameters
    ----------
    d
        Features of a tile.
    n_covariates
        Numbers besides.
    """

    def __init__(self, d: int, n_covariates: int) -> None:
        super().__init__()
        self.what = nn.Linear(d, _HIDDEN)
        self.gate = nn.Linear(d, _HIDDEN)
        self.weigh = nn.Linear(_HIDDEN, 1, bias=False)
        self.hazard = nn.Linear(d + n_covariates, 1, bias=False)

    def forward(self, tiles: Tensor, owner: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """(t, d) tiles, the patient (t,) of each and (n, c) covariates → (n,) log hazards and (t,) attention."""
        score = self.weigh(torch.tanh(self.what(tiles)) * torch.sigmoid(self.gate(tiles))).squeeze(1)
        # tanh and the gate are bounded, so exp needs no shift by the patient's own maximum
        weight = torch.exp(score)
        total = torch.zeros(len(covariates)).index_add(0, owner, weight)
        attention = weight / total[owner]
        pooled = torch.zeros(len(covariates), tiles.shape[1]).index_add(0, owner, attention[:, None] * tiles)
        return self.hazard(torch.cat([pooled, covariates], dim=1)).squeeze(1), attention


@dataclass(frozen=True)
class AttentionModel:
    """A fitted attention model.

    Attributes
    ----------
    network
        In evaluation mode.
    tiles, covariates
        Scalings, learned on the training patients.
    """

    network: GatedAttention
    tiles: Scaling
    covariates: Scaling

    def risk(self, bags: Bags) -> Values:
        """Log hazard of each patient, (n,)."""
        return self._run(bags)[0]

    def attention(self, bags: Bags) -> list[npt.NDArray[np.float32]]:
        """Weight of each tile of each patient; a patient's sum to 1."""
        weights = self._run(bags)[1].astype(np.float32)
        return np.split(weights, np.cumsum([len(t) for t in bags.tiles])[:-1])

    def _run(self, bags: Bags) -> tuple[Values, Values]:
        with torch.no_grad():
            risk, attention = self.network(*_tensors(_scaled(bags, self.tiles, self.covariates)))
        return risk.double().numpy(), attention.double().numpy()


def _scaled(bags: Bags, tiles: Scaling, covariates: Scaling) -> Bags:
    return Bags(
        [tiles.apply(t.astype(np.float64)).astype(np.float32) for t in bags.tiles], covariates.apply(bags.covariates)
    )


def _tensors(bags: Bags) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles end to end, whose each is, and the covariates."""
    owner = np.repeat(np.arange(len(bags.tiles)), [len(t) for t in bags.tiles])
    flat = torch.from_numpy(np.concatenate(bags.tiles))
    return flat, torch.from_numpy(owner), torch.from_numpy(bags.covariates).float()


def _drawn(bags: Bags, rng: np.random.Generator) -> Bags:
    """At most so many tiles of each patient, by chance."""
    few = [t if len(t) <= _MOST_TILES else t[rng.choice(len(t), _MOST_TILES, replace=False)] for t in bags.tiles]
    return replace(bags, tiles=few)


def train_attention(
    bags: Bags, time: Values, event: npt.NDArray[np.bool_], *, weight_decay: float = 0.1, seed: int = 0
) -> AttentionModel:
    """Fit on all patients given.

    Parameters
    ----------
    bags
        Tiles and covariates of n training patients.
    time, event
        (n,) follow-up.
    weight_decay
        Of AdamW; the penalty.
    seed
        Of weights and drawn tiles; the same seed gives the same model.
    """
    rng = np.random.default_rng(seed)
    scale = Scaling.learn(np.concatenate(bags.tiles).astype(np.float64))
    covariates = Scaling.learn(bags.covariates.astype(np.float64))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = GatedAttention(bags.tiles[0].shape[1], bags.covariates.shape[1])
    nn.init.zeros_(network.hazard.weight)  # begin at "all alike": attention moves only once the hazard does
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=weight_decay)
    known = _scaled(bags, scale, covariates)
    end, until = torch.from_numpy(event), torch.from_numpy(time)
    for _ in range(_EPOCHS):
        risk, _ = network(*_tensors(_drawn(known, rng)))
        loss = _loss(risk, end, until)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return AttentionModel(network.eval(), scale, covariates)


def _loss(risk: Tensor, event: Tensor, time: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Ties in `time` detected")  # Efron's method is meant
        return neg_partial_log_likelihood(risk.double(), event, time)
