"""Score every subset of a network's exits, and choose one (AEP, exit pruning).

A subset's logits are the weighted mean of its exits' logits. Each image is scored once for all subsets, so memory holds
one batch of logits, and a bit per subset and image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ofav2.errors import UserError
from ofav2.nas.limits import Limits, show
from ofav2.tasks.classification import ranks
from supernets.backbone import MOST_EXITS
from supernets.cost import Cost

CHUNK = 2**16
"""Logits of one exit that are weighed and counted at once, about: they stay in the processor's caches."""

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class ExitBatch(NamedTuple):
    """All exits' logits of some images, and the right classes."""

    logits: npt.NDArray[np.floating[Any]]
    """(exits, N, classes), float32 or float64, finite."""
    targets: npt.NDArray[np.int64]
    """(N,)."""


@dataclass(frozen=True, eq=False)
class Tally:
    """How many images each subset classifies rightly."""

    images: int
    """How many images."""
    top1: Counts
    """Images whose class is right, (subsets,)."""
    top5: Counts
    """Images whose class is among the five most likely ones, (subsets,)."""
    right: npt.NDArray[np.uint8]
    """Whether each image's class is right, as bits, (subsets, bytes); bits that stand for no image are 0."""


def subsets(exits: int) -> tuple[tuple[int, ...], ...]:
    """Return all subsets but the empty one, as indices of exits from 0, in AEP's order: the deepest exit alone first.

    Raises:
        UserError: If there are more than `MOST_EXITS`.
    """
    if exits > MOST_EXITS:
        raise UserError(
            f"exits ({exits}) have {2**exits - 1:,} subsets, too many to score: extract at most {MOST_EXITS} of them"
        )
    return tuple(tuple(i for i in range(exits) if number >> (exits - 1 - i) & 1) for number in range(1, 2**exits))


def fixed_weights(
    weights: Sequence[Fraction], choices: Sequence[tuple[int, ...]]
) -> tuple[tuple[tuple[int, ...], ...], Numbers]:
    """Return the subsets that these weights make an ensemble of, and each one's weights, which sum to 1.

    An exit of weight 0 stands alone or not at all.

    Args:
        weights: A weight per exit.
        choices: Subsets, as indices of exits.

    Returns:
        The subsets, and their weights (subsets, exits).
    """
    kept = tuple(choice for choice in choices if len(choice) == 1 or all(weights[i] for i in choice))
    rows = np.zeros((len(kept), len(weights)))
    for row, choice in zip(rows, kept, strict=True):
        total = sum((weights[i] for i in choice), Fraction(0))
        row[list(choice)] = [float(weights[i] / total) if total else 1.0 for i in choice]
    return kept, rows


def tally(batch: ExitBatch, weights: Numbers) -> Tally:
    """Count, for each subset, the images that it classifies rightly.

    Args:
        batch: The images; at least one.
        weights: Weights of each subset's exits, (subsets, exits), 0 for exits that are not in it.
    """
    return joined([_tally(part, weights) for part in _parts(batch)])


def joined(tallies: Sequence[Tally]) -> Tally:
    """Return the tally of the images of all tallies."""
    return Tally(
        sum(one.images for one in tallies),
        np.sum([one.top1 for one in tallies], 0),
        np.sum([one.top5 for one in tallies], 0),
        np.concatenate([one.right for one in tallies], 1),
    )


def _parts(batch: ExitBatch) -> Iterator[ExitBatch]:
    """Yield a batch in small parts, with logits (exits, classes, N)."""
    _, images, classes = batch.logits.shape
    size = max(1, CHUNK // classes)
    for start in range(0, images, size):
        part = batch.logits[:, start : start + size].transpose(0, 2, 1)
        yield ExitBatch(np.ascontiguousarray(part), batch.targets[start : start + size])


def _tally(part: ExitBatch, weights: Numbers) -> Tally:
    total, term = np.empty((2, *part.logits.shape[1:]), part.logits.dtype)
    top1, top5, right = [], [], []
    for row in weights.astype(part.logits.dtype):
        _weighted_sum(part.logits, row, total, term)
        rank = ranks(total, part.targets)
        first = rank == 0
        top1.append(np.count_nonzero(first))
        top5.append(np.count_nonzero(rank < 5))
        right.append(np.packbits(first))
    return Tally(len(part.targets), np.array(top1, np.int64), np.array(top5, np.int64), np.stack(right))


def _weighted_sum(
    logits: npt.NDArray[Any], weights: npt.NDArray[Any], total: npt.NDArray[Any], term: npt.NDArray[Any]
) -> None:
    """Write sum of w_i * logits_i into `total`, bit for bit as `distill.ensemble` adds it."""
    first, *others = np.flatnonzero(weights)
    np.multiply(logits[first], weights[first], out=total)
    for i in others:
        np.multiply(logits[i], weights[i], out=term)
        np.add(total, term, out=total)


@dataclass(frozen=True, eq=False)
class SubsetTable:
    """All subsets of a network's exits: what they cost and reach on validation."""

    exits: tuple[int, ...]
    """The network's exits, by number."""
    choices: tuple[tuple[int, ...], ...]
    """The subsets, as indices of exits from 0, in AEP's order."""
    weights: Numbers
    """Weights of each subset's exits, (subsets, exits), 0 for exits that are not in it."""
    tally: Tally
    """What they reach."""
    costs: tuple[Cost, ...]
    """What they cost."""

    def named(self, index: int) -> tuple[int, ...]:
        """Return a subset's exits by number."""
        return tuple(self.exits[i] for i in self.choices[index])

    def top1(self, index: int) -> float:
        """Return a subset's top-1 on validation, 0..1."""
        return int(self.tally.top1[index]) / self.tally.images

    def top5(self, index: int) -> float:
        """Return a subset's top-5 on validation, 0..1."""
        return int(self.tally.top5[index]) / self.tally.images

    def within(self, limits: Limits) -> list[int]:
        """Return the subsets that keep limits of parameters and multiply-adds.

        Raises:
            UserError: If none does; the message says what the least is.
        """
        kept = [*range(len(self.choices))]
        for name, limit in limits.named.items():
            costs = [getattr(cost, name) for cost in self.costs]
            least = min(costs[index] for index in kept)
            kept = [index for index in kept if costs[index] <= limit]
            if not kept:
                raise UserError(
                    f"limit {name} ({limit:,}) is less than any subset of exits needs that keeps the other limits:"
                    f" allow at least {show(name, least)}"
                )
        return kept

    def reaching(self, top1: float, kept: Sequence[int]) -> list[int]:
        """Return which of some subsets reach a top-1.

        Raises:
            UserError: If none does; the message says what the best one reaches.
        """
        found = [index for index in kept if self.top1(index) >= top1]
        if not found:
            best = math.floor(1e4 * max(map(self.top1, kept))) / 1e4
            raise UserError(f"top-1 ({top1:g}) is more than any subset reaches on validation: ask for {best:g}")
        return found

    def best(self, kept: Sequence[int]) -> int:
        """Return AEP's winner of some subsets: most top-1, then most top-5; of equals the one of fewest multiply-adds.

        What is still equal is decided by parameters, then by AEP's order.
        """
        return min(kept, key=lambda index: (*self._missed(index), *self._effort(index)))

    def cheapest(self, kept: Sequence[int]) -> int:
        """Return the subset of fewest multiply-adds, then parameters; of equals AEP's winner."""
        return min(kept, key=lambda index: (*self._effort(index)[:2], *self._missed(index), index))

    def close(self, best: int, kept: Sequence[int]) -> list[int]:
        """Return the subsets whose top-1 is at most one standard error below that of the best one.

        The error is that of the difference on the same images. With b images that only the best one has right and c
        that only the other one has, the difference is within it where (b - c)^2 is at most b + c.
        """
        found = []
        for index in kept:
            apart = int(np.unpackbits(self.tally.right[index] ^ self.tally.right[best]).sum())
            lead = int(self.tally.top1[best] - self.tally.top1[index])
            if lead**2 <= apart:
                found.append(index)
        return found

    def front(self) -> tuple[int, ...]:
        """Return the subsets that no other one beats in top-1, multiply-adds and parameters, the cheapest first."""
        points = np.array(
            [(cost.macs, cost.params, -right) for cost, right in zip(self.costs, self.tally.top1, strict=True)]
        )
        order = sorted(range(len(points)), key=lambda index: (*points[index], -self.tally.top5[index], index))
        kept: list[int] = []
        for index in order:
            # Who comes before costs no more multiply-adds.
            if not kept or not (points[kept] <= points[index]).all(1).any():
                kept.append(index)
        return tuple(kept)

    def _missed(self, index: int) -> tuple[int, int]:
        return -int(self.tally.top1[index]), -int(self.tally.top5[index])

    def _effort(self, index: int) -> tuple[int, int, int]:
        return self.costs[index].macs, self.costs[index].params, index


@dataclass(frozen=True)
class Choice:
    """A subset, and the rule that chose it."""

    index: int
    """Index in the table."""
    rule: str
    """The rule, as people read it."""


def choose(table: SubsetTable, limits: Limits, *, min_top1: float | None = None, cautious: bool = False) -> Choice:
    """Choose a subset.

    Args:
        table: All subsets.
        limits: The most parameters and multiply-adds.
        min_top1: Validation top-1 (0..1), at least: the cheapest subset that reaches it is taken.
        cautious: Whether to take the cheapest subset that is within one standard error of the best one.

    Raises:
        UserError: If no subset keeps the limits, or reaches the top-1.
    """
    kept = table.within(limits)
    where = f" of at most {limits}" if limits.named else ""
    if min_top1 is not None:
        found = table.cheapest(table.reaching(min_top1, kept))
        return Choice(found, f"the cheapest subset{where} with a validation top-1 of at least {100 * min_top1:g} %")
    best = table.best(kept)
    if cautious:
        found = table.cheapest(table.close(best, kept))
        return Choice(found, f"the cheapest subset{where} within one standard error of the best on validation")
    return Choice(best, f"the best subset{where} on validation")
