"""Messages are one line that can be read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hescribe.errors import InputError, list_some


@given(st.lists(st.text(max_size=500), max_size=60))
def test_lists_stay_short(names: list[str]) -> None:
    assert len(list_some(names)) <= 12 * 83 + 20


def test_lists_keep_what_tells_names_apart() -> None:
    assert list_some([]) == "none"
    assert list_some(["a", 1]) == "a, 1"
    assert list_some(range(13)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … 13 in all"
    told = list_some([f"/data/{'x' * 100}/slide_{i}.svs" for i in (1, 2)])
    assert "slide_1.svs" in told
    assert "slide_2.svs" in told


def test_a_message_is_one_line() -> None:
    assert str(InputError("what\n is wrong", path="a.csv", fix="do\tthis")) == "a.csv: what is wrong (do this)"
