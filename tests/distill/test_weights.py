"""Exit weights: exact fractions, explicit values as written, and nothing but `DistillError` on bad input."""

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill import DistillError, ExitWeights, exit_weights, renormalised, schemes

FIFTHS = tuple(Fraction(i, 15) for i in (1, 2, 3, 4, 5))


def both(weights: tuple[Fraction, ...]) -> ExitWeights:
    return ExitWeights(losses=weights, ensemble=weights)


def test_schemes_for_five_exits_are_the_exact_fractions() -> None:
    assert exit_weights("ascending", 5) == both(FIFTHS)
    assert exit_weights("descending", 5) == both(FIFTHS[::-1])
    assert exit_weights("uniform", 5) == both((Fraction(1, 5),) * 5)
    assert exit_weights("mixed", 5) == ExitWeights(losses=FIFTHS[::-1], ensemble=FIFTHS)
    assert exit_weights("ascending_paper", 5) == both(tuple(Fraction(n, 100) for n in (6, 13, 20, 27, 34)))


@pytest.mark.parametrize("scheme", [name for name in schemes() if name != "ascending_paper"])
@pytest.mark.parametrize("exits", [1, 2, 3, 7, 40])
def test_every_scheme_sums_to_exactly_one_for_any_number_of_exits(scheme: str, exits: int) -> None:
    weights = exit_weights(scheme, exits)
    for part in (weights.losses, weights.ensemble):
        assert len(part) == exits
        assert sum(part) == 1
        assert all(weight > 0 for weight in (part[-1:] if scheme == "last" else part))
    if exits == 1:
        assert weights == both((Fraction(1),))


def test_the_listing_is_what_is_found() -> None:
    assert schemes() == ("ascending", "descending", "uniform", "mixed", "last", "ascending_paper")
    for scheme in schemes():
        assert exit_weights(scheme, 5).losses


def test_the_papers_rounded_set_is_for_five_exits_only() -> None:
    with pytest.raises(DistillError, match=r"5 exits and this network has 4; use 'ascending'"):
        exit_weights("ascending_paper", 4)


def test_explicit_values_are_taken_as_written_and_not_rescaled() -> None:
    assert exit_weights([0.06, 0.13, 0.20, 0.27, 0.34], 5) == exit_weights("ascending_paper", 5)
    assert exit_weights((0, 1), 2) == both((Fraction(0), Fraction(1)))
    assert exit_weights([Fraction(1, 3), Fraction(2, 3)], 2) == both((Fraction(1, 3), Fraction(2, 3)))
    assert exit_weights([0.333333] * 3, 3) == both((Fraction(333333, 10**6),) * 3)
    from_numpy: list[Any] = [np.float32(0.1), np.float64(0.9)]
    assert exit_weights(from_numpy, 2) == both((Fraction(1, 10), Fraction(9, 10)))
    with_minus_zero: list[Any] = [np.int64(1), -0.0]
    assert exit_weights(with_minus_zero, 2) == both((Fraction(1), Fraction(0)))


def test_a_mapping_gives_each_set_its_own_rule() -> None:
    assert exit_weights({"losses": "uniform", "ensemble": [0.25, 0.75]}, 2) == ExitWeights(
        losses=(Fraction(1, 2),) * 2, ensemble=(Fraction(1, 4), Fraction(3, 4))
    )
    assert exit_weights({"losses": "mixed", "ensemble": "mixed"}, 5) == exit_weights("mixed", 5)


@pytest.mark.parametrize(
    ("scheme", "exits", "message"),
    [
        ("ascendng", 5, r"'ascendng'.*did you mean ascending.*use one of ascending, descending, uniform, mixed"),
        ("", 5, r"''.*use one of ascending"),
        ([0.5, 0.5], 5, r"\[0\.5, 0\.5\].*one number per exit, 5 here, and hold 2; give 5"),
        ([], 1, r"1 here, and hold 0"),
        ([0.5, 0.6], 2, r"sum to 1 within 1e-6 and sum to 1\.1; divide"),
        ([0.5, 0.499998], 2, r"sum to 0\.999998"),
        ([0.0, 0.0], 2, r"sum to 0;"),
        ([-0.5, 1.5], 2, r"exit 1 \(-0\.5\) must be a number from 0 to 1"),
        ([float("nan"), 1.0], 2, r"exit 1 \(nan\)"),
        ([1.0, float("inf")], 2, r"exit 2 \(inf\)"),
        ([True, False], 2, r"exit 1 \(True\)"),
        (["0.5", "0.5"], 2, r"exit 1 \('0\.5'\)"),
        ([None, 1.0], 2, r"exit 1 \(None\)"),
        ([[0.5], 0.5], 2, r"exit 1 \(\[0\.5\]\)"),
        ([Decimal("0.5"), Decimal("0.5")], 2, r"exit 1 \(Decimal"),
        ([1j, 1.0], 2, r"exit 1 \(1j\)"),
        ([10**5000, 0], 2, r"exit 1 \(a int too large to print\)"),
        ([1e308, 1e308], 2, r"exit 1 \(1e\+308\)"),
        (0.5, 2, r"\(0\.5\) must be a scheme or one number per exit"),
        (None, 2, r"\(None\) must be a scheme"),
        (True, 1, r"\(True\) must be a scheme"),
        (b"\x00\x01", 2, r"must be a scheme"),
        ({0.4, 0.6}, 2, r"must be a scheme"),
        (torch.tensor([0.5, 0.5]), 2, r"must be a scheme"),
        ({"losses": "uniform"}, 2, r"two keys losses and ensemble; add ensemble"),
        ({"losses": "uniform", "ensemble": "uniform", "loss": 1}, 2, r"remove 'loss'"),
        ({"losses": {"losses": "uniform"}, "ensemble": "uniform"}, 2, r"exit weights' losses \(\{.*must be a scheme"),
        ({"losses": "uniform", "ensemble": [0.5, 0.6]}, 2, r"exit weights' ensemble .* sum to 1\.1"),
        ({1: 2, (): None}, 2, r"remove 1"),
        ("uniform", 0, r"number of exits \(0\) must be"),
        ("uniform", True, r"number of exits \(True\) must be"),
        ("uniform", 2.0, r"number of exits \(2\.0\) must be"),
    ],
)
def test_bad_weights_are_refused_with_value_rule_and_next_step(scheme: Any, exits: Any, message: str) -> None:
    with pytest.raises(DistillError, match=message) as refusal:
        exit_weights(scheme, exits)
    text = str(refusal.value)
    assert ";" in text, "the message names no next step"
    assert "\n" not in text
    assert len(text) < 400


def test_the_sum_may_be_off_by_one_millionth_and_no_more() -> None:
    assert exit_weights([0.5, 0.499999], 2).losses == (Fraction(1, 2), Fraction(499999, 10**6))
    assert exit_weights([1.000001], 1).losses == (Fraction(1000001, 10**6),)
    for weights in ([0.5, 0.4999989], [0.5, 0.5000011]):
        with pytest.raises(DistillError):
            exit_weights(weights, 2)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.fractions(),
    st.decimals(),
    st.complex_numbers(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from([*schemes(), "losses", "ensemble", 0.5, 1, 10**400]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.sampled_from(["losses", "ensemble"]), st.text(max_size=3)), inner, max_size=3),
    ),
    max_leaves=12,
)


def weights_or_message(scheme: Any, exits: Any) -> ExitWeights | str:
    try:
        return exit_weights(scheme, exits)
    except DistillError as refusal:
        return str(refusal)


@given(scheme=anything, exits=st.one_of(st.integers(1, 6), scalars.filter(lambda value: not isinstance(value, int))))
def test_anything_is_accepted_as_valid_weights_or_refused_in_one_line(scheme: Any, exits: Any) -> None:
    outcome = weights_or_message(scheme, exits)
    if isinstance(outcome, str):
        assert "\n" not in outcome
        return
    for part in (outcome.losses, outcome.ensemble):
        assert len(part) == exits
        assert all(isinstance(weight, Fraction) and weight >= 0 for weight in part)
        assert abs(sum(part, Fraction(0)) - 1) <= Fraction(1, 10**6)


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=8).filter(any))
def test_normalised_values_of_any_sizes_are_accepted_as_given(counts: list[int]) -> None:
    floats = [count / sum(counts) for count in counts]
    fractions = [Fraction(count, sum(counts)) for count in counts]
    assert [float(weight) for weight in exit_weights(floats, len(floats)).losses] == floats
    assert list(exit_weights(fractions, len(fractions)).losses) == fractions


@pytest.mark.parametrize("part", [lambda w: w.losses, lambda w: w.ensemble])
def test_weights_cannot_be_changed(part: Callable[[ExitWeights], tuple[Fraction, ...]]) -> None:
    weights = exit_weights("uniform", 2)
    assert isinstance(part(weights), tuple)
    assert hash(weights) == hash(exit_weights([0.5, 0.5], 2))
    with pytest.raises(AttributeError):
        weights.losses = ()  # type: ignore[misc]


def test_weights_of_some_exits_are_divided_by_their_sum() -> None:
    ascending = dict(enumerate(exit_weights("ascending", 5).losses, start=1))
    assert renormalised(ascending, (4, 5)) == {4: Fraction(4, 9), 5: Fraction(5, 9)}
    assert renormalised(ascending, (1, 2, 3, 4, 5)) == ascending
    last = dict(enumerate(exit_weights("last", 5).losses, start=1))
    assert renormalised(last, (3, 5)) == {5: 1}, "an exit of weight 0 is left out"
    with pytest.raises(DistillError, match=r"exit weights .* are 0 for all exits that are trained \(3, 4\); give"):
        renormalised(last, (3, 4))
