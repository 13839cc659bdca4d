"""Evolve networks on predicted losses and exact costs. The only owner of pymoo.

Every network that is looked at is canonical and keeps the limits: variation is repaired, nothing is penalised.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.unsga3 import UNSGA3
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem as PymooProblem
from pymoo.core.repair import Repair
from pymoo.optimize import minimize
from pymoo.util.ref_dirs import get_reference_directions

from ofav2.nas.engine.problem import Floats, Genes, Mask, Problem


def evolve(
    problem: Problem,
    objectives: Callable[[Genes], Floats],
    start: Genes,
    *,
    generations: int,
    rng: np.random.Generator,
) -> Genes:
    """Return the last population of a genetic algorithm: NSGA-II for up to two objectives, U-NSGA-III for more.

    Args:
        problem: The space.
        objectives: What to minimise, (N, genes) -> (N, objectives).
        start: The first population, canonical and within the limits; its size is kept.
        generations: How many to breed.
        rng: Random numbers.
    """
    count = objectives(start[:1]).shape[1]
    common: dict[str, Any] = {
        "pop_size": len(start),
        "sampling": start,
        "crossover": _Mix(problem),
        "mutation": _Redraw(problem),
        "repair": _Repair(problem),
        "eliminate_duplicates": _LeaveOutEqual(),
    }
    algorithm = NSGA2(**common) if count <= 2 else UNSGA3(_directions(count, len(start)), **common)
    # A copy would hold the problem, with the supernet and all images, or fail where they are mapped files.
    found = minimize(
        _Predicted(problem, objectives, count),
        algorithm,
        ("n_gen", generations),
        copy_algorithm=False,
        seed=int(rng.integers(2**31)),
    )
    return np.asarray(found.pop.get("X"), np.int64)


def _directions(objectives: int, population: int) -> Floats:
    """Return as many evenly spread reference directions (Das and Dennis) as a population can serve.

    One of fewer networks than objectives serves some of the axes; pymoo warns of more directions than networks.
    """
    partitions = 1
    while len(get_reference_directions("das-dennis", objectives, n_partitions=partitions + 1)) <= population:
        partitions += 1
    return np.asarray(get_reference_directions("das-dennis", objectives, n_partitions=partitions))[:population]


class _Predicted(PymooProblem):  # type: ignore[misc]
    def __init__(self, problem: Problem, objectives: Callable[[Genes], Floats], count: int) -> None:
        choices = np.array(problem.choices)
        super().__init__(n_var=len(choices), n_obj=count, xl=0, xu=choices - 1, vtype=int)
        self.objectives = objectives

    def _evaluate(self, x: Genes, out: dict[str, Any], *_: Any, **__: Any) -> None:
        out["F"] = self.objectives(x)


class _Mix(Crossover):  # type: ignore[misc]
    """Take each gene from either parent; of a gene that only one of them uses, take that one's."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(n_parents=2, n_offsprings=2)
        self.problem = problem

    def _do(self, _: Any, x: Genes, *__: Any, random_state: np.random.Generator, **___: Any) -> Genes:
        first, second = self.problem.active(x[0]), self.problem.active(x[1])
        drawn = random_state.random(x.shape[1:]) < 0.5
        swapped = np.where(first == second, drawn, second)
        kept = np.where(first == second, drawn, first)
        return np.stack([np.where(swapped, x[1], x[0]), np.where(kept, x[0], x[1])])


class _Redraw(Mutation):  # type: ignore[misc]
    """Redraw about one of the genes that have an effect, and those that have one only then."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def _do(self, _: Any, x: Genes, *__: Any, random_state: np.random.Generator, **___: Any) -> Genes:
        choices = np.array(self.problem.choices)
        free = self.problem.active(x) & (choices > 1)
        redrawn = random_state.random(x.shape) < free / np.maximum(free.sum(1, keepdims=True), 1)
        # Any other choice than the present one.
        other = (x + random_state.integers(1, np.maximum(choices, 2), x.shape)) % choices
        changed = np.where(redrawn, other, x)
        newly_active = self.problem.active(changed) & ~self.problem.active(x)
        return np.where(newly_active, random_state.integers(0, choices, x.shape), changed)


class _Repair(Repair):  # type: ignore[misc]
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def _do(self, _: Any, x: Genes, *__: Any, random_state: np.random.Generator, **___: Any) -> Genes:
        return self.problem.repair(x, random_state)


class _LeaveOutEqual(DuplicateElimination):  # type: ignore[misc]
    """Leave out networks whose genes an earlier one has. pymoo's own computes distances, which is slower."""

    def _do(self, pop: Population, other: Population | None, is_duplicate: Mask) -> Mask:
        known = set() if other is None else {one.X.tobytes() for one in other}
        for place, one in enumerate(pop):
            key = one.X.tobytes()
            is_duplicate[place] = key in known
            if other is None:
                known.add(key)
        return is_duplicate
