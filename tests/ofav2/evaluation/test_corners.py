"""The corner table says what each network is, what it costs and how it did."""

import pytest

from ofav2.evaluation.corners import (
    SUMMARY_COLUMNS,
    by_cost,
    chosen_corners,
    columns,
    corner_row,
    keeps_mbconv,
    summary_rows,
    usable,
    usable_mean,
)
from ofav2.evaluation.evaluator import Score
from ofav2.tasks.classification import TOP1
from supernets.space import DIMENSIONS
from supernets.subnet_cost import subnet_cost
from tests.ofav2.tiny import tiny_net

NET = tiny_net("ee_dp")
SPACE = NET.space


def test_a_row_names_choices_cost_and_accuracy() -> None:
    subnet = SPACE.uniform(kernel=3, expand=2, depth=1, level=("mbconv", "conv"), height=4, resolution=16)
    row = dict(zip(columns((TOP1,)), corner_row(NET.architecture, Score(subnet, 0.625, 40)), strict=True))
    cost = subnet_cost(NET.architecture, subnet)
    assert row == {
        "resolution": 16,
        "kernel": 3,
        "expand": 2,
        "depth": 1,
        "level": "mbconv+conv",
        "exit": 4,
        "params": cost.params,
        "macs": cost.macs,
        "top-1": 0.625,
    }


def test_without_its_mbconv_branch_a_network_has_neither_kernel_nor_expand() -> None:
    subnet = SPACE.uniform(level=("transform",))
    row = dict(zip(columns((TOP1,)), corner_row(NET.architecture, Score(subnet, 0.5, 40)), strict=True))
    assert (row["kernel"], row["expand"], row["level"]) == (None, None, "transform")


def test_every_corner_has_a_row_of_its_own() -> None:
    corners = SPACE.corners()
    rows = {corner_row(NET.architecture, Score(subnet, 0.5, 40)) for subnet in corners}
    assert len(rows) == len(corners)
    assert all(len(row) == len(columns((TOP1,))) for row in rows)


def test_the_mean_is_over_networks_that_are_meant_to_be_used() -> None:
    corners = SPACE.corners()
    scores = {subnet: 0.75 if keeps_mbconv(subnet) else 0.1 for subnet in corners}
    kept = usable(corners)
    assert 0 < len(kept) < len(corners)
    assert all(map(keeps_mbconv, kept))
    assert usable_mean(scores) == 0.75
    lacking = [subnet for subnet in corners if not keeps_mbconv(subnet)]
    assert usable(lacking) == tuple(lacking), "networks of timm have no such branch at all"


def test_which_networks_keep_the_mbconv_branch() -> None:
    assert keeps_mbconv(SPACE.largest())
    assert keeps_mbconv(SPACE.uniform(level=1))
    assert not keeps_mbconv(SPACE.uniform(level=("conv", "transform")))
    fields = SPACE.largest().to_dict()
    fields["level"][2][1] = ["conv"]
    assert not keeps_mbconv(type(SPACE.largest()).from_dict(fields)), "one block without is enough"


def test_the_corner_summary_has_worst_mean_and_best_per_exit() -> None:
    with_it = [
        Score(SPACE.uniform(height=h, kernel=k), top1, 40) for h, k, top1 in ((2, 3, 0.5), (2, 5, 0.75), (5, 5, 1))
    ]
    without = [Score(SPACE.uniform(height=2, level=("conv",)), 0.125, 40)]
    rows = summary_rows([*without, *with_it], TOP1)
    assert [len(row) for row in rows] == [len(SUMMARY_COLUMNS)] * 3
    assert rows == [
        (2, 2, "50.0 %", "62.5 %", "75.0 %"),
        (5, 1, "100.0 %", "100.0 %", "100.0 %"),
        ("without MBConv, not to be used", 1, "12.5 %", "12.5 %", "12.5 %"),
    ]
    assert summary_rows([], TOP1) == []


@pytest.mark.parametrize("turned", [False, True])
def test_rows_run_from_the_most_expensive_to_the_cheapest(turned: bool) -> None:
    scores = [Score(subnet, 0.5, 40) for subnet in SPACE.corners()]
    macs = [
        subnet_cost(NET.architecture, score.subnet).macs
        for score in by_cost(NET.architecture, scores[:: -1 if turned else 1])
    ]
    assert macs == sorted(macs, reverse=True)
    assert len(macs) == len(scores)


def test_a_recipe_chooses_all_corners_or_the_ends_or_none() -> None:
    assert chosen_corners(SPACE, "all") == SPACE.corners()
    assert chosen_corners(SPACE, "ends") == (SPACE.largest(), SPACE.smallest())
    assert chosen_corners(SPACE, "none") == ()
    one = SPACE.restrict(**{name: getattr(SPACE, name)[-1:] for name in DIMENSIONS})
    assert one.largest() == one.smallest()
    assert chosen_corners(one, "ends") == (one.largest(),), "each once"
