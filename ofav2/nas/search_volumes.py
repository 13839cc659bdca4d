"""Compare searches by the hypervolume of what they measured, up to a reference point that all share."""

from collections.abc import Sequence

import numpy as np

from ofav2.nas.engine.fronts import hypervolume, on_front
from ofav2.nas.engine.problem import Floats
from ofav2.nas.search_snapshot import SearchSnapshot


def common_volumes(searches: Sequence[SearchSnapshot]) -> list[tuple[tuple[int, float], ...]]:
    """Return, for each search, the bodies measured and the hypervolume after each round that has ended.

    The reference point is the worst of each objective on the fronts of all searches. Each objective counts in units of
    its range there, so the hypervolume is a share of that box.

    Args:
        searches: Searches with the same objectives.
    """
    fronts = [search.points[on_front(search.points)] for search in searches if search.networks]
    if not fronts:
        return [()] * len(searches)
    together = np.concatenate(fronts)
    low, span = together.min(0), np.maximum(np.ptp(together, axis=0), 1e-12)
    return [tuple(_volumes(search, low, span)) for search in searches]


def _volumes(search: SearchSnapshot, low: Floats, span: Floats) -> Sequence[tuple[int, float]]:
    scaled, measured, found = (search.points - low) / span, 0, []
    rounds = np.array([one.round for one in search.networks])
    for one in search.rounds:
        measured += one.measured
        if one.hypervolume is not None:
            found.append((measured, hypervolume(scaled[rounds <= one.number], np.ones(scaled.shape[1]))))
    return found
