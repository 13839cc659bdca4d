"""Measure the networks of a run for the search engine: a body at all its exits at once, none twice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ofav2.data import Split
from ofav2.errors import RunError
from ofav2.evaluation.evaluator import beginning
from ofav2.evaluation.opened_run import OpenedRun
from ofav2.nas.engine.problem import Floats, Genes
from ofav2.nas.genes import GeneSpace
from ofav2.nas.measured import MeasuredValues
from supernets import Subnet


@dataclass(frozen=True, eq=False)
class SupernetProblem:
    """The networks of a run that are searched, and what measures them.

    Args:
        run: The opened run.
        genes: The networks that may be chosen.
        images: What is measured on.
        store: What was measured before on the same weights and images.
        advance: Called after each body, with its best value.
    """

    run: OpenedRun
    genes: GeneSpace
    images: Split
    store: MeasuredValues
    advance: Callable[[float], None]

    def measure(self, bodies: Genes) -> Iterator[tuple[int, Floats]]:
        """Measure bodies, those with the same first block one after the other.

        Raises:
            RunError: If a network has no finite score.
        """
        metric = self.run.evaluator.task.metrics[0]
        families = [[self.genes.decode(row) for row in self.genes.nested(body)] for body in bodies]
        waiting = sorted(range(len(bodies)), key=lambda place: _order(families[place][-1]))
        new = [subnet for place in waiting for subnet in families[place] if self.store.get(subnet) is None]
        scores = self.run.evaluator.scores(self.run.loaded.net, new, self.images)
        for place in waiting:
            while any(self.store.get(subnet) is None for subnet in families[place]):
                score = next(scores)
                if not np.isfinite(score.value):
                    raise RunError(f"sub-network ({score.subnet}) has no finite {metric.name}: train the run again")
                self.store.put(score.subnet, score.value)
            values = [self.store.known[subnet] for subnet in families[place]]
            self.advance(metric.best(*values))
            yield place, np.array([-metric.rank(value) for value in values])


def _order(subnet: Subnet) -> tuple[object, ...]:
    return *beginning(subnet), subnet.to_json()
