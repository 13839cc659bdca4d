"""Training one phase: steps, measurements, validations, saved states, and a stop on request."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ofav2.data import Batch, ImageData, train_batches
from ofav2.progress import log_progress
from ofav2.rng import Stream
from ofav2.runs.metrics_file import flushed_bytes
from ofav2.runs.state import (
    PhaseState,
    Progress,
    check_state,
    cloned,
    optimizer_tensors,
    restore_optimizer,
)
from ofav2.runs.tracking import Tracker
from ofav2.runtime.device import Runtime
from ofav2.runtime.signals import Stopped
from ofav2.tasks.base import Task
from ofav2.training.objectives import Objective
from ofav2.training.optim import Updates, make_updates
from ofav2.training.phases import Phase
from ofav2.training.samplers import batch_resolutions
from ofav2.training.setup import Setup
from ofav2.training.step import DivergedError, Guard, Step, not_finite, train_steps
from ofav2.training.writer import RunWriter
from supernets.multi_exit import MultiExit, Network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """The supernet at its best validation in a phase."""

    score: float
    """Mean validation score of the largest and the smallest sub-network; of a network with exits, their ensemble's."""
    weights: dict[str, Tensor]
    """Its weights and statistics."""


@dataclass(frozen=True)
class Patience:
    """Ends a phase whose validations no longer improve (AEP): a tie with the lowest loss is no improvement."""

    limit: int
    """Validations in a row without improvement that end the phase; 0 never does."""
    lowest: float | None = None
    """Lowest joint loss so far."""
    stale: int = 0
    """Validations in a row since then."""

    def after(self, loss: float) -> "Patience":
        """Return what has seen one more validation."""
        if math.isfinite(loss) and (self.lowest is None or loss < self.lowest):
            return replace(self, lowest=loss, stale=0)
        return replace(self, stale=self.stale + 1)

    @property
    def over(self) -> bool:
        """Whether the phase is to end."""
        return 0 < self.limit <= self.stale


@dataclass(frozen=True)
class Position:
    """Where the training of a phase is, and what it has found so far."""

    step: int
    """Steps taken in the phase."""
    guard: Guard
    """The guard after them."""
    skipped: int
    """How many of them changed nothing."""
    best: Best | None
    """The best validation; None before the first."""
    patience: Patience
    """How long validations have not improved."""
    sound: int | None = None
    """Steps taken before those that were skipped last, in a row; None after a step that trained."""

    def after(self, step: Step) -> "Position":
        """Return the position after one more step."""
        taken = replace(self, step=step.number, guard=step.guard)
        if step.refused is None:
            return replace(taken, sound=None)
        return replace(taken, skipped=self.skipped + 1, sound=step.number - 1 if self.sound is None else self.sound)


def learn(
    setup: Setup,
    phase: Phase,
    objective: Objective,
    *,
    writer: RunWriter,
    tracker: Tracker,
    state: PhaseState | None,
    stop: Callable[[], bool],
) -> int:
    """Train a phase to its end, or to that of its patience, and leave the supernet as it was at its best validation.

    Args:
        setup: The run's setup; its supernet is trained in place.
        phase: The phase.
        objective: What is minimised.
        writer: What saves states into the run folder.
        tracker: Where measurements go.
        state: Where the phase stopped before; None starts it.
        stop: Tells whether to save and exit; if one process is told so, all do.

    Returns:
        The steps that it took.

    Raises:
        DivergedError: If more batches had an unusable loss than `optim.skip_limit` allows, of which the message names
            the last, or if weights are not finite. Saved states that this may have begun in are set aside.
        RunError: If the state is another supernet's, another optimiser's or its progress is outside the phase.
        Stopped: If `stop` returned true, after the state was saved.
    """
    config, net = setup.config, setup.net
    updates = make_updates(net, config.optim, steps=phase.steps, warmup_steps=phase.warmup_steps, peak=phase.config.lr)
    position, validated_as = _start(setup, phase, updates, state), _validated(setup, phase)
    saved_at, overdue = time.monotonic(), False
    net.set_dropout(phase.config.dropout)
    logger.info(phase.sentence)
    # The validation that is shown is the last one.
    validated: dict[str, str] = {}
    with log_progress(f"{phase.name} ({phase.unlocks})", phase.steps - position.step) as advance:
        for step in _steps(setup, phase, objective, updates, position):
            epoch = f"{step.number / setup.plan.steps_per_epoch:.1f} of {phase.config.epochs:g}"
            advance(epoch=epoch, loss=step.metrics["loss"], **validated)
            position = position.after(step)
            if step.refused:
                _skip(setup, phase, step, position, writer, tracker)
            _record(setup, phase, step, tracker)
            if _is_due(step.number, config.evaluation.every_epochs * setup.plan.steps_per_epoch, phase.steps):
                _refuse_ruined(setup, phase, writer, step.number)
                position, found = _validate(setup, phase, position, writer, tracker)
                validated = {"validation": setup.task.metrics[0].show(found, 1)}
            minutes = (time.monotonic() - saved_at) / 60
            stopping, saving = setup.runtime.processes.any(
                stop(), overdue or _is_saving_due(setup, phase, position, minutes)
            )
            # What a state after a skipped step has may be what the next ones fail of.
            overdue = saving and position.sound is not None
            if position.sound is None and (stopping or saving):
                _refuse_ruined(setup, phase, writer, step.number)
                saved_at = time.monotonic()
                make = partial(_state, net, phase, position, updates.optimizer, writer.path, validated_as)
                writer.keep_state(make, config.run.keep_states)
            if stopping:
                if position.sound is not None:
                    logger.info("the last batch was skipped, so no state is saved here: --resume takes the one before")
                raise Stopped(f"step {step.number} of phase {phase.name}")
            if position.patience.over:
                stale = position.patience.stale
                logger.info(f"{phase.name} ends at step {position.step}: no lower loss in {stale} validations")
                break
    # A state may have been saved after the last step, when there is nothing left to train but all of what follows.
    assert position.best is not None, "the last step validates"
    net.load_state_dict(position.best.weights)
    return position.step


def _start(setup: Setup, phase: Phase, updates: Updates, state: PhaseState | None) -> Position:
    """Return where a phase begins, or where its state left off, whose weights are loaded."""
    loss_jump, limit = setup.config.optim.loss_jump, phase.config.patience
    if state is None:
        return Position(0, Guard(loss_jump), 0, None, Patience(limit))
    setup.runtime.processes.on_all(partial(_take_up, state, phase, setup.net, updates.optimizer))
    progress = state.progress
    found = Position(
        step=progress.step,
        guard=Guard(loss_jump, progress.first_loss, progress.usual_loss),
        skipped=progress.skipped,
        best=None if progress.best_score is None else Best(progress.best_score, dict(state.best)),
        patience=Patience(limit, progress.lowest_loss, progress.stale),
    )
    # After the last step nothing is validated any more.
    if found.best is None or progress.step == phase.steps or progress.validated in (None, _validated(setup, phase)):
        return found
    logger.warning(
        f"{phase.name}: its validations until now were of other images or settings, so the best one is looked for anew"
    )
    return replace(found, best=None, patience=Patience(limit))


def _validated(setup: Setup, phase: Phase) -> str:
    """Return a checksum of what a phase's validations depend on beside the weights."""
    data, optim, evaluation = setup.config.data, setup.config.optim, setup.config.evaluation
    facts = (
        *(setup.data.fingerprint, setup.data.mean, setup.data.std, data.eval_crop, data.shrink_to),
        *(evaluation.calibration_images, evaluation.calibration_batch, setup.task.metrics[0].name),
        *(phase.evaluated, phase.weights.trained, optim.label_smoothing, optim.class_weights),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _steps(setup: Setup, phase: Phase, objective: Objective, updates: Updates, position: Position) -> Iterator[Step]:
    """Train the steps that a phase has left: none if its patience is over."""
    return train_steps(
        setup.net,
        phase_batches(setup, phase, range(position.step, position.step if position.patience.over else phase.steps)),
        objective,
        updates,
        guard=position.guard,
        stream=Stream(setup.config.run.seed, phase.name),
        runtime=setup.runtime,
        start_step=position.step,
    )


def phase_batches(setup: Setup, phase: Phase, steps: range) -> Iterator[Batch]:
    """Yield the inputs and targets of some of a phase's steps, on the device; of several processes, this one's part."""
    config, stream = setup.config.data, Stream(setup.config.run.seed, phase.name)
    batches = train_batches(
        setup.data,
        replace(config, resolutions=batch_resolutions(phase.sampler, config.resolutions)),
        stream,
        steps,
        share=setup.runtime.processes.share,
        device=setup.runtime.device,
    )
    return posed(batches, setup.data, setup.task, stream, setup.runtime, steps.start)


def posed(
    batches: Iterable[Batch], data: ImageData, task: Task, stream: Stream, runtime: Runtime, start_step: int = 0
) -> Iterator[Batch]:
    """Yield batches as a network's normalised inputs and the task's targets, on the device.

    Args:
        batches: The data set's batches, from `start_step` on.
        data: The data set, which knows how images are normalised.
        task: What is learnt.
        stream: The training's random numbers.
        runtime: Where tensors go.
        start_step: Steps that are taken already.
    """
    for step, batch in enumerate(batches, start_step):
        images, targets = data.normalise(runtime.send(batch.images)), runtime.send(batch.targets)
        # Processes draw apart, and the first one as if it were alone.
        rank = [runtime.processes.rank] if runtime.processes.rank else []
        yield Batch(*task.pose(images, targets, stream.at("pose", step, *rank)))


def _take_up(state: PhaseState, phase: Phase, net: Network, optimizer: torch.optim.Optimizer) -> None:
    check_state(state, net, first_step=phase.first_step, steps=phase.steps)
    net.load_state_dict(dict(state.net))
    restore_optimizer(optimizer, state.optimizer)


def _state(
    net: Network,
    phase: Phase,
    position: Position,
    optimizer: torch.optim.Optimizer,
    path: Path,
    validated: str,
) -> PhaseState:
    best = position.best
    here = Progress(
        phase=phase.name,
        step=position.step,
        global_step=phase.first_step + position.step,
        metrics_bytes=flushed_bytes(path),
        best_score=None if best is None else best.score,
        skipped=position.skipped,
        first_loss=position.guard.first,
        usual_loss=position.guard.usual,
        lowest_loss=position.patience.lowest,
        stale=position.patience.stale,
        validated=validated,
    )
    kept = {} if best is None else best.weights
    return PhaseState(here, net.state_dict(), optimizer_tensors(optimizer), kept)


def _record(setup: Setup, phase: Phase, step: Step, tracker: Tracker) -> None:
    if step.number % setup.config.tracking.every_steps == 0 or step.number == phase.steps:
        tracker.log("train", global_step=phase.first_step + step.number, phase=phase.name, **step.metrics)


def _skip(setup: Setup, phase: Phase, step: Step, position: Position, writer: RunWriter, tracker: Tracker) -> None:
    """Tell that a batch was skipped; end the run if too many were."""
    limit, skipped = setup.config.optim.skip_limit, position.skipped
    logger.warning(f"batch skipped ({skipped} of at most {limit} in this phase): {step.refused}")
    tracker.log("skipped", global_step=phase.first_step + step.number, phase=phase.name, loss=step.metrics["loss"])
    if skipped > limit:
        assert position.sound is not None, "the last step was skipped"
        why = f"{step.refused} ({skipped} batches were skipped)"
        writer.set_aside_skipped(phase.name)
        _give_up(
            setup, phase, writer, position.sound, why, "--resume goes back before the first of the skipped batches"
        )


def _refuse_ruined(setup: Setup, phase: Phase, writer: RunWriter, step: int) -> None:
    """End the run if a weight or a statistic is not finite, in any process."""
    if any(setup.runtime.processes.any(not_finite(setup.net) is not None)):
        why = f"weights after step {step} of phase {phase.name} are not finite"
        _give_up(setup, phase, writer, step - 1, why, "--resume goes on from before that step")


def _give_up(setup: Setup, phase: Phase, writer: RunWriter, sound: int, why: str, back: str) -> NoReturn:
    """End the run, with the states set aside that it could not go on from.

    The state of the last step before the trouble is among them: the next loss was that of its weights. So are those in
    which the phase had learnt nothing yet.

    Args:
        setup: The run's setup.
        phase: The phase.
        writer: What writes into the run folder.
        sound: Steps of the phase that were taken before the trouble.
        why: What it is.
        back: Where the run can go on.
    """
    writer.set_aside_after(phase.first_step + sound - 1)
    writer.set_aside_unlearnt(phase.name)
    setup.runtime.processes.refuse(
        DivergedError(
            f"{why}; lower phases.{phase.name}.lr, set optim.grad_clip or raise optim.skip_limit, and accept it with"
            f" --allow-change: {back}"
        )
    )


def _validate(
    setup: Setup, phase: Phase, position: Position, writer: RunWriter, tracker: Tracker
) -> tuple[Position, float]:
    """Measure what is trained, and return its score; of equally good networks, the newer one is the best.

    A score that is not finite ends the run.
    """
    patience, best = position.patience, position.best
    if isinstance(setup.net, MultiExit):
        # Its running statistics are used as they are, and each process has gathered its own.
        setup.runtime.processes.copy_first([*setup.net.buffers()])
        found, reached = _exit_scores(setup, phase, setup.net)
        patience = patience.after(found["loss"])
    else:
        found, reached = _ends(setup, phase)
    if not math.isfinite(reached):
        why = f"the validation after step {position.step} of phase {phase.name} is not finite"
        _give_up(setup, phase, writer, position.step - 1, why, "--resume goes on from before that step")
    tracker.log("validation", global_step=phase.first_step + position.step, phase=phase.name, **found)
    rank = setup.task.metrics[0].rank
    kept = best if best is not None and rank(best.score) > rank(reached) else Best(reached, cloned(setup.net))
    return replace(position, best=kept, patience=patience), reached


def _ends(setup: Setup, phase: Phase) -> tuple[dict[str, float], float]:
    """Return the scores of the largest and the smallest sub-network, and their mean."""
    ends = {"largest": phase.evaluated.largest(), "smallest": phase.evaluated.smallest()}
    scores = {score.subnet: score.value for score in setup.evaluator.scores(setup.net, ends.values(), setup.data.val)}
    found = {name: scores[subnet] for name, subnet in ends.items()}
    return found, sum(found.values()) / len(found)


def _exit_scores(setup: Setup, phase: Phase, net: MultiExit) -> tuple[dict[str, float], float]:
    """Return the scores of a network's exits and their ensemble, by name, with their joint loss; and the ensemble's."""
    found = setup.evaluator.joint_scores(net.network, phase.weights.trained, max(net.space.resolution), setup.data.val)
    numbered = {f"exit_{number}": score for number, score in enumerate(found.exits, 1)}
    ends = {"largest": found.exits[-1], "smallest": found.exits[0], "ensemble": found.ensemble}
    return {**ends, **numbered, "loss": found.loss}, found.ensemble


def _is_due(step: int, every: float, last: int) -> bool:
    """Return whether a multiple of `every` (0: never) was reached with this step, or it is the last one."""
    return step == last or bool(every and int(step / every) > int((step - 1) / every))


def _is_saving_due(setup: Setup, phase: Phase, position: Position, minutes: float) -> bool:
    """Return whether a state is due after this step, so many minutes after the last one."""
    every, often = setup.config.run.save_steps, setup.config.run.save_minutes
    # After the last step comes the evaluating, which may take longer than whoever stops the run will wait.
    if position.step == phase.steps or position.patience.over:
        return bool(every or often)
    return bool(every and position.step % every == 0) or bool(often and minutes >= often)
