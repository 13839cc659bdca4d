"""Estimate how long a recipe trains, from some measured steps of each phase."""

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace

from ofav2.progress import log_progress
from ofav2.rng import Stream
from ofav2.training.loop import phase_batches
from ofav2.training.objectives import Teacher
from ofav2.training.optim import make_updates
from ofav2.training.phase import make_objective
from ofav2.training.phases import Phase
from ofav2.training.setup import Setup, place_to_train
from ofav2.training.step import Guard, train_steps
from ofav2.training.teacher import external_as_teacher, largest_as_teacher

STEPS = 10
"""Steps that are measured of each phase, after one that is not."""


def phase_seconds(setup: Setup) -> Mapping[str, float]:
    """Return about how many seconds the training steps of each phase take here, by phase.

    Batches are the recipe's own, loading included. Validations, saved states and the evaluation after each phase are
    not in it. The setup's network is not changed.

    Args:
        setup: What is trained, on what.
    """
    with log_progress("measuring steps", len(setup.plan.phases)) as advance:
        found = {}
        for phase in setup.plan.phases:
            found[phase.name] = phase.steps * _step_seconds(setup, phase)
            advance()
    return found


def _step_seconds(setup: Setup, phase: Phase) -> float:
    """Return the mean seconds of a phase's first steps, without the very first one."""
    # The first step of every size of images would be compiled, which a whole phase does once.
    runtime, config = replace(setup.runtime, compiler=None), setup.config
    net = copy.deepcopy(setup.net)
    place_to_train(net, runtime)
    measured = replace(setup, net=net, runtime=runtime)
    steps = train_steps(
        net,
        phase_batches(measured, phase, range(STEPS + 1)),
        make_objective(measured, phase, _teacher(measured, phase)),
        make_updates(net, config.optim, steps=STEPS + 1, warmup_steps=0, peak=phase.config.lr),
        guard=Guard(config.optim.loss_jump),
        stream=Stream(config.run.seed, phase.name),
        runtime=runtime,
    )
    seconds, before = [], 0.0
    for _ in steps:
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    return statistics.fmean(seconds[1:])


def _teacher(setup: Setup, phase: Phase) -> Teacher | None:
    """Return a teacher that takes as long as the phase's own: the recipe's from timm, or the largest network."""
    runtime, net, precision = setup.runtime, setup.net, setup.config.teacher.precision
    if phase.teacher == "none":
        return None
    if phase.teacher in setup.external.networks:
        return external_as_teacher(setup.external.networks[phase.teacher], runtime, precision)
    networks = dict.fromkeys(net.space.resolution, net.extract(net.space.largest(), net.architecture.exits))
    return largest_as_teacher(networks, phase.weights.trained.ensemble, runtime, precision)
