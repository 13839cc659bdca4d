"""All subsets at once are what a plain loop over them finds; choices follow their rules, ties included."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import distill
from ofav2.errors import UserError
from ofav2.exits import scoring, subsets
from ofav2.exits.scoring import halves, score_fixed, score_learned
from ofav2.exits.subsets import ExitBatch, SubsetTable, Tally, choose, fixed_weights, joined, tally
from ofav2.nas.limits import Limits
from supernets.cost import Cost

EXITS, IMAGES, CLASSES = 4, 61, 7


def outputs(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    logits = torch.randn(EXITS, IMAGES, CLASSES, generator=generator, dtype=dtype)
    logits[:, torch.arange(IMAGES), targets] += torch.tensor([0.3, 0.6, 0.9, 1.2], dtype=dtype)[:, None]
    return logits, targets


def batches(logits: Tensor, targets: Tensor, size: int) -> list[ExitBatch]:
    return [
        ExitBatch(part.numpy(), right.numpy())
        for part, right in zip(logits.split(size, 1), targets.split(size), strict=True)
    ]


def plain_counts(logits: Tensor, targets: Tensor, weights: Sequence[Fraction | float]) -> tuple[int, int]:
    """AEP as it is written: the weighted sum of a subset's logits, and whether the class is among the first k."""
    places = [place for place, weight in enumerate(weights) if weight]
    merged = sum(float(weights[place]) * logits[place] for place in places)
    assert isinstance(merged, Tensor)
    top5 = merged.topk(5, 1).indices
    right = top5 == targets[:, None]
    return int(right[:, 0].sum()), int(right.sum())


def plain_winner(logits: Tensor, targets: Tensor, weights: Sequence[Fraction]) -> tuple[int, ...]:
    """AEP's notebook: subsets as binary numbers whose first digit is exit 1; the first of the lexicographic best."""
    found: list[tuple[tuple[int, int], tuple[int, ...]]] = []
    for number in range(1, 2**EXITS):
        places = tuple(place for place, digit in enumerate(f"{number:0{EXITS}b}") if digit == "1")
        masked = [weight if place in places else Fraction(0) for place, weight in enumerate(weights)]
        found.append((plain_counts(logits, targets, masked), places))
    best = max(counts for counts, _ in found)
    return next(places for counts, places in found if counts == best)


# Scores of all subsets


@pytest.mark.parametrize("scheme", ["ascending", "descending", "uniform", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 8, IMAGES])
def test_one_pass_counts_what_a_loop_over_the_subsets_does(scheme: str, dtype: torch.dtype, size: int) -> None:
    logits, targets = outputs(dtype)
    weights = distill.exit_weights(scheme, EXITS).ensemble
    scored = score_fixed(batches(logits, targets, size), weights)
    assert len(scored.choices) == 15
    for index, choice in enumerate(scored.choices):
        masked = [weight if place in choice else Fraction(0) for place, weight in enumerate(weights)]
        counts = int(scored.tally.top1[index]), int(scored.tally.top5[index])
        assert counts == plain_counts(logits, targets, masked), choice
        merged = distill.ensemble(list(logits), scored.weights[index].tolist())
        right = merged.argmax(1) == targets
        bits = np.unpackbits(scored.tally.right[index])
        assert int(bits.sum()) == int(right.sum()) == counts[0]
    assert scored.choices[scored.whole] == (0, 1, 2, 3)
    assert scored.predicted.tolist() == logits.argmax(2).tolist()
    assert scored.targets.tolist() == targets.tolist()


def test_small_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = outputs()
    weights = distill.exit_weights("ascending", EXITS).ensemble
    expected = score_fixed(batches(logits, targets, IMAGES), weights).tally
    monkeypatch.setattr(subsets, "CHUNK", 3 * CLASSES)
    found = score_fixed(batches(logits, targets, IMAGES), weights).tally
    assert (found.images, found.top1.tolist(), found.top5.tolist()) == (
        IMAGES,
        expected.top1.tolist(),
        expected.top5.tolist(),
    )


def test_logits_are_those_of_the_ensemble_to_the_bit() -> None:
    """An image counts by its last digits: the wrong class is ahead by one rounding."""
    logits, _ = outputs()
    choices, rows = fixed_weights(distill.exit_weights("ascending", EXITS).ensemble, subsets.subsets(EXITS))
    for index in range(len(choices)):
        merged = distill.ensemble(list(logits), rows[index].tolist())
        first, second = merged.topk(2, 1).indices.unbind(1)
        for targets in (first, second):
            counted = tally(ExitBatch(logits.numpy(), targets.numpy()), rows[index : index + 1])
            assert int(counted.top1[0]) == int((merged.argmax(1) == targets).sum())


def test_weights_of_a_subset_are_exact_shares_and_an_exit_of_no_weight_stands_alone() -> None:
    weights = (Fraction(0), Fraction(1, 4), Fraction(3, 4))
    choices, rows = fixed_weights(weights, subsets.subsets(3))
    assert choices == ((2,), (1,), (1, 2), (0,))
    assert rows.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0.25, 0.75], [1, 0, 0]]


def test_subsets_come_in_the_order_of_aep() -> None:
    assert subsets.subsets(3) == ((2,), (1,), (1, 2), (0,), (0, 2), (0, 1), (0, 1, 2))


def test_too_many_exits_are_refused() -> None:
    assert len(subsets.subsets(12)) == 4095
    with pytest.raises(UserError, match=r"exits \(13\) have 8,191 subsets"):
        subsets.subsets(13)


# Learned weights


def test_exits_that_tell_nothing_get_no_learned_weights() -> None:
    """Each exit is sure of a wrong class, so any positive weight makes the ensemble worse than none."""
    targets = torch.arange(24) % 3
    wrong = torch.nn.functional.one_hot((targets + 1) % 3, 3).float()
    with pytest.raises(UserError, match="no exit tells more than chance"):
        score_learned(batches(torch.stack([wrong] * EXITS), targets, 9), EXITS)


def test_each_half_is_scored_with_weights_learned_on_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = outputs(seed=1)
    scored = score_learned(batches(logits, targets, 9), EXITS)
    assert scored.scales is not None
    first, second = halves(targets.numpy())
    assert sorted([*first, *second]) == list(range(IMAGES))
    for index, choice in enumerate(scored.choices):
        right = 0
        for own, other in ((first, second), (second, first)):
            (weights,) = distill.learned_weights(logits[:, other], targets[other], [choice])
            merged = distill.ensemble(list(logits[:, own]), (weights / weights.sum()).tolist())
            right += int((merged.argmax(1) == targets[own]).sum())
        assert int(scored.tally.top1[index]) == right, choice
        (weights,) = distill.learned_weights(logits, targets, [choice])
        np.testing.assert_allclose(scored.weights[index] * scored.scales[index], weights, rtol=1e-6)
    assert scored.predicted.tolist() == logits.argmax(2).tolist()


def test_a_subset_with_an_exit_that_only_harms_is_left_out() -> None:
    logits, targets = outputs(seed=2)
    logits[0] = -logits[3]
    scored = score_learned(batches(logits, targets, 9), EXITS)
    assert not [choice for choice in scored.choices if 0 in choice and 3 in choice]
    assert (0,) in scored.choices
    assert scored.choices[scored.whole] == (1, 2, 3)


def test_weights_are_learned_on_a_bounded_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    learn = distill.learned_weights

    def noted(logits: Tensor, targets: Tensor, choices: Sequence[Sequence[int]]) -> Tensor:
        seen.append(len(targets))
        return learn(logits, targets, choices)

    monkeypatch.setattr(distill, "learned_weights", noted)
    monkeypatch.setattr(scoring, "FIT_NUMBERS", 1)
    monkeypatch.setattr(scoring, "FIT_IMAGES", 20)
    score_learned(batches(*outputs(), 9), EXITS)
    assert seen == [20, 20, 20]


def test_halves_hold_as_many_images_of_each_class() -> None:
    targets = np.repeat(np.arange(5), [2, 4, 6, 8, 1])
    first, second = halves(targets)
    assert (len(first), len(second)) == (11, 10)
    for number in range(4):
        assert abs(np.count_nonzero(targets[first] == number) - np.count_nonzero(targets[second] == number)) <= 1
    assert all(map(np.array_equal, halves(targets), (first, second))), "drawn alike each time"


# The choice


def made(top1: Sequence[int], top5: Sequence[int], costs: Sequence[tuple[int, int]], images: int = 20) -> SubsetTable:
    """A table of made-up subsets, each right on the first images."""
    count = len(top1)
    exits = max(1, math.ceil(math.log2(count + 1)))
    right = np.stack([np.packbits(np.arange(images) < number) for number in top1])
    return SubsetTable(
        exits=tuple(range(1, exits + 1)),
        choices=subsets.subsets(exits)[:count],
        weights=np.zeros((count, exits)),
        tally=Tally(images, np.array(top1), np.array(top5), right),
        costs=tuple(Cost(params, macs, 0) for macs, params in costs),
    )


@pytest.mark.parametrize("seed", range(12))
def test_the_winner_is_that_of_aep_unless_a_cheaper_one_ties_with_it(seed: int) -> None:
    logits, targets = outputs(torch.float64, seed)
    weights = distill.exit_weights("mixed", EXITS).ensemble
    scored = score_fixed(batches(logits, targets, 16), weights)
    costs = tuple(Cost(1, 100 * (choice[-1] + 1) + len(choice), 1) for choice in scored.choices)
    table = SubsetTable((1, 2, 3, 4), scored.choices, scored.weights, scored.tally, costs)
    index = choose(table, Limits()).index
    aep = scored.choices.index(plain_winner(logits, targets, weights))
    assert (table.tally.top1[index], table.tally.top5[index]) == (table.tally.top1[aep], table.tally.top5[aep])
    assert table.costs[index].macs <= table.costs[aep].macs
    equals = [
        other
        for other in range(15)
        if (table.tally.top1[other], table.tally.top5[other]) == (table.tally.top1[aep], table.tally.top5[aep])
    ]
    assert table.costs[index].macs == min(table.costs[other].macs for other in equals)
    flat = SubsetTable(table.exits, table.choices, table.weights, table.tally, (Cost(1, 1, 1),) * 15)
    assert choose(flat, Limits()).index == aep, "where all cost the same, AEP's own order decides"


numbers = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=15
)


@settings(max_examples=60, deadline=None)
@given(numbers)
def test_choices_and_front_are_those_of_plain_rules(rows: list[tuple[int, int, int, int]]) -> None:
    table = made(
        [top1 for top1, *_ in rows],
        [top1 + more for top1, more, *_ in rows],
        [(macs, params) for _, _, macs, params in rows],
    )
    points = [(macs, params, top1) for top1, _, macs, params in rows]

    def beats(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
        return one != other and one[0] <= other[0] and one[1] <= other[1] and one[2] >= other[2]

    front = table.front()
    assert {points[index] for index in front} == {point for point in points if not any(beats(o, point) for o in points)}
    assert len({points[index] for index in front}) == len(front), "equals once"
    assert [points[index][0] for index in front] == sorted(points[index][0] for index in front)
    best = choose(table, Limits()).index
    assert rows[best][0] == max(top1 for top1, *_ in rows)
    for index in front:
        kept = choose(table, Limits(macs=points[index][0], params=points[index][1]))
        assert rows[kept.index][0] >= rows[index][0]
        assert (points[kept.index][0], points[kept.index][1]) <= (5, 5)
    least = min(macs for _, _, macs, _ in rows)
    assert rows[choose(table, Limits(), min_top1=0.0).index][2] == least
    assert rows[choose(table, Limits(), cautious=True).index][2] <= rows[best][2]


def test_limits_and_a_least_top1_choose_among_what_keeps_them() -> None:
    table = made([10, 12, 15, 16], [20] * 4, [(10, 5), (20, 4), (30, 9), (40, 8)])
    assert choose(table, Limits()).index == 3
    assert choose(table, Limits(macs=39)).index == 2
    assert choose(table, Limits(params=8)).index == 3
    assert choose(table, Limits(params=7)).index == 1
    assert choose(table, Limits(), min_top1=0.6).index == 1
    assert choose(table, Limits(params=8, macs=100), min_top1=0.7).index == 3
    assert choose(table, Limits(macs=30, params=9)).rule == "the best subset of at most params 9, macs 30 on validation"


@pytest.mark.parametrize(
    ("limits", "top1", "words"),
    [
        (Limits(macs=9), None, r"limit macs \(9\) is less than any subset of exits needs .*: allow at least 10$"),
        (Limits(params=4, macs=19), None, r"limit macs \(19\) .*: allow at least 20$"),
        (Limits(), 0.9, r"top-1 \(0.9\) is more than any subset reaches on validation: ask for 0.8$"),
        (Limits(macs=20), 0.7, r"top-1 \(0.7\) .*: ask for 0.6$"),
    ],
)
def test_what_no_subset_keeps_is_refused_with_what_one_does(limits: Limits, top1: float | None, words: str) -> None:
    table = made([10, 12, 15, 16], [20] * 4, [(10, 5), (20, 4), (30, 9), (40, 8)])
    with pytest.raises(UserError, match=words):
        choose(table, limits, min_top1=top1)


def test_a_cautious_choice_is_within_one_paired_standard_error() -> None:
    """Beside the best one: one that misses one of its images, one that misses 5 and has another, one that misses 20."""
    images = 100
    rights = [np.arange(images) < 80, np.arange(images) < 79, (np.arange(images) >= 5) & (np.arange(images) < 81)]
    rights.append(np.arange(images) < 60)
    table = SubsetTable(
        (1, 2, 3),
        subsets.subsets(3)[:4],
        np.zeros((4, 3)),
        Tally(images, np.array([80, 79, 76, 60]), np.full(4, 90), np.stack([np.packbits(right) for right in rights])),
        tuple(Cost(1, macs, 0) for macs in (40, 30, 20, 10)),
    )
    errors = []
    for right in rights:
        difference = rights[0].astype(float) - right
        errors.append((difference.mean(), difference.std(ddof=1) / math.sqrt(images)))
    assert table.close(0, range(4)) == [index for index, (mean, error) in enumerate(errors) if mean <= error + 1e-12]
    assert choose(table, Limits(), cautious=True).index == 1
    assert "within one standard error" in choose(table, Limits(), cautious=True).rule


def test_tallies_join_as_if_the_images_had_come_together() -> None:
    logits, targets = outputs()
    _, rows = fixed_weights(distill.exit_weights("uniform", EXITS).ensemble, subsets.subsets(EXITS))
    parts = batches(logits, targets, 16)
    found, whole = (
        joined([tally(part, rows) for part in parts]),
        tally(ExitBatch(logits.numpy(), targets.numpy()), rows),
    )
    assert found.top1.tolist() == whole.top1.tolist()
    for one, other in combinations(range(15), 2):
        apart = [int(np.unpackbits(each.right[one] ^ each.right[other]).sum()) for each in (found, whole)]
        assert apart[0] == apart[1]
