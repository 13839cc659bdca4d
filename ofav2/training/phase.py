"""Run one phase: choose its teacher, train, evaluate, save."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from torch.fx import GraphModule

import distill
import supernets
from ofav2.evaluation import corners
from ofav2.evaluation.evaluator import Score
from ofav2.evaluation.recalibration import adopt_statistics
from ofav2.rng import Stream
from ofav2.runs.records import FinalScores, PhaseRecord
from ofav2.runs.state import PhaseState
from ofav2.runs.tracking import Tracker
from ofav2.tables import table
from ofav2.training.loop import learn
from ofav2.training.objectives import Distill, DistillExits, Draw, InPlace, Joint, Objective, Teacher, compiled_exits
from ofav2.training.phases import Phase
from ofav2.training.setup import Setup
from ofav2.training.step import DivergedError, not_finite
from ofav2.training.teacher import choose_teacher, largest_networks, prepare_teachers, teaching_score
from ofav2.training.writer import RunWriter
from supernets.multi_exit import MultiExit

logger = logging.getLogger(__name__)


def run_phase(
    setup: Setup,
    phase: Phase,
    finished: Sequence[PhaseRecord],
    state: PhaseState | None,
    *,
    writer: RunWriter,
    tracker: Tracker,
    stop: Callable[[], bool],
) -> PhaseRecord:
    """Run one phase: choose its teacher, train, evaluate, save.

    Args:
        setup: What is trained, on what.
        phase: The phase.
        finished: The phases before it.
        state: Its saved state, to go on from; None begins it.
        writer: What writes into the run folder.
        tracker: What keeps the measurements.
        stop: Says whether the run was told to stop.

    Returns:
        What the run records of it.

    Raises:
        DivergedError: If too many batches had an unusable loss, or weights or validation scores are not finite.
        RunError: If the folder can't be written to.
        Stopped: If the run was told to stop.
    """
    net = setup.net
    phase_teacher = choose_teacher(setup, phase, finished, writer.path)
    if phase_teacher.record.reason:
        logger.info(f"teacher of {phase.name}: {phase_teacher.record.reason}")
    may_sort = state is None and not setup.config.supernet.frozen
    if may_sort and isinstance(net, supernets.Supernet) and "expand" in phase.choices_before:
        supernets.sort_channels(net, phase.choices_before["expand"])
    objective = make_objective(setup, phase, phase_teacher.teacher)
    steps = learn(setup, phase, objective, writer=writer, tracker=tracker, state=state, stop=stop)

    networks = largest_networks(net, setup.evaluator)
    if isinstance(net, supernets.Supernet):
        adopt_statistics(net, networks[max(networks)])
    score, mean = _evaluate(setup, phase, networks, tracker)
    broken = not_finite(net)
    if broken is None and not all(math.isfinite(value) for value in (score, mean) if value is not None):
        broken = "validation scores"
    if any(setup.runtime.processes.any(broken is not None)):
        # Weights may be finite and so large that no statistics are.
        writer.set_aside_after(phase.first_step)
        setup.runtime.processes.refuse(
            DivergedError(
                f"phase {phase.name} left values that are not finite ({broken}); lower phases.{phase.name}.lr, and"
                " accept it with --allow-change: --resume trains the phase again"
            )
        )
    end = phase.first_step + phase.steps
    saved = writer.save_phase(net, phase.name, end, score, tracker)
    return PhaseRecord(
        name=phase.name,
        space=phase.evaluated,
        steps=steps,
        end=end,
        teacher=phase_teacher.record,
        ensemble_score=score,
        mean_corner_score=mean,
        metrics_bytes=saved.metrics_bytes,
        sha256=saved.sha256,
    )


def _evaluate(
    setup: Setup, phase: Phase, networks: Mapping[int, GraphModule], tracker: Tracker
) -> tuple[float, float | None]:
    """Return and track validation scores after a phase: the largest network's as a teacher, and the mean over corners.

    Args:
        setup: What is trained, on what.
        phase: The phase.
        networks: The largest network by resolution.
        tracker: What keeps the measurements.

    Returns:
        The teacher's score, and the mean over corners; None where none are measured.
    """
    net, evaluator = setup.net, setup.evaluator
    score = teaching_score(prepare_teachers(networks, setup.runtime), phase.weights.trained.ensemble, evaluator)
    subnets = corners.chosen_corners(phase.evaluated, setup.config.evaluation.corners)
    scores = list(evaluator.scores(net, subnets, setup.data.val))
    mean = corners.usable_mean({score.subnet: score.value for score in scores}) if scores else None
    if scores:
        _show_corners(setup, f"{phase.name}/corners", f"{phase.name}: corner sub-networks, validation", scores, tracker)
    measured = {} if mean is None else {"mean": mean}
    end = phase.first_step + phase.steps
    tracker.log("corners", global_step=end, phase=phase.name, **measured, teacher=score)
    return score, mean


def make_objective(setup: Setup, phase: Phase, teacher: Teacher | None) -> Objective:
    """Make what a phase minimises, as its recipe says."""
    config, net, task = setup.config, setup.net, setup.task
    draw = Draw(phase.sampler, phase.drawn, Stream(config.run.seed, phase.name))
    if phase.objective == "joint":
        # Only a network that is the same in every step is compiled.
        compiler = setup.runtime.compiler if phase.alone else None
        return Joint(task, draw, phase.weights.joint.losses, compiled_exits(net, phase.space.largest(), compiler))
    distance, kd_ratio = distill.distance(config.teacher.distance), config.teacher.kd_ratio
    if phase.objective == "distill_exits":
        return DistillExits(task, draw, net, teacher, distance, kd_ratio, phase.weights.students)
    if phase.objective == "in_place":
        return InPlace(task, draw, net, phase.weights.students, phase.weights.in_place, distance, kd_ratio)
    assert phase.objective == "distill"
    return Distill(task, draw, net, teacher, distance, kd_ratio)


def evaluate_on_test(setup: Setup, tracker: Tracker) -> FinalScores:
    """Evaluate corner sub-networks on the test split, which nothing before has looked at.

    Raises:
        DivergedError: A score is not finite.
    """
    last, metric = setup.plan.phases[-1], setup.task.metrics[0]
    # A run always says what its largest and its smallest network reach.
    subnets = corners.chosen_corners(last.evaluated, "all" if setup.config.evaluation.corners == "all" else "ends")
    scores = list(setup.evaluator.scores(setup.net, subnets, setup.data.test))
    rows = _show_corners(setup, "test/corners", "corner sub-networks, test", scores, tracker)
    tracker.scatter("test/accuracy_macs", corners.columns(setup.task.metrics), rows, x="macs", y=metric.name)
    value = {score.subnet: score.value for score in scores}
    largest, smallest = last.evaluated.largest(), last.evaluated.smallest()
    found = FinalScores(mean=corners.usable_mean(value), largest=value[largest], smallest=value[smallest])
    if not all(map(math.isfinite, asdict(found).values())):
        setup.runtime.processes.refuse(
            DivergedError(f"scores on test are not finite ({found}): train again, with a lower phases.{last.name}.lr")
        )
    tracker.log("test", global_step=setup.plan.steps, phase=last.name, **asdict(found))
    return found


def _show_corners(
    setup: Setup, name: str, title: str, scores: Sequence[Score], tracker: Tracker
) -> list[tuple[str | float | None, ...]]:
    """Track a corner table whole, log its summary, and return its rows."""
    arch, metric = setup.net.architecture, setup.task.metrics[0]
    rows = [corners.corner_row(arch, score) for score in corners.by_cost(arch, scores)]
    tracker.table(name, corners.columns(setup.task.metrics), rows)
    if isinstance(setup.net, MultiExit):
        logger.info(table(title.replace("corner sub-networks", "exits"), *corners.exit_table(arch, scores, metric)))
    else:
        logger.info(table(title, corners.SUMMARY_COLUMNS, corners.summary_rows(scores, metric)))
    return rows
