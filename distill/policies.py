"""Choose the teacher among the networks that earlier phases left, by policy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distill.errors import DistillError, near, shown

_POLICIES = ("fixed", "progressive", "best")
_NO_TEACHER = "none"
_EXTERNAL = "timm:"


@dataclass(frozen=True)
class TeacherCandidate:
    """A largest network, as one phase left it, that could teach.

    Raises:
        DistillError: If the score is not finite.
    """

    name: str
    """How the run calls this network."""
    phase: str
    """Name of the phase that left it."""
    score: float
    """Validation score of its exits' ensemble."""

    def __post_init__(self) -> None:
        """Refuse a score that can't be compared."""
        if not math.isfinite(self.score):
            raise DistillError(
                f"score ({shown(self.score)}) of teacher candidate {self.name} must be finite; measure it again"
            )


@dataclass(frozen=True)
class ScoreOrder:
    """How scores are compared and shown."""

    higher_is_better: bool = True
    """Whether a larger score is better."""
    show: Callable[[float], str] = "{:.4g}".format
    """Score -> text for people."""


@dataclass(frozen=True)
class TeacherChoice:
    """The candidate that was chosen, and why."""

    candidate: TeacherCandidate
    """The next teacher."""
    reason: str
    """Why it was chosen, in one sentence with scores."""


def policies() -> tuple[str, ...]:
    """Return the names of the policies by which `choose` can choose."""
    return _POLICIES


def check_policy(policy: str) -> None:
    """Refuse what is no teacher policy, so that a run can stop before its first step.

    Accepted are the names in `policies()`, `none` (no teacher) and `timm:NAME` (an external teacher, whose name
    `external_teacher` checks).

    Raises:
        DistillError: The policy is none of these.
    """
    if policy in (*_POLICIES, _NO_TEACHER) or (isinstance(policy, str) and policy.startswith(_EXTERNAL)):
        return
    raise DistillError(
        f"teacher policy ({shown(policy)}) is unknown{near(str(policy), (*_POLICIES, _NO_TEACHER))}; "
        f"use one of {', '.join(_POLICIES)}, {_NO_TEACHER} or {_EXTERNAL}NAME"
    )


def choose(policy: str, candidates: Sequence[TeacherCandidate], order: ScoreOrder = ScoreOrder()) -> TeacherChoice:
    """Choose the next teacher (OFAv2, teacher policies; `best` is this project's own).

    `fixed` takes the first candidate, the largest network as the full phase left it; `progressive` the newest; `best`
    the one with the best validation score, the newest of equals.

    Args:
        policy: One of `policies()`.
        candidates: What earlier phases left, oldest first.
        order: How scores are compared and shown.

    Raises:
        DistillError: If the policy does not choose among candidates, or there are none.
    """
    check_policy(policy)
    if policy not in _POLICIES:
        raise DistillError(
            f"teacher policy ({shown(policy)}) does not choose among earlier networks; "
            f"use one of {', '.join(_POLICIES)} (none means no teacher, timm:NAME an external one, which is not chosen)"
        )
    if not candidates:
        raise DistillError(
            f"teacher policy ({shown(policy)}) needs a network that an earlier phase left, and there is none; "
            "run the full phase first, or use none or timm:NAME"
        )
    match policy:
        case "fixed":
            return _first(candidates, order)
        case "progressive":
            return _newest(candidates, order)
        case "best":
            return _best(candidates, order)
    raise AssertionError(f"policy {policy} chooses nothing: it needs a case here")


def _first(candidates: Sequence[TeacherCandidate], order: ScoreOrder) -> TeacherChoice:
    first = candidates[0]
    reason = f"fixed: {_described(first, order)} is the first of {_counted(candidates)} and stays the teacher."
    return TeacherChoice(first, reason)


def _newest(candidates: Sequence[TeacherCandidate], order: ScoreOrder) -> TeacherChoice:
    newest = candidates[-1]
    return TeacherChoice(newest, f"progressive: {_described(newest, order)} is the newest of {_counted(candidates)}.")


def _best(candidates: Sequence[TeacherCandidate], order: ScoreOrder) -> TeacherChoice:
    sign = 1 if order.higher_is_better else -1
    _, best = max(enumerate(candidates), key=lambda numbered: (sign * numbered[1].score, numbered[0]))
    scores = ", ".join(order.show(candidate.score) for candidate in candidates)
    equals = sum(candidate.score == best.score for candidate in candidates)
    rank = "is the best" if equals == 1 else f"is the newest of the {equals} best"
    return TeacherChoice(
        best, f"best: {_described(best, order)} {rank} of {_counted(candidates)} (oldest first: {scores})."
    )


def _described(candidate: TeacherCandidate, order: ScoreOrder) -> str:
    return f"{candidate.name}, left by phase {candidate.phase} with {order.show(candidate.score)} on validation,"


def _counted(candidates: Sequence[TeacherCandidate]) -> str:
    return f"{len(candidates)} {'candidate' if len(candidates) == 1 else 'candidates'}"
