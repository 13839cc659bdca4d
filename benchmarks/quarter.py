"""What a search would save that measured a quarter of its images first; docs/log has the results.

python -m benchmarks.quarter DATA RUN

The other images would be measured only where a network may reach the front: where it is, on the quarter, no more than
two standard errors worse than the best known network that costs no more. DATA holds OFA's accuracy predictor, as for
`benchmarks.search`: a search of OFA's space tells how many networks that would leave out. RUN is a finished run: it
tells which part of a measurement's time depends on the number of images.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

import ofav2
from benchmarks.search import OfaSpace, by_engine, objectives
from benchmarks.sides import command_line
from ofav2.cli import console
from ofav2.data.halves import halve
from ofav2.evaluation import evaluator
from ofav2.nas.engine.problem import Floats
from ofav2.tables import table

BODIES = 20
SHARE = 0.8
"""Share of right answers, about that of OFA's space."""
PARTS = {"recalibration": (evaluator, "recalibrate"), "scoring": (evaluator.Evaluator, "_sums")}


def left_out(points: Floats, first: int, images: int, correlation: float) -> float:
    """The share of networks that a quarter of so many images is expected to leave out, of those after the first ones.

    Args:
        points: True losses and costs in the order of measurement, (N, 2).
        first: Networks of the first round.
        images: Images of the search.
        correlation: How far two networks are right on the same images.
    """
    error = 100 * np.sqrt(SHARE * (1 - SHARE) / (images / 4) * 2 * (1 - correlation))
    chances = []
    for place in range(first, len(points)):
        rivals = points[:place][points[:place, 1] <= points[place, 1], 0]
        gap = points[place, 0] - rivals.min() if len(rivals) else -np.inf
        chances.append(norm.sf((2 * error - gap) / error))
    return float(np.mean(chances))


def time_shares(opened: ofav2.OpenedRun) -> tuple[int, float, dict[str, float]]:
    """Images of a search, seconds a body, and the shares of its time by part."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            start = time.process_time()
            found = real(*given, **named)
            spent[name] += time.process_time() - start
            return found

        return call

    for name, (owner, function) in PARTS.items():
        setattr(owner, function, timed(name, getattr(owner, function)))
    rng, net = np.random.default_rng(0), opened.loaded.net
    images = halve(opened.data.val, opened.evaluator.seed).search
    bodies = [net.space.sample(rng) for _ in range(BODIES + 1)]
    list(opened.evaluator.scores(net, bodies[:1], images))
    spent.update(dict.fromkeys(PARTS, 0.0))
    start = time.process_time()
    list(opened.evaluator.scores(net, bodies[1:], images))
    seconds = time.process_time() - start
    return len(images), seconds / BODIES, {name: spent[name] / seconds for name in PARTS}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run")
    arguments = parser.parse_args()
    opened = ofav2.open_run(arguments.run)
    torch.set_num_threads(1)
    images, seconds, shares = time_shares(opened)
    row = (images, opened.evaluator.config.calibration_images, f"{seconds:.3f}", *map("{:.0%}".format, shares.values()))
    console.show(table(arguments.run, ("images", "calibration images", "seconds a body", *PARTS), [row]))
    problem = OfaSpace.read(arguments.data, 0)
    rounds = list(by_engine(problem, 300, 0))
    points = objectives(problem, np.concatenate(rounds))
    rows = [
        (count, correlation, f"{left_out(points, len(rounds[0]), count, correlation):.1%}")
        for count in (500, 5000)
        for correlation in (0.5, 0.8)
    ]
    console.show(table("OFA's space", ("images", "correlation", "left out"), rows))


if __name__ == "__main__":
    command_line(main)
