"""Search several runs as one space: which run a network is of is one more gene, in front of the others.

A single run has no such gene, so it is searched as it always was.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ofav2.nas.cost_model import Price
from ofav2.nas.engine.problem import Floats, Genes, Mask
from ofav2.nas.supernet_problem import SupernetProblem
from supernets import Subnet

A = TypeVar("A", bound=np.generic)


class RunNetwork(NamedTuple):
    """A network of one of the searched runs."""

    run: int
    """Place of the run among those searched, from 0."""
    subnet: Subnet
    """The network."""


@dataclass(frozen=True, eq=False)
class RunsProblem:
    """The networks of one run or of several, as `ofav2.nas.engine` searches them.

    Args:
        parts: The problem of each run; all have the same choices.
    """

    parts: tuple[SupernetProblem, ...]

    @property
    def choices(self) -> tuple[int, ...]:
        """How many choices each gene has."""
        own = self.parts[0].genes.choices
        return (len(self.parts), *own) if self._several else own

    def active(self, genes: Genes) -> Mask:
        """Return which genes have an effect, (N, genes)."""
        found = self._each(genes, lambda part, rows: part.genes.active(rows))
        return np.concatenate([np.ones((len(genes), 1), bool), found], 1) if self._several else found

    def repair(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """Return canonical networks that keep the limits, each of its run."""
        found = self._each(genes, lambda part, rows: part.genes.repair(rows, rng))
        return np.concatenate([genes[:, :1], found], 1) if self._several else found

    def costs(self, genes: Genes) -> Floats:
        """Return the costs to minimise, exactly, (N, costs)."""
        return self._each(genes, lambda part, rows: part.genes.costs(rows))

    def traits(self, genes: Genes) -> Sequence[Floats]:
        """Return what a network and each of its stages cost."""
        sizes: list[int] = []

        def joined(part: SupernetProblem, rows: Genes) -> Floats:
            groups = part.genes.traits(rows)
            sizes[:] = [group.shape[1] for group in groups]
            return np.concatenate(groups, 1)

        found = self._each(genes, joined)
        return np.split(found, np.cumsum(sizes)[:-1], 1)

    def anchors(self) -> Genes:
        """Return the cheapest and the largest networks of each run."""
        return np.concatenate([self._of(run, part.genes.anchors()) for run, part in enumerate(self.parts)])

    def nested(self, body: NDArray[np.int64]) -> Genes:
        """Return the networks that measuring a body scores."""
        run, own = self._parted(body)
        return self._of(run, self.parts[run].genes.nested(own))

    def measure(self, bodies: Genes) -> Iterator[tuple[int, Floats]]:
        """Measure bodies, run after run."""
        for run, part in enumerate(self.parts):
            places = self._places(bodies, run)
            if not len(places):
                continue
            own = bodies[places, int(self._several) :]
            yield from ((int(places[place]), losses) for place, losses in part.measure(own))

    def encode(self, network: RunNetwork) -> NDArray[np.int64]:
        """Return the genes (genes,) of a network."""
        return self._of(network.run, self.parts[network.run].genes.encode(network.subnet)[None])[0]

    def decode(self, genes: NDArray[np.int64]) -> RunNetwork:
        """Return the network of a vector of genes (genes,)."""
        run, own = self._parted(genes)
        return RunNetwork(run, self.parts[run].genes.decode(own))

    def price(self, network: RunNetwork) -> Price:
        """Return what a network costs."""
        return self.parts[network.run].genes.model.price(network.subnet)

    def all_costs(self, network: RunNetwork) -> dict[str, float]:
        """Return everything that a network costs, by name: what is limited, and the user's own costs."""
        return self.parts[network.run].genes.all_costs(network.subnet)

    @property
    def _several(self) -> bool:
        return len(self.parts) > 1

    def _parted(self, genes: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
        """Return a network's run, and its genes (genes,) there."""
        return (int(genes[0]), genes[1:]) if self._several else (0, genes)

    def _of(self, run: int, genes: Genes) -> Genes:
        """Return a run's networks (N, genes) as networks of all runs."""
        return np.concatenate([np.full((len(genes), 1), run), genes], 1) if self._several else genes

    def _places(self, genes: Genes, run: int) -> NDArray[np.intp]:
        return np.flatnonzero(genes[:, 0] == run) if self._several else np.arange(len(genes))

    def _each(self, genes: Genes, find: Callable[[SupernetProblem, Genes], NDArray[A]]) -> NDArray[A]:
        """Return what each run's problem finds of its networks, in the networks' order."""
        if not self._several:
            return find(self.parts[0], genes)
        if not len(genes):
            return find(self.parts[0], genes[:, 1:])
        places = {run: self._places(genes, run) for run in np.unique(genes[:, 0]).tolist()}
        found = [find(self.parts[run], genes[own, 1:]) for run, own in places.items()]
        order: NDArray[np.intp] = np.argsort(np.concatenate(list(places.values())))
        return np.concatenate(found)[order]
