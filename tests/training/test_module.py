"""What training watches while it runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hescribe.metrics.correlation import pearson_per_gene
from hescribe.training.module import Agreement


def test_agreement_is_the_mean_correlation_within_sections() -> None:
    """However the spots are cut into batches; a gene without any counts is left out, a constant prediction is 0."""
    rng = np.random.default_rng(0)
    truth, predicted = rng.gamma(2.0, size=(90, 7)), rng.normal(3.0, 1.0, size=(90, 7))
    predicted[:, :3] += truth[:, :3]
    section = np.repeat([4, 9], [30, 60])
    truth[section == 9] += 5  # between sections: must not count
    truth[:, 5], predicted[:, 6] = 0.0, 1.5
    watched = Agreement()
    for rows in np.array_split(rng.permutation(90), 7):
        watched.update(*(torch.tensor(values[rows]) for values in (predicted.astype("f"), truth.astype("f"), section)))
    expected = [
        np.nanmean(pearson_per_gene(predicted[section == s].astype("f"), truth[section == s].astype("f")))
        for s in (4, 9)
    ]
    assert float(watched.take()) == pytest.approx(np.mean(expected), abs=1e-6)
    watched.update(torch.tensor(truth[:30]), torch.tensor(truth[:30]), torch.zeros(30))
    assert float(watched.take()) > 0.8  # begins anew
