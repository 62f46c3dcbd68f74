"""A tile's prototypes refined: each candidate judged on the tile as Grad-CAM shows it for that candidate."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn
from tqdm.auto import tqdm

from hescribe.encoders import Encoder, Extraction
from hescribe.encoders.extract import read_batches, to_tensor
from hescribe.encoders.maps.attention import check_maps, feature_map, grad_cam, prompt
from hescribe.errors import InputError
from hescribe.methods.base import JointModel, MethodConfig, Refinement
from hescribe.predictor import TileSource
from hescribe.types import Context, Features, SparseExpression

_SAME = 1e-3  #: weights that moved by less have stopped


def wanted_refinement(config: MethodConfig, encoder: Encoder, how: Extraction) -> Refinement | None:
    """The refinement a method's settings ask for, or None.

    Raises
    ------
    InputError
        These settings and a refinement do not go together.
    EncoderError
        The encoder has no feature maps.
    """
    refinement: Refinement | None = getattr(config, "refinement", None)
    if refinement is None or refinement.rounds == 0:
        return None
    retrieval = config.retrieval  # type: ignore[attr-defined]
    if retrieval.imputation != "softmax" or retrieval.similarity != "cosine":
        raise InputError(
            "refinement weighs by a softmax of cosines",
            path="refinement",
            fix="set retrieval.imputation = softmax and retrieval.similarity = cosine, or leave refinement out",
        )
    if how.context != Context():
        raise InputError("refinement looks at the tile alone", path="refinement", fix="leave it or 'context' out")
    check_maps(encoder)
    return refinement


@dataclass(frozen=True)
class Refiner:
    """First weights of the prototypes → refined weights, by the tiles themselves.

    For each of a tile's likeliest prototypes m: Grad-CAM of the cosine of tile and m; the tile masked by that map is
    encoded again; the softmax of the new cosines over the candidates are the new weights, and candidates below the
    threshold are dropped. The next round takes its Grad-CAM on the masked tile and masks the whole tile by it. A tile
    is done when neither its weights nor its candidates change, or one candidate is left.

    A tile is encoded ``1 + rounds × candidates`` times at most, always in its upright view: the average over several
    views is that of the first weights alone.

    Attributes
    ----------
    encoder, extraction
        Those the first weights were made with.
    model
        Features → embedding, its tower removed.
    keys
        (m, dim) embeddings of the prototypes.
    how
        Settings.
    temperature
        Of the softmax.
    """

    encoder: Encoder
    extraction: Extraction
    model: JointModel
    keys: Features
    how: Refinement
    temperature: float
    device: str = "cpu"

    def refine(self, tiles: TileSource, weights: SparseExpression) -> SparseExpression:
        """(n, m) refined weights, rows sum to 1, at most ``candidates`` of a row are not 0.

        Parameters
        ----------
        tiles
            The n tiles.
        weights
            (n, m) first weights.
        """
        if self.how.rounds == 0:
            return weights
        how, parts, start = self.extraction, [], 0
        batches = read_batches(tiles, how.tile_um, self.encoder.input_px, how.batch_size)
        with tqdm(total=len(tiles), desc=f"{tiles.slide_id}: refine", unit="tile", disable=None, leave=False) as bar:
            for batch in batches:
                first = weights[start : start + len(batch)].toarray()
                parts.append(sparse.csr_matrix(self._refine_batch(to_tensor(batch, self.device), first)))
                start += len(batch)
                bar.update(len(batch))
        return sparse.csr_matrix(sparse.vstack(parts), dtype=np.float32) if parts else weights

    @cached_property
    def _module(self) -> nn.Module:
        return self.encoder.module.to(self.device).to(memory_format=torch.channels_last).eval()

    @cached_property
    def _keys(self) -> Tensor:
        return F.normalize(torch.tensor(self.keys, device=self.device), dim=1)

    @cached_property
    def _model(self) -> JointModel:
        return copy.deepcopy(self.model).to(self.device).eval()

    def _refine_batch(self, images: Tensor, first: Features) -> Features:
        candidates = likeliest(first, self.how.candidates).to(self.device)
        state = begin(torch.tensor(first, device=self.device).gather(1, candidates))
        # All maps of the first look come from one encoding
        attention = self._look(images, candidates).attention
        cosine = torch.zeros_like(state.weights)
        for _ in range(self.how.rounds):
            rows, columns = torch.nonzero(state.alive & state.moving[:, None], as_tuple=True)
            for pairs in rows_of(len(rows), self.extraction.batch_size):
                row, column = rows[pairs], columns[pairs]
                masked = prompt(images[row], attention[row, column], self.how.floor)
                seen = self._look(masked, candidates[row, column][:, None])
                cosine[row, column], attention[row, column] = seen.cosine[:, 0], seen.attention[:, 0]
            state = step(state, cosine, threshold=self.how.threshold, temperature=self.temperature)
        out = np.zeros(first.shape, dtype=np.float32)
        np.put_along_axis(out, candidates.cpu().numpy(), state.weights.float().cpu().numpy(), axis=1)
        return out

    def _look(self, images: Tensor, candidates: Tensor) -> Look:
        """Cosine of each image with its candidates, and what it comes from."""
        bf16 = self.extraction.precision == "bf16"
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
            seen = feature_map(self._module, images.contiguous(memory_format=torch.channels_last))
        embedded = F.normalize(self._model.embed_images(seen.features.float()), dim=1)
        cosine = torch.einsum("nd,nkd->nk", embedded, self._keys[candidates])
        attention = [grad_cam(seen.maps, cosine[:, k]) for k in range(cosine.shape[1])]
        return Look(cosine.detach(), torch.stack(attention, dim=1))


class Look(NamedTuple):
    """Images and their k candidates.

    Attributes
    ----------
    cosine
        (n, k).
    attention
        (n, k, h, w) in [0, 1].
    """

    cosine: Tensor
    attention: Tensor


class State(NamedTuple):
    """Where the refinement of some tiles stands.

    Attributes
    ----------
    weights
        (n, k) of the candidates; rows sum to 1, dropped ones are 0.
    alive
        (n, k) which candidates are left.
    moving
        (n,) which tiles still change.
    """

    weights: Tensor
    alive: Tensor
    moving: Tensor


def likeliest(weights: Features, count: int) -> Tensor:
    """(n, k) columns of the largest weights, largest first; of equal ones the first."""
    return torch.from_numpy(np.argsort(-weights, axis=1, kind="stable")[:, :count].copy())


def begin(weights: Tensor) -> State:
    """The candidates' first weights as probabilities among them; a single candidate has nothing to be refined."""
    alive = weights > 0
    return State(weights / weights.sum(dim=1, keepdim=True), alive, alive.sum(dim=1) > 1)


def step(state: State, cosine: Tensor, *, threshold: float, temperature: float) -> State:
    """One round for tiles that still change.

    Softmax of the candidates' cosines; those below the threshold are dropped, but never the largest; the others are
    scaled to sum to 1.
    """
    logits = torch.where(state.alive, cosine / temperature, -torch.inf)
    probabilities = logits.softmax(dim=1)
    best = F.one_hot(probabilities.argmax(dim=1), probabilities.shape[1]).bool()
    alive = state.alive & ((probabilities >= threshold) | best)
    kept = torch.where(alive, probabilities, 0.0)
    weights = kept / kept.sum(dim=1, keepdim=True)
    still = (weights - state.weights).abs().amax(dim=1) < _SAME
    moving = ~((alive == state.alive).all(dim=1) & still) & (alive.sum(dim=1) > 1)
    old = ~state.moving
    return State(
        torch.where(old[:, None], state.weights, weights),
        torch.where(old[:, None], state.alive, alive),
        state.moving & moving,
    )


def rows_of(count: int, size: int) -> Iterator[slice]:
    """Blocks of at most ``size`` rows."""
    for start in range(0, count, size):
        yield slice(start, start + size)
