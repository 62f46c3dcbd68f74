"""What every method promises; the subjects are discovered in the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import sparse
from torch import nn

from hescribe.methods import METHODS
from hescribe.methods.base import (
    Batch,
    ClosedForm,
    JointModel,
    LearnsPrototypes,
    Method,
    MethodConfig,
    Origin,
    RegressionModel,
    Shapes,
)
from hescribe.types import Context

N, D, PANEL, G = 60, 12, 8, 15
#: smaller than as made, where that would take long
SMALL = {"triplex": {"dim": 16, "heads": 2, "neighbours": 3, "raster": 2}}


def settings(method: Method) -> MethodConfig:
    return method.config(**SMALL.get(method.name, {}))


def width(method: Method) -> int:
    """Length of a row of features; where a method reads a square and a raster out of it, as its context has it."""
    context = getattr(settings(method), "context", Context())
    return context.width(D) if context.grid or context.raster else D


def data(method: Method, seed: int = 0) -> tuple[np.ndarray, sparse.csr_matrix, Origin]:
    """Features that decide expression."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(N, width(method))).astype("f")
    expression = np.maximum(features[:, :D] @ rng.normal(size=(D, G)) + 2, 0).astype("f")
    return features, sparse.csr_matrix(expression), Origin(np.arange(N) // 20, np.arange(N) // 40)


def built(method: Method, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return method.build(nn.Identity(), Shapes(width(method), PANEL, G), settings(method))


def to_train(method: Method) -> tuple[nn.Module, Batch]:
    """A model before its first step, and all there is to learn as one batch."""
    features, expression, origin = data(method)
    model = built(method)
    if isinstance(model, ClosedForm):
        pytest.skip("solved, not trained")
    if isinstance(model, LearnsPrototypes):
        model.learn_prototypes(expression[:, :PANEL], origin, seed=0)
    # An embedding is learned on the panel, a regression on all genes
    values = expression.toarray()[:, : PANEL if isinstance(model, JointModel) else G]
    return model, Batch(torch.from_numpy(features), torch.from_numpy(values), torch.from_numpy(origin.section))


def fitted(method: Method) -> nn.Module:
    model = built(method)
    if isinstance(model, ClosedForm):
        model.solve(*data(method))
        return model.eval()
    model, batch = to_train(method)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30):
        optimiser.zero_grad()
        sum(model.losses(batch).values()).backward()
        optimiser.step()
    return model.eval()


def output(method: Method, model: nn.Module) -> np.ndarray:
    x = torch.from_numpy(data(method, 1)[0])
    with torch.inference_mode():
        return (model.embed_images(x) if isinstance(model, JointModel) else model.predict_expression(x)).numpy()


@pytest.fixture(params=METHODS.values(), ids=METHODS.keys())
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


def test_the_row_is_complete(method: Method) -> None:
    assert METHODS[method.name] is method
    assert method.summary
    assert method.source


def test_settings_are_frozen_and_unknown_ones_refused(method: Method) -> None:
    config = method.config()
    with pytest.raises(ValidationError):
        method.config(nonsense=1)
    for name in type(config).model_fields:
        with pytest.raises(ValidationError):
            setattr(config, name, None)


def test_it_is_of_one_kind(method: Method) -> None:
    model = built(method)
    assert isinstance(model, JointModel) != isinstance(model, RegressionModel)
    assert isinstance(model.tower, nn.Identity)


def test_losses_fall(method: Method) -> None:
    model, batch = to_train(method)
    before = {k: float(v.detach()) for k, v in model.eval().losses(batch).items()}
    after = {k: float(v.detach()) for k, v in fitted(method).losses(batch).items()}
    assert sum(after.values()) < sum(before.values())


def test_outputs_are_finite_and_of_the_right_shape(method: Method) -> None:
    model = fitted(method)
    out = output(method, model)
    assert out.shape[0] == N
    assert np.isfinite(out).all()
    if isinstance(model, RegressionModel):
        assert out.shape[1] == G
        # Without an intercept, predictions lie around zero, as a published recipe has it
        assert (out >= 0).all() or not getattr(method.config(), "intercept", True)


def test_same_seed_same_result(method: Method) -> None:
    np.testing.assert_array_equal(output(method, fitted(method)), output(method, fitted(method)))


def test_weights_are_the_whole_state(method: Method) -> None:
    model, fresh = fitted(method), built(method, seed=9)
    fresh.load_state_dict(model.state_dict(), strict=True)
    np.testing.assert_array_equal(output(method, model), output(method, fresh.eval()))


def test_rows_do_not_depend_on_their_neighbours_in_a_batch(method: Method) -> None:
    model = fitted(method)
    x = torch.from_numpy(data(method, 1)[0])
    f = model.embed_images if isinstance(model, JointModel) else model.predict_expression
    with torch.inference_mode():
        torch.testing.assert_close(f(x)[:7], f(x[:7]), atol=1e-5, rtol=1e-5)


def test_every_weight_takes_part_in_every_step(method: Method) -> None:
    """Several processes that train together would wait for the gradient of one that does not."""
    model, batch = to_train(method)
    sum(model.train().losses(batch).values()).backward()
    assert not [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
