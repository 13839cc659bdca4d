"""Results by class are those that counting one image after the other gives."""

import numpy as np
import pytest

from ofav2.tasks.class_results import ClassResults, count_classes, worst_first

TARGETS, PREDICTED = [0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 0, 2]


def test_a_confusion_matrix_counts_pairs() -> None:
    plain = np.zeros((4, 4), np.int64)
    for target, answer in zip(TARGETS, PREDICTED, strict=True):
        plain[target, answer] += 1
    found = count_classes(PREDICTED, TARGETS, 4, "test")
    assert found.matrix() == plain.tolist()
    assert found.matrix([0, 2]) == plain[np.ix_([0, 2], [0, 2])].tolist()
    scores = found.scores("abcd")
    assert [(score.images, score.right, score.confused_with, score.confused) for score in scores] == [
        (3, 1, "b", 2),
        (1, 1, None, 0),
        (2, 1, "a", 1),
        (0, 0, None, 0),
    ]
    assert [score.accuracy for score in scores] == [pytest.approx(1 / 3), 1, 0.5, None]
    assert [score.name for score in worst_first(scores)] == ["a", "c", "b", "d"]


def test_a_class_that_is_never_found_shows_in_the_mean_over_classes() -> None:
    found = count_classes([0] * 10, [0] * 9 + [1], 3, "val")
    assert found.accuracy == 0.9
    assert found.mean_class_accuracy == 0.5


@pytest.mark.parametrize(
    ("right", "confused"),
    [
        ((1, 2), ()),
        ((2, 2, 0), ()),
        ((1, 2), ((0, 2, 1),)),
        ((1, 2), ((0, 0, 1),)),
        ((2, 2), ((0, 1, 0),)),
        ((0, 2), ((0, 1, 1), (0, 1, 1))),
    ],
)
def test_counts_that_contradict_each_other_are_refused(
    right: tuple[int, ...], confused: tuple[tuple[int, int, int], ...]
) -> None:
    with pytest.raises(ValueError, match="must"):
        ClassResults("test", (2, 2), right, confused)
