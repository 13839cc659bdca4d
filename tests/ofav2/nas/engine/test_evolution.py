"""Evolution: what it breeds is canonical and within the limits, and better than what it started from."""

import numpy as np
import pytest
from pymoo.core.duplicate import DefaultDuplicateElimination

from ofav2.nas.engine import evolution
from ofav2.nas.engine.evolution import evolve
from ofav2.nas.engine.fronts import hypervolume
from ofav2.nas.engine.problem import Floats, Genes
from ofav2.nas.engine.start import first_bodies, spread_networks
from tests.ofav2.nas.engine.tables import SmallTable


@pytest.mark.parametrize("costs", [1, 2, 3])
def test_only_canonical_networks_within_the_limits_are_ever_looked_at(costs: int) -> None:
    table, rng = SmallTable(most=12.0, costs_count=costs), np.random.default_rng(0)
    looked: list[Genes] = []

    def objectives(genes: Genes) -> Floats:
        looked.append(genes)
        return np.concatenate([table.true(genes)[:, None], table.costs(genes)], 1)

    start = np.unique(spread_networks(table, rng, 20), axis=0)
    found = evolve(table, objectives, start, generations=8, rng=rng)
    every = np.concatenate(looked)
    assert (table.canonical(every) == every).all()
    assert (table.costs(every)[:, 0] <= 12.0).all()
    reference = objectives(table.everything()).max(0) + 1
    assert hypervolume(objectives(found), reference) > hypervolume(objectives(start), reference)


@pytest.mark.parametrize("population", [1, 2, 3, 4])
def test_fewer_networks_than_objectives_are_bred_without_a_warning(
    population: int, capsys: pytest.CaptureFixture[str]
) -> None:
    table, rng = SmallTable(costs_count=3), np.random.default_rng(0)
    start = np.unique(spread_networks(table, rng, 20), axis=0)[:population]
    objectives = lambda genes: np.concatenate([table.true(genes)[:, None], table.costs(genes)], 1)  # noqa: E731
    assert len(evolve(table, objectives, start, generations=3, rng=rng)) == population
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("costs", [1, 2])
def test_equal_generators_breed_equal_populations(costs: int) -> None:
    table = SmallTable(costs_count=costs)

    def bred(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        start = np.unique(spread_networks(table, rng, 20), axis=0)
        objectives = lambda genes: np.concatenate([table.true(genes)[:, None], table.costs(genes)], 1)  # noqa: E731
        return evolve(table, objectives, start, generations=3, rng=rng).tolist()  # type: ignore[no-any-return]

    assert bred(1) == bred(1) != bred(2)


def test_equal_networks_are_left_out_as_pymoo_does(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SmallTable()

    def bred() -> list[list[int]]:
        rng = np.random.default_rng(0)
        objectives = lambda genes: np.concatenate([table.true(genes)[:, None], table.costs(genes)], 1)  # noqa: E731
        start = spread_networks(table, rng, 20)
        assert len(np.unique(start, axis=0)) < len(start)
        return evolve(table, objectives, start, generations=6, rng=rng).tolist()  # type: ignore[no-any-return]

    found = bred()
    assert len(np.unique(found, axis=0)) == len(found)
    monkeypatch.setattr(evolution, "_LeaveOutEqual", DefaultDuplicateElimination)
    assert bred() == found


def test_a_problem_that_cannot_be_copied_is_searched() -> None:
    """One of a supernet holds all weights and images, which may be mapped files."""

    class Single(SmallTable):
        def __deepcopy__(self, memo: object) -> "Single":
            raise TypeError("cannot pickle 'mmap.mmap' object")

    table, rng = Single(), np.random.default_rng(0)
    start = np.unique(spread_networks(table, rng, 20), axis=0)
    assert len(evolve(table, lambda genes: table.true(genes)[:, None], start, generations=2, rng=rng)) == len(start)


def test_first_bodies_differ_hold_the_anchors_and_are_as_many_as_asked_for() -> None:
    table = SmallTable()
    for count in (1, 4, 20):
        bodies = first_bodies(table, np.random.default_rng(0), count)
        assert len(bodies) == len(np.unique(bodies, axis=0)) == count
    assert {row.tobytes() for row in table.anchors()} <= {row.tobytes() for row in bodies}
