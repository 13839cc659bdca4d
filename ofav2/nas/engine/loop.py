"""Search: measure some networks, learn from all measurements, evolve on predictions, pick what to measure next.

A round is a pure function of earlier events, of the seed and of the round's number. So a search that stored its events
goes on from any of them as if it had not stopped.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from scipy.stats import kendalltau

from ofav2.nas.engine.archive import Archive
from ofav2.nas.engine.belief import Belief, learn
from ofav2.nas.engine.evolution import evolve
from ofav2.nas.engine.fronts import hypervolume, on_front
from ofav2.nas.engine.picking import PICKERS, Picker, pick_in_layers
from ofav2.nas.engine.predictors import PREDICTORS, Predictor
from ofav2.nas.engine.problem import Floats, Genes, Problem
from ofav2.nas.engine.start import first_bodies, spread_networks
from ofav2.rng import generator

T = TypeVar("T")

RECENT, FEW = 50, 10
"""Networks that a predictor is judged by: the latest so many, and never fewer than so many."""
GOOD_TAU, LEAST_TRUST = 0.5, 0.25
"""Rank correlation from which all of a round is picked by prediction; the share of it that always is."""
MARGIN = 0.01
"""Share of an objective's range by which the reference point is worse than the worst network."""
MIN_LEARNABLE = 2
"""Networks from which something can be predicted."""


class Agree(Protocol):
    """Returns what a function returns."""

    def __call__(self, do: Callable[[], T], /) -> T:
        """Return what a function returns; in every process, what it returns in the first one."""
        ...


def call(do: Callable[[], T], /) -> T:
    """Return what a function returns."""
    return do()


@dataclass(frozen=True)
class SearchSettings:
    """How to search."""

    start: int = 20
    """Bodies that are measured before anything is predicted."""
    batch: int = 10
    """Least number of bodies of each further round."""
    growth: float = 0.1
    """Share of what was measured that a round measures, where that is more: learning anew pays less and less."""
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
    """The worst loss that counts; None takes that of the first round's front. Of a metric that should be high, the loss
    is the metric with its sign changed: -0.9 stands for 90 % top-1."""


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
    """Predicted losses of each body's nested networks; nothing in round 0, nor of others drawn at random."""


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
    """Kendall's rank correlation of predicted and measured losses, of the round's networks that no earlier round
    measured, each once; None where there are none."""


Event = Picked | Measured | Learned
_E = TypeVar("_E", Picked, Measured, Learned)


def search(
    problem: Problem,
    settings: SearchSettings,
    *,
    seed: int,
    measurements: int,
    past: Iterable[Event] = (),
    stop: Callable[[], bool] = lambda: False,
    predictors: Mapping[str, Predictor] = PREDICTORS,
    pickers: Mapping[str, Picker] = PICKERS,
    agree: Agree = call,
) -> Iterator[Event]:
    """Search, and yield what happens; whoever stores all events can go on from any prefix of them.

    Args:
        problem: What to search.
        settings: How.
        seed: Seed of all random numbers.
        measurements: Bodies to measure; fewer where the space holds no others.
        past: Events of a search with the same problem, settings and seed; they are not yielded again.
        stop: Asked after each measurement, and before each but the first; the search ends where it returns True.
        predictors: Predictors by the names that settings may have.
        pickers: Pickers, likewise.
        agree: Returns what a function returns; of several processes, in all of them what it returns in the first one.
    """
    old = deque(past)
    archive, reference, number, done = Archive.empty(problem), np.zeros(0), 0, 0
    predicted, real = np.zeros(0), np.zeros(0)
    while done < measurements and not (done and stop()):
        picked = _old(old, Picked)
        if picked is None:
            wanted = max(settings.batch, int(settings.growth * done)) if number else settings.start
            count = min(wanted, measurements - done)
            trusted = math.ceil(count * trust(predicted, real))
            rng = generator("search", seed, number)
            choose = partial(_propose, problem, archive, reference, settings, number, count, trusted, rng)
            picked = agree(partial(choose, predictors[settings.predictor], pickers[settings.picker]))
            if not len(picked.bodies):
                return
            yield picked
        losses = yield from _measure(problem, picked, old, done, stop)
        if losses is None:
            return
        nested = [problem.nested(body) for body in picked.bodies]
        genes, measured = np.concatenate(nested), np.concatenate([losses[body] for body in range(len(nested))])
        # A predictor is judged by networks that it was not fitted on, each once: shorter ones may have been measured
        # before, or by another body of the round.
        new = archive.lacks(genes)
        archive = archive.plus(problem, genes, measured)
        guessed, found = np.zeros(0), np.zeros(0)
        if picked.predicted:
            guessed, found = np.concatenate(picked.predicted)[new], measured[new]
            predicted, real = (np.concatenate(pair)[-RECENT:] for pair in ((predicted, guessed), (real, found)))
        reference = reference if number else first_reference(archive, settings.worst_loss)
        if not _old(old, Learned):
            tau = rank_correlation(guessed, found)
            volume = hypervolume(archive.points, reference)
            yield Learned(number, len(archive), volume, tuple(reference.tolist()), tau)
        done, number = done + len(nested), number + 1


def first_reference(archive: Archive, worst_loss: float | None) -> Floats:
    """Return what networks have to beat to count: a little more than the front's worst loss and the highest costs.

    The little is a hundredth of an objective's range. Without it the worst networks themselves would gain nothing, and
    where all have the same cost, no network would.
    """
    points = archive.points
    worst = np.concatenate([[points[on_front(points), 0].max()], archive.costs.max(0)])
    spans = np.ptp(points, axis=0)
    spans = np.where(spans > 0, spans, np.maximum(np.abs(worst), 1e-9))
    reference = worst + MARGIN * spans
    return reference if worst_loss is None else np.concatenate([[worst_loss], reference[1:]])


def _measure(
    problem: Problem, picked: Picked, old: deque[Event], done: int, stop: Callable[[], bool]
) -> Generator[Measured, None, dict[int, Floats] | None]:
    """Measure what a round lacks, and return all its losses by body; None if the search was told to stop."""
    losses: dict[int, Floats] = {}
    while measured := _old(old, Measured):
        losses[measured.body] = measured.losses
    left = [body for body in range(len(picked.bodies)) if body not in losses]
    if left and done + len(losses) and stop():
        return None
    for place, found in problem.measure(picked.bodies[left]) if left else ():
        losses[left[place]] = found
        yield Measured(picked.round, left[place], found)
        if stop():
            return None
    return losses


def _old(events: deque[Event], kind: type[_E]) -> _E | None:
    """Return the next old event if it is of a kind."""
    return events.popleft() if events and isinstance(events[0], kind) else None  # type: ignore[return-value]


def _propose(
    problem: Problem,
    archive: Archive,
    reference: Floats,
    settings: SearchSettings,
    number: int,
    count: int,
    trusted: int,
    rng: np.random.Generator,
    predictor: Predictor,
    picker: Picker,
) -> Picked:
    if not number:
        bodies = first_bodies(problem, rng, count)
        return Picked(number, bodies, ("first",) * len(bodies), ())
    if len(archive) < MIN_LEARNABLE:
        # Too few to learn from: more at random, as long as there are any.
        drawn = np.unique(spread_networks(problem, rng, settings.population), axis=0)
        further = [body for body in rng.permutation(drawn) if archive.lacks(problem.nested(body))][:count]
        return Picked(
            number, np.array(further, archive.genes.dtype).reshape(-1, drawn.shape[1]), ("spread",) * len(further), ()
        )
    belief = learn(problem, archive, predictor)
    found = _evolved(problem, belief, settings, rng)
    new = [(body, genes[archive.lacks(genes)]) for body in found for genes in [problem.nested(body)]]
    new = [(body, genes) for body, genes in new if len(genes)]
    if not new:
        return Picked(number, found[:0], (), ())
    families = _split(
        belief.optimistic(np.concatenate([genes for _, genes in new]), settings.optimism),
        [len(genes) for _, genes in new],
    )
    scale = np.maximum(np.abs(reference), 1e-12)
    optimistic = [family / scale for family in families]
    picked = pick_in_layers(picker, belief.points / scale, optimistic, reference / scale, trusted, rng)
    others = [index for index in range(len(new)) if index not in set(picked)]
    spread = [others[place] for place in rng.permutation(len(others))[: count - len(picked)]]
    bodies = np.array([new[index][0] for index in [*picked, *spread]])
    nested = [problem.nested(body) for body in bodies]
    predicted = _split(belief.losses(np.concatenate(nested)), [len(genes) for genes in nested])
    return Picked(number, bodies, ("gain",) * len(picked) + ("spread",) * len(spread), tuple(predicted))


def _evolved(problem: Problem, belief: Belief, settings: SearchSettings, rng: np.random.Generator) -> Genes:
    """Return different networks that are good by prediction: bred from the archive's front and from random ones."""
    front = belief.archive.genes[on_front(belief.points)]
    others = spread_networks(problem, rng, settings.population)
    start = np.concatenate([front, others])
    firsts = np.sort(np.unique(start, axis=0, return_index=True)[1])
    start = start[firsts][: settings.population]
    found = evolve(
        problem,
        lambda genes: belief.optimistic(genes, settings.optimism),
        start,
        generations=settings.generations,
        rng=rng,
    )
    # Where evolution ends at what is known, the random ones are new.
    return np.unique(np.concatenate([found, others]), axis=0)


def _split(values: Floats, sizes: Sequence[int]) -> list[Floats]:
    return np.split(values, np.cumsum(sizes)[:-1])


def rank_correlation(predicted: Floats, losses: Floats) -> float | None:
    """Return Kendall's rank correlation of predicted and measured losses (N,); None where there is none."""
    if len(predicted) < 2:
        return None
    found = float(kendalltau(predicted, losses).statistic)
    return found if np.isfinite(found) else None


def trust(predicted: Floats, losses: Floats) -> float:
    """Return the share of a round that may be picked by prediction; the others are picked at random, to learn from.

    It is 1 as long as the predictor ranked recent networks well enough, and falls to `LEAST_TRUST`.

    Args:
        predicted: Predicted losses of the latest networks (N,).
        losses: Their measured losses.
    """
    tau = rank_correlation(predicted, losses) if len(predicted) >= FEW else None
    return 1.0 if tau is None else min(1.0, max(LEAST_TRUST, tau / GOOD_TAU))
