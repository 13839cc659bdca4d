"""Weigh exits in the joint loss and in the ensemble, as exact fractions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational, Real

from distill.errors import DistillError, near, shown

_SUM_TOLERANCE = Fraction(1, 10**6)
_PAPER = (Fraction("0.06"), Fraction("0.13"), Fraction("0.20"), Fraction("0.27"), Fraction("0.34"))
_SCHEMES = ("ascending", "descending", "uniform", "mixed", "last", "ascending_paper")
_PARTS = ("losses", "ensemble")


@dataclass(frozen=True)
class ExitWeights:
    """One weight per exit, first exit first; both sets sum to one (explicit weights: within 1e-6)."""

    losses: tuple[Fraction, ...]
    """Weights a_i of the exits' losses in the joint loss."""
    ensemble: tuple[Fraction, ...]
    """Weights b_i of the exits' logits in the ensemble."""


def schemes() -> tuple[str, ...]:
    """Return the names of the weight schemes that `exit_weights` takes."""
    return _SCHEMES


def exit_weights(
    scheme: str | Sequence[float | Fraction] | Mapping[str, str | Sequence[float | Fraction]],
    exits: int,
) -> ExitWeights:
    """Return the weights of a network's exits.

    The schemes are those of AEP, which OFAv2 takes over: `ascending` gives exit i the weight i / (1 + ... + exits),
    `descending` mirrors it, `uniform` gives every exit the same, `mixed` weighs the losses descending and the ensemble
    ascending. `last` leaves out all exits but the last, so a backbone trains alone. `ascending_paper` is OFAv2's
    ascending set for five exits in the two decimals its paper prints.

    Args:
        scheme: Name of a scheme; or one number per exit, used for both sets; or a mapping with the keys `losses` and
            `ensemble`, each a scheme or weights. A number is taken as the decimal that it prints as (0.06 is 3/50) and
            is not rescaled.
        exits: Number of exits, 1 or more.

    Raises:
        DistillError: The scheme is unknown or not for this number of exits, or the weights are not one per exit, each
            finite and not negative, with the sum 1 within 1e-6.
    """
    if isinstance(exits, bool) or not isinstance(exits, int) or exits < 1:
        raise DistillError(f"number of exits ({shown(exits)}) must be a whole number of 1 or more; give the network's")
    if not isinstance(scheme, Mapping):
        return _same_rule(scheme, exits, "exit weights")
    _check_parts(scheme)
    return ExitWeights(
        losses=_same_rule(scheme["losses"], exits, "exit weights' losses").losses,
        ensemble=_same_rule(scheme["ensemble"], exits, "exit weights' ensemble").ensemble,
    )


def renormalised(weights: Mapping[int, Fraction], kept: Sequence[int]) -> dict[int, Fraction]:
    """Return the weights of some exits, divided by their sum; exits of weight 0 are left out.

    Args:
        weights: Exit -> its weight.
        kept: The exits to keep.

    Raises:
        DistillError: If all their weights are 0.
    """
    counted = {exit_: weights[exit_] for exit_ in kept if weights[exit_]}
    if not counted:
        raise DistillError(
            f"exit weights ({shown([float(weight) for weight in weights.values()])}) are 0 for all exits that are"
            f" trained ({', '.join(map(str, kept))}); give one of them a weight over 0"
        )
    total = sum(counted.values(), start=Fraction(0))
    return {exit_: weight / total for exit_, weight in counted.items()}


def _check_parts(parts: Mapping[str, object]) -> None:
    unknown = [key for key in parts if key not in _PARTS]
    missing = [key for key in _PARTS if key not in parts]
    if unknown or missing:
        raise DistillError(
            f"exit weights ({shown(dict(parts))}) must have the two keys losses and ensemble; "
            f"{f'remove {shown(unknown[0])}' if unknown else f'add {missing[0]}'}"
        )


def _same_rule(rule: object, exits: int, label: str) -> ExitWeights:
    if isinstance(rule, str):
        return _by_scheme(rule, exits, label)
    if isinstance(rule, Sequence) and not isinstance(rule, bytes | bytearray | memoryview):
        values = _by_values(rule, exits, label)
        return ExitWeights(values, values)
    raise DistillError(
        f"{label} ({shown(rule)}) must be a scheme or one number per exit; "
        f"give one of {', '.join(_SCHEMES)}, or {exits} number{'' if exits == 1 else 's'}"
    )


def _by_scheme(scheme: str, exits: int, label: str) -> ExitWeights:
    ascending = tuple(Fraction(2 * i, exits * (exits + 1)) for i in range(1, exits + 1))
    descending = ascending[::-1]
    uniform = (Fraction(1, exits),) * exits
    match scheme:
        case "ascending":
            return ExitWeights(ascending, ascending)
        case "descending":
            return ExitWeights(descending, descending)
        case "uniform":
            return ExitWeights(uniform, uniform)
        case "mixed":
            return ExitWeights(losses=descending, ensemble=ascending)
        case "last":
            last = (*(Fraction(0),) * (exits - 1), Fraction(1))
            return ExitWeights(last, last)
        case "ascending_paper":
            if exits != len(_PAPER):
                raise DistillError(
                    f"{label} ('ascending_paper') are written for {len(_PAPER)} exits and this network has {exits}; "
                    "use 'ascending', the same rule for any number of exits"
                )
            return ExitWeights(_PAPER, _PAPER)
    raise DistillError(
        f"{label} ({shown(scheme)}) name no known scheme{near(scheme, _SCHEMES)}; "
        f"use one of {', '.join(_SCHEMES)}, or one number per exit"
    )


def _by_values(values: Sequence[object], exits: int, label: str) -> tuple[Fraction, ...]:
    if len(values) != exits:
        raise DistillError(
            f"{label} ({shown(values)}) must hold one number per exit, {exits} here, and hold {len(values)}; "
            f"give {exits}, or one of {', '.join(_SCHEMES)}"
        )
    weights = tuple(_fraction(number, exit_, label) for exit_, number in enumerate(values, start=1))
    total = sum(weights, start=Fraction(0))
    if abs(total - 1) > _SUM_TOLERANCE:
        raise DistillError(
            f"{label} ({shown(values)}) must sum to 1 within 1e-6 and sum to {float(total):.9g}; divide each by the sum"
        )
    return weights


def _fraction(number: object, exit_: int, label: str) -> Fraction:
    weight = _exact(number)
    if weight is None or not 0 <= weight <= 1 + _SUM_TOLERANCE:
        raise DistillError(
            f"{label}, exit {exit_} ({shown(number)}) must be a number from 0 to 1; "
            f"give such a number, or one of {', '.join(_SCHEMES)} for all exits"
        )
    return weight


def _exact(number: object) -> Fraction | None:
    if isinstance(number, bool) or not isinstance(number, Real):
        return None
    if isinstance(number, Rational):
        return Fraction(int(number.numerator), int(number.denominator))
    # The shortest decimal that a float prints as is the one that was written: 0.06 stays 3/50.
    return Fraction(str(number)) if math.isfinite(number) else None
