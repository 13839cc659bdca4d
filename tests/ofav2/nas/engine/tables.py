"""Small problems whose every network is known."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ofav2.nas.engine.problem import Floats, Genes


@dataclass(frozen=True, eq=False)
class SmallTable:
    """Six genes of up to four choices; gene 0 says how many of the next four have an effect, gene 5 is an exit.

    Networks may cost at most `most`. A measurement scores a network at all exits, with noise that depends on its genes.
    """

    most: float = np.inf
    noise: float = 0.0
    costs_count: int = 1
    exits: int = 2
    measured: list[bytes] = field(default_factory=list)

    @property
    def choices(self) -> tuple[int, ...]:
        return (4, 3, 3, 3, 3, self.exits)

    def active(self, genes: Genes) -> NDArray[np.bool_]:
        runs = np.arange(4) < genes[:, :1] + 1
        always = np.ones((len(genes), 1), bool)
        return np.concatenate([always, runs, always], 1)

    def canonical(self, genes: Genes) -> Genes:
        return np.where(self.active(genes), genes, 0)

    def repair(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """Genes become 0, in random order, until the limit is kept."""
        genes = self.canonical(genes)
        for row in np.flatnonzero(self.costs(genes)[:, 0] > self.most):
            for gene in rng.permutation(len(self.choices)):
                genes[row, gene] = 0
                genes[row] = self.canonical(genes[row : row + 1])[0]
                if self.costs(genes[row : row + 1])[0, 0] <= self.most:
                    break
        return genes

    def costs(self, genes: Genes) -> Floats:
        size = (self.active(genes)[:, 1:5] * (1.0 + genes[:, 1:5]) ** 1.5).sum(1) + 2 * genes[:, 5]
        return np.stack([size, 10 + genes.sum(1), 5.0 + genes[:, 0]][: self.costs_count], 1)

    def traits(self, genes: Genes) -> list[Floats]:
        return [self.costs(genes)]

    def true(self, genes: Genes) -> Floats:
        effect = self.active(genes)[:, 1:5] * (1 + genes[:, 1:5]) * np.array([0.9, 0.7, 0.8, 0.3])
        return -effect.sum(1) - 0.5 * genes[:, 5] - 0.2 * effect[:, 0] * effect[:, 1]

    def anchors(self) -> Genes:
        return self.repair(np.array([[0] * 6, [3, 2, 2, 2, 2, self.exits - 1]]), np.random.default_rng(0))

    def nested(self, body: NDArray[np.int64]) -> Genes:
        cut = np.repeat(body[None], int(body[5]) + 1, axis=0)
        cut[:, 5] = np.arange(len(cut))
        return cut

    def measure(self, bodies: Genes) -> Iterator[tuple[int, Floats]]:
        for place in np.lexsort(bodies.T[::-1]).tolist():
            nested = self.nested(bodies[place])
            self.measured.append(bodies[place].tobytes())
            noise = [np.random.default_rng(row).normal() * self.noise for row in nested]
            yield place, self.true(nested) + np.array(noise)

    def everything(self) -> Genes:
        """Every network that keeps the limit, each once."""
        genes = np.array(list(product(*map(range, self.choices))))
        different = np.unique(self.canonical(genes), axis=0)
        return different[self.costs(different)[:, 0] <= self.most]
