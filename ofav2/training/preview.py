"""Describe what a recipe would train: its images by class, their sizes, and what its networks cost."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ofav2.data.headers import Sizes, image_sizes
from ofav2.networks.cost import network_cost, subset_costs
from ofav2.training.phases import Phase
from ofav2.training.setup import Setup
from ofav2.training.timing import phase_seconds
from supernets.cost import Cost
from supernets.multi_exit import MultiExit

UNEVEN = 3
"""How many times the images of the rarest class the most frequent one may have before it is said."""
ALL_SUBSETS = 5
"""The most exits of which every subset is priced."""


@dataclass(frozen=True)
class SubsetCost:
    """What a network costs that keeps some of its exits."""

    exits: tuple[int, ...]
    """Those that are kept."""
    cost: Cost
    """The cost per image; what comes after the last of them is left out."""


@dataclass(frozen=True)
class Preview:
    """What a recipe would train."""

    data: str
    """The data set."""
    images: Mapping[str, int]
    """Images by split."""
    classes: Mapping[str, tuple[int, ...]]
    """Images of each class in train, val and test; none where targets are no classes."""
    sizes: Sizes | None
    """Sizes of the images; None where none could be read."""
    networks: Mapping[str, tuple[str, Cost]]
    """The largest and the smallest network, and what they cost per image."""
    subsets: tuple[SubsetCost, ...]
    """Subsets of a network's exits, the cheapest first; none of a supernet. Of more exits than `ALL_SUBSETS`, each
    alone and all up to one."""
    phases: tuple[Mapping[str, str | float], ...]
    """The phases: name, what they unlock, networks to draw from, epochs, steps, warm-up steps, rate, draws, teacher."""
    skipped: tuple[str, ...]
    """A sentence per phase that is left out."""
    steps: int
    """Training steps in all."""
    batch_size: int
    """Images per step."""
    balanced: bool
    """Whether all classes are drawn equally often."""
    seconds: Mapping[str, float] | None
    """About how long the steps of each phase take here; None where that was not measured."""

    @property
    def imbalance(self) -> str | None:
        """Say that classes have very different numbers of training images; None where they do not."""
        counts = {name: found[0] for name, found in self.classes.items()}
        if not counts or self.balanced:
            return None
        few, many = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
        if counts[many] < UNEVEN * max(counts[few], 1):
            return None
        return (
            f"{many} has {counts[many]:,} training images, {few} {counts[few]:,}: data.balance=classes draws all"
            " classes equally often"
        )


def preview(setup: Setup, timed: bool = False) -> Preview:
    """Return what a recipe would train.

    Args:
        setup: What is trained, on what.
        timed: Whether to measure some steps of each phase.
    """
    data, space, config = setup.data, setup.net.space, setup.config
    splits = (data.train, data.val, data.test)
    # Targets that are maps, or numbers, have no classes to count.
    labelled = all(split.targets.ndim == 1 and split.targets.dtype == np.int64 for split in splits)
    counts = [np.bincount(split.targets, minlength=len(data.classes)).tolist() for split in splits if labelled]
    ends = {"largest": space.largest(), "smallest": space.smallest()}
    return Preview(
        data=data.name,
        images={split.name: len(split) for split in splits},
        classes=dict(zip(data.classes, zip(*counts, strict=True), strict=True)) if labelled else {},
        sizes=image_sizes(data),
        networks={name: (str(net), network_cost(setup.net.architecture, net)) for name, net in ends.items()},
        subsets=_subsets(setup.net) if isinstance(setup.net, MultiExit) else (),
        phases=tuple(map(_described, setup.plan.phases)),
        skipped=setup.plan.skipped,
        steps=setup.plan.steps,
        batch_size=config.data.batch_size,
        balanced=config.data.balance == "classes",
        seconds=phase_seconds(setup) if timed else None,
    )


def _subsets(net: MultiExit) -> tuple[SubsetCost, ...]:
    exits = net.architecture.exits
    singles, beginnings = [(exit,) for exit in exits], [exits[:count] for count in exits]
    costs = subset_costs(net.architecture, max(net.space.resolution))
    kept = costs if len(exits) <= ALL_SUBSETS else {*singles, *beginnings}
    return tuple(SubsetCost(subset, cost) for subset, cost in costs.items() if subset in kept)


def _described(phase: Phase) -> Mapping[str, str | float]:
    return {
        "name": phase.name,
        "unlocks": phase.unlocks,
        "networks": float(phase.space.size()),
        "epochs": phase.config.epochs,
        "steps": phase.steps,
        "warmup_steps": phase.warmup_steps,
        "lr": phase.config.lr,
        "subnets": phase.config.subnets,
        "sampler": phase.draws,
        "objective": phase.objective,
        "teacher": phase.teacher,
    }
