"""A run's settings: what is given changes that, and nothing beside it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hescribe.cli.config import parse_settings
from hescribe.encoders import resolve_device
from hescribe.errors import InputError
from hescribe.methods import METHODS
from hescribe.training import TrainConfig


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_setting_leaves_all_others_as_the_method_has_them(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(sorted(METHODS)))
    before = _leaves(METHODS[method].config().model_dump())
    numbers = [name for name, value in before.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    if not numbers:
        return
    name = data.draw(st.sampled_from(numbers))
    options: dict[str, Any] = {}
    *groups, leaf = name.split(".")
    inner = options
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[leaf] = before[name]  # given as it is anyway
    assert _leaves(TrainConfig(method=method, options=options).method_config().model_dump()) == before


def test_what_is_given_is_taken() -> None:
    carhe = TrainConfig(method="carhe", options={"retrieval": {"k": 7}}, epochs=3).method_config()
    default = METHODS["carhe"].config()
    assert carhe.retrieval == default.retrieval.model_copy(update={"k": 7})
    assert carhe.optimisation == default.optimisation.model_copy(update={"epochs": 3})
    fusion = TrainConfig(options={"one_patient": {"programs": 3}, "context": {"scales": [1.0]}}).method_config()
    assert (fusion.one_patient.programs, fusion.one_patient.penalty) == (
        3,
        METHODS["fusion"].config().one_patient.penalty,
    )
    assert (fusion.context.scales, fusion.context.centred) == ((1.0,), True)


@pytest.mark.parametrize("given", [["optimisation=3"], ["a=1", "a.b=2"], ["penalty=[1"]])
def test_settings_that_cannot_be_are_one_line(given: list[str]) -> None:
    with pytest.raises(InputError):
        TrainConfig(method="bleep", options=parse_settings(given)).method_config()


@pytest.mark.parametrize("device", ["foo", "meta", "cpu:x", "cuda:99"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(InputError, match=f"'{device}' cannot be used"):
        resolve_device(device)
    assert resolve_device("cpu") == "cpu"
