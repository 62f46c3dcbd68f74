"""Figures of the literature beside ours, where the protocol is the same, and apart from them where it differs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd

from hescribe import keys
from hescribe.errors import InputError
from hescribe.evaluation.splits import PROTOCOLS


def beside_published(
    methods: pd.DataFrame, published: pd.DataFrame | None, *, variants: Mapping[str, str] = MappingProxyType({})
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Published figures, split into those that can be compared with ours and those that cannot.

    Parameters
    ----------
    methods
        Ours: ``method``, ``encoder``, ``protocol``, maybe ``seed``, ``set``, ``pcc``, ``pcc_low``, ``pcc_high``.
    published
        ``method`` and ``set`` (names as ours), ``figure`` (what the source calls it), ``pcc``,
        ``protocol``, ``source``, ``comparable`` (the protocol is ours) and ``differs`` (else how it is not); where it is
        of one encoder, ``encoder`` (its name as ours).
    variants
        Names of ours → the method they are variants of; a published figure of it stands beside them too.

    Returns
    -------
    same, other
        Of the same protocol: ``method``, ``set``, ``published_pcc``, ``figure``, ``source``, and with the figures of
        each of our runs of that method ``encoder``, ``protocol``, ``seed``, ``pcc``, ``pcc_low``, ``pcc_high``
        (empty where we have none). Of another one: ``published_pcc`` with ``published_protocol`` and ``differs``,
        and no figure of ours.

    Raises
    ------
    InputError
        A column is missing, or a figure that cannot be compared does not say why.
    """
    if published is None or published.empty:
        return pd.DataFrame(), pd.DataFrame()
    if missing := [c for c in keys.PUBLISHED if c not in published]:
        raise InputError(f"published figures lack the column {', '.join(missing)}")
    columns = [*keys.PUBLISHED, keys.PUBLISHED_ENCODER]
    names = {"pcc": "published_pcc", "protocol": "published_protocol", keys.PUBLISHED_ENCODER: "of"}
    told = published.reindex(columns=columns).rename(columns=names).fillna({"of": ""})
    known = told["of"].isin(["", *methods.get("encoder", ())]).to_numpy()
    same = told["comparable"].astype(bool).to_numpy() & _of_our_protocol(told, methods) & known
    other = told[~same].drop(columns="comparable").copy()
    other["differs"] = other["differs"].fillna("").astype(str).str.strip()
    silent = other["differs"] == ""
    if (silent & ~told.loc[other.index, "comparable"].astype(bool)).any():
        raise InputError("a published figure that is not comparable does not say how its protocol differs")
    lacking = np.where(known, "protocol " + told["published_protocol"], "encoder " + told["of"])[~same]
    other.loc[silent, "differs"] = [f"{what}, which was not run here" for what in lacking[silent]]
    return _joined(told[same], methods, variants), other.drop(columns="of").reset_index(drop=True)


def _of_our_protocol(told: pd.DataFrame, methods: pd.DataFrame) -> np.ndarray:
    """A figure of a protocol that we know by name belongs beside runs of that protocol alone."""
    run = set(methods["protocol"])
    return np.array(
        [p in run or (p not in PROTOCOLS and len(run) == 1) for p in told["published_protocol"]], dtype=bool
    )


def _joined(told: pd.DataFrame, methods: pd.DataFrame, variants: Mapping[str, str]) -> pd.DataFrame:
    if told.empty:
        return pd.DataFrame()
    labels = [c for c in ("encoder", "protocol", "seed") if c in methods]
    ours = methods[["method", "set", *labels, "pcc", "pcc_low", "pcc_high"]].assign(name=methods["method"])
    ours["method"] = ours["method"].replace(dict(variants))
    # Where the source names a protocol by our name it is that one, else the only one that was run
    only = methods["protocol"].iloc[0]
    told = told.assign(protocol=[p if p in PROTOCOLS else only for p in told["published_protocol"]])
    both = told.merge(ours, on=["method", "set", "protocol"], how="left")
    if "encoder" in both:
        both = both[(both["of"] == "") | (both["of"] == both["encoder"]) | both["encoder"].isna()]
    both["method"] = both["name"].fillna(both["method"])
    order = ["method", "set", "published_pcc", "pcc", "pcc_low", "pcc_high", *labels, "figure", "source"]
    return both[order].reset_index(drop=True)
