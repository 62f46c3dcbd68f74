"""What training watches while it runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hescribe.methods.base import Batch, Optimisation, RegressionModel
from hescribe.metrics.correlation import pearson_per_gene
from hescribe.training.module import Agreement, Training


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


class Scaled(RegressionModel):
    """Every gene is a weight times the first number of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def predict_expression(self, images: Tensor) -> Tensor:
        return self.weight * images[:, :1]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"squared_error": (self.predict_expression(batch.images) - batch.expression).square().mean()}


@pytest.mark.parametrize("average", [None, 0.75])
def test_what_is_validated_is_what_would_be_kept(average: float | None) -> None:
    """The averaged weights, where there are such; the losses of a step are of the weights it moves."""
    model = Scaled()
    module = Training(model, Optimisation(average=average), stain_jitter=0.0, seed=0)
    for value in (1.0, 5.0):
        model.weight.data.fill_(value)
        module.on_train_batch_end(None, None, 0)
    kept = 5.0 if average is None else 0.75 * 1 + 0.25 * 5
    batch = Batch(torch.ones(4, 2), torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    logged: dict[str, Tensor] = {}
    module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign]
    module.validation_step(batch, 0)
    assert float(logged["validation_loss"].detach()) == pytest.approx(kept**2)
    module.keep_average()
    assert float(model.weight.detach()) == pytest.approx(kept)


def test_the_optimiser_is_adamw_with_the_settings_of_the_method() -> None:
    how = Optimisation(learning_rate=3e-3, weight_decay=0.07)
    made = Training(Scaled(), how, stain_jitter=0.0, seed=0).configure_optimizers()
    assert isinstance(made, torch.optim.AdamW)
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (3e-3, 0.07)
