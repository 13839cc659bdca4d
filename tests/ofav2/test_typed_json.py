"""Whatever JSON holds either is a value of the dataclass, or is refused by its key; and what is written comes back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofav2.errors import RunError
from ofav2.typed_json import Count, Form, MisfitError, Share, fit, read_record, to_plain, write_record
from supernets import Space
from tests.ofav2.fuzzing import JUNK, changed, fuzz


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...]
    pair: tuple[str, float]


@dataclass(frozen=True)
class Outer:
    name: Annotated[str, Form("[a-z]+", "lower case")]
    count: Count
    share: Share | None
    exits: Literal["last"] | tuple[int, ...]
    threshold: float | tuple[float, ...]
    on: bool
    by_exit: Mapping[int, float]
    by_name: Mapping[str, Inner]
    space: Space

    def __post_init__(self) -> None:
        if self.count == 13:
            raise ValueError("count (13) brings bad luck")


OUTER = Outer(
    name="abc",
    count=3,
    share=0.5,
    exits=(1, 2),
    threshold=2.0,
    on=True,
    by_exit={5: 0.25, 10: 1.0},
    by_name={"größe\n": Inner((1, 2), ("a", 1.0)), "": Inner((), ("", -0.0))},
    space=Space((16,), (3, 5), (2,), (1, 2), (1,), (1, 5)),
)


def test_a_record_comes_back_equal(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", OUTER, "test/1")
    assert read_record(tmp_path / "a.json", Outer, "test/1", "mend it") == OUTER
    assert json.loads((tmp_path / "a.json").read_text())["format"] == "test/1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Abc"}, 'name ("Abc") must be lower case'),
        ({"name": 3}, "name (3) must be text"),
        ({"count": -1}, "count (-1) must be from 0 to"),
        ({"count": True}, "count (true) must be a whole number"),
        ({"count": 1.0}, "count (1.0) must be a whole number"),
        ({"count": 13}, "count (13) brings bad luck"),
        ({"share": 1.5}, "share (1.5) must be from 0 to 1"),
        ({"exits": "first"}, 'exits ("first") must be a list'),
        ({"exits": [1, "2"]}, 'exits[1] ("2") must be a whole number'),
        ({"threshold": "high"}, 'threshold ("high") must be a list'),
        ({"on": 1}, "on (1) must be true or false"),
        ({"by_exit": {"05": 1.0}}, "must be a mapping by whole numbers"),
        ({"by_exit": {"5": None}}, "by_exit.5 (null) must be a number"),
        ({"by_name": {"a": {"sizes": [], "pair": ["a"]}}}, 'by_name.a.pair (["a"]) must be a list of 2'),
        ({"by_name": {"a": {"sizes": []}}}, "by_name.a.pair is missing"),
        ({"by_name": {"a b": 3}}, 'by_name."a b" (3) must be a mapping'),
        ({"space": {"kernel": [3]}}, "space: resolution is missing"),
        ({"more": 1}, "more is not a key of this file (name, count"),
    ],
)
def test_a_value_that_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MisfitError) as error:
        fit(Outer, to_plain(OUTER) | change)
    assert message in str(error.value)


@pytest.mark.parametrize("key", to_plain(OUTER))
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(MisfitError, match=f"^{key} is missing$"):
        fit(Outer, {name: value for name, value in to_plain(OUTER).items() if name != key})


def test_another_format_is_refused_with_the_next_step(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", OUTER, "test/1")
    with pytest.raises(RunError, match=r"a\.json: format \('test/1'\) must be 'test/2': mend it$"):
        read_record(tmp_path / "a.json", Outer, "test/2", "mend it")


@fuzz(300)
@given(data=st.data())
def test_whatever_fits_is_written_as_it_was_read(data: st.DataObject) -> None:
    plain = changed(to_plain(OUTER), data.draw, JUNK)
    try:
        found = fit(Outer, plain)
    except MisfitError as error:
        found, problem = None, str(error)
    if found is None:
        assert problem.isprintable()
    else:
        assert fit(Outer, to_plain(found)) == found
