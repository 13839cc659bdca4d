"""Collect every exit's outputs on a split, once for all uses."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ofav2.data import Batch, ImageData, Split, eval_batches
from ofav2.errors import RunError, UserError
from ofav2.evaluation.evaluator import Evaluator, refuse_nan
from ofav2.exits.subsets import ExitBatch
from ofav2.tasks.base import Task
from ofav2.tasks.classification import Classification, predict
from supernets.outputs import exit_logits

logger = logging.getLogger(__name__)


def split_inputs(evaluator: Evaluator, split: Split, resolution: int, batch_size: int | None = None) -> Iterator[Batch]:
    """Yield a split's inputs and targets on the device, in whole batches.

    Args:
        evaluator: What poses images.
        split: The images.
        resolution: Their side in pixels.
        batch_size: Images per batch; None takes the evaluator's.
    """
    send = evaluator.runtime.send
    batches = eval_batches(
        split,
        resolution=resolution,
        eval_crop=evaluator.eval_crop,
        batch_size=batch_size or evaluator.config.batch_size,
        workers=evaluator.workers,
    )
    for images, targets in batches:
        yield Batch(*evaluator.task.pose(evaluator.data.normalise(send(images)), send(targets), None))


def predict_exits(module: nn.Module, evaluator: Evaluator, split: Split, resolution: int) -> tuple[Tensor, Tensor]:
    """Return the classes that each exit predicts (exits, images), and the right ones (images,), on the CPU.

    Args:
        module: Images (N, C, H, W) -> logits (N, classes) per exit, in evaluation mode.
        evaluator: What poses images.
        split: The images.
        resolution: Their side in pixels.
    """
    predicted, targets = [], []
    with torch.inference_mode():
        for images, target in evaluator.inputs(split, resolution):
            outputs = exit_logits(module(images))
            refuse_nan(outputs, split)
            predicted.append(torch.stack([predict(logits).cpu() for logits in outputs]))
            targets.append(target.cpu())
    return torch.cat(predicted, 1), torch.cat(targets)


def exit_batches(
    module: nn.Module, exits: Sequence[int], evaluator: Evaluator, split: Split, resolution: int
) -> Iterator[ExitBatch]:
    """Yield every exit's logits on a split, batch by batch, as they are evaluated.

    Args:
        module: Images (N, C, H, W) -> logits (N, classes) per exit, in evaluation mode.
        exits: The exits' numbers, for messages.
        evaluator: What poses images.
        split: The images.
        resolution: Their side in pixels.

    Raises:
        RunError: If a logit is not finite, since no image has a class then.
    """
    for images, target in evaluator.inputs(split, resolution):
        with torch.inference_mode():
            outputs = exit_logits(module(images))
        # Half precision is widened, as in an ensemble.
        wide = [logits.to(torch.promote_types(logits.dtype, torch.float32)).cpu().numpy() for logits in outputs]
        for exit, logits in zip(exits, wide, strict=True):
            if not np.isfinite(logits).all():
                raise RunError(
                    f"exit {exit} gives logits that are not finite on {split.name} images: train again with a lower"
                    " learning rate, or extract the network without this exit"
                )
        yield ExitBatch(np.stack(wide), target.cpu().numpy())


def warn_of_chosen_test(data: ImageData) -> None:
    """Log that scores on test are of the images that choose, where a data set has no others."""
    if data.validation_is_test:
        logger.warning(
            "test images are the validation images (data.test_fraction=0), which choose here: scores on test flatter"
        )


def require_classes(task: Task) -> None:
    """Refuse tasks without classes, of which early exits and their agreement can't be measured.

    Raises:
        UserError: If the task is not classification.
    """
    if not isinstance(task, Classification):
        raise UserError(f"task ({task.name}) has no classes to be sure of: early exits need classification")
