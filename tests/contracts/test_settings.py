"""Whatever a method's settings are given, they are refused in one line or a model can be made and fitted with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from hescribe.errors import InputError
from hescribe.inference.predictors import in_blocks
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
from hescribe.reference import Reference
from hescribe.training import TrainConfig
from hescribe.types import Context

N, D, PANEL, G = 24, 5, 6, 9
SMALL: dict[str, dict[str, Any]] = {
    "triplex": {"dim": 16, "heads": 2, "neighbours": 3, "raster": 2},
    "carhe": {"refinement": {"rounds": 1}},
    "fusion": {"known": {"programs": 2, "penalty": 0.1}, "new": {"programs": 2, "penalty": 0.1}},
    "ridge": {"penalty": 0.1},
}
WRONG = (0, -1, 1, 2, 7, 1e30, -1e30, 1e-30, 1e300, float("nan"), float("inf"), 10**30, 10**400)
WRONG += ([], [1e30], {}, {"a": 1}, "x", "", None, True, [[]], ["x"], b"x")


def _leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))


def _with(path: tuple[str, ...], value: Any, values: dict[str, Any]) -> dict[str, Any]:
    name, *rest = path
    inner = _with(tuple(rest), value, values.get(name) or {}) if rest else value
    return {**values, name: inner}


def _config(method: Method, options: dict[str, Any]) -> MethodConfig:
    return TrainConfig(method=method.name, options=options).method_config()


def use(method: Method, config: MethodConfig) -> None:
    """Make a model, fit it to a few spots and predict with it."""
    context = getattr(config, "context", Context())
    width = context.width(D)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, width)).astype("f")
    features[:, -2:] = rng.uniform(size=(N, 2))
    expression = sparse.csr_matrix(rng.poisson(1.0, (N, G)).astype("f")).log1p()
    origin = Origin(np.arange(N) // 6, np.arange(N) // 12)
    model = method.build(nn.Identity(), Shapes(width, PANEL, G), config)
    inputs = expression[:, :PANEL] if isinstance(model, JointModel) else expression
    if isinstance(model, ClosedForm):
        model.solve(features, expression, origin)
    else:
        if isinstance(model, LearnsPrototypes):
            model.learn_prototypes(expression[:, :PANEL], origin, seed=0)
        batch = Batch(torch.from_numpy(features), torch.from_numpy(inputs.toarray()), torch.from_numpy(origin.section))
        how = config.optimisation  # type: ignore[attr-defined]
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay, fused=True
        )
        assert how.batch_for(N) >= 2
        for _ in range(2):
            optimiser.zero_grad()
            sum(model.losses(batch).values()).backward()
            optimiser.step()
    if isinstance(model, RegressionModel):
        in_blocks(model.predict_expression, model, features, "cpu")
        return
    found = in_blocks(model.embed_images, model, features, "cpu")
    Reference(found, expression, tuple("abcdefghi"), None).weights(found, config.retrieval)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_no_value_of_a_setting_is_a_traceback(method: Method) -> None:
    small = SMALL.get(method.name, {})
    use(method, _config(method, small))
    tried = 0
    for path in _leaves(_config(method, small).model_dump()):
        for value in WRONG:
            told = f"{'.'.join(path)} = {value!r}"
            try:
                config = _config(method, _with(path, value, small))
            except InputError as refused:
                assert f"settings of {method.name}: " in str(refused), told  # noqa: PT017 - others are to be seen
                continue
            tried += 1
            try:
                use(method, config)
            except Exception as error:
                pytest.fail(f"{told}: {type(error).__name__}: {error}")
    assert tried > 3 or method.name == "mean"
