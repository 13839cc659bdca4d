"""The comparison of choosing by search with random networks: its table, and what a quarter of the images leaves out."""

import numpy as np

from benchmarks.choosing import Chosen, summary
from benchmarks.quarter import left_out


def test_the_difference_is_that_on_test_with_its_standard_error() -> None:
    pairs = [
        (Chosen(10, 2.0, 0.9, 0.80), Chosen(20, 2.1, 0.9, 0.79)),
        (Chosen(12, 4.0, 0.8, 0.82), Chosen(20, 4.1, 0.7, 0.79)),
    ]
    cells = summary(pairs)
    assert cells == ("11", "3.0", "85.00", "81.00", "20", "3.1", "80.00", "79.00", "+2.00 ± 1.00")


def test_networks_far_behind_the_front_are_left_out_and_others_are_not() -> None:
    points = np.array([[-80.0, 1.0], [-20.0, 2.0], [-90.0, 3.0]])
    assert round(left_out(points, 1, 1000, 0.5), 3) == 0.5
