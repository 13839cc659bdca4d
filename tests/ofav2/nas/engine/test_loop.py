"""The search: it finds the front, can be resumed anywhere, and leaves global state alone."""

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ofav2.nas.engine.archive import Archive
from ofav2.nas.engine.fronts import hypervolume, on_front
from ofav2.nas.engine.loop import Event, Learned, Measured, Picked, Settings, first_reference, search
from ofav2.nas.engine.problem import Floats
from tests.ofav2.nas.engine.tables import SmallTable

QUICK = Settings(start=8, batch=6, population=24, generations=6, predictor="ridge")


def events(table: SmallTable, *, settings: Settings = QUICK, seed: int = 0, measurements: int = 26, **more: Any) -> Any:
    return list(search(table, settings, seed=seed, measurements=measurements, **more))


def plain(event: Event) -> tuple[Any, ...]:
    """An event as values that can be compared."""
    if isinstance(event, Picked):
        return event.round, event.bodies.tolist(), event.why, [values.tolist() for values in event.predicted]
    if isinstance(event, Measured):
        return event.round, event.body, event.losses.tolist()
    return event.round, event.networks, event.hypervolume, event.reference, event.tau


def archive(table: SmallTable, happened: list[Event]) -> Archive:
    found, bodies = Archive.empty(table), np.zeros((0, 6), np.int64)
    for event in happened:
        if isinstance(event, Picked):
            bodies = event.bodies
        if isinstance(event, Measured):
            found = found.plus(table, table.nested(bodies[event.body]), event.losses)
    return found


def points(table: SmallTable, found: Archive) -> Floats:
    return np.concatenate([table.true(found.genes)[:, None], table.costs(found.genes)], 1)


@pytest.mark.parametrize(
    ("costs", "most", "noise"), [(1, np.inf, 0.2), (1, 9.0, 0.0), (2, np.inf, 0.2), (3, 12.0, 0.2)]
)
def test_most_of_the_front_is_found_by_measuring_a_sixth(costs: int, most: float, noise: float) -> None:
    table = SmallTable(most=most, costs_count=costs, noise=noise)
    every = table.everything()
    truth = np.concatenate([table.true(every)[:, None], table.costs(every)], 1)
    found = archive(table, events(table, settings=replace(QUICK, predictor="ensemble"), measurements=40))
    reference = truth.max(0) + 1
    assert hypervolume(points(table, found), reference) >= 0.98 * hypervolume(truth, reference)


def test_every_measured_network_is_canonical_keeps_the_limit_and_is_measured_once() -> None:
    table = SmallTable(most=11.0)
    found = archive(table, events(table))
    assert len(np.unique(found.genes, axis=0)) == len(found)
    assert (table.canonical(found.genes) == found.genes).all()
    assert (found.costs[:, 0] <= 11.0).all()
    assert len(table.measured) == len(set(table.measured)) == 26


def test_a_body_is_measured_only_for_networks_that_are_new() -> None:
    table = SmallTable()
    seen: set[bytes] = set()
    bodies = np.zeros((0, 6), np.int64)
    for event in events(table):
        if isinstance(event, Picked):
            bodies = event.bodies
            assert all({row.tobytes() for row in table.nested(body)} - seen for body in bodies)
        if isinstance(event, Measured):
            seen |= {row.tobytes() for row in table.nested(bodies[event.body])}


def test_a_search_goes_on_from_every_event_as_if_it_had_not_stopped() -> None:
    whole = events(SmallTable(noise=0.1))
    for count in range(len(whole) + 1):
        table = SmallTable(noise=0.1)
        rest = events(table, past=whole[:count])
        assert [plain(event) for event in rest] == [plain(event) for event in whole[count:]]
        # What was measured before is not measured again.
        assert len(table.measured) == sum(isinstance(event, Measured) for event in rest)


def test_one_seed_makes_one_search_and_another_seed_another_one() -> None:
    first, again, other = (events(SmallTable(), seed=seed) for seed in (3, 3, 4))
    assert [plain(event) for event in first] == [plain(event) for event in again]
    assert [plain(event) for event in first] != [plain(event) for event in other]


def test_rounds_draw_different_numbers() -> None:
    (first, second, *_) = (event for event in events(SmallTable()) if isinstance(event, Picked) and event.round)
    assert first.bodies.tolist() != second.bodies.tolist()


def test_global_random_states_are_untouched() -> None:
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    events(SmallTable(costs_count=2), settings=replace(QUICK, predictor="ensemble"))
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]


@pytest.mark.parametrize("measurements", [1, 5, 8, 9, 26])
def test_the_budget_is_kept_to_the_body(measurements: int) -> None:
    happened = events(SmallTable(), measurements=measurements)
    assert sum(isinstance(event, Measured) for event in happened) == measurements


def test_a_search_ends_when_nothing_is_left_to_measure() -> None:
    table = SmallTable(most=3.0)
    found = archive(table, events(table, measurements=500))
    assert 0 < len(found) <= len(table.everything())


def test_a_search_stops_after_the_measurement_at_which_it_is_asked_to() -> None:
    table = SmallTable()
    happened = events(table, stop=lambda: len(table.measured) >= 11)
    assert sum(isinstance(event, Measured) for event in happened) == 11
    assert isinstance(happened[-1], Measured)


def test_the_reference_point_is_fixed_after_the_first_round_and_hypervolume_never_falls() -> None:
    learned = [event for event in events(SmallTable()) if isinstance(event, Learned)]
    assert len({event.reference for event in learned}) == 1
    volumes = [event.hypervolume for event in learned]
    assert volumes == sorted(volumes)
    assert all(event.tau is not None and math.isfinite(event.tau) for event in learned[1:])


def test_the_reference_point_is_the_worst_loss_of_the_front_and_the_highest_costs() -> None:
    table = SmallTable()
    every = table.everything()
    found = Archive(every, table.true(every), table.costs(every))
    front = found.points[on_front(found.points)]
    assert first_reference(found, None).tolist() == [front[:, 0].max(), found.costs.max()]
    assert first_reference(found, -1.5)[0] == -1.5


def test_equal_losses_everywhere_are_searched_too() -> None:
    class Flat(SmallTable):
        def true(self, genes: Any) -> Floats:
            return np.zeros(len(genes))

    assert sum(isinstance(event, Measured) for event in events(Flat())) == 26
