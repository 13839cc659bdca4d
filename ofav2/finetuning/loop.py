"""Run the two trainings of a fine-tuning, epoch by epoch."""

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from torch import nn
from torch.fx import GraphModule

from ofav2.data import ImageData, steps_per_epoch, train_batches
from ofav2.deploy.artifact import Epoch, EpochSearch, Validation
from ofav2.finetuning.setup import Tuning
from ofav2.progress import log_progress
from ofav2.rng import Stream
from ofav2.runtime.compiling import compiled
from ofav2.training.loop import posed
from ofav2.training.objectives import Plain
from ofav2.training.optim import make_updates
from ofav2.training.step import DivergedError, Guard, Step, not_finite, train_steps

logger = logging.getLogger(__name__)


def find_epochs(tuning: Tuning) -> EpochSearch:
    """Run the first training: on training images, evaluated on validation after each epoch.

    It ends after `finetune.epochs` epochs, or after `finetune.patience` ones in a row that were worse than the best one
    before them.

    Raises:
        DivergedError: If more steps than `optim.skip_limit` had an unusable loss, or weights or scores are not finite.
    """
    module = copy.deepcopy(tuning.start.module)
    limit, patience = tuning.config.finetune.epochs, tuning.config.finetune.patience
    metric = tuning.task.metrics[0]
    found = EpochSearch((), _validation(tuning, module, 0), ())
    with log_progress("looking for the best epoch", limit) as advance:
        for epoch in train(tuning, module, tuning.data, "search", limit):
            validation = _validation(tuning, module, epoch.number)
            found = replace(found, epochs=(*found.epochs, epoch), after=(*found.after, validation))
            advance(loss=epoch.loss, validation=metric.show(validation.score))
            if patience and epoch.number - found.best(metric).epochs >= patience:
                break
    return found


def train_final(tuning: Tuning, data: ImageData, epochs: int) -> tuple[GraphModule, list[Epoch]]:
    """Run the second training: from the same weights, with the first one's learning rates, for so many epochs.

    Args:
        tuning: The fine-tuning.
        data: Its data set, with all images that may be trained on as training images.
        epochs: How many epochs.

    Returns:
        The trained network, and what each epoch did.

    Raises:
        DivergedError: If more steps than `optim.skip_limit` had an unusable loss, or weights are not finite.
    """
    module = copy.deepcopy(tuning.start.module)
    done = []
    with log_progress("training on all images", epochs) as advance:
        for epoch in train(tuning, module, data, "final", epochs):
            done.append(epoch)
            advance(loss=epoch.loss)
    module.eval()
    return module, done


def train(tuning: Tuning, module: nn.Module, data: ImageData, name: str, epochs: int) -> Iterator[Epoch]:
    """Trains a network in place.

    Args:
        tuning: The fine-tuning.
        module: The network.
        data: The data set whose training images are taken.
        name: Name of the training, on which its random draws depend.
        epochs: How many epochs; learning rates are those of the first ones of `finetune.epochs`.

    Yields:
        What each epoch did, after it.

    Raises:
        DivergedError: If more steps than `optim.skip_limit` had an unusable loss, or weights are not finite.
    """
    config = tuning.config
    settings = config.finetune
    per_epoch = steps_per_epoch(len(data.train), config.data.batch_size)
    stream = Stream(config.run.seed, name)
    batches = train_batches(data, config.data, stream, range(epochs * per_epoch), device=tuning.runtime.device)
    steps = train_steps(
        module,
        posed(batches, data, tuning.task, stream, tuning.runtime),
        Plain(tuning.task, compiled("network", module, module, tuning.runtime.compiler), tuning.weights.losses),
        make_updates(
            module,
            config.optim,
            steps=settings.epochs * per_epoch,
            # A whole training of warm-up would leave the cosine no step to fall in.
            warmup_steps=min(round(settings.warmup_epochs * per_epoch), settings.epochs * per_epoch - 1),
            peak=settings.lr,
        ),
        guard=Guard(config.optim.loss_jump),
        stream=stream,
        runtime=tuning.runtime,
    )
    skipped = 0
    for number in range(1, epochs + 1):
        done = []
        for step in islice(steps, per_epoch):
            done.append(step)
            skipped += step.refused is not None
            _refuse_too_many(step, skipped, config.optim.skip_limit)
        if broken := not_finite(module):
            raise DivergedError(f"weights after epoch {number} are not finite ({broken}); lower finetune.lr")
        yield _summary(number, done)


def _refuse_too_many(step: Step, skipped: int, limit: int) -> None:
    if step.refused:
        logger.warning(f"batch skipped ({skipped} of at most {limit} in this training): {step.refused}")
    if skipped > limit:
        raise DivergedError(f"{step.refused}; lower finetune.lr, set optim.grad_clip or raise optim.skip_limit")


def _summary(number: int, steps: Sequence[Step]) -> Epoch:
    losses = [step.metrics["loss"] for step in steps if step.refused is None]
    mean = sum(losses) / len(losses) if losses else None
    return Epoch(number, mean, steps[-1].metrics["lr"], len(steps) - len(losses))


def _validation(tuning: Tuning, module: nn.Module, epochs: int) -> Validation:
    exits = exit_scores(tuning, module, "val")
    if len(exits) == 1:
        return Validation(epochs, exits, *exits.values())
    score = tuning.evaluator.ensemble_score(module, tuning.weights.ensemble, tuning.resolution, tuning.data.val)
    return Validation(epochs, exits, score)


def exit_scores(tuning: Tuning, module: nn.Module, split: str) -> dict[int, float]:
    """Return the task's main metric of a network's exits by number, on `val` or `test`.

    Raises:
        DivergedError: One is not finite.
    """
    values = tuning.evaluator.exit_scores(module, tuning.resolution, tuning.data.held_out(split))
    found = dict(zip(tuning.start.exit_indices, values, strict=True))
    for exit_, value in found.items():
        if not math.isfinite(value):
            raise DivergedError(
                f"exit {exit_} has no finite {tuning.task.metrics[0].name} on {split} ({value}): lower finetune.lr, or"
                " start from another network"
            )
    return found
