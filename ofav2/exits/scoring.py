"""Score all subsets of a network's exits on validation, as ensembles of fixed or learned weights."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import distill
from ofav2.data.halves import halve_indices
from ofav2.errors import UserError
from ofav2.exits.subsets import Counts, ExitBatch, Numbers, Tally, fixed_weights, joined, subsets, tally
from ofav2.rng import generator

FIT_NUMBERS = 2**21
"""Logits that weights are learned on, at most, but those of `FIT_IMAGES` images: a few weights need no more."""
FIT_IMAGES = 1000


class Scored(NamedTuple):
    """Subsets of a network's exits, and what they reach."""

    choices: tuple[tuple[int, ...], ...]
    """The subsets, as indices of exits from 0, in AEP's order."""
    weights: Numbers
    """Weights of each subset's exits, (subsets, exits); they sum to 1 and are 0 for exits that are not in it."""
    scales: Numbers | None
    """Factor of each subset's logits whose softmax is calibrated, (subsets,); None of weights that were not learned."""
    whole: int
    """Index of the subset of all exits that have a weight."""
    tally: Tally
    """What they reach."""
    predicted: Counts
    """Class that each exit gives each image, (exits, N)."""
    targets: Counts
    """The right classes, (N,)."""


def score_fixed(batches: Iterable[ExitBatch], weights: Sequence[Fraction]) -> Scored:
    """Score all subsets with given weights, in one pass that keeps no logits.

    Args:
        batches: All exits' logits of the images.
        weights: A weight per exit.
    """
    choices, rows = fixed_weights(weights, subsets(len(weights)))
    whole = choices.index(tuple(i for i, weight in enumerate(weights) if weight))
    tallies, predicted, targets = [], [], []
    for batch in batches:
        tallies.append(tally(batch, rows))
        predicted.append(batch.logits.argmax(2))
        targets.append(batch.targets)
    return Scored(choices, rows, None, whole, joined(tallies), np.concatenate(predicted, 1), np.concatenate(targets))


def score_learned(batches: Iterable[ExitBatch], exits: int) -> Scored:
    """Score all subsets with weights of least cross-entropy, learned for each subset by itself.

    Each half of the images is scored with weights that were learned on the other half. The weights that are returned
    were learned on both. A subset that is better without one of its exits equals a smaller one and is left out. All
    logits are kept while this runs.

    Args:
        batches: All exits' logits of the images.
        exits: How many exits there are.
    """
    kept = list(batches)
    everything = ExitBatch(
        np.concatenate([batch.logits for batch in kept], 1), np.concatenate([batch.targets for batch in kept])
    )
    first, second = halves(everything.targets)
    order = np.empty(len(everything.targets), np.intp)
    order[::2], order[1::2] = first, second
    choices = subsets(exits)
    found = _learned(everything, order, choices)
    if not (found[-1] > 0).any():
        raise UserError(
            "ensemble (learned) finds no weights: no exit tells more than chance on validation images; use a scheme,"
            " such as uniform"
        )
    used = [index for index, choice in enumerate(choices) if len(choice) == 1 or (found[index, list(choice)] > 0).all()]
    choices = tuple(choices[index] for index in used)
    tallies = [
        tally(_taken(everything, scored), _shares(_learned(everything, learned, choices), choices))
        for scored, learned in ((first, second), (second, first))
    ]
    return Scored(
        choices=choices,
        weights=_shares(found[used], choices),
        scales=found[used].sum(1),
        whole=choices.index(tuple(np.flatnonzero(found[-1] > 0).tolist())),
        tally=joined(tallies),
        predicted=everything.logits.argmax(2),
        targets=everything.targets,
    )


def halves(targets: Counts) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return indices of two halves of some images, drawn at random per class, each in random order.

    Args:
        targets: The images' classes; of an odd number, the first half is the larger one.
    """
    rng = generator("halves of validation", 0)
    first, second = halve_indices(targets, rng)
    return rng.permutation(first), rng.permutation(second)


def _learned(images: ExitBatch, indices: npt.NDArray[np.intp], choices: Sequence[tuple[int, ...]]) -> Numbers:
    """Return each subset's weights, learned on these images or the first of them."""
    exits, _, classes = images.logits.shape
    few = _taken(images, indices[: max(FIT_IMAGES, FIT_NUMBERS // (exits * classes))])
    found = distill.learned_weights(torch.from_numpy(few.logits), torch.from_numpy(few.targets), choices)
    return np.asarray(found.numpy())


def _taken(images: ExitBatch, indices: npt.NDArray[np.intp]) -> ExitBatch:
    return ExitBatch(images.logits[:, indices], images.targets[indices])


def _shares(weights: Numbers, choices: Sequence[tuple[int, ...]]) -> Numbers:
    """Return weights that sum to 1; exits that are all of no weight count the same."""
    members = np.zeros(weights.shape)
    for row, choice in zip(members, choices, strict=True):
        row[list(choice)] = 1
    sums = weights.sum(1, keepdims=True)
    counted = np.where(sums > 0, weights, members)
    return np.asarray(counted / counted.sum(1, keepdims=True))
