"""Define what the search engine asks of a problem: a space of genes, exact costs, and measurements.

A network is a vector of genes. Gene i is an index in `range(choices[i])`. The engine only ever handles canonical
vectors: equal networks have equal genes. It minimises losses and costs; a problem turns a metric that should be high
into a loss by its sign.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Genes = NDArray[np.int64]
"""Networks, a row each: (N, genes)."""
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Problem(Protocol):
    """A space of networks, what they cost, and how to measure them.

    One measurement scores a body at all exits: the network itself and those that are nested in it. Where there are no
    exits, a body is its only network.
    """

    @property
    def choices(self) -> tuple[int, ...]:
        """How many choices each gene has."""
        ...

    def active(self, genes: Genes) -> Mask:
        """Return which genes have an effect, (N, genes)."""
        ...

    def repair(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """Return canonical networks that keep the limits; those that are and do are returned as they are.

        Args:
            genes: Any vectors in range.
            rng: Random numbers for what has to change.
        """
        ...

    def costs(self, genes: Genes) -> Floats:
        """Return the costs to minimise, exactly, (N, costs); without any, the one best network is searched for."""
        ...

    def traits(self, genes: Genes) -> Sequence[Floats]:
        """Return groups of positive numbers, (N, traits) each, that losses may depend on smoothly, such as costs."""
        ...

    def anchors(self) -> Genes:
        """Return networks that the search should know first: the cheapest and the largest ones."""
        ...

    def nested(self, body: NDArray[np.int64]) -> Genes:
        """Return the networks that measuring a body (genes,) scores; all keep the limits."""
        ...

    def measure(self, bodies: Genes) -> Iterator[tuple[int, Floats]]:
        """Measure bodies (N, genes): yield the place of each, from 0, and the losses of its nested networks.

        The order is the problem's own; that of a part of the bodies is a part of it.
        """
        ...
