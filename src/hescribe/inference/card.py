"""The bundle's README: a model card that says what it was learned from and how far to trust it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from hescribe import keys
from hescribe.io.expression import name_unit, told_sum


def render_card(config: dict[str, Any], genes: pd.DataFrame) -> str:
    """Hugging Face model card in Markdown."""
    provenance = config["provenance"]
    sections = provenance["sections"]
    patients = sorted(set(sections.values()))
    expected = genes[keys.EXPECTED_PCC].dropna() if keys.EXPECTED_PCC in genes else pd.Series(dtype=float)
    best = ", ".join(expected.sort_values(ascending=False).index[:10])
    trust = (
        f"Inner cross-validation over whole training sections: median correlation per gene {expected.median():.2f}; "
        f"{int((expected > 0.2).sum()):,} genes above 0.2. Best: {best}."
        if len(expected)
        else "No training section was left out, so no statement is made."
    )
    return f"""---
library_name: hescribe
license: other
tags: [spatial-transcriptomics, histology, {config["method"]}]
---

# {config["method"]} on {config["encoder"]["name"]}

Predicts the expression of {len(genes):,} genes ({name_unit(told_sum(provenance.get("settings", {})))}) from H&E tiles of
{config["extraction"]["tile_um"]:g} µm. Trained by hescribe {provenance["version"]} on {len(sections)} section(s) of
{len(patients)} patient(s), {provenance["spots"]:,} spots, seed {provenance["seed"]}.

```
hescribe predict THIS_FOLDER --sections sections.csv -o predictions
```

## How far to trust it

{trust} Each prediction carries `expected_pcc` and a 90 % `interval` per gene and a `novelty` per tile.
Research use only; not a medical device.

## Learned from

| section | patient |
|---|---|
{chr(10).join(f"| {s} | {p} |" for s, p in sections.items())}

Encoder weights: {config["encoder"]["licence"]}{"" if config["encoder"]["weights_included"] else " (not included: they are gated)"}.
"""
