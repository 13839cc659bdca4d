"""Limits read as people write them, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofav2.errors import UserError
from ofav2.nas.limits import UNITS, Limits, narrowed, parse_choices, parse_limits, show
from tests.ofav2.tiny import tiny_net


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("macs", "30M", 30_000_000),
        ("params", "2M", 2_000_000),
        ("macs", "1.5G", 1_500_000_000),
        ("macs", " 12 k ", 12_000),
        ("params", "7", 7),
        ("params", "0.1M", 100_000),
        ("memory", "512KiB", 512 * 1024),
        ("memory", "1MB", 1_000_000),
        ("memory", "3B", 3),
        ("latency", "8ms", 8_000_000),
        ("latency", "200us", 200_000),
        ("latency", "200µs", 200_000),
        ("latency", "0.5s", 500_000_000),
    ],
)
def test_what_people_write(name: str, text: str, value: int) -> None:
    assert parse_limits(**{name: text}).named == {name: value}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("macs", "30X", "use k, M, G"),
        ("macs", "30m", "use k, M, G"),
        ("latency", "8", "the unit is missing; use ns, us, µs, ms, s"),
        ("latency", "8M", "use ns, us, µs, ms, s"),
        ("memory", "1", "use B, kB, KB, MB, GB, KiB, MiB, GiB"),
        ("macs", "", "a number and a unit"),
        ("macs", "-3M", "a number and a unit"),
        ("macs", "1e6", "a number and a unit"),
        ("macs", "nan", "a number and a unit"),
        ("macs", "1,5M", "a number and a unit"),
        ("macs", "9" * 400, "a number and a unit"),
        ("macs", "0M", "more than zero"),
        ("params", "0.5", "more than zero"),
        ("latency", "٣ms", "a number and a unit"),
    ],
)
def test_anything_else_is_one_clear_line(name: str, text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_limits(**{name: text})
    message = str(caught.value)
    assert reason in message
    assert f"limit {name}" in message
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "30M", 10**40])
def test_limits_are_whole_numbers(value: object) -> None:
    with pytest.raises(UserError, match="limit macs"):
        Limits(macs=value)  # type: ignore[arg-type]


@given(st.sampled_from(sorted(UNITS)), st.integers(1, 10**13))
def test_what_is_shown_can_be_a_limit(name: str, value: int) -> None:
    limit = parse_limits(**{name: show(name, value)}).named[name]
    assert value <= limit <= value * 1.0011 + 1


def test_choices() -> None:
    there = (48, 52, 56, 60, 64)
    assert parse_choices("resolution", "52..61", there) == (52, 56, 60)
    assert parse_choices("resolution", "64, 48", there) == (48, 64)
    assert parse_choices("resolution", "48", there) == (48,)


@pytest.mark.parametrize("text", ["50", "1..2", "64..48", "", "a", "48..", "48-64", "48,", "9" * 5000, "48...64"])
def test_choices_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="resolution") as caught:
        parse_choices("resolution", text, (48, 52))
    assert len(str(caught.value)) < 200


def test_a_space_is_narrowed_to_exits_and_resolutions() -> None:
    space = tiny_net().space
    assert narrowed(space, None, None) == space
    assert narrowed(space, "2..3", "16") == space.restrict(height=(2, 3), resolution=(16,))
