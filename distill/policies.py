"""Which teacher teaches: the policies that choose among the networks that earlier phases left."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill.errors import DistillError, near, shown

_POLICIES = ("fixed", "progressive", "best")
_NO_TEACHER = "none"
_OUTSIDE = "timm:"


@dataclass(frozen=True)
class TeacherCandidate:
    """A largest network, as one phase left it, that could teach.

    Raises:
        DistillError: The accuracy is not between 0 and 1.
    """

    name: str
    """How the run calls this network."""
    phase: str
    """Name of the phase that left it."""
    accuracy: float
    """Validation top-1 of its exits' ensemble, as a share in 0..1."""

    def __post_init__(self) -> None:
        """Refuse an accuracy that is no share: NaN, or a percentage."""
        if not 0 <= self.accuracy <= 1:
            raise DistillError(
                f"accuracy ({shown(self.accuracy)}) of teacher candidate {self.name} must be a share from 0 to 1; "
                "divide a percentage by 100"
            )


@dataclass(frozen=True)
class TeacherChoice:
    """The candidate that was chosen, and why."""

    candidate: TeacherCandidate
    """The next teacher."""
    reason: str
    """Why it was chosen, in one sentence with numbers."""


def policies() -> tuple[str, ...]:
    """Return the names of the policies by which `choose` can choose."""
    return _POLICIES


def check_policy(policy: str) -> None:
    """Refuse what is no teacher policy, so that a run can stop before its first step.

    Accepted are the names in `policies()`, `none` (no teacher) and `timm:NAME` (an external teacher, whose name
    `external_teacher` evaluates).

    Raises:
        DistillError: The policy is none of these.
    """
    if policy in (*_POLICIES, _NO_TEACHER) or (isinstance(policy, str) and policy.startswith(_OUTSIDE)):
        return
    raise DistillError(
        f"teacher policy ({shown(policy)}) is unknown{near(str(policy), (*_POLICIES, _NO_TEACHER))}; "
        f"use one of {', '.join(_POLICIES)}, {_NO_TEACHER} or {_OUTSIDE}NAME"
    )


def choose(policy: str, candidates: Sequence[TeacherCandidate]) -> TeacherChoice:
    """Choose the next teacher (OFAv2, teacher policies; `best` is this project's own).

    `fixed` takes the first candidate, the largest network as the full phase left it; `progressive` the newest; `best`
    the one with the highest validation accuracy, the newest of equals.

    Args:
        policy: One of `policies()`.
        candidates: What earlier phases left, oldest first.

    Raises:
        DistillError: The policy does not choose among candidates, or there are none.
    """
    check_policy(policy)
    if policy not in _POLICIES:
        raise DistillError(
            f"teacher policy ({shown(policy)}) does not choose among earlier networks; "
            f"use one of {', '.join(_POLICIES)} (none means no teacher, timm:NAME an outside one, which is not chosen)"
        )
    if not candidates:
        raise DistillError(
            f"teacher policy ({shown(policy)}) needs a network that an earlier phase left, and there is none; "
            "run the full phase first, or use none or timm:NAME"
        )
    match policy:
        case "fixed":
            return _first(candidates)
        case "progressive":
            return _newest(candidates)
    return _most_accurate(candidates)


def _first(candidates: Sequence[TeacherCandidate]) -> TeacherChoice:
    first = candidates[0]
    return TeacherChoice(
        first, f"fixed: {_described(first)} is the first of {_counted(candidates)} and stays the teacher."
    )


def _newest(candidates: Sequence[TeacherCandidate]) -> TeacherChoice:
    newest = candidates[-1]
    return TeacherChoice(newest, f"progressive: {_described(newest)} is the newest of {_counted(candidates)}.")


def _most_accurate(candidates: Sequence[TeacherCandidate]) -> TeacherChoice:
    _, best = max(enumerate(candidates), key=lambda numbered: (numbered[1].accuracy, numbered[0]))
    accuracies = ", ".join(_percent(candidate) for candidate in candidates)
    equals = sum(candidate.accuracy == best.accuracy for candidate in candidates)
    rank = "is the most accurate" if equals == 1 else f"is the newest of the {equals} most accurate"
    return TeacherChoice(
        best, f"best: {_described(best)} {rank} of {_counted(candidates)} (oldest first: {accuracies})."
    )


def _described(candidate: TeacherCandidate) -> str:
    return f"{candidate.name}, left by phase {candidate.phase} with {_percent(candidate)} validation top-1,"


def _percent(candidate: TeacherCandidate) -> str:
    return f"{100 * candidate.accuracy:.2f} %"


def _counted(candidates: Sequence[TeacherCandidate]) -> str:
    return f"{len(candidates)} {'candidate' if len(candidates) == 1 else 'candidates'}"
