"""Pick which candidates to measure. To add a picker, write a function of the same form and name it in `PICKERS`."""

import heapq
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np

from ofav2.nas.engine.fronts import hypervolume, on_front
from ofav2.nas.engine.problem import Floats


class Picker(Protocol):
    """Picks bodies to measure."""

    def __call__(
        self, known: Floats, families: Sequence[Floats], reference: Floats, count: int, rng: np.random.Generator
    ) -> list[int]:
        """Return indices of up to `count` families, the most wanted first.

        Args:
            known: Objectives (N, objectives) of the measured networks, scaled; all are minimised.
            families: Predicted objectives of the new networks of each body, (members, objectives) each.
            reference: The worst values that count.
            count: How many to pick.
            rng: Random numbers.
        """
        ...


def pick_by_gain(
    known: Floats, families: Sequence[Floats], reference: Floats, count: int, rng: np.random.Generator
) -> list[int]:
    """Pick the family that adds most hypervolume, believe its prediction, and so on; those that add nothing are left.

    Gains only shrink as families are added, so a stale gain is an upper bound, and few are computed anew.
    """
    front = known[on_front(known)]
    volume = hypervolume(front, reference)
    waiting = [(-(hypervolume(np.concatenate([front, own]), reference) - volume), i) for i, own in enumerate(families)]
    heapq.heapify(waiting)
    picked: list[int] = []
    while waiting and len(picked) < count:
        _, index = heapq.heappop(waiting)
        gain = hypervolume(np.concatenate([front, families[index]]), reference) - volume
        if waiting and -waiting[0][0] > gain:
            heapq.heappush(waiting, (-gain, index))
            continue
        if gain <= 0:
            break
        picked.append(index)
        front = np.concatenate([front, families[index]])
        front = front[on_front(front)]
        volume += gain
    return picked


def pick_best(
    known: Floats, families: Sequence[Floats], reference: Floats, count: int, rng: np.random.Generator
) -> list[int]:
    """Pick the families whose best member has the lowest loss, whatever it costs; of equals, the first."""
    return np.argsort([family[:, 0].min() for family in families], kind="stable")[:count].tolist()


def pick_in_layers(
    picker: Picker,
    known: Floats,
    families: Sequence[Floats],
    reference: Floats,
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """Return what a picker wants, and until that is enough what it would want without the known front, and so on.

    So networks come next that noise alone may keep off the front.
    """
    picked: list[int] = []
    while len(picked) < count and len(known):
        left = [index for index in range(len(families)) if index not in picked]
        found = picker(known, [families[index] for index in left], reference, count - len(picked), rng)
        picked += [left[index] for index in found]
        known = known[~on_front(known)]
    return picked


PICKERS: Mapping[str, Picker] = MappingProxyType({"gain": pick_by_gain, "best": pick_best})
"""Pickers by name."""
