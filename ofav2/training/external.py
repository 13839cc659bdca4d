"""Build external teachers: networks of timm, with the weights that a recipe names, checked before training starts."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import distill
from ofav2 import files
from ofav2.config.schema import Config, TeacherConfig
from ofav2.data import ImageData
from ofav2.data.splits import first_other_class
from ofav2.errors import UserError
from ofav2.messages import first_line
from ofav2.runs import checkpoint
from ofav2.runs.teacher_record import read_teacher
from ofav2.runtime.device import Runtime
from ofav2.tasks.base import Task
from ofav2.training.phases import Plan

logger = logging.getLogger(__name__)


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
        if config.teacher.policy.startswith("timm:"):
            raise UserError(
                f"teacher.policy ({config.teacher.policy}): no phase learns from it, as its objective is joint or"
                " in_place, or teacher.kd_ratio is 0; set phases.NAME.objective=distill, or leave the policy out"
            )
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
    for name, module in teachers.items():
        for resolution in config.data.resolutions:
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
