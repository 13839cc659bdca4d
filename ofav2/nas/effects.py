"""Estimate how much each choice of an architecture adds to the metric, from the networks that a search measured.

A search measures what looks good, so choices come together: networks with large kernels are deep, too. Means per choice
would count one for the other. So all choices are fitted at once, by a ridge regression without interactions.

A body is measured at all its exits, with the same weights and statistics of batch norm. So its networks err alike, and
count as one observation: they are left out together, and errors are those of clusters.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ofav2.nas.engine.problem import Floats
from supernets import Space, Subnet

LEAST_BODIES = 8
"""Bodies from which effects are estimated."""
NOISE = 7.0
"""Effects of pure noise explain less than about this divided by the number of bodies, in 19 of 20 draws: .24 and .38 at
20 bodies of two spaces, .01 at 300."""
_PENALTIES = np.logspace(-3, 3, 25)


@dataclass(frozen=True)
class ChoiceEffect:
    """A choice's part in the metric."""

    choice: str
    """The choice, such as `5` for a kernel."""
    effect: float
    """What the metric gains where all blocks that may have it do, compared with the measured networks' mean mix."""
    error: float
    """Standard error of that."""
    networks: int
    """Measured networks that have it in a block at least."""


@dataclass(frozen=True)
class Factor:
    """A decision about an architecture, with the effect of each choice."""

    name: str
    """The decision, such as `stage 2 kernel`."""
    choices: tuple[ChoiceEffect, ...]
    """The measured choices, two or more."""

    @property
    def span(self) -> float:
        """Difference of its best and its worst choice."""
        effects = [choice.effect for choice in self.choices]
        return max(effects) - min(effects)


@dataclass(frozen=True)
class Effects:
    """Which decisions matter."""

    factors: tuple[Factor, ...]
    """The decisions, the one with the largest span first."""
    explained: float
    """Share of the variance of bodies left out that all effects together explain, at most; below 0, none of it. That
    variance is around the mean of the others. The best of several penalties is taken by this share, which flatters it.
    """
    bodies: int
    """Bodies that were measured."""

    @property
    def floor(self) -> float:
        """Share that pure noise rarely reaches: with fewer bodies, the best of several penalties gains more by luck."""
        return min(1.0, NOISE / self.bodies)

    @property
    def reliable(self) -> bool:
        """Whether the effects explain more than noise would."""
        return self.explained > self.floor


def choice_effects(
    space: Space,
    subnets: Sequence[Subnet],
    values: Sequence[float],
    bodies: Sequence[Hashable],
    runs: Sequence[str] = (),
) -> Effects | None:
    """Estimate the effects of all choices; None of fewer than `LEAST_BODIES` bodies, or of equal values.

    Args:
        space: The space that was searched.
        subnets: The networks.
        values: Their values.
        bodies: What each was measured as a part of; equal for networks that were measured together.
        runs: Their runs by name, where several were searched.
    """
    target = np.array(values, np.float64)
    places = {body: place for place, body in enumerate(dict.fromkeys(bodies))}
    if len(places) < LEAST_BODIES or not np.ptp(target):
        return None
    groups = np.array([places[body] for body in bodies])
    names = sorted(set(runs))
    columns = [*(("run", name) for name in names), *((name, choice) for name, choice, _ in _shares(space, subnets[0]))]
    shares = np.array([[share for _, _, share in _shares(space, subnet)] for subnet in subnets])
    if runs:
        shares = np.concatenate([np.array([[float(run == name) for name in names] for run in runs]), shares], 1)
    varied = np.ptp(shares, axis=0) > 0
    design = (shares - shares.mean(0))[:, varied]
    effects, parts, explained = _ridge(design, target - target.mean(), groups)
    found: dict[str, list[_Fitted]] = {}
    kept = [column for column, varies in zip(columns, varied, strict=True) if varies]
    for (name, choice), effect, own, share in zip(kept, effects, parts, shares[:, varied].T, strict=True):
        found.setdefault(name, []).append(_Fitted(choice, float(effect), own, share))
    factors = [_factor(name, choices) for name, choices in found.items() if len(choices) > 1]
    return Effects(tuple(sorted(factors, key=lambda factor: -factor.span)), explained, len(places))


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A choice's column of the regression, and what was fitted to it."""

    choice: str
    """The choice."""
    coefficient: float
    """Its coefficient."""
    parts: Floats
    """What each group adds to the coefficient's error (G,)."""
    share: Floats
    """Its column (N,), not centred."""


def _factor(name: str, choices: Sequence[_Fitted]) -> Factor:
    """Return a decision's effects: its coefficients less their mean over the measured mix.

    Errors are those of what is shown, so parts are centred like coefficients: a choice that almost all networks make
    is almost the mean, and its effect is surer than that of a rare one.
    """
    weights = np.array([choice.share.mean() for choice in choices])
    weights = weights / weights.sum()
    effects = np.array([choice.coefficient for choice in choices])
    parts = np.stack([choice.parts for choice in choices])
    errors = np.sqrt(((parts - weights @ parts) ** 2).sum(1))
    return Factor(
        name,
        tuple(
            ChoiceEffect(choice.choice, float(effect), float(error), int((choice.share > 0).sum()))
            for choice, effect, error in zip(choices, effects - weights @ effects, errors, strict=True)
        ),
    )


def _shares(space: Space, subnet: Subnet) -> Iterator[tuple[str, str, float]]:
    """Yield decision, choice and the share of the blocks concerned that have it; nothing of a stage that is cut off."""
    for name, choices, chosen in (
        ("resolution", space.resolution, subnet.resolution),
        ("exit", space.height, subnet.height),
    ):
        yield from ((name, str(choice), float(choice == chosen)) for choice in choices)
    for stage in range(space.stages):
        blocks = subnet.blocks(stage) if stage < subnet.height else ()
        label = f"stage {stage + 1}"
        yield from ((f"{label} depth", str(depth), float(depth == len(blocks))) for depth in space.depth)
        for level in space.levels:
            share = sum(block.level == level for block in blocks) / max(len(blocks), 1)
            yield f"{label} branches", "+".join(level), share
        for name in ("kernel", "expand"):
            for choice in getattr(space, name):
                share = sum(getattr(block, name) == choice for block in blocks) / max(len(blocks), 1)
                yield f"{label} {name}", str(choice), share


def _ridge(design: Floats, target: Floats, groups: NDArray[np.int64]) -> tuple[Floats, Floats, float]:
    """Fit centred values (N,) to centred columns (N, F); the penalty is that which predicts groups left out best.

    Args:
        design: The columns.
        target: The values.
        groups: What each row belongs to (N,), from 0 up, two groups or more.

    Returns:
        Coefficients (F,), what each group adds to their errors (F, G), and the explained share of the squared errors on
        groups left out. The standard error of a sum of coefficients is the root of its squared parts' sum.
    """
    left, scales, right = np.linalg.svd(design, full_matrices=False)
    rows = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    # An infinite penalty leaves the mean of the others.
    by_mean = float((_left_out(left, np.zeros_like(scales), target, rows) ** 2).sum())
    fits = [(_left_out(left, scales**2 / (scales**2 + penalty), target, rows), penalty) for penalty in _PENALTIES]
    missed, penalty = min(fits, key=lambda fit: float((fit[0] ** 2).sum()))
    gain = right.T * (scales / (scales**2 + penalty)) @ left.T  # (F, N): coefficients are gain @ target
    # As the jackknife that leaves groups out estimates them.
    parts = np.stack([gain[:, own] @ missed[own] for own in rows], 1)
    return gain @ target, parts, 1 - float((missed**2).sum()) / by_mean


def _left_out(left: Floats, shrunk: Floats, target: Floats, rows: Sequence[NDArray[np.int64]]) -> Floats:
    """Return the errors (N,) on centred values, each group predicted by a fit to the others.

    With H the matrix that maps values to fitted ones, mean included, they are (I - H)^-1 of a group's own rows, times
    its residuals.

    Args:
        left: Left singular vectors of the centred columns, (N, K).
        shrunk: What the penalty leaves of each, (K,).
        target: The centred values, (N,).
        rows: The rows of each group.
    """
    residuals = target - left @ (shrunk * (left.T @ target))
    missed = np.empty_like(target)
    for own in rows:
        hat = (left[own] * shrunk) @ left[own].T + 1 / len(target)
        missed[own] = np.linalg.solve(np.eye(len(own)) - hat, residuals[own])
    return missed
