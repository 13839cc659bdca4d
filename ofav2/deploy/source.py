"""Open an extracted network with the settings of its training: what fine-tuning and using it start from."""

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path

from torch.fx import GraphModule

from ofav2.config import recipe
from ofav2.config.schema import ComputeConfig, EvaluationConfig, FinetuneConfig, TuningConfig
from ofav2.data import ImageData
from ofav2.data.patches import PatchImages
from ofav2.data.statistics import band_moments
from ofav2.deploy.agreement import COMPARED
from ofav2.deploy.artifact import RECORD, SubnetRecord, describe_subnet, load_subnet
from ofav2.errors import RunError, UserError
from ofav2.evaluation.evaluator import Evaluator
from ofav2.runtime.device import Runtime
from ofav2.tasks.base import Task

logger = logging.getLogger(__name__)

COMPARED_PATCHES = 100
"""Patches whose bands are compared with those of training, at most."""
FAR = 5.0
"""Deviations of training by which a band's mean may differ, and factor by which its deviation may, without a word."""


@dataclass(frozen=True)
class Source:
    """An extracted network as it was read."""

    record: SubnetRecord
    """What its `subnet.json` says."""
    module: GraphModule
    """The network."""
    settings: TuningConfig
    """The settings of a fine-tuning of which nobody changes any."""


def open_source(directory: Path) -> Source:
    """Read an extracted network and the settings that go with it.

    They are those of the training that left its weights: a fine-tuning's own, or what the run's recipe says of data
    and optimiser. Images are normalised as the network was trained to expect.

    Raises:
        RunError: If the folder holds no extracted network, or does not say how it was trained.
    """
    record, module = describe_subnet(directory), load_subnet(directory)
    where = directory / RECORD
    settings = kept_settings(record, where)
    given, side = record.input, record.subnet.resolution
    bands = given.bands if settings.data.name == "patches" else settings.data.bands
    data = replace(settings.data, resolutions=(side,), mean=given.mean, std=given.std, bands=bands)
    return Source(record, module, replace(settings, data=data))


def kept_settings(record: SubnetRecord, where: Path) -> TuningConfig:
    """Return the settings of the training that left a network's weights, see `open_source`.

    Args:
        record: The network's record.
        where: Its file, for messages.

    Raises:
        RunError: They don't fit the record.
    """
    if record.finetuning:
        kept = recipe.parse_tuning(record.finetuning[-1].recipe, f"recipe in {where}")
        # The number may be what was fastest elsewhere.
        return replace(kept, run=replace(kept.run, threads=0))
    config, phase = recipe.parse(record.run.recipe, f"recipe in {where}"), record.run.phase
    if phase not in config.phases:
        raise RunError(f"{where}: its recipe has no phase ({phase!r}), which left the weights: extract it again")
    return TuningConfig(
        task=config.task,
        run=ComputeConfig(**{field.name: getattr(config.run, field.name) for field in fields(ComputeConfig)}),
        data=config.data,
        finetune=FinetuneConfig(lr=config.phases[phase].lr, eval_batch_size=config.evaluation.batch_size),
        optim=config.optim,
    )


def refuse_bands(data: ImageData, record: SubnetRecord) -> None:
    """Refuse images of other bands than the network was trained on, of the same in another order, or in other units.

    Raises:
        UserError: They are others.
    """
    channels, bands = record.architecture.in_channels, record.input.bands
    if data.channels != channels:
        raise UserError(
            f"data.name ({data.name}): its images have {data.channels} channels, and the network takes {channels};"
            " choose another data set"
        )
    if data.bands != bands:
        raise UserError(
            f"data set ({data.name}) has the bands {', '.join(data.bands)}, and the network takes {', '.join(bands)},"
            " in this order: give such images"
        )
    if data.white != record.input.white and tuple(data.mean) == record.input.mean:
        raise UserError(
            f"data set ({data.name}) has pixels whose value {data.white:g} counts as 1, and the network was trained on"
            f" ones where {record.input.white:g} does: give such images"
        )


def warn_of_units(data: ImageData, record: SubnetRecord) -> None:
    """Log that bands are of another size than those that the network was trained on, as those of other units are.

    Other places differ, too, so this refuses nothing.
    """
    images = data.train.images
    if not isinstance(images, PatchImages) or data.fingerprint == record.data_fingerprint:
        return
    found = band_moments(images, COMPARED_PATCHES)
    if not found.values:
        return
    trained = zip(record.input.mean, record.input.std, strict=True)
    for band, mean, std, (own_mean, own_std) in zip(data.bands, found.mean, found.std, trained, strict=True):
        if abs(mean - own_mean) > FAR * own_std or not 1 / FAR <= std / own_std <= FAR:
            logger.warning(
                f"data set ({data.name}): band {band} is {mean:.3g} ± {std:.3g}, and was {own_mean:.3g} ±"
                f" {own_std:.3g} where the network was trained; if units or a subtracted offset differ, write the"
                " bands as they were there"
            )
            return


def refuse_task(task: Task, source: Source) -> None:
    """Refuse another task, or another metric, than the network was trained for.

    Raises:
        UserError: It is another one.
    """
    record = source.record
    if (task.name, task.metrics[0]) != (record.task, record.metric):
        raise UserError(
            f"task ({task.name}, measured as {task.metrics[0].name}): the network was trained for {record.task},"
            f" measured as {record.metric.name}; leave the key out, or train a supernet for the task"
        )


def open_evaluator(config: TuningConfig, data: ImageData, task: Task, runtime: Runtime) -> Evaluator:
    """Make the evaluator of an extracted network."""
    # Batch norms are trained, not recalibrated; calibration images are those that written files are compared on.
    evaluation = EvaluationConfig(
        batch_size=config.finetune.eval_batch_size, calibration_images=COMPARED, calibration_batch=COMPARED
    )
    return Evaluator(
        data,
        task,
        evaluation,
        eval_crop=config.data.eval_crop,
        seed=config.data.split_seed,
        workers=config.data.workers,
        runtime=runtime,
    )
