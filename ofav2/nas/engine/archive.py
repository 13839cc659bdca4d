"""Keep every measured network, each once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ofav2.nas.engine.problem import Floats, Genes, Problem


@dataclass(frozen=True, eq=False)
class Archive:
    """Measured networks in the order of their measurement; fronts are derived from it."""

    genes: Genes
    """Networks (N, genes)."""
    losses: Floats
    """Their losses (N,)."""
    costs: Floats
    """Their costs (N, costs)."""

    @classmethod
    def empty(cls, problem: Problem) -> "Archive":
        """Return an archive without networks."""
        genes = np.zeros((0, len(problem.choices)), np.int64)
        return cls(genes, np.zeros(0), problem.costs(genes))

    def __len__(self) -> int:
        """Count the networks."""
        return len(self.losses)

    @property
    def points(self) -> Floats:
        """Objectives (N, 1 + costs): loss, then costs."""
        return with_costs(self.losses, self.costs)

    def lacks(self, genes: Genes) -> list[int]:
        """Return the indices of networks (M, genes) that were not measured, of equal ones the first."""
        new = {row.tobytes(): index for index, row in reversed(list(enumerate(genes)))}
        return sorted(index for key, index in new.items() if key not in self.keys)

    @cached_property
    def keys(self) -> frozenset[bytes]:
        """The networks' genes as bytes."""
        return frozenset(row.tobytes() for row in self.genes)

    def plus(self, problem: Problem, genes: Genes, losses: Floats) -> "Archive":
        """Return the archive with more networks (M, genes) and their losses (M,); those that it has are left out."""
        new = self.lacks(genes)
        return Archive(
            np.concatenate([self.genes, genes[new]]),
            np.concatenate([self.losses, losses[new]]),
            np.concatenate([self.costs, problem.costs(genes[new])]),
        )


def with_costs(losses: Floats, costs: Floats) -> Floats:
    """Return objectives (N, 1 + costs) of losses (N,) and costs (N, costs)."""
    return np.concatenate([losses[:, None], costs], 1)
