from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.values import (
    OFF,
    ON,
    Count,
    Needs,
    Positive,
    Share,
    allowed,
    convert,
    needs,
    plain_type,
)


@given(st.integers(1, 2**63 - 1), st.floats(0, 1), st.lists(st.integers(1, 99), max_size=4))
def test_what_is_written_as_a_word_is_read_as_the_value(count, share, sizes):
    assert convert(Count, str(count)) == convert(Count, count) == count
    assert convert(Share, str(share)) == convert(Share, share) == share
    assert convert(tuple[Count, ...], [str(size) for size in sizes]) == tuple(sizes)


@pytest.mark.parametrize(
    ("hint", "value", "converted"),
    [
        (Count | None, None, None),
        (Count | None, "None", None),
        (Annotated[Count | None, Needs(seed=1)], "7", 7),
        (Positive, 2, 2.0),
        (Count, 1e6, 1_000_000),
        (Literal["auto", "on", "off"], True, "on"),
        (Literal["auto", "on", "off"], False, "off"),
        (bool, "False", False),
        (Path, "a/b", Path("a/b")),
    ],
)
def test_a_value_with_one_meaning_is_converted(hint, value, converted):
    result = convert(hint, value)
    assert (result, type(result)) == (converted, type(converted))


@pytest.mark.parametrize(
    ("hint", "value", "rule"),
    [
        (Count, 0, "a whole number of at least 1"),
        (Count, 1.5, "a whole number of at least 1"),
        (Count, True, "a whole number of at least 1"),
        (Count, None, "a whole number of at least 1"),
        (Positive, float("inf"), "a number greater than 0"),
        (Positive, 10**400, "a number greater than 0"),
        (Share | None, "x", "a number from 0 to 1, or null"),
        (Literal["none", "sign"], True, "none or sign"),
        (Literal["none", "sign"], ["sign"], "none or sign"),
        (tuple[Count, ...], 3, "a list, each entry a whole number of at least 1"),
        (tuple[str, ...], "abc", "a list, each entry text"),
        (tuple[str, ...], [1], "a list, each entry text"),
        (bool, 1, "true or false"),
        (str, 3, "text"),
        (str, {"a": 1}, "text"),
    ],
)
def test_any_other_value_is_refused_with_what_is_allowed(hint, value, rule):
    assert allowed(hint) == rule
    with pytest.raises(ValueError, match=f"^{rule}$"):
        convert(hint, value)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, "99999999999999999999", 1e20])
def test_a_whole_number_has_64_bits(value):
    with pytest.raises(ValueError, match=r"^a whole number, less than 2\^63$"):
        convert(int, value)


def test_needs_hold_where_one_alternative_does():
    need = Needs(loss=("a", "b"), coefficient=ON, steps=OFF)
    assert str(need) == "loss a or b or coefficient or no steps"
    assert not need.hold(SimpleNamespace(loss="c", coefficient=0.0, steps=3))
    assert need.hold(SimpleNamespace(loss="b", coefficient=0.0, steps=3))
    assert need.hold(SimpleNamespace(loss="c", coefficient=0.1, steps=3))
    assert need.hold(SimpleNamespace(loss="c", coefficient=0.0, steps=None))
    assert need.hold(SimpleNamespace(loss="auto", coefficient=0.0, steps=3))
    assert list(needs(Annotated[Count, need])) == [need]
    assert list(needs(Count)) == list(needs(int)) == []


def test_the_plain_type_under_an_annotation():
    assert plain_type(Annotated[Count | None, Needs(seed=1)]) is int
    assert plain_type(tuple[Count, ...]) is tuple
    assert plain_type(Literal["a"]) is Literal
