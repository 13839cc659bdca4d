"""The search: it finds the front, can be resumed anywhere, and leaves global state alone."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from ofav2.nas.engine.archive import Archive
from ofav2.nas.engine.features import Features
from ofav2.nas.engine.fronts import hypervolume, on_front
from ofav2.nas.engine.loop import Event, Learned, Measured, Picked, SearchSettings, first_reference, search, trust
from ofav2.nas.engine.predictors import Prediction
from ofav2.nas.engine.problem import Floats
from tests.ofav2.nas.engine.tables import SmallTable

QUICK = SearchSettings(start=8, batch=6, population=24, generations=6, predictor="ridge")


def events(
    table: SmallTable, *, settings: SearchSettings = QUICK, seed: int = 0, measurements: int = 26, **more: Any
) -> Any:
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


@pytest.mark.parametrize(("costs", "most", "noise"), [(1, 9.0, 0.0), (3, 12.0, 0.2)])
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


def test_the_reference_point_is_a_hundredth_worse_than_the_fronts_worst_loss_and_the_highest_costs() -> None:
    table = SmallTable()
    every = table.everything()
    found = Archive(every, table.true(every), table.costs(every))
    front, spans = found.points[on_front(found.points)], np.ptp(found.points, axis=0)
    expected = [front[:, 0].max() + 0.01 * spans[0], found.costs.max() + 0.01 * spans[1]]
    assert first_reference(found, None) == pytest.approx(expected)
    assert first_reference(found, -1.5)[0] == -1.5


def test_networks_that_all_cost_the_same_still_gain() -> None:
    """Memory is a maximum over parts, and often the same for all networks."""

    class Even(SmallTable):
        def costs(self, genes: Any) -> Floats:
            return np.full((len(genes), 1), 512.0)

    table = Even()
    happened = events(table)
    learned = [event for event in happened if isinstance(event, Learned)]
    assert learned[0].hypervolume > 0
    assert "gain" in {why for event in happened if isinstance(event, Picked) for why in event.why}
    assert points(table, archive(table, happened))[:, 0].min() == table.true(table.everything()).min()


def test_without_costs_the_one_best_network_is_found_from_networks_that_are_given() -> None:
    class Free(SmallTable):
        def costs(self, genes: Any) -> Floats:
            return np.zeros((len(genes), 0))

        def traits(self, genes: Any) -> list[Floats]:
            return [super().costs(genes)]

        def repair(self, genes: Any, rng: np.random.Generator) -> Any:
            return self.canonical(genes)

    table, every = Free(noise=0.1), SmallTable().everything()
    given = every[np.argsort(table.true(every))[-8:]]
    first = Picked(0, given, ("first",) * 8, ())
    settings = replace(QUICK, picker="best")
    found = archive(table, [first, *events(table, settings=settings, measurements=30, past=[first])])
    assert table.true(given).min() > table.true(found.genes).min() == table.true(every).min()


def test_a_search_that_is_stopped_when_it_goes_on_measures_nothing_more() -> None:
    whole = events(SmallTable())
    for count in (3, 5, len(whole) - 2):
        table = SmallTable()
        assert not any(isinstance(event, Measured) for event in events(table, past=whole[:count], stop=lambda: True))
        assert table.measured == []


def test_a_predictor_and_a_picker_of_ones_own_are_used() -> None:
    class Nearest:
        """Predict the loss of the most similar measured network."""

        def fit(self, features: Features, losses: Floats) -> Any:
            def predict(given: Features) -> Prediction:
                gaps = np.linalg.norm(given.values[:, None] - features.values, axis=2)
                return Prediction(losses[gaps.argmin(1)], gaps.min(1))

            return SimpleNamespace(left_out=Prediction(losses, losses), predict=predict, mean=lambda g: predict(g).mean)

    def last_ones(known: Any, families: Any, reference: Any, count: int, rng: Any) -> list[int]:
        return list(range(len(families)))[-count:]

    settings = replace(QUICK, predictor="nearest", picker="last")
    happened = events(SmallTable(), settings=settings, predictors={"nearest": Nearest()}, pickers={"last": last_ones})
    assert sum(isinstance(event, Measured) for event in happened) == 26
    assert {why for event in happened if isinstance(event, Picked) and event.round for why in event.why} == {"gain"}


def test_equal_losses_everywhere_are_searched_too() -> None:
    class Flat(SmallTable):
        def true(self, genes: Any) -> Floats:
            return np.zeros(len(genes))

    assert sum(isinstance(event, Measured) for event in events(Flat())) == 26


def test_a_predictor_that_ranks_badly_picks_less() -> None:
    losses = np.arange(20.0)
    assert trust(losses, losses) == 1.0
    assert trust(-losses, losses) == 0.25
    assert trust(-losses[:9], losses[:9]) == 1.0, "nine networks say too little"
    # 66 of 190 pairs are in the wrong order, so tau is 58 / 190.
    assert trust(np.concatenate([losses[:12][::-1], losses[12:]]), losses) == pytest.approx(58 / 190 / 0.5)

    class Wrong:
        """Predict the opposite."""

        def fit(self, features: Features, losses: Floats) -> Any:
            def predict(given: Features) -> Prediction:
                return Prediction(given.values.sum(1), np.zeros(len(given.values)))

            return SimpleNamespace(left_out=Prediction(losses, losses), predict=predict, mean=lambda g: predict(g).mean)

    happened = events(SmallTable(exits=1), settings=replace(QUICK, predictor="wrong"), predictors={"wrong": Wrong()})
    picked = [event for event in happened if isinstance(event, Picked)]
    assert [len(event.bodies) for event in picked] == [8, 6, 6, 6]
    assert picked[3].why.count("gain") <= 2


def test_a_predictor_is_judged_by_networks_that_it_was_not_fitted_on_each_once() -> None:
    """Shorter networks of a body may have been measured before, which anyone ranks well, or by another of the round."""
    table, known, picked, again, shared = SmallTable(exits=5, noise=3.0), set(), [], 0, 0
    for event in events(table, measurements=50):
        if isinstance(event, Picked):
            picked, rows = event, []
        elif isinstance(event, Measured):
            genes = table.nested(picked.bodies[event.body])
            predicted = picked.predicted[event.body] if picked.predicted else np.zeros(len(genes))
            rows += zip(map(bytes, genes), predicted, event.losses, strict=True)
        elif isinstance(event, Learned):
            new = {name: values for name, *values in rows if name not in known}
            if event.round and len(new) > 1:
                assert event.tau == pytest.approx(kendalltau(*zip(*new.values(), strict=True)).statistic, nan_ok=True)
                names = [name for name, *_ in rows]
                again += not known.isdisjoint(names)
                shared += len(set(names)) < len(names)
            known |= {name for name, *_ in rows}
    assert again, "some networks were known"
    assert shared, "some are of two bodies"
