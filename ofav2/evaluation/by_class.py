"""Measure a network class by class, and find the images that it gets most wrong."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ofav2.data import Split, count_views
from ofav2.data.thumbnails import thumbnail
from ofav2.errors import UserError
from ofav2.evaluation.evaluator import Evaluator, refuse_nan
from ofav2.evaluation.opened_run import open_run, refuse_other_images
from ofav2.output_folder import check_writable
from ofav2.runs.records import RunRecord, read_kept
from ofav2.tasks.base import to_float64
from ofav2.tasks.class_results import ClassResults, count_classes
from ofav2.tasks.classification import Classification, predict
from ofav2.typed_json import Count, Form, Sha256, Share, write_record
from supernets import Subnet
from supernets.multi_exit import Network
from supernets.outputs import exit_logits

CLASSES = "classes.json"
"""The file in a run folder that holds the results of its largest network."""
FORMAT = "ofav2-classes/1"
SHOWN = 24
"""Images that are kept of those that are wrong."""


@dataclass(frozen=True)
class Mistake:
    """An image that is taken for another class."""

    image: str
    """Its path in the data set, or its number in the split where it is no file."""
    target: Count
    """Its class."""
    predicted: Count
    """The class that it is taken for."""
    probability: Share
    """What the network gives its own class, in 0..1."""
    thumbnail: Annotated[str, Form("[A-Za-z0-9+/]*={0,2}", "a file in Base64")] | None
    """A small JPEG of it; None where it is no picture."""


@dataclass(frozen=True)
class ClassesRecord:
    """What `classes.json` holds."""

    checkpoint_sha256: Sha256
    """Checksum of the weights that were measured."""
    phase: str
    """The phase that left them."""
    subnet: Subnet
    """The network."""
    results: ClassResults
    """What it reaches, by class."""
    mistakes: tuple[Mistake, ...]
    """Images that it is most wrong about, the worst first."""


class Answers(NamedTuple):
    """What a network says of each image of a split, or of each window of its patches."""

    predicted: npt.NDArray[np.int64]
    """The most likely class (N,), N as `count_views` tells."""
    targets: npt.NDArray[np.int64]
    """The right one (N,)."""
    probability: npt.NDArray[np.float32]
    """The probability (0..1) of the right one (N,)."""


def class_answers(module: nn.Module, evaluator: Evaluator, split: Split, resolution: int) -> Answers:
    """Classify a split's images or windows, in its order; of several processes, each takes some batches.

    Args:
        module: Images (N, C, H, W) -> logits (N, classes), or a tuple of such; the last ones answer.
        evaluator: What prepares images.
        split: The images.
        resolution: Their side in pixels.
    """
    processes, size = evaluator.runtime.processes, evaluator.config.batch_size
    count = count_views(split, resolution)
    starts = range(processes.rank * size, count, processes.count * size)
    numbers = [np.arange(start, min(start + size, count)) for start in starts]
    answers: list[npt.NDArray[np.float64]] = []
    module.eval()
    with torch.inference_mode():
        for images, target in evaluator.inputs(split, resolution, processes.share):
            logits = exit_logits(module(images))[-1].float()
            refuse_nan([logits], split)
            own = logits.softmax(1).gather(1, target[:, None])[:, 0].nan_to_num(0)
            answers.append(torch.stack([to_float64(found) for found in (predict(logits), target, own)]).cpu().numpy())
    found = (np.concatenate(numbers), np.concatenate(answers, 1)) if answers else (np.zeros(0, int), np.zeros((3, 0)))
    order, columns = zip(*processes.gather(found), strict=True)
    predicted, targets, probability = np.concatenate(columns, 1)[:, np.argsort(np.concatenate(order))]
    return Answers(predicted.astype(np.int64), targets.astype(np.int64), probability.astype(np.float32))


def class_results(module: nn.Module, evaluator: Evaluator, resolution: int) -> ClassResults | None:
    """Measure a network class by class on test images, as in `class_answers`; None if its task has no classes.

    Args:
        module: The network, see `class_answers`.
        evaluator: What prepares images.
        resolution: Side of the images in pixels.
    """
    if not isinstance(evaluator.task, Classification):
        return None
    return _counted(class_answers(module, evaluator, evaluator.data.test, resolution), evaluator.task.classes)


def _counted(found: Answers, classes: int) -> ClassResults:
    return count_classes(found.predicted.tolist(), found.targets.tolist(), classes, "test")


def largest_by_class(
    net: Network, largest: Subnet, evaluator: Evaluator, phase: str, sha256: str
) -> ClassesRecord | None:
    """Measure the largest network that was trained class by class on test images; None if its task has no classes.

    Args:
        net: The supernet, or network with exits.
        largest: That network.
        evaluator: What measures it.
        phase: The phase that left its weights.
        sha256: Checksum of their file.
    """
    if not isinstance(evaluator.task, Classification):
        return None
    split = evaluator.data.test
    module = evaluator.calibrated(net, largest, "last")
    found = class_answers(module, evaluator, split, largest.resolution)
    results = _counted(found, evaluator.task.classes)
    return ClassesRecord(sha256, phase, largest, results, _mistakes(found, evaluator, split, largest.resolution))


def _mistakes(found: Answers, evaluator: Evaluator, split: Split, resolution: int) -> tuple[Mistake, ...]:
    wrong = np.flatnonzero(found.predicted != found.targets)
    worst = wrong[np.argsort(found.probability[wrong], kind="stable")][:SHOWN].tolist()
    windows = count_views(split, resolution) // len(split)
    images = [view // windows for view in worst]
    names = split.images.take(np.array(images, dtype=np.int64)).names() or [f"image {index}" for index in images]
    return tuple(
        _mistake(found, view, thumbnail(split, index, resolution=resolution, eval_crop=evaluator.eval_crop), name)
        for view, index, name in zip(worst, images, names, strict=True)
    )


def _mistake(found: Answers, view: int, picture: bytes | None, name: str) -> Mistake:
    return Mistake(
        image=name,
        target=int(found.targets[view]),
        predicted=int(found.predicted[view]),
        probability=float(found.probability[view]),
        thumbnail=None if picture is None else base64.b64encode(picture).decode("ascii"),
    )


def measure_classes(run: str | Path) -> ClassResults:
    """Measure a run's largest network class by class on test images, and keep it in the run folder for its report.

    Training does the same in the end.

    Args:
        run: A run folder with at least one finished phase; its data set must be at hand.

    Returns:
        Numbers of images by class: all, rightly classified ones, and those that are taken for each other class.

    Raises:
        RunError: If the folder is no run, has no finished phase or can't be written to, or logits are NaN.
        UserError: If its task has no classes, or its data set can't be opened or holds other images now.
    """
    opened = open_run(run)
    check_writable(Path(run) / CLASSES)
    refuse_other_images(opened)
    net = opened.loaded.net
    found = largest_by_class(net, net.space.largest(), opened.evaluator, opened.loaded.phase, opened.loaded.sha256)
    if found is None:
        raise UserError(f"task ({opened.loaded.record.task}) has no classes: leave out --classes")
    write_classes(Path(run), found)
    return found.results


def write_classes(folder: Path, record: ClassesRecord) -> None:
    """Write a run's `classes.json`.

    Raises:
        RunError: The file can't be written.
    """
    write_record(folder / CLASSES, record, FORMAT)


def read_classes(folder: Path, run: RunRecord) -> ClassesRecord | None:
    """Return what was kept in a run folder, if it is of the weights that the run holds now; else None.

    Args:
        folder: The run folder.
        run: The run's record.

    Raises:
        RunError: If the file is damaged.
    """
    kept = read_kept(folder / CLASSES, ClassesRecord, FORMAT, "remove it, or measure again with --classes", run)
    if kept is None:
        return None
    numbers: Sequence[int] = [number for mistake in kept.mistakes for number in (mistake.target, mistake.predicted)]
    count = len(run.data.classes)
    return kept if len(kept.results.images) == count and all(number < count for number in numbers) else None
