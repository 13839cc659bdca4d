"""Choose the first networks: the problem's anchors, and networks spread evenly over what they cost."""

import numpy as np

from ofav2.nas.engine.problem import Floats, Genes, Problem

POOL = 2000
"""Random networks that the first ones are chosen from."""


def spread_networks(problem: Problem, rng: np.random.Generator, count: int) -> Genes:
    """Return random networks (count, genes), from the cheapest kind to the most expensive.

    Genes are drawn from a uniform distribution for a part of them, and from one of the problem's anchors for the
    others. The part differs from network to network. Uniform genes alone make networks of average cost.
    """
    choices, anchors = np.array(problem.choices), problem.anchors()
    uniform = rng.integers(0, choices, (count, len(choices)))
    near = anchors[rng.integers(len(anchors), size=count)]
    share = rng.random((count, 1))
    return problem.repair(np.where(rng.random(uniform.shape) < share, uniform, near), rng)


def first_bodies(problem: Problem, rng: np.random.Generator, count: int) -> Genes:
    """Return different networks (up to count, genes) to measure first."""
    anchors = problem.anchors()
    pool = np.unique(spread_networks(problem, rng, POOL), axis=0)
    pool = pool[rng.permutation(len(pool))]
    if len(anchors) > count // 2:
        anchors = anchors[spread(_scaled(problem.costs(anchors)), count // 2)]
    strata = _strata(_scaled(problem.costs(pool)).mean(1), max(count - len(anchors), 0))
    found = np.concatenate([anchors, pool[strata], pool])
    return found[np.sort(np.unique(found, axis=0, return_index=True)[1])][:count]


def spread(points: Floats, count: int) -> list[int]:
    """Return indices of points (N, D) that lie far apart: the lowest sum first, then the farthest from all chosen."""
    chosen = [int(points.sum(1).argmin())]
    gaps = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(gaps.argmax()))
        gaps = np.minimum(gaps, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def _strata(cost: Floats, count: int) -> list[int]:
    """Return indices of costs (N,), one in each of equally wide ranges that holds any; the rest are taken in order."""
    if not count:
        return []
    edges = np.linspace(cost.min(), cost.max(), count + 1)[1:-1]
    stratum = np.searchsorted(edges, cost, side="right")
    firsts = np.unique(stratum, return_index=True)[1].tolist()
    others = [index for index in range(len(cost)) if index not in set(firsts)]
    return (firsts + others)[:count]


def _scaled(costs: Floats) -> Floats:
    low, high = costs.min(0), costs.max(0)
    return (costs - low) / np.where(high > low, high - low, 1)
