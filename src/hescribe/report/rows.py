"""Tables of the page: a row a gene as compact JSON, gene sets, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hescribe.io.expression import name_unit, told_sum
from hescribe.report.contents import SETS, Content

#: column of the per-gene table → heading and explanation, {unit} in the place of what expression is
COLUMNS = {
    "pcc": ("PCC", "Correlation of the predicted with the measured map"),
    "ceiling": ("Ceiling", "Correlation that a perfect prediction would reach against counts this noisy"),
    "expected_pcc": ("Expected PCC", "Correlation in training sections that were left out"),
    "interval": ("± 90%", "Half-width of the 90% interval, {unit}"),
    "mean": ("Mean", "Mean over spots, {unit}"),
    "variance": ("Variance", "Variance over spots"),
    "detected": ("Detected", "Share of spots with at least one count"),
}
SHORT = {
    "heg50": "HEG-50", "hvg50": "HVG-50", "panel": "Panel", "detected10": "Detected ≥ 10%", "marker": "Marker",
    "heg50_train": "HEG-50 (training)", "hvg50_train": "HVG-50 (training)",
}  # fmt: skip
#: provenance under the name that a reader of the page knows
_NAMES = {
    "mpp": "µm per pixel", "tile_um": "side of a tile (µm)", "sections": "trained on (section: patient)",
    "reported": "reported here", "unpaired": "expression without images",
}  # fmt: skip
_ORDER = ("version", "bundle", "method", "encoder", "seed", "seeds", "sections", "date")
_DIGITS = 3


def gene_rows(contents: Sequence[Content]) -> dict[str, Any]:
    """Per-gene table for the page's script: means over sections, column by column, nothing twice.

    Returns
    -------
    dict
        ``genes``; ``columns``: key, title, hint and values, None where not known; ``sets``: title and row numbers.
    """
    table = pd.concat([c.per_gene for c in contents]) if len(contents) > 1 else contents[0].per_gene
    flags = [s for s in SETS if s in SHORT and s in table]
    numeric = [c for c in COLUMNS if c in table and table[c].notna().any()]
    if len(contents) > 1:
        grouped = table.groupby(level=0, sort=False)
        marks = grouped[flags].max() if flags else pd.DataFrame(index=grouped.size().index)
        table = grouped[numeric].mean().join(marks) if numeric else marks
    unit = " or ".join(dict.fromkeys(name_unit(told_sum(c.told)) for c in contents))
    by = next((c for c in ("pcc", "expected_pcc", "mean") if c in numeric), None)
    if by is not None:
        table = table.sort_values(by, ascending=False, kind="stable")
    return {
        "genes": [str(g) for g in table.index],
        "columns": [_column(table, c, unit) for c in numeric],
        "sets": [
            {"title": SHORT[s], "rows": np.flatnonzero(mask).tolist()}
            for s in flags
            if (mask := table[s].eq(other=True).to_numpy(dtype=bool)).any()
        ],
    }


def _column(table: pd.DataFrame, name: str, unit: str) -> dict[str, Any]:
    title, hint = COLUMNS[name]
    values = table[name].to_numpy(dtype=np.float64)
    listed = [round(float(v), _DIGITS) if np.isfinite(v) else None for v in values]
    return {"key": name, "title": title, "hint": hint.format(unit=unit), "values": listed}


def provenance_rows(provenance: Mapping[str, Any], contents: Sequence[Content]) -> list[tuple[str, str]]:
    """What made these predictions, the most asked-for first; what the caller does not say, the predictions do."""
    told: dict[str, Any] = {}
    for key in ("version", "bundle", "method", "encoder", "encoder_identity", "mpp", "tile_um", "unit"):
        said = list(dict.fromkeys(_text(c.told[key]) for c in contents if key in c.told))
        if said:
            told[key] = ", ".join(said)
    told["reported"] = ", ".join(c.name for c in contents)
    told.update(provenance)
    keys_in_order = [k for k in _ORDER if k in told] + [k for k in told if k not in _ORDER]
    rows = [(_NAMES.get(k, str(k).replace("_", " ")), _text(told[k])) for k in keys_in_order]
    return [(name, text) for name, text in rows if text]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple | set):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {v}" for k, v in value.items() if v is not None and v != {})
    return str(value)
