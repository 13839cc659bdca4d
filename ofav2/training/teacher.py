"""Make a phase's teacher, from an earlier phase's checkpoint or from timm."""

import copy
import logging
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.fx import GraphModule

import distill
import supernets
from ofav2 import files
from ofav2.config.schema import Config, TeacherConfig
from ofav2.data import ImageData
from ofav2.data.splits import first_other_class
from ofav2.errors import UserError
from ofav2.evaluation.evaluator import Evaluator
from ofav2.messages import first_line
from ofav2.runs import checkpoint, folder
from ofav2.runs.records import TeacherRecord
from ofav2.runs.teacher_record import read_teacher
from ofav2.runtime.compiling import Forward, compiled
from ofav2.runtime.device import Runtime
from ofav2.tasks.base import Task
from ofav2.training.objectives import Teacher, as_teacher
from ofav2.training.phases import Phase, Plan
from supernets.multi_exit import Network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhaseTeacher:
    """A phase's teacher and what the run records of it."""

    teacher: Teacher | None
    """What teaches; None: labels alone."""
    record: TeacherRecord
    """What the run records of it."""


class ExternalTeachers(NamedTuple):
    """Teachers from timm."""

    networks: Mapping[str, nn.Module]
    """The teachers, by policy."""
    sha256: str | None
    """Checksum of their weights: of the file, or of what timm has loaded; None without such a teacher."""


def external_teachers(plan: Plan, config: Config, data: ImageData, task: Task, runtime: Runtime) -> ExternalTeachers:
    """Build the plan's teachers from timm, each once; a wrong one is refused before training starts.

    Raises:
        DistillError: If a teacher is unknown, can't be loaded, or has other outputs.
        UserError: If a file's normalisation is missing, or a teacher can't take images of the recipe's resolutions.
    """
    names = dict.fromkeys(phase.teacher for phase in plan.phases if phase.teacher.startswith("timm:"))
    if not names:
        for name in ("checkpoint", "mean", "std"):
            if (value := getattr(config.teacher, name)) is not None:
                raise UserError(
                    f"teacher.{name} ({value}) is of a teacher from timm, and no phase has one: set"
                    " teacher.policy=timm:NAME, or leave it out"
                )
        return ExternalTeachers({}, None)
    if task.dense:
        raise UserError(
            f"teacher ({next(iter(names))}): timm's networks have no maps to teach task {task.name} with;"
            " use fixed, progressive, best or none"
        )
    found = _teacher_file(config.teacher, data, names)
    if data.white != 255 and not (found and found.sha256):
        raise UserError(
            f"teacher ({next(iter(names))}): weights of timm, or of a file, are for pictures in 0..1, and {data.name}"
            " have units of their own; make one by `ofav2 finetune` on them, and name its folder as teacher.checkpoint"
        )
    classes = data.classes if len(data.classes) == task.outputs else task.outputs
    images = distill.Normalisation(tuple(data.mean), tuple(data.std))
    teachers = {
        name: runtime.place(distill.external_teacher(name, classes=classes, images=images, file=found and found.file))
        for name in names
    }
    resolutions = config.data.resolutions
    for name, module in teachers.items():
        for resolution in sorted({min(resolutions), max(resolutions)}):
            _try(name, module, torch.zeros(2, data.channels, resolution, resolution, device=runtime.device))
    if found is None:
        return ExternalTeachers(teachers, checkpoint.networks_sha256(teachers[name] for name in sorted(teachers)))
    return ExternalTeachers(teachers, found.sha256 or files.sha256(found.file.path))


class _Weights(NamedTuple):
    """The weights of an external teacher."""

    file: distill.TeacherFile
    """Their file."""
    sha256: str | None
    """Its checksum, where the folder that it lies in tells it."""


def _teacher_file(config: TeacherConfig, data: ImageData, names: Collection[str]) -> _Weights | None:
    """Return the file of the recipe's external teacher; None for timm's own weights, which say their normalisation."""
    if config.checkpoint is None:
        if config.mean is not None or config.std is not None:
            raise UserError(
                "teacher.mean and teacher.std are those of teacher.checkpoint (null): leave them out, timm has its own"
            )
        return None
    path = Path(config.checkpoint).expanduser()
    if path.is_dir():
        return _fine_tuned(config, data, names)
    if config.mean is None or config.std is None:
        missing = "teacher.mean" if config.mean is None else "teacher.std"
        raise UserError(
            f"{missing} (null): a teacher.checkpoint does not say how its images were normalised; give the mean and std"
            " that it was trained with, as in teacher.mean=[0.485,0.456,0.406] teacher.std=[0.229,0.224,0.225]"
        )
    if len(config.mean) != len(config.std):
        raise UserError(
            f"teacher.std ({len(config.std)} numbers): must have as many as teacher.mean, {len(config.mean)}; give one"
            " per channel of the images"
        )
    return _Weights(distill.TeacherFile(path, distill.Normalisation(config.mean, config.std)), None)


def _fine_tuned(config: TeacherConfig, data: ImageData, names: Collection[str]) -> _Weights:
    """Return the weights of a teacher that `ofav2 finetune timm:NAME` made, whose folder says all about them."""
    path = Path(str(config.checkpoint)).expanduser()
    found = read_teacher(path)
    where = f"teacher.checkpoint ({path})"
    if others := [name for name in names if name != f"timm:{found.timm}"]:
        raise UserError(f"{where} is of timm:{found.timm}, and the recipe names {others[0]}: name the same network")
    if config.mean is not None or config.std is not None:
        raise UserError(f"teacher.mean and teacher.std: {where} says them itself; leave them out")
    if difference := first_other_class(found.classes, data.classes):
        raise UserError(f"{where} was trained on other classes: {difference}; fine-tune it on this data set")
    if found.bands != data.bands:
        raise UserError(
            f"{where} takes the bands {', '.join(found.bands)}, and these images have {', '.join(data.bands)}: give the"
            " same in the same order by data.bands, or fine-tune it on these"
        )
    if found.white != data.white:
        raise UserError(
            f"{where} was trained on images whose value {found.white:g} counts as 1, and here {data.white:g} does:"
            " fine-tune it on these"
        )
    if found.data_fingerprint != data.fingerprint:
        logger.warning(
            f"{where} was trained on other images, or another split: it may know test images of this run;"
            " use the same settings of data for both"
        )
    return _Weights(distill.TeacherFile(path / found.file, distill.Normalisation(found.mean, found.std)), found.sha256)


def _try(name: str, module: nn.Module, images: torch.Tensor) -> None:
    """Many of timm's networks take images of one size alone; better to learn it now than in the second phase."""
    try:
        with torch.inference_mode():
            module(images)
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"teacher ({name}) can't look at images of {images.shape[-1]} pixels"
            f" ({first_line(error)}): choose another network, or other data.resolutions"
        ) from error


def choose_teacher(
    phase: Phase,
    *,
    run_folder: Path,
    net: Network,
    candidates: Sequence[distill.TeacherCandidate],
    external: Mapping[str, nn.Module],
    weights: Mapping[str, Sequence[Fraction]],
    evaluator: Evaluator,
    precision: str | None = None,
    file_sha256: str | None = None,
) -> PhaseTeacher:
    """Return the teacher of a phase by its policy.

    A candidate is the largest network as a phase left it: its weights are read from that phase's checkpoint.

    Args:
        phase: The phase.
        run_folder: Where earlier phases left their checkpoints.
        net: The supernet, of which the teacher is the largest network with other weights.
        candidates: What earlier phases left.
        external: Teachers from timm by policy.
        weights: Ensemble weights b_i of the exits by phase. A candidate teaches with those that it was scored with.
        evaluator: What measures an external teacher, and where it runs.
        precision: Arithmetic of the teacher's forward pass; None takes the run's. It is measured in float32 either way.
        file_sha256: Checksum of the file that an external teacher has its weights from.
    """
    runtime = evaluator.runtime
    if phase.teacher == "none":
        return PhaseTeacher(None, TeacherRecord("none"))
    if phase.teacher in external:
        module = external[phase.teacher]
        scores = [evaluator.exit_scores(module, side, evaluator.data.val)[0] for side in net.space.resolution]
        score = statistics.fmean(scores)
        metric = evaluator.task.metrics[0]
        reason = f"{phase.teacher} is the recipe's; its validation {metric.name} is {metric.show(score)}"
        record = TeacherRecord(phase.teacher, name=phase.teacher, score=score, reason=reason, sha256=file_sha256)
        return PhaseTeacher(external_as_teacher(module, runtime, precision), record)
    choice = distill.choose(phase.teacher, candidates, score_order(evaluator.task))
    path = folder.checkpoint_path(run_folder, choice.candidate.phase)
    tensors, _ = runtime.processes.on_main(lambda: checkpoint.load(path))
    networks = largest_networks(with_weights(net, tensors), evaluator)
    chosen = choice.candidate
    record = TeacherRecord(phase.teacher, chosen.name, chosen.phase, chosen.score, choice.reason)
    teacher = largest_as_teacher(networks, weights[chosen.phase], runtime, precision)
    return PhaseTeacher(teacher, record)


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
    modules = {side: prepare_teacher(network, runtime) for side, network in networks.items()}
    forwards = {side: compiled("teacher", module, module, runtime.compiler) for side, module in modules.items()}
    return as_teacher(by_side(forwards), weights, _arithmetic(runtime, precision))


def _arithmetic(runtime: Runtime, precision: str | None) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the context of a teacher's forward pass."""
    return replace(runtime, precision=precision or runtime.precision).autocast


def score_order(task: Task) -> distill.ScoreOrder:
    """Return how a task's scores are compared and shown where teachers are chosen."""
    metric = task.metrics[0]
    return distill.ScoreOrder(metric.higher_is_better, lambda score: f"{metric.show(score)} {metric.name}")


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


def by_side(forwards: Mapping[int, Forward]) -> Forward:
    """Return the forward pass that takes the one for the side of its images in pixels."""
    return lambda images: forwards[images.shape[-1]](images)


def with_weights(net: Network, tensors: Mapping[str, torch.Tensor]) -> Network:
    """Return a network like `net` with these weights."""
    source = copy.deepcopy(net)
    checkpoint.fill(source, tensors, "the teacher's checkpoint")
    return source
