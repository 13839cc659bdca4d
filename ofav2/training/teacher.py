"""Choose a phase's teacher by its policy, and make it teach: an earlier phase's largest network, or one of timm."""

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from torch import Tensor, nn
from torch.fx import GraphModule

import distill
import supernets
from ofav2.evaluation.evaluator import Evaluator
from ofav2.runs import checkpoint, folder
from ofav2.runs.records import PhaseRecord, TeacherRecord
from ofav2.runtime.compiling import compiled
from ofav2.runtime.device import Runtime
from ofav2.tasks.base import Task
from ofav2.training.objectives import Teacher, as_teacher
from ofav2.training.phases import Phase
from ofav2.training.setup import Setup
from supernets.multi_exit import Network
from supernets.outputs import Outputs


@dataclass(frozen=True)
class PhaseTeacher:
    """A phase's teacher and what the run records of it."""

    teacher: Teacher | None
    """What teaches; None: labels alone."""
    record: TeacherRecord
    """What the run records of it."""


def candidates(finished: Sequence[PhaseRecord]) -> list[distill.TeacherCandidate]:
    """Return what finished phases left that could teach, oldest first."""
    return [
        distill.TeacherCandidate(f"{past.name}'s largest network", past.name, past.ensemble_score)
        for past in finished
        if past.ensemble_score is not None
    ]


def choose_teacher(setup: Setup, phase: Phase, finished: Sequence[PhaseRecord], run_folder: Path) -> PhaseTeacher:
    """Return the teacher of a phase by its policy.

    A candidate is the largest network as a phase left it: its weights are read from that phase's checkpoint.

    Args:
        setup: What is trained, on what.
        phase: The phase.
        finished: The phases before it.
        run_folder: Where they left their checkpoints.
    """
    if phase.teacher == "none":
        return PhaseTeacher(None, TeacherRecord("none"))
    if phase.teacher in setup.external.networks:
        return _external_teacher(setup, phase.teacher)
    choice = distill.choose(phase.teacher, candidates(finished), score_order(setup.task))
    chosen = choice.candidate
    path = folder.checkpoint_path(run_folder, chosen.phase)
    tensors, _ = setup.runtime.processes.on_main(lambda: checkpoint.load(path))
    networks = largest_networks(with_weights(setup.net, tensors), setup.evaluator)
    # It teaches with the weights that it was scored with.
    weights = next(past.weights.trained.ensemble for past in setup.plan.phases if past.name == chosen.phase)
    teacher = largest_as_teacher(networks, weights, setup.runtime, setup.config.teacher.precision)
    return PhaseTeacher(teacher, TeacherRecord(phase.teacher, chosen.name, chosen.phase, chosen.score, choice.reason))


def _external_teacher(setup: Setup, name: str) -> PhaseTeacher:
    """Return a teacher from timm with its validation score: the mean over resolutions, measured in float32."""
    evaluator, module, metric = setup.evaluator, setup.external.networks[name], setup.task.metrics[0]
    sides = setup.net.space.resolution
    score = statistics.fmean(evaluator.exit_scores(module, side, setup.data.val)[0] for side in sides)
    reason = f"{name} is the recipe's; its validation {metric.name} is {metric.show(score)}"
    record = TeacherRecord(name, name=name, score=score, reason=reason, sha256=setup.external.sha256)
    return PhaseTeacher(external_as_teacher(module, setup.runtime, setup.config.teacher.precision), record)


def external_as_teacher(module: nn.Module, runtime: Runtime, precision: str | None) -> Teacher:
    """Return a network from timm as a teacher.

    Args:
        module: The network, in evaluation mode and on the device.
        runtime: Where it teaches.
        precision: Arithmetic of its forward pass; None takes the run's.
    """
    forward = compiled("teacher", module, module, runtime.compiler)
    return as_teacher(forward, distill.exit_weights("uniform", 1).ensemble, _arithmetic(runtime, precision))


def largest_as_teacher(
    networks: Mapping[int, GraphModule], weights: Sequence[Fraction], runtime: Runtime, precision: str | None
) -> Teacher:
    """Return the largest network, with all its exits, as a teacher.

    Args:
        networks: The network as it is for images of each side in pixels; it is not changed.
        weights: One ensemble weight b_i per exit.
        runtime: Where it teaches.
        precision: Arithmetic of its forward pass; None takes the run's.
    """
    modules = prepare_teachers(networks, runtime)
    forwards = {module: compiled("teacher", module, module, runtime.compiler) for module in {*modules.values()}}

    def of_its_side(images: Tensor) -> Outputs:
        return forwards[modules[images.shape[-1]]](images)

    return as_teacher(of_its_side, weights, _arithmetic(runtime, precision))


def _arithmetic(runtime: Runtime, precision: str | None) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the context of a teacher's forward pass."""
    return replace(runtime, precision=precision or runtime.precision).autocast


def score_order(task: Task) -> distill.ScoreOrder:
    """Return how a task's scores are compared and shown where teachers are chosen."""
    metric = task.metrics[0]
    return distill.ScoreOrder(metric.higher_is_better, lambda score: f"{metric.show(score)} {metric.name}")


def prepare_teachers(networks: Mapping[int, GraphModule], runtime: Runtime) -> dict[int, GraphModule]:
    """Return largest networks as `prepare_teacher` does, by side in pixels; one that serves several stays one."""
    prepared = {network: prepare_teacher(network, runtime) for network in {*networks.values()}}
    return {side: prepared[network] for side, network in networks.items()}


def prepare_teacher(largest: GraphModule, runtime: Runtime) -> GraphModule:
    """Return a largest network as it teaches: norms folded, on the device.

    Sums are rounded otherwise than the network's own, so its accuracy as a teacher is that of this form.

    Args:
        largest: The network, in evaluation mode; it is not changed.
        runtime: Where it teaches.
    """
    module = supernets.fold_norms(largest)
    runtime.place(module)
    return module


def largest_networks(net: Network, evaluator: Evaluator) -> dict[int, GraphModule]:
    """Return the largest network with all its exits for each resolution, by its side in pixels.

    A supernet's batch-norm statistics are gathered at that resolution: those of large images are wrong for small ones.
    The original's teacher normalises with the batch itself, which is also at the batch's resolution.

    Args:
        net: The network; its weights are not copied.
        evaluator: What recalibrates, and where.
    """
    sides, largest = net.space.resolution, net.space.largest()
    if not net.needs_recalibration:
        return dict.fromkeys(sides, evaluator.calibrated(net, largest, net.architecture.exits))
    return {
        side: evaluator.calibrated(net, replace(largest, resolution=side), net.architecture.exits) for side in sides
    }


def teaching_score(modules: Mapping[int, GraphModule], weights: Sequence[Fraction], evaluator: Evaluator) -> float:
    """Return how good a teacher is: the validation score of its exits' weighted sum, as the mean over resolutions."""
    return statistics.fmean(
        evaluator.ensemble_score(module, weights, side, evaluator.data.val) for side, module in modules.items()
    )


def with_weights(net: Network, tensors: Mapping[str, Tensor]) -> Network:
    """Return a network like `net` with these weights."""
    source = copy.deepcopy(net)
    checkpoint.fill(source, tensors, "the teacher's checkpoint")
    return source
