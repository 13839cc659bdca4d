"""Hold what is believed of all networks after some measurements."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ofav2.nas.engine.archive import Archive, with_costs
from ofav2.nas.engine.features import Features, one_hot, ranks
from ofav2.nas.engine.predictors import Fitted, Prediction, Predictor
from ofav2.nas.engine.problem import Floats, Genes, Problem


@dataclass(frozen=True, eq=False)
class Belief:
    """A predictor that has learned from an archive."""

    problem: Problem
    archive: Archive
    describe: Callable[[Genes], Features]
    """Returns what the predictor learns from."""
    fitted: Fitted
    """Predicts losses of mean 0 and deviation 1."""
    centre: float
    """Mean of the measured losses."""
    scale: float
    """Their standard deviation."""

    def predict(self, genes: Genes) -> Prediction:
        """Predict losses of networks (N, genes), with uncertainty."""
        mean, sd = self.fitted.predict(self.describe(genes))
        return Prediction(mean * self.scale + self.centre, sd * self.scale)

    def losses(self, genes: Genes) -> Floats:
        """Predict losses of networks (N, genes)."""
        return self.fitted.mean(self.describe(genes)) * self.scale + self.centre

    def optimistic(self, genes: Genes, optimism: float) -> Floats:
        """Return objectives (N, 1 + costs): losses that are so many standard deviations under the predicted ones."""
        mean, sd = self.predict(genes)
        return with_costs(mean - optimism * sd, self.problem.costs(genes))

    @cached_property
    def points(self) -> Floats:
        """Objectives of the archive, (N, 1 + costs): its losses less the noise that similar networks do not share."""
        return with_costs(self.losses(self.archive.genes), self.archive.costs)


def learn(problem: Problem, archive: Archive, predictor: Predictor) -> Belief:
    """Fit a predictor to all measurements."""
    centre, scale = float(archive.losses.mean()), float(archive.losses.std()) or 1.0
    describe = describer(problem, archive)
    fitted = predictor.fit(describe(archive.genes), (archive.losses - centre) / scale)
    return Belief(problem, archive, describe, fitted, centre, scale)


def describer(problem: Problem, archive: Archive) -> Callable[[Genes], Features]:
    """Return a function that describes networks: genes by rank, genes one-hot, and logarithms of their traits.

    Genes with a single choice are left out. Rows of genes are at most 1 long; traits are scaled to the archive's.
    """
    free = [index for index, count in enumerate(problem.choices) if count > 1]
    choices = [problem.choices[index] for index in free]
    logs = [np.log(group) for group in problem.traits(archive.genes)]
    scales = [(group.mean(0), 2 * np.maximum(group.std(0), 1e-9)) for group in logs]

    def describe(genes: Genes) -> Features:
        chosen, active = genes[:, free], problem.active(genes)[:, free]
        root = np.sqrt(len(free))
        parts = (
            ranks(chosen, active, choices) / root,
            one_hot(chosen, active, choices) / root,
            *(
                (np.log(group) - centre) / scale
                for group, (centre, scale) in zip(problem.traits(genes), scales, strict=True)
            ),
        )
        return Features(np.concatenate(parts, 1), tuple(part.shape[1] for part in parts))

    return describe
