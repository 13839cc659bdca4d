from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofav2.errors import UserError
from ofav2.report.networks import Measured, cheapest_near_best, front, front_of, part_costs, part_names, tables
from ofav2.runs.records import Run
from ofav2.runs.snapshot import read_snapshot
from ofav2.tasks.base import Metric
from ofav2.tasks.classification import TOP1
from supernets.cost import Cost
from supernets.subnet_cost import subnet_cost
from tests.ofav2.changes import change_lines
from tests.ofav2.tiny import SIX_PHASES, tiny_net

SUBNET = tiny_net("se_b").space.smallest()
ERROR = Metric("MAE", "digits", higher_is_better=False)
POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12)


def measured(points: list[tuple[int, int]]) -> list[Measured]:
    return [Measured(SUBNET, Cost(1, macs), top1 / 9) for macs, top1 in sorted(points)]


def test_a_front_of_points_in_any_order() -> None:
    rng = np.random.default_rng(0)
    points = [(int(macs), int(top1) / 30) for macs, top1 in rng.integers(1, 30, size=(60, 2))]
    beaten = {
        one for one in points if any(other[0] <= one[0] and other[1] >= one[1] and other != one for other in points)
    }
    assert [points[index] for index in front_of(points)] == sorted(set(points) - beaten)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    networks = measured(points)
    best = {
        (one.cost.macs, one.score)
        for one in networks
        if not any(
            other.cost.macs <= one.cost.macs
            and other.score >= one.score
            and (other.cost.macs, other.score) != (one.cost.macs, one.score)
            for other in networks
        )
    }
    found = [(networks[index].cost.macs, networks[index].score) for index in front(networks, TOP1)]
    assert found == sorted(best)


@given(POINTS)
def test_the_cheapest_near_the_best(points: list[tuple[int, int]]) -> None:
    networks = measured(points)
    near = [n.cost.macs for n in networks if n.score >= max(m.score for m in networks) - 0.01]
    found = cheapest_near_best(networks, TOP1)
    assert (found.cost.macs if found else None) == (min(near) if near else None)


@given(POINTS)
def test_a_front_of_errors_is_that_of_their_negatives(points: list[tuple[int, int]]) -> None:
    networks = measured(points)
    negatives = [replace(network, score=-network.score) for network in networks]
    assert front(networks, ERROR) == front(negatives, replace(ERROR, higher_is_better=True))


def test_the_cheapest_near_the_best_error_is_within_a_percent_of_the_lowest() -> None:
    scores = (2.03, 2.02, 2.0, 9.0)
    networks = [
        replace(network, score=score)
        for network, score in zip(measured([(1, 0), (2, 0), (3, 0), (4, 0)]), scores, strict=True)
    ]
    assert cheapest_near_best(networks, ERROR) == networks[1]


def test_tables_hold_the_corners_of_every_phase_and_of_the_test(tiny_run: Run) -> None:
    run = read_snapshot(tiny_run.folder)
    found = tables(run)
    assert [table.name for table in found] == [*(f"{name}/corners" for name in SIX_PHASES), "test/corners"]
    for table, space in zip(
        found, [*(phase.space for phase in run.record.phases), run.record.phases[-1].space], strict=True
    ):
        assert {network.subnet for network in table.networks} == set(space.corners())
    assert [table.split for table in found] == ["validation"] * 6 + ["test"]


def test_accuracies_stay_with_their_networks(tiny_run: Run) -> None:
    run = read_snapshot(tiny_run.folder)
    top1 = {network.subnet: network.score for network in tables(run)[-1].networks}
    space, test = run.record.phases[-1].space, run.record.test
    assert test is not None
    assert (top1[space.largest()], top1[space.smallest()]) == (test.largest, test.smallest)


def test_networks_that_are_not_uniform_bring_their_description(run_copy: Path) -> None:
    space = read_snapshot(run_copy).record.space
    drawn = [space.sample(np.random.default_rng([number])) for number in range(5)]

    def add(lines: list[dict[str, object]]) -> None:
        rows = [[subnet.to_json(), 1, number / 5] for number, subnet in enumerate(drawn)]
        lines.append(
            {"kind": "table", "name": "chosen", "time": 1.5, "columns": ["subnet", "macs", "top-1"], "rows": rows}
        )

    change_lines(run_copy, add)
    found = {network.subnet: network.score for network in tables(read_snapshot(run_copy))[-1].networks}
    assert found == {subnet: number / 5 for number, subnet in enumerate(drawn)}


@pytest.mark.parametrize(
    "row", [[99, 3], ["16", 3, 2, 1, "mbconv", 5, 1, 1, 0.5], [16, 4, 2, 1, "mbconv", 5, 1, 1, 0.5]]
)
def test_a_damaged_row_names_the_file(run_copy: Path, row: list[object]) -> None:
    def damage(lines: list[dict[str, object]]) -> None:
        next(line for line in lines if line["kind"] == "table")["rows"] = [row]

    change_lines(run_copy, damage)
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        tables(read_snapshot(run_copy))


@pytest.mark.parametrize("variant", ["se_b", "ee_dp"])
def test_parts_add_up(variant: str) -> None:
    net = tiny_net(variant)
    for number in range(20):
        subnet = net.space.sample(np.random.default_rng([number]))
        parts, whole = part_costs(net.architecture, subnet), subnet_cost(net.architecture, subnet)
        assert len(parts) == len(part_names(net.architecture))
        assert sum(part.macs for part in parts) == whole.macs
        assert sum(part.params for part in parts) == whole.params
        assert all(part.macs == 0 for part in parts[1 + subnet.height : -1])
