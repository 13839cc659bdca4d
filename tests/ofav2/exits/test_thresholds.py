"""What every threshold does, and which one keeps a target, beside a loop over images and thresholds."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofav2.errors import UserError
from ofav2.exits.early import NEVER
from ofav2.exits.thresholds import ThresholdCurve, threshold_curve

Setting = tuple[Any, Any, list[int]]


def plain(setting: Setting, threshold: float) -> tuple[list[int], int, int, int]:
    """Images that exit at each exit, multiply-adds in all, right ones, lost ones."""
    sure, right, macs = setting
    exited, total, good, lost = [0] * len(macs), 0, 0, 0
    for image in range(right.shape[1]):
        exits = [index for index in range(len(macs) - 1) if sure[index, image] >= threshold]
        exit = exits[0] if exits else len(macs) - 1
        exited[exit] += 1
        total += macs[exit]
        good += int(right[exit, image])
        lost += int(right[-1, image] and not right[exit, image])
    return exited, total, good, lost


@st.composite
def settings_of_exits(draw: st.DrawFn) -> Setting:
    """Few different confidences, so that many are equal; some are NaN."""
    exits, images = draw(st.integers(2, 4)), draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng([seed])
    grid = np.array([np.nan, 0, 0.25, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.9, 1], np.float32)
    sure = random.choice(grid, (exits - 1, images))
    macs = np.cumsum(random.integers(1, 50, exits)).tolist()
    return sure, random.random((exits, images)) < 0.7, macs


@settings(max_examples=150, deadline=None)
@given(settings_of_exits())
def test_every_threshold_does_what_a_loop_finds(setting: Setting) -> None:
    sure, right, macs = setting
    curve = threshold_curve(sure, right, macs)
    assert (curve.images, curve.thresholds[0], curve.thresholds[-1]) == (right.shape[1], 0, NEVER)
    assert (np.diff(curve.thresholds) > 0).all()
    for index, threshold in enumerate(curve.thresholds):
        exited, total, good, lost = plain(setting, threshold)
        assert curve.exited[index].tolist() == exited
        assert (curve.right[index], curve.lost[index]) == (good, lost)
        assert curve.mean_macs[index] == total / curve.images
        assert curve.top1[index] == good / curve.images
    # Whatever threshold a user might try, one of these does the same.
    there = {tuple(row) for row in curve.exited.tolist()}
    for tried in [*sure[np.isfinite(sure)], 0.1, 0.3, 0.7, 0.95]:
        assert tuple(plain(setting, tried)[0]) in there


@settings(max_examples=150, deadline=None)
@given(settings_of_exits(), st.integers(0, 60), st.floats(0, 1))
def test_wishes_are_kept_as_well_as_can_be(setting: Setting, limit: int, top1: float) -> None:
    curve = threshold_curve(*setting)
    images = curve.images
    found = [(total, good, lost) for _, total, good, lost in (plain(setting, t) for t in curve.thresholds)]
    kept = [(good, -total) for total, good, _ in found if total <= limit * images]
    if kept:
        total, good, _ = found[curve.within(limit)]
        assert (good, -total) == max(kept)
    else:
        with pytest.raises(UserError, match=r"limit macs \(\d+\)") as refused:
            curve.within(limit)
        least = int(str(refused.value).partition("(")[2].partition("(")[2].partition(")")[0])
        assert curve.within(least) >= 0
        with pytest.raises(UserError):
            curve.within(least - 1)
    reached = [(-total, good) for total, good, _ in found if good / images >= top1]
    if reached:
        total, good, _ = found[curve.reaching(top1)]
        assert (-total, good) == max(reached)
    else:
        with pytest.raises(UserError, match="than any threshold reaches on validation: give up to") as refused:
            curve.reaching(top1)
        assert curve.reaching(float(str(refused.value).rpartition(" ")[2])) >= 0
    total, good, lost = found[curve.harmless(None)]
    assert lost == 0
    assert total == min(total for total, _, lost in found if lost == 0)
    # Under a bound, what may hide among those that exit early is at most so much of all images.
    early = images - curve.exited[:, -1]
    most = max(count for count, (_, _, lost) in zip(early, found, strict=True) if lost == 0)
    bounded = curve.harmless(0.25)
    assert found[bounded][2] == 0
    assert most == 0 or early[bounded] / images * 3 / most <= 0.25
    assert found[bounded][0] >= total
    if images >= 12:
        assert bounded == curve.harmless(None)


def test_of_equals_the_most_cautious_threshold_is_taken() -> None:
    sure = np.array([[0.5, 0.5, 0.9], [0.6, 0.6, 0.1]], np.float32)
    curve = threshold_curve(sure, np.ones((3, 3), bool), [1, 2, 4])
    assert curve.thresholds[curve.within(1)] == np.float32(0.1 / 2 + 0.5 / 2)
    assert curve.thresholds.tolist() == pytest.approx([0, 0.3, 0.55, 0.75, NEVER])


def test_neighbouring_floats_are_told_apart() -> None:
    low = np.float32(0.75)
    high = np.nextafter(low, np.float32(1))
    curve = threshold_curve(np.array([[low, high]]), np.ones((2, 2), bool), [1, 2])
    assert curve.exited.tolist() == [[2, 0], [1, 1], [0, 2]]


def test_no_sure_image_leaves_no_choice() -> None:
    curve = threshold_curve(np.full((1, 3), np.nan, np.float32), np.ones((2, 3), bool), [10, 20])
    assert curve.exited.tolist() == [[0, 3]] * 2
    with pytest.raises(UserError, match="at least 20"):
        curve.within(19)


def many(count: int) -> ThresholdCurve:
    random = np.random.default_rng([7])
    return threshold_curve(random.random((2, count), np.float32), random.random((3, count)) < 0.5, [100, 300, 900])


@pytest.mark.parametrize("count", [2, 7, 50])
def test_a_spread_has_both_ends_and_even_steps(count: int) -> None:
    curve = many(400)
    indices = curve.spread(count)
    assert (indices[0], indices[-1]) == (0, len(curve.thresholds) - 1)
    assert len(indices) <= count
    gaps = np.diff(curve.mean_macs[indices])
    assert gaps.max() <= 800 / (count - 1) + 8
