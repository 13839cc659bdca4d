"""Plan extended progressive shrinking: what each phase unlocks, its length and its objective (OFAv2).

A plan is worked out before anything is computed, so an impossible order is refused before compute is spent, and
`ofav2 plan` can show it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from types import MappingProxyType

import distill
import supernets
from ofav2.config.schema import PhaseConfig, TeacherConfig, UnlockConfig
from ofav2.errors import UserError
from ofav2.training.samplers import SAMPLERS, Largest, Sampler
from supernets import Space, SpaceError, Subnet

ALL_EXITS = ("distill_exits", "in_place")
"""Objectives that train all unlocked exits of each sub-network at once, as students."""
UNTAUGHT = ("joint", "in_place")
"""Objectives without a teacher from an earlier phase or from timm."""
UNLOCKABLE = tuple(field.name for field in fields(UnlockConfig))
"""Dimensions that a phase can unlock, in the paper's order."""


@dataclass(frozen=True)
class PhaseWeights:
    """How a phase weighs exits, each set with the sum 1."""

    exits: tuple[int, ...]
    """The exits that it trains: with the objective `joint` of all, else of the unlocked ones, those whose loss counts.
    """
    joint: distill.ExitWeights
    """Weights of all exits in the joint loss and in the ensemble: the phase's own, or else the recipe's."""
    students: Mapping[int, Fraction]
    """Exit -> weight of its loss, where all unlocked exits are students (`ALL_EXITS`); else empty."""
    in_place: Mapping[int, Fraction]
    """Exit -> weight of its output in the ensemble that teaches, with the objective `in_place`; else empty."""
    trained: distill.ExitWeights
    """`joint` of the exits that have been trained: how validation weighs them, and their ensemble that teaches later.

    Exits that no phase has trained until then have none: an objective other than `joint` trains the unlocked ones
    alone, and those of first weights fall behind a body that is trained on.
    """


@dataclass(frozen=True)
class Phase:
    """One phase to train."""

    name: str
    """Its name in the recipe, and of its checkpoint."""
    space: Space
    """Networks that it trains."""
    evaluated: Space
    """Networks that are measured after it: those, and after joint training the same at every exit; where all exits are
    trained at once, without those whose loss has the weight 0."""
    objective: str
    """`joint`, `distill`, `distill_exits` or `in_place`, as `PhaseConfig.objective`."""
    sampler: Sampler
    """How a step's sub-networks are drawn."""
    choices_before: Mapping[str, tuple[int, ...]]
    """Of each dimension that it unlocks, the choices that were unlocked before it."""
    weights: PhaseWeights
    """How it weighs exits."""
    config: PhaseConfig
    """Its settings."""
    teacher: str
    """Its teacher policy; `none` with the objectives `joint` and `in_place`."""
    steps: int
    """Optimiser steps."""
    warmup_steps: int
    """Steps of linear warm-up at its start."""
    first_step: int
    """Steps of all phases before it."""

    @property
    def alone(self) -> bool:
        """Whether it trains the largest network alone."""
        return self.sampler == Largest()

    @property
    def trains_all_exits(self) -> bool:
        """Whether a step trains several exits of each sub-network at once, and not just the one that it ends at."""
        return self.objective != "distill"

    @property
    def drawn(self) -> Space:
        """Networks that steps draw: where several exits are trained at once, those that have the last one."""
        return self.space.restrict(height=(max(self.space.height),)) if self.trains_all_exits else self.space

    @property
    def draws(self) -> str:
        """How sub-networks are drawn, as one word."""
        return "largest" if self.alone else self.config.sampler

    @property
    def unlocks(self) -> str:
        """What it unlocks, such as `kernel 3, 5, 7`."""
        parts = (f"{name} {', '.join(map(str, getattr(self.space, name)))}" for name in self.choices_before)
        return "; ".join(parts) or ("the largest network alone" if self.alone else "nothing more")

    @property
    def sentence(self) -> str:
        """Say what it does, for people who have not read the paper."""
        length = f"{self.config.epochs:g} epoch{'' if self.config.epochs == 1 else 's'}"
        if self.alone:
            several = self.objective == "joint" and len(self.evaluated.height) > 1
            trained = f"the largest network{' with all its exits' if several else ''}"
            return f"phase {self.name}: trains {trained}, {length}"
        choices = " and ".join(
            f"{_MEANING[name]} ({', '.join(map(str, getattr(self.space, name)))})" for name in self.choices_before
        )
        count = self.config.subnets
        drawn = f"{count} sub-network{'s' if count > 1 else ''} drawn anew"
        if self.trains_all_exits and len(self.evaluated.height) > 1:
            drawn += f" with all {'their' if count > 1 else 'its'} exits"
        teacher = {"in_place": "the largest one of them and the labels"}.get(
            self.objective, "the labels alone" if self.teacher == "none" else "a teacher and the labels"
        )
        return (
            f"phase {self.name}: sub-networks may {f'now differ in {choices}' if choices else 'differ as before'}; each"
            f" step trains {drawn}, from {teacher}, {length}"
        )


_MEANING = MappingProxyType(
    {
        "kernel": "kernel size",
        "level": "the number of parallel branches",
        "height": "the exit that they end at",
        "depth": "the number of blocks in a stage",
        "expand": "the width inside blocks",
    }
)
"""Dimension -> what it is, in a sentence."""


@dataclass(frozen=True)
class Plan:
    """All phases of a run."""

    phases: tuple[Phase, ...]
    """The phases to train, in order."""
    skipped: tuple[str, ...]
    """One sentence per phase that is left out."""
    steps_per_epoch: int
    """Training steps in an epoch."""

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return sum(phase.steps for phase in self.phases)


def make_plan(phases: Mapping[str, PhaseConfig], teacher: TeacherConfig, space: Space, steps_per_epoch: int) -> Plan:
    """Work out what every phase trains.

    The first space holds the largest network alone (at every resolution). A phase adds choices to it.

    Args:
        phases: The recipe's phases, in order.
        teacher: Teacher policy and exit weights of phases that name none.
        space: The supernet's whole space, with all its exits.
        steps_per_epoch: Training steps in an epoch.

    Raises:
        UserError: If a choice is impossible, or the order shrinks or repeats choices; the message names the key.
        DistillError: If a teacher policy is unknown, or exit weights are no scheme, not one number per exit, or 0 for
            all exits that a phase trains.
    """
    distill.check_policy(teacher.policy)
    planned: list[Phase] = []
    skipped: list[str] = []
    for name, config in phases.items():
        lacking = _lacking(config, space)
        if lacking and lacking == _named(config):
            skipped.append(f"{name} is skipped: this supernet has no choice of {' or '.join(lacking)}")
            continue
        if lacking:
            skipped.append(f"{name} leaves out {' and '.join(lacking)}: this supernet has no choice of it")
            config = replace(config, unlock=replace(config.unlock, **dict.fromkeys(lacking, ())))
        planned.append(_planned(name, config, planned, teacher, space, steps_per_epoch))
    if not planned:
        raise UserError("phases leave nothing to train on this supernet: add one that unlocks nothing, such as full")
    return Plan(tuple(planned), tuple(skipped), steps_per_epoch)


def _planned(
    name: str,
    config: PhaseConfig,
    before: Sequence[Phase],
    teacher: TeacherConfig,
    space: Space,
    steps_per_epoch: int,
) -> Phase:
    """Return the phase of a name and settings that comes after others."""
    largest = space.restrict(**{dimension: (max(getattr(space, dimension)),) for dimension in UNLOCKABLE})
    current = before[-1].space if before else largest
    grown = _grown(name, config, current, space)
    alone = grown == largest
    if grown == current and not alone and config.sampler != "marginals":
        raise UserError(f"phases.{name}.unlock (empty) must unlock something: only the first phase may unlock nothing")
    if alone and before and config.exit_weights == before[-1].config.exit_weights:
        raise UserError(
            f"phases.{name}.unlock (empty) repeats phases.{before[-1].name}: merge the two, unlock more, or give it"
            " other exit_weights"
        )
    objective = config.objective or ("joint" if alone else "distill")
    if objective == "in_place" and config.sampler != "sandwich" and not alone:
        raise UserError(
            f"phases.{name}.sampler ({config.sampler}): the objective in_place is taught by the largest network of"
            f" each step; set phases.{name}.sampler=sandwich"
        )
    weights = _weights(config, objective, teacher, space.height, unlocked=grown.height, before=before)
    steps = max(1, round(config.epochs * steps_per_epoch))
    return Phase(
        name=name,
        space=grown,
        evaluated=replace(grown, height=weights.exits),
        objective=objective,
        sampler=Largest() if alone else _sampler(name, config, grown),
        choices_before={dimension: getattr(current, dimension) for dimension in _named(config)},
        weights=weights,
        config=config,
        teacher=_teacher(name, config, teacher, objective, first=not before),
        steps=steps,
        warmup_steps=min(round(config.warmup_epochs * steps_per_epoch), steps - 1),
        first_step=sum(phase.steps for phase in before),
    )


PLAN_COLUMNS = ("phase", "unlocks", "epochs", "steps", "peak lr", "draws", "teacher")


def plan_table(plan: Plan) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Return the columns and rows that show a plan, within 80 columns of text: `draws` are sub-networks per step."""
    rows: list[tuple[object, ...]] = [
        (
            phase.name,
            phase.unlocks if phase.choices_before else "nothing",
            phase.config.epochs,
            phase.steps,
            phase.config.lr,
            _drawn(phase),
            "in place" if phase.objective == "in_place" else phase.teacher,
        )
        for phase in plan.phases
    ]
    return PLAN_COLUMNS, rows


def _drawn(phase: Phase) -> str:
    drawn = phase.draws if phase.alone else f"{phase.config.subnets} {phase.draws}"
    several = phase.trains_all_exits and len(phase.evaluated.height) > 1
    return f"{drawn}, all exits" if several and not phase.alone else drawn


def _teacher(phase: str, config: PhaseConfig, recipes: TeacherConfig, objective: str, *, first: bool) -> str:
    """Return the teacher policy of a phase; the first one has no earlier network to learn from."""
    if objective in UNTAUGHT:
        if config.teacher not in (None, "none"):
            raise UserError(
                f"phases.{phase}.teacher ({config.teacher}) has no effect on the {objective} objective: leave it out,"
                f" or set phases.{phase}.objective=distill, which leaves exits that are not unlocked untrained"
            )
        return "none"
    chosen = config.teacher or recipes.policy
    distill.check_policy(chosen)
    if first and chosen in distill.policies():
        raise UserError(
            f"phases.{phase}.teacher ({chosen}) needs a phase before it that trains the largest network:"
            " put one that unlocks nothing first, or use none or timm:NAME"
        )
    # A teacher whose loss counts nothing would be loaded and measured, and be recorded as one.
    return chosen if recipes.kd_ratio else "none"


def _sampler(phase: str, config: PhaseConfig, space: Space) -> Sampler:
    try:
        for network in map(Subnet.from_json, config.networks):
            space.check_architecture(network)
            if network.resolution not in space.resolution:
                raise UserError(
                    f"phases.{phase}.networks: resolution ({network.resolution}) is none of data.resolutions"
                    f" ({', '.join(map(str, space.resolution))}): correct it, or add it there"
                )
    except SpaceError as error:
        raise UserError(f"phases.{phase}.networks: {error}") from error
    return SAMPLERS[config.sampler](config)


def _weights(
    config: PhaseConfig,
    objective: str,
    teacher: TeacherConfig,
    exits: Sequence[int],
    *,
    unlocked: Sequence[int],
    before: Sequence[Phase],
) -> PhaseWeights:
    """Return how a phase weighs exits.

    Args:
        config: Its settings.
        objective: Its objective.
        teacher: The recipe's, with the weights of phases that have none of their own.
        exits: All exits.
        unlocked: Those that its sub-networks may end at.
        before: The phases before it.
    """

    def renormalised(weights: Sequence[Fraction], kept: Sequence[int]) -> dict[int, Fraction]:
        return distill.renormalised(dict(zip(exits, weights, strict=True)), kept)

    def of_all(weights: Mapping[int, Fraction]) -> tuple[Fraction, ...]:
        return tuple(weights.get(exit_, Fraction(0)) for exit_ in exits)

    # Those that no phase takes must fit, too.
    recipes = distill.exit_weights(teacher.exit_weights, len(exits))
    own = None if config.exit_weights is None else distill.exit_weights(config.exit_weights, len(exits))
    joint = own or recipes
    students = (own or distill.exit_weights("uniform", len(exits))).losses
    taught = renormalised(students, unlocked) if objective in ALL_EXITS else {}
    counted = {exit_ for exit_, weight in zip(exits, joint.losses, strict=True) if weight}
    trains = {"joint": counted, "distill": unlocked}.get(objective, taught)
    trained = sorted({*trains, *(exit_ for phase in before for exit_ in phase.weights.exits)})
    return PhaseWeights(
        exits=tuple(sorted(trains)),
        joint=joint,
        students=taught,
        in_place=renormalised(joint.ensemble, sorted({*unlocked} & {*trained})) if objective == "in_place" else {},
        trained=distill.ExitWeights(
            losses=of_all(renormalised(joint.losses, trained)), ensemble=of_all(renormalised(joint.ensemble, trained))
        ),
    )


def _named(config: PhaseConfig) -> tuple[str, ...]:
    return tuple(name for name in UNLOCKABLE if getattr(config.unlock, name))


def _lacking(config: PhaseConfig, space: Space) -> tuple[str, ...]:
    """Return what a phase unlocks and the variant lacks: level without parallel blocks, height with a single exit."""
    return tuple(name for name in _named(config) if name in ("level", "height") and len(getattr(space, name)) == 1)


def _grown(phase: str, config: PhaseConfig, current: Space, space: Space) -> Space:
    """Return the current space with the phase's choices."""
    choices: dict[str, tuple[int, ...]] = {}
    for name in _named(config):
        key, before = f"phases.{phase}.unlock.{name}", getattr(current, name)
        values = tuple(sorted(set(getattr(config.unlock, name))))
        listed = ", ".join(map(str, values))
        for value in values:
            if value not in getattr(space, name):
                there = ", ".join(map(str, getattr(space, name)))
                raise UserError(f"{key} ({value}) is nothing that this supernet can serve: choose among {there}")
        for value in before:
            if value not in values:
                raise UserError(f"{key} ({listed}) drops {value}, which is unlocked already: phases only add choices")
        if values == before:
            raise UserError(f"{key} ({listed}) repeats what is unlocked already: add a choice or remove the phase")
        choices[name] = values
    return space.restrict(**{name: getattr(current, name) for name in supernets.DIMENSIONS} | choices)
