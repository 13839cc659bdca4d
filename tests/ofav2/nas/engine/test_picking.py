"""Picking: greedy by hypervolume, whole families at a time."""

import numpy as np
import pytest

from ofav2.nas.engine.fronts import hypervolume
from ofav2.nas.engine.picking import pick_best, pick_by_gain, pick_in_layers
from ofav2.nas.engine.problem import Floats


def plain_greedy(known: Floats, families: list[Floats], reference: Floats, count: int) -> list[int]:
    """Compute every gain anew at each step."""
    picked: list[int] = []
    while len(picked) < count:
        volume = hypervolume(known, reference)
        gains = [hypervolume(np.concatenate([known, own]), reference) - volume for own in families]
        best = max((i for i in range(len(families)) if i not in picked), key=lambda i: gains[i])
        if gains[best] <= 0:
            break
        picked.append(best)
        known = np.concatenate([known, families[best]])
    return picked


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_lazy_picking_equals_plain_greedy_picking(seed: int, objectives: int) -> None:
    rng = np.random.default_rng([seed, objectives])
    known, reference = rng.random((6, objectives)), np.ones(objectives)
    families = [rng.random((int(rng.integers(1, 4)), objectives)) for _ in range(20)]
    expected = plain_greedy(known, families, reference, 7)
    assert pick_by_gain(known, families, reference, 7, rng) == expected


def test_what_adds_nothing_is_not_picked() -> None:
    known, reference = np.array([[0.0, 0.0]]), np.ones(2)
    assert pick_by_gain(known, [np.array([[0.5, 0.5]])], reference, 3, np.random.default_rng(0)) == []


def test_what_is_next_to_the_front_is_picked_after_what_is_on_it() -> None:
    known, rng = np.array([[0.2, 0.2], [0.4, 0.4], [0.8, 0.8]]), np.random.default_rng(0)
    families = [np.array([[0.6, 0.6]]), np.array([[0.9, 0.9]]), np.array([[0.3, 0.3]]), np.array([[0.1, 0.5]])]
    assert pick_by_gain(known, families, np.ones(2), 4, rng) == [3]
    assert pick_in_layers(pick_by_gain, known, families, np.ones(2), 4, rng) == [3, 2, 0]
    assert pick_in_layers(pick_by_gain, known, families, np.ones(2), 2, rng) == [3, 2]


def test_the_lowest_losses_are_picked_whatever_they_cost() -> None:
    families = [np.array([[0.4, 9.0], [0.2, 1.0]]), np.array([[0.1, 9.0]]), np.array([[0.3, 0.0]])]
    assert pick_best(np.zeros((1, 2)), families, np.ones(2), 2, np.random.default_rng(0)) == [1, 0]
