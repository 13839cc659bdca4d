"""`ofav2 extract` under limits beside a ranking of random networks for as many seconds; docs/log has the results.

python -m benchmarks.choosing RUN --limits macs=2M macs=4M params=100k --candidates 60 --seeds 3

RUN is a finished run. Both ways choose on validation. They are compared by the chosen networks' metric on test images,
which neither of them looks at.
"""

import argparse
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

import ofav2
from benchmarks.sides import command_line, mean_and_error
from ofav2.cli import console
from ofav2.evaluation.opened_run import require_supernet
from ofav2.nas.candidates import draw_within
from ofav2.nas.cost_model import CostModel
from ofav2.tables import table
from supernets import Subnet

COLUMNS = (
    *("limit", "seeds", "networks", "seconds", "validation", "test"),
    *("random networks", "seconds", "validation", "test", "difference on test"),
)


@dataclass(frozen=True)
class Chosen:
    """A chosen network."""

    networks: int
    """Networks that were measured."""
    seconds: float
    """Processor time."""
    validation: float
    """The metric on the images that it was chosen on."""
    test: float
    """The metric on others."""


def by_search(opened: ofav2.OpenedRun, limits: ofav2.Limits, candidates: int, seed: int) -> Chosen:
    """Choose as `ofav2 extract` does."""
    start = time.process_time()
    ranking = ofav2.choose(opened, limits, candidates=candidates, seed=seed)
    seconds = time.process_time() - start
    return Chosen(len(ranking.ranked), seconds, ranking.best.score, tested(opened, ranking.best.subnet))


def by_chance(opened: ofav2.OpenedRun, limits: ofav2.Limits, candidates: int, seed: int, seconds: float) -> Chosen:
    """Choose the best of random networks, of which no fewer are measured than the seconds allow."""
    net = require_supernet(opened.loaded.net, "name another run")
    model, space = CostModel(net.architecture), net.space
    values: dict[Subnet, float] = {}
    start = time.process_time()
    while (used := time.process_time() - start) < seconds:
        count = math.ceil(len(values) * seconds / used) if values else candidates
        drawn = draw_within(model, space, limits, candidates=max(count, len(values) + 1), seed=seed)
        new = [subnet for subnet in drawn if subnet not in values]
        if not new:
            break
        values.update(scored(opened, new))
    metric = opened.loaded.record.metric
    best = min(values, key=lambda subnet: (-metric.rank(values[subnet]), model.price(subnet).macs))
    return Chosen(len(values), used, values[best], tested(opened, best))


def scored(opened: ofav2.OpenedRun, subnets: Iterable[Subnet]) -> dict[Subnet, float]:
    """The metric of networks on validation."""
    return {one.subnet: one.value for one in opened.evaluator.scores(opened.loaded.net, subnets, opened.data.val)}


def tested(opened: ofav2.OpenedRun, subnet: Subnet) -> float:
    """The metric of a network on test images."""
    (score,) = opened.evaluator.scores(opened.loaded.net, [subnet], opened.data.test)
    return score.value


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--limits", nargs="+", required=True, metavar="NAME=VALUE")
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    opened = ofav2.open_run(arguments.run)
    torch.set_num_threads(1)
    # What is done once, such as decoding the images, counts for neither.
    scored(opened, [opened.loaded.net.space.largest(), opened.loaded.net.space.smallest()])
    rows = []
    for text in arguments.limits:
        name, _, value = text.partition("=")
        limits = ofav2.parse_limits(**{name: value})
        pairs = []
        for seed in range(arguments.seeds):
            found = by_search(opened, limits, arguments.candidates, seed)
            pairs.append((found, by_chance(opened, limits, arguments.candidates, seed, found.seconds)))
            console.say(f"{text} seed {seed}: {pairs[-1]}")
        rows.append((text, arguments.seeds, *summary(pairs)))
    console.show(table(f"{arguments.run}, {arguments.candidates} candidates", COLUMNS, rows))


def summary(pairs: list[tuple[Chosen, Chosen]]) -> tuple[object, ...]:
    """Return the cells of a limit's row: means over seeds, and the standard error of the difference."""
    cells: list[object] = []
    for side in zip(*pairs, strict=True):
        cells += [f"{np.mean([one.networks for one in side]):.0f}", f"{np.mean([one.seconds for one in side]):.1f}"]
        cells += [f"{100 * np.mean([getattr(one, name) for one in side]):.2f}" for name in ("validation", "test")]
    return (*cells, mean_and_error([found.test - ranked.test for found, ranked in pairs], digits=2, sign="+"))


if __name__ == "__main__":
    command_line(main)
