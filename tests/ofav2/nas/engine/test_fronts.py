"""Fronts and hypervolumes are those of their definitions."""

from itertools import product

import numpy as np
import pytest

from ofav2.nas.engine.fronts import hypervolume, on_front


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_a_front_holds_what_no_other_point_beats_each_once(objectives: int) -> None:
    points = np.random.default_rng(objectives).integers(0, 5, (60, objectives)).astype(float)
    expected = [
        not any((other <= point).all() and ((other < point).any() or j < i) for j, other in enumerate(points) if j != i)
        for i, point in enumerate(points)
    ]
    assert on_front(points).tolist() == expected


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_counts_the_cells_below_the_reference(objectives: int) -> None:
    points = np.random.default_rng(objectives).integers(0, 7, (9, objectives)).astype(float)
    cells = product(range(6), repeat=objectives)
    assert hypervolume(points, [6] * objectives) == sum(
        any((point <= cell).all() for point in points) for cell in map(np.array, cells)
    )


def test_points_that_are_not_below_the_reference_count_nothing() -> None:
    assert hypervolume(np.array([[2.0, 0.0], [0.0, 2.0]]), [2, 2]) == 0.0
    assert hypervolume(np.zeros((0, 2)), [2, 2]) == 0.0
