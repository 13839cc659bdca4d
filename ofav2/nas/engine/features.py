"""Turn genes into features: what a predictor learns from."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ofav2.nas.engine.problem import Floats, Genes, Mask


class Features(NamedTuple):
    """Networks as a predictor sees them."""

    values: Floats
    """A row per network (N, F)."""
    groups: tuple[int, ...]
    """Numbers of columns that are of one kind, in order; their sum is F."""


def one_hot(genes: Genes, active: Mask, choices: Sequence[int]) -> Floats:
    """Return a column per choice of every gene, (N, sum of choices); genes without effect are 0 in all of theirs."""
    starts = np.concatenate([[0], np.cumsum(choices)[:-1]])
    found = np.zeros((len(genes), sum(choices)))
    rows = np.broadcast_to(np.arange(len(genes))[:, None], genes.shape)
    found[rows[active], (starts + genes)[active]] = 1
    return found


def ranks(genes: Genes, active: Mask, choices: Sequence[int]) -> Floats:
    """Return a column per gene, (N, genes): 0 without effect, else the choice's rank from 1/n to 1."""
    return np.where(active, (genes + 1) / np.array(choices), 0.0)
