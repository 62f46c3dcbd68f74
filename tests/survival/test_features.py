"""Features by hand, and traced back to tiles and genes."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from hescribe import keys
from hescribe.errors import InputError
from hescribe.survival.features import gene_effects, patient_features, slide_features, tile_contributions


def grid(side: int = 6) -> ad.AnnData:
    y, x = np.divmod(np.arange(side * side), side)
    adata = ad.AnnData(
        np.zeros((side * side, 1), np.float32), obs=pd.DataFrame(index=[f"t{i}" for i in range(side * side)])
    )
    adata.obsm[keys.SPATIAL] = np.column_stack([x, y]) * 200.0
    adata.uns[keys.PROVENANCE] = {"mpp": 0.5}
    return adata


def test_features_by_hand() -> None:
    adata = grid()
    left = adata.obsm[keys.SPATIAL][:, 0] < 500
    scores = pd.DataFrame({"T cells": np.where(left, 2.0, 1.0), "flat": 1.0}, index=adata.obs_names)
    regions = pd.Series(np.where(left, "a", "b"), index=adata.obs_names)
    tls = pd.Series(np.isin(np.arange(36), [0, 1, 35]), index=adata.obs_names)  # two beside each other, one far away
    types = pd.DataFrame({"B": 0.25, "T": 0.75}, index=adata.obs_names)
    found = slide_features(adata, scores, regions, tls, cell_types=types, region_names=["a", "b", "c"])
    assert found["mean:T cells"] == 1.5
    assert found["spread:T cells"] == 0.5
    assert found["moran:T cells"] > 0.5
    assert np.isnan(found["moran:flat"])
    assert found[["fraction:a", "fraction:b", "fraction:c"]].tolist() == [0.5, 0.5, 0.0]
    assert found["next:a|a"] > 0 > found["next:a|b"]
    assert np.isnan(found["next:a|c"])
    assert found["tls:fraction"] == pytest.approx(3 / 36)
    assert found["tls:number"] == pytest.approx(2 / (36 * 0.1 * 0.1))
    numbered = slide_features(adata, scores, tls=tls.astype(int) * 4)
    assert numbered["tls:number"] == pytest.approx(1 / (36 * 0.1 * 0.1))  # one structure, as its caller said
    assert found[["cells:B", "cells:T"]].tolist() == [0.25, 0.75]
    told = slide_features(adata, scores, tls=tls, mpp=2.0)  # goes before what the provenance says
    assert told["tls:number"] == pytest.approx(2 / (36 * 0.4 * 0.4))
    nowhere = regions.where(adata.obsm[keys.SPATIAL][:, 1] > 100, None)  # the first row is in no region
    assert slide_features(adata, scores, nowhere)[["fraction:a", "fraction:b"]].tolist() == [15 / 36, 15 / 36]


def test_neighbourhoods_without_order_are_what_chance_gives() -> None:
    adata = grid(30)
    labels = np.random.default_rng(0).choice(["a", "b"], 900, p=[0.3, 0.7])
    found = slide_features(adata, pd.DataFrame(index=adata.obs_names), pd.Series(labels, index=adata.obs_names))
    assert found.filter(like="next:").abs().max() < 0.2
    chess = pd.Series(np.where(np.arange(900) // 30 % 2, "a", "b"), index=adata.obs_names)
    stripes = slide_features(adata, pd.DataFrame(index=adata.obs_names), chess)
    assert stripes["next:a|b"] > 0 > stripes["next:a|a"]


def slow_meetings(adata: ad.AnnData, labels: np.ndarray, pair: tuple[str, str]) -> float:
    """Share by share: each tile gives one to its neighbours, the six nearest and those as far as the sixth."""
    centres, met = adata.obsm[keys.SPATIAL], 0.0
    for i, here in enumerate(centres):
        far = np.linalg.norm(centres - here, axis=1)
        far[i] = np.inf
        beside = np.flatnonzero(far < 1.01 * np.sort(far)[5])
        met += sum({labels[i], labels[j]} == set(pair) for j in beside) / len(beside)
    return met


@pytest.mark.parametrize("pair", [("a", "b"), ("a", "a"), ("b", "c"), ("c", "c")], ids="".join)
def test_neighbourhoods_against_labels_that_are_shuffled(pair: tuple[str, str]) -> None:
    adata, rng = grid(5), np.random.default_rng(0)
    labels = np.array(["a"] * 12 + ["b"] * 9 + ["c"] * 4)
    shuffled = [slow_meetings(adata, rng.permutation(labels), pair) for _ in range(400)]
    scores = pd.DataFrame(index=adata.obs_names)
    found = slide_features(adata, scores, pd.Series(labels, index=adata.obs_names))[f"next:{pair[0]}|{pair[1]}"]
    chance = (slow_meetings(adata, labels, pair) + 1) / 2**found - 1
    assert chance == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / 400**0.5)


def test_a_slide_without_positions_or_of_other_tiles_is_refused() -> None:
    adata = grid()
    scores = pd.DataFrame({"s": 1.0}, index=adata.obs_names)
    with pytest.raises(InputError, match="other tiles"):
        slide_features(adata, scores.iloc[::-1])
    with pytest.raises(InputError, match="12 tiles; at least 20"):
        slide_features(adata[:12], scores[:12])
    del adata.obsm[keys.SPATIAL]
    with pytest.raises(InputError, match="no positions"):
        slide_features(adata, scores)


def test_patients_are_means_of_slides_by_their_tiles() -> None:
    slides = pd.DataFrame(
        {"f": [1.0, 4.0, 7.0], "g": [np.nan, 2.0, np.nan], "tiles": [100, 200, 50]}, index=["a", "b", "c"]
    )
    found = patient_features(slides, {"a": "P", "b": "P", "c": "Q"})
    assert found.loc["P"].tolist() == [3.0, 2.0]
    assert found.loc["Q", "f"] == 7.0
    assert np.isnan(found.loc["Q", "g"])
    assert list(patient_features(slides, {"a": "P", "b": "P", "c": "A"}).index) == ["P", "A"]  # as they appear
    with pytest.raises(InputError, match="slide 'c' belongs to no patient"):
        patient_features(slides, {"a": "P", "b": "P"})


def test_tiles_and_genes_get_exactly_their_part() -> None:
    """Finite differences: a gene raised everywhere, and the sum over tiles."""
    rng = np.random.default_rng(0)
    adata = grid()
    genes = ["A", "B", "C", "D"]
    x = pd.DataFrame(rng.random((36, 4)), index=adata.obs_names, columns=genes)
    sets = {"s": ["A", "B", "missing"], "t": ["B", "C", "D"]}
    per_unit = pd.Series({"mean:s": 0.8, "mean:t": -0.5, "fraction:a": 1.5, "spread:s": 3.0})
    regions = pd.Series(np.where(rng.random(36) < 0.4, "a", "b"), index=adata.obs_names)

    def features(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
        scores = pd.DataFrame({k: table[[g for g in v if g in table]].mean(axis=1) for k, v in sets.items()})
        return scores, slide_features(adata, scores, regions)

    scores, found = features(x)
    reference = {"mean:s": 0.4, "mean:t": 0.6, "fraction:a": 0.3, "spread:s": 0.1}
    additive = [n for n in per_unit.index if not n.startswith("spread")]
    part = tile_contributions(per_unit, scores, regions, reference=reference)
    wanted = sum(per_unit[n] * (found[n] - reference[n]) for n in additive)
    assert part.mean() == pytest.approx(wanted)
    effects = gene_effects(per_unit, sets, genes).set_index("gene")
    for gene in genes:
        raised = features(x.assign(**{gene: x[gene] + 1e-3}))[1]
        change = sum(per_unit[n] * (raised[n] - found[n]) for n in ("mean:s", "mean:t")) / 1e-3
        assert effects.loc[gene, "effect"] == pytest.approx(change, rel=1e-6)
    assert effects.index[0] == "A"
    assert effects.loc["B", "sets"] == "s, t"
    protective = gene_effects(pd.Series({"mean:s": 0.1, "mean:t": -0.9}), sets, genes)
    assert protective["effect"].tolist() == pytest.approx([-0.3, -0.3, -0.25, 0.05])
