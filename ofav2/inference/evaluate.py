"""Evaluate an extracted network on a data set, class by class."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch.fx import GraphModule

from ofav2.config import recipe
from ofav2.config.schema import DataConfig
from ofav2.data import ImageData, Split, open_data
from ofav2.data.seen import unseen
from ofav2.data.splits import check_split, first_other_class, with_test
from ofav2.deploy.artifact import SubnetRecord
from ofav2.deploy.seen import read_seen
from ofav2.deploy.source import Source, open_evaluator, open_source, refuse_bands, refuse_task, warn_of_units
from ofav2.errors import UserError
from ofav2.evaluation.evaluator import Evaluator
from ofav2.exits.collect import predict_exits
from ofav2.exits.opened import PLACE_AND_DEVICE
from ofav2.messages import show
from ofav2.runtime.device import open_runtime
from ofav2.runtime.threads import choose_threads, forward_pass, sample_images
from ofav2.tasks.base import Metric
from ofav2.tasks.class_results import ClassResults, ClassScore, count_classes, share_error
from ofav2.tasks.classification import Classification
from ofav2.tasks.registry import measuring_task
from supernets.ensembles import with_ensemble

logger = logging.getLogger(__name__)

_CHANGEABLE = (
    *PLACE_AND_DEVICE,
    *(f"data.{name}" for name in ("name", "val_fraction", "test_fraction", "split_seed")),
    "finetune.eval_batch_size",
)
"""Settings that say which images, and where; how they are prepared is the network's own."""


@dataclass(frozen=True)
class ClassReport:
    """An extracted network's results on a split."""

    results: ClassResults
    """What the last exit reaches, or the exits' ensemble where they have one, by class."""
    classes: tuple[ClassScore, ...]
    """The same with the classes' names, in the order of the logits."""
    top1: dict[int, float]
    """Top-1 (0..1) by exit."""
    images: int
    """Images, or patches, of the split; windows of one patch count once, as they err together."""
    same_images: bool
    """Whether these are the images that the network was tested on when it was written."""

    @property
    def standard_error(self) -> float:
        """Standard error of the results' accuracy (0..1), see `share_error`."""
        return share_error(self.results.accuracy, self.images)


@dataclass(frozen=True)
class MetricsReport:
    """The results on a split of an extracted network whose task has no classes of images."""

    metrics: tuple[Metric, ...]
    """What was measured."""
    exits: Mapping[int, Mapping[str, float]]
    """The metrics' values by exit and name; NaN of one that means nothing here."""
    same_images: bool
    """Whether these are the images that the network was tested on when it was written."""


def evaluate_network(
    directory: str | Path, overrides: Sequence[str] = (), split: Literal["val", "test"] = "test"
) -> ClassReport | MetricsReport:
    """Evaluate an extracted or fine-tuned network on its data set, or on another one with the same classes.

    Args:
        directory: The folder that `ofav2 extract` or `ofav2 finetune` wrote.
        overrides: Settings of the data and of the device to change, as `key=value`.
        split: `test` or `val`.

    Returns:
        Results by class; of another task than classification, its metrics by exit.

    Raises:
        RunError: The folder holds no extracted network, or its logits are NaN.
        UserError: A setting can't be used, or the data set can't be opened, has other classes, or holds images that the
            network may have been trained on. So a fine-tuned network can't be evaluated on `val`.
    """
    for text in overrides:
        if text.partition("=")[0] not in _CHANGEABLE:
            raise UserError(f"setting ({show(text)}) does not belong here: change {', '.join(_CHANGEABLE)}")
    check_split(split)
    source = open_source(Path(directory))
    if split == "val" and source.record.finetuning:
        raise UserError(f"network ({directory}) was fine-tuned on its validation images: evaluate it on test")
    config = recipe.adjust_tuning(source.settings, None, overrides)
    runtime = open_runtime(config.run)
    data = open_data(config.data)
    task = measuring_task(config.task, data, config.optim)
    refuse_task(task, source)
    if difference := first_other_class(source.record.classes, data.classes):
        raise UserError(f"data set ({data.name}): {difference}; give images of the network's classes, in their order")
    refuse_bands(data, source.record)
    warn_of_units(data, source.record)
    images, same_images = _unknown_images(source, Path(directory), data, split)
    if not same_images:
        if not any(text.startswith("data.") for text in overrides):
            raise UserError(
                f"data set ({data.name}) holds other images than the network was trained and tested on, so those drawn"
                " for test now may be ones that it knows: restore it, or name images that it never saw by"
                " data.root=PATH"
            )
        _tell_share(config.data, data, split, len(images))
    module = runtime.place(source.module)
    if not config.run.threads:
        some = sample_images(config.finetune.eval_batch_size, data.channels, source.record.subnet.resolution)
        choose_threads(forward_pass(module, runtime.send(some)), "a forward pass", runtime.device)
    evaluator = open_evaluator(config, data, task, runtime)
    if isinstance(task, Classification):
        return _class_report(source.record, module, evaluator, images, split, same_images)
    metrics = evaluator.exit_metrics(module, source.record.subnet.resolution, images)
    return MetricsReport(task.metrics, dict(zip(source.record.exit_indices, metrics, strict=True)), same_images)


def _unknown_images(source: Source, directory: Path, data: ImageData, split: str) -> tuple[Split, bool]:
    """Return the images of a split that the network has not seen, and whether they are those that it was tested on."""
    images, fingerprint = data.held_out(split), source.record.measured_fingerprint
    if data.fingerprint == fingerprint:
        return images, True
    images = unseen(images, read_seen(directory, source.record))
    # A fine-tuning on another split tests on what is left of it.
    return images, split == "test" and with_test(data, images).fingerprint == fingerprint


def _tell_share(config: DataConfig, data: ImageData, split: str, count: int) -> None:
    """Log that a data set brings no images for a split, so that a share of all is drawn."""
    origin = data.origins.get(split)
    if origin is not None and origin.listed != split:
        total = len(data.train) + len(data.val) + len(data.test)
        share = f"data.{split}_fraction ({getattr(config, f'{split}_fraction'):g})"
        logger.info(f"{data.name} brings no images for {split}: {count} of {total} are drawn by {share}")


def _class_report(
    record: SubnetRecord,
    module: GraphModule,
    evaluator: Evaluator,
    images: Split,
    split: Literal["val", "test"],
    same_images: bool,
) -> ClassReport:
    form = with_ensemble(module, record.ensemble) if record.ensemble else module
    predicted, targets = (one.numpy() for one in predict_exits(form, evaluator, images, record.subnet.resolution))
    results = count_classes(predicted[-1].tolist(), targets.tolist(), len(evaluator.data.classes), split)
    exits = record.exit_indices
    top1 = (predicted == targets).mean(1)[: len(exits)].tolist()
    return ClassReport(
        results=results,
        classes=results.scores(record.classes),
        top1=dict(zip(exits, top1, strict=True)),
        images=len(images),
        same_images=same_images,
    )
