"""Search: measure some networks, learn from all measurements, evolve on predictions, pick what to measure next.

A round is a pure function of earlier events, of the seed and of the round's number. So a search that stored its events
goes on from any of them as if it had not stopped.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import kendalltau

from ofav2.nas.engine.archive import Archive
from ofav2.nas.engine.belief import Belief, learn
from ofav2.nas.engine.evolution import evolve
from ofav2.nas.engine.fronts import hypervolume, on_front
from ofav2.nas.engine.picking import PICKERS
from ofav2.nas.engine.predictors import PREDICTORS
from ofav2.nas.engine.problem import Floats, Genes, Problem
from ofav2.nas.engine.start import first_bodies, spread_networks
from ofav2.rng import generator

MIN_LEARNABLE = 2
"""Networks from which something can be predicted."""


@dataclass(frozen=True)
class Settings:
    """How to search."""

    start: int = 50
    """Bodies that are measured before anything is predicted."""
    batch: int = 25
    """Bodies of each further round."""
    population: int = 200
    """Networks of the inner evolution."""
    generations: int = 30
    """Its generations."""
    predictor: str = "ensemble"
    """Name of the predictor."""
    picker: str = "gain"
    """Name of the picker."""
    optimism: float = 2.0
    """Standard deviations by which candidates are taken to be better than predicted: what is unknown gets a chance."""
    worst_loss: float | None = None
    """The worst loss that counts; None takes that of the first round's front."""


@dataclass(frozen=True, eq=False)
class Picked:
    """Bodies that a round is going to measure."""

    round: int
    """Number of the round, from 0."""
    bodies: Genes
    """The bodies (N, genes)."""
    why: tuple[str, ...]
    """Why each was picked: `first`, `gain` or `spread`."""
    predicted: tuple[Floats, ...]
    """Predicted losses of each body's nested networks; nothing in round 0."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A body was measured."""

    round: int
    """Number of the round."""
    body: int
    """Its place among the round's bodies, from 0."""
    losses: Floats
    """Losses of its nested networks."""


@dataclass(frozen=True)
class Learned:
    """A round is over."""

    round: int
    """Number of the round."""
    networks: int
    """Networks in the archive."""
    hypervolume: float
    """Hypervolume of the archive's front, as measured, up to the reference point."""
    reference: tuple[float, ...]
    """The worst objectives that count; fixed after round 0."""
    tau: float | None
    """Kendall's rank correlation of the round's predicted and measured losses; None where there are none."""


Event = Picked | Measured | Learned
_E = TypeVar("_E", Picked, Measured, Learned)


def search(
    problem: Problem,
    settings: Settings,
    *,
    seed: int,
    measurements: int,
    past: Iterable[Event] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Search, and yield what happens; whoever stores all events can go on from any prefix of them.

    Args:
        problem: What to search.
        settings: How.
        seed: Seed of all random numbers.
        measurements: Bodies to measure; fewer where the space holds no others.
        past: Events of a search with the same problem, settings and seed; they are not yielded again.
        stop: Asked after each measurement and before each round but the first; the search ends where it returns True.
    """
    old = deque(past)
    archive, reference, number, done = Archive.empty(problem), np.zeros(0), 0, 0
    while done < measurements and not (done and stop()):
        picked = _old(old, Picked)
        if picked is None:
            count = min(settings.batch if number else settings.start, measurements - done)
            rng = generator("search", seed, number)
            picked = _propose(problem, archive, reference, settings, number, count, rng)
            if not len(picked.bodies):
                return
            yield picked
        nested = [problem.nested(body) for body in picked.bodies]
        losses: dict[int, Floats] = {}
        while measured := _old(old, Measured):
            losses[measured.body] = measured.losses
        left = [body for body in range(len(nested)) if body not in losses]
        for place, found in problem.measure(picked.bodies[left]) if left else ():
            losses[left[place]] = found
            yield Measured(number, left[place], found)
            if stop():
                return
        for body, genes in enumerate(nested):
            archive = archive.plus(problem, genes, losses[body])
        reference = reference if number else first_reference(archive, settings.worst_loss)
        if not _old(old, Learned):
            tau = _rank_correlation(picked.predicted, [losses[body] for body in range(len(nested))])
            volume = hypervolume(archive.points, reference)
            yield Learned(number, len(archive), volume, tuple(reference.tolist()), tau)
        done, number = done + len(nested), number + 1


def first_reference(archive: Archive, worst_loss: float | None) -> Floats:
    """Return the worst objectives that count: the worst loss on the front of an archive, and its highest costs."""
    points = archive.points
    worst = points[on_front(points), 0].max() if worst_loss is None else worst_loss
    return np.concatenate([[worst], archive.costs.max(0)])


def _old(events: deque[Event], kind: type[_E]) -> _E | None:
    """Return the next old event if it is of a kind."""
    return events.popleft() if events and isinstance(events[0], kind) else None  # type: ignore[return-value]


def _propose(
    problem: Problem,
    archive: Archive,
    reference: Floats,
    settings: Settings,
    number: int,
    count: int,
    rng: np.random.Generator,
) -> Picked:
    if not number:
        bodies = first_bodies(problem, rng, count)
        return Picked(number, bodies, ("first",) * len(bodies), ())
    if len(archive) < MIN_LEARNABLE:
        # The limits leave one network, which is measured.
        return Picked(number, archive.genes[:0], (), ())
    belief = learn(problem, archive, PREDICTORS[settings.predictor])
    found = _evolved(problem, belief, settings, rng)
    new = [(body, genes[archive.lacks(genes)]) for body in found for genes in [problem.nested(body)]]
    new = [(body, genes) for body, genes in new if len(genes)]
    if not new:
        return Picked(number, found[:0], (), ())
    families = _split(
        belief.hoped(np.concatenate([genes for _, genes in new]), settings.optimism), [len(genes) for _, genes in new]
    )
    scale = np.maximum(np.abs(reference), 1e-12)
    picked = PICKERS[settings.picker](
        belief.points / scale, [family / scale for family in families], reference / scale, count, rng
    )
    others = [index for index in range(len(new)) if index not in set(picked)]
    spread = [others[place] for place in rng.permutation(len(others))[: count - len(picked)]]
    bodies = np.array([new[index][0] for index in [*picked, *spread]])
    nested = [problem.nested(body) for body in bodies]
    predicted = _split(belief.losses(np.concatenate(nested)), [len(genes) for genes in nested])
    return Picked(number, bodies, ("gain",) * len(picked) + ("spread",) * len(spread), tuple(predicted))


def _evolved(problem: Problem, belief: Belief, settings: Settings, rng: np.random.Generator) -> Genes:
    """Return different networks that are good by prediction: bred from the archive's front and from random ones."""
    front = belief.archive.genes[on_front(belief.points)]
    others = spread_networks(problem, rng, settings.population)
    start = np.concatenate([front, others])
    firsts = np.sort(np.unique(start, axis=0, return_index=True)[1])
    start = start[firsts][: settings.population]
    found = evolve(
        problem,
        lambda genes: belief.hoped(genes, settings.optimism),
        start,
        generations=settings.generations,
        rng=rng,
    )
    # Where evolution ends at what is known, the random ones are new.
    return np.unique(np.concatenate([found, others]), axis=0)


def _split(values: Floats, sizes: Sequence[int]) -> list[Floats]:
    return np.split(values, np.cumsum(sizes)[:-1])


def _rank_correlation(predicted: Sequence[Floats], losses: Sequence[Floats]) -> float | None:
    if sum(map(len, predicted)) < 2:
        return None
    found = float(kendalltau(np.concatenate(predicted), np.concatenate(losses)).statistic)
    return found if np.isfinite(found) else None
