"""Few shots of PhilEO Bench: published lists are reproduced."""

from itertools import pairwise
from random import Random
from typing import Any

import pytest

from ofav2.data.importing.phileo_lists import Chosen, draw, listed
from ofav2.errors import UserError


@pytest.mark.parametrize(
    ("train", "val", "first", "held"),
    [
        # Europe and Japan, 5 patches each, as released; the first two numbers are lengths of the buckets.
        (142486, 15948, (109214, 2665, 78286, 96576, 50767), (6825,)),
        (33591, 3768, (27303, 666, 19571, 24144, 12691), (1706,)),
    ],
)
def test_a_published_list_of_land_cover_is_drawn_again(
    train: int, val: int, first: tuple[int, ...], held: tuple[int, ...]
) -> None:
    assert draw(5, train, val) == Chosen(first, held)


def test_more_shots_include_fewer_ones_in_training() -> None:
    for means in (None, (lambda index: index % 3 / 100, lambda index: index % 2 / 10)):
        found = [draw(shots, 5000, 700, means) for shots in (50, 100, 500)]
        assert [(len(some.train), len(some.val)) for some in found] == [(50, 10), (100, 20), (500, 100)]
        assert all(more.train[: len(less.train)] == less.train for less, more in pairwise(found))


def test_of_patches_with_almost_nothing_a_quarter_is_kept() -> None:
    def reference(count: int, wanted: int, mean: Any, most: float, keeping: Random) -> list[int]:
        kept = []
        for index in Random(12345).sample(range(count), count):
            if mean(index) > most or keeping.random() > 0.75:
                kept.append(index)
            if len(kept) == wanted:
                break
        return kept

    def mean(index: int) -> float:
        return (index % 10) / 500

    keeping = Random(156)
    train = reference(4000, 50, mean, 0.005, keeping)
    val = reference(500, 10, mean, 0.01, keeping)
    assert draw(50, 4000, 500, (mean, mean)) == Chosen(tuple(train), tuple(val))
    # The last one of the bench's own selection is never seen; here it is.
    assert len(train) == 50


def test_a_bucket_with_fewer_patches_gives_all() -> None:
    found = draw(50, 7, 3)
    assert (sorted(found.train), sorted(found.val)) == (list(range(7)), list(range(3)))
    nothing = draw(50, 40, 8, (lambda index: 0.0, lambda index: 1.0))
    assert (len(nothing.train) < 20, sorted(nothing.val)) == (True, list(range(8)))


LIST = {"train_indices": [3, 0], "val_indices": [1], "length_multi_array_train": 5, "length_multi_array_val": 2}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (None, "list: says nothing of bucket japan"),
        ([], "list: says nothing of bucket japan"),
        (LIST | {"length_multi_array_train": 6}, "was made for 6 train patches of bucket japan, and there are 5"),
        (LIST | {"length_multi_array_val": None}, "was made for None val patches"),
        (LIST | {"train_indices": [5]}, "train_indices of bucket japan must be different whole numbers below 5"),
        (LIST | {"train_indices": [1, 1]}, "must be different whole numbers"),
        (LIST | {"val_indices": [True]}, "val_indices of bucket japan must be different whole numbers"),
        (LIST | {"val_indices": "01"}, "val_indices of bucket japan must be different whole numbers"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(values: Any, says: str) -> None:
    with pytest.raises(UserError) as raised:
        listed(values, "japan", 5, 2, "list")
    assert says in str(raised.value)


def test_a_list_is_taken_as_it_is() -> None:
    assert listed(LIST, "japan", 5, 2, "list") == Chosen((3, 0), (1,))
