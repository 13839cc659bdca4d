"""Batches of images, from torch's own DataLoader.

What a training step sees is a function of (seed, phase, step) alone. The batch sampler does it: it yields requests,
each of which carries an image's index, the batch's resolution, and the numbers from which the image's crop and flip are
drawn. So workers may load batches in any order, and a run may start at any step.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ofav2.config import DataConfig
from ofav2.data.splits import ImageData, Split
from ofav2.data.views import evaluation_view, training_view
from ofav2.draws import code, generator
from ofav2.errors import UserError

Sample = tuple[Tensor, int]


class Batch(NamedTuple):
    """Images of one resolution: uint8 (N, 3, r, r), and their labels: int64 (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Request:
    """One training image to be loaded: which, at what side in pixels, and the numbers its augmentation comes from."""

    index: int
    resolution: int
    key: tuple[int, ...]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Count the whole batches in an epoch; the incomplete last one is dropped.

    Raises:
        UserError: There is not one whole batch.
    """
    if images < batch_size:
        raise UserError(
            f"data.batch_size ({batch_size}): the training split has {images} images, less than one batch; "
            f"set data.batch_size to {images} or less, or add images"
        )
    return images // batch_size


def batch_resolution(resolutions: Sequence[int], *, seed: int, phase: str, step: int) -> int:
    """Give the side in pixels that a training step's images have, drawn with equal chances by (seed, phase, step)."""
    return resolutions[int(generator("resolution", seed, code(phase), step).integers(len(resolutions)))]


def train_batches(
    data: ImageData,
    config: DataConfig,
    *,
    seed: int,
    phase: str,
    steps: int,
    start_step: int = 0,
    part: int = 0,
    parts: int = 1,
) -> DataLoader[Sample]:
    """Load a phase's training batches, each augmented and at one resolution.

    Each epoch goes through the training split once, in an order of its own; the incomplete last batch is dropped. The
    equal parts of a batch, put side by side, are the batch.

    Args:
        data: The data set.
        config: The recipe's data part.
        seed: Seed of the run.
        phase: Name of the phase, which has random draws of its own.
        steps: Steps of the whole phase.
        start_step: First step to load, for a phase that is resumed; batches are those of a phase that was not.
        part: Which part of each batch to load, from 0.
        parts: How many parts a batch has, a divisor of its size.

    Returns:
        torch's DataLoader, which yields a `Batch` for every step from `start_step` up to `steps`.

    Raises:
        UserError: The training split is smaller than one batch, or the seed is negative.
    """
    assert 0 <= start_step <= steps, (start_step, steps)
    assert 0 <= part < parts, (part, parts)
    assert config.batch_size % parts == 0, (config.batch_size, parts)
    size = config.batch_size // parts
    schedule = _Schedule(
        images=len(data.train),
        batch_size=config.batch_size,
        resolutions=config.resolutions,
        seed=seed,
        phase=phase,
        epoch_steps=steps_per_epoch(len(data.train), config.batch_size),
        steps=range(start_step, steps),
        positions=range(part * size, (part + 1) * size),
    )
    images = _TrainImages(data.train, config.crop_scale, config.crop_ratio, config.flip)
    return _Loader(
        images,
        batch_sampler=schedule,
        num_workers=config.workers,
        collate_fn=_collate,
        generator=_worker_seeds(),
    )


def eval_batches(
    split: Split,
    *,
    resolution: int,
    eval_crop: float,
    batch_size: int,
    workers: int = 0,
    part: int = 0,
    parts: int = 1,
) -> Iterable[Batch]:
    """Load a whole split in order, or a part of its batches, centre-cropped; the last batch may be smaller.

    Args:
        split: What to load.
        resolution: Side in pixels.
        eval_crop: Share of the resized image's side that the centre crop keeps.
        batch_size: Images per batch.
        workers: Worker processes; 0 loads in this one.
        part: Number of the first batch to load, from 0.
        parts: Distance to the next one; 1 loads all.

    Returns:
        Batches, anew each time it is iterated.
    """
    starts = range(part * batch_size, len(split), parts * batch_size)
    return _Loader(
        _EvalImages(split, resolution, eval_crop),
        batch_sampler=[list(range(start, min(start + batch_size, len(split)))) for start in starts],
        num_workers=workers,
        collate_fn=_collate,
        generator=_worker_seeds(),
    )


def calibration_batches(
    data: ImageData, *, resolution: int, eval_crop: float, images: int, batch_size: int, seed: int
) -> list[Batch]:
    """Load a fixed random part of the training split, seen as in evaluation, to gather batch-norm statistics from.

    Args:
        data: The data set.
        resolution: Side in pixels.
        eval_crop: Share of the resized image's side that the centre crop keeps.
        images: How many images; all of the training split where it has fewer.
        batch_size: Images per batch; a last batch of a single image joins the one before it.
        seed: Seed of the choice.

    Raises:
        UserError: `images` or `batch_size` is below 2: one image has no variance.
    """
    _at_least_two("evaluation.calibration_images", images)
    _at_least_two("evaluation.calibration_batch", batch_size)
    # The order stays as drawn: batches in the split's order would hold one class each, and their statistics mislead
    chosen = generator("calibration", seed).permutation(len(data.train))[:images]
    bounds = list(range(0, len(chosen), batch_size))
    if len(chosen) - bounds[-1] == 1 and len(bounds) > 1:
        bounds.pop()
    view = _EvalImages(data.train, resolution, eval_crop)
    return [_collate([view[int(index)] for index in part]) for part in np.split(chosen, bounds[1:])]


def _at_least_two(key: str, value: int) -> None:
    if value < 2:
        raise UserError(f"{key} ({value}): batch norm needs 2 images or more; set a larger number")


@dataclass(frozen=True)
class _Schedule:
    """The requests of each of a phase's steps, at some positions of its batch."""

    images: int
    batch_size: int
    resolutions: tuple[int, ...]
    seed: int
    phase: str
    epoch_steps: int
    steps: range
    positions: range

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Request]]:
        phase = code(self.phase)
        drawn = -1
        for step in self.steps:
            epoch, batch = divmod(step, self.epoch_steps)
            if epoch != drawn:
                order = generator("order", self.seed, phase, epoch).permutation(self.images)
                drawn = epoch
            resolution = batch_resolution(self.resolutions, seed=self.seed, phase=self.phase, step=step)
            first = batch * self.batch_size
            yield [
                Request(int(order[first + position]), resolution, (self.seed, phase, step, position))
                for position in self.positions
            ]


@dataclass(frozen=True, eq=False)
class _TrainImages(Dataset[Sample]):
    split: Split
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: bool

    def __getitem__(self, request: Request) -> Sample:
        view = training_view(
            self.split.image(request.index),
            request.resolution,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            flip=self.flip,
            rng=generator("augment", *request.key),
        )
        return view, int(self.split.labels[request.index])


@dataclass(frozen=True, eq=False)
class _EvalImages(Dataset[Sample]):
    split: Split
    resolution: int
    eval_crop: float

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        return evaluation_view(self.split.image(index), self.resolution, self.eval_crop), int(self.split.labels[index])


def _collate(samples: Sequence[Sample]) -> Batch:
    images, labels = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels, dtype=torch.int64))


class _Loader(DataLoader[Sample]):
    """torch's DataLoader, whose workers stay at work when all processes of a job are told to stop.

    The step that ends then still needs its images. A worker ends when the training process does, closes the loader, or
    asks it to; as Python does at its exit with workers that are left.
    """

    def __init__(self, images: Dataset[Sample], **options: Any) -> None:
        super().__init__(images, worker_init_fn=_heed_parent if _CAN_WAIT else None, **options)

    def __iter__(self) -> Any:
        if not _CAN_WAIT:
            return super().__iter__()
        # Workers inherit what is held back here; setting handlers in them would leave them a moment without.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_STOPS = (signal.SIGTERM, signal.SIGINT)
_CAN_WAIT = hasattr(signal, "sigwaitinfo")
"""Where signals do not tell their sender (macOS, Windows), workers take them as any process does."""


def _heed_parent(worker: int) -> None:
    """In a worker, obeys a request to stop if the process that started it sends it, and nobody else."""
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo(_STOPS).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _worker_seeds() -> torch.Generator:
    """Keep the DataLoader, which seeds its workers, off torch's global random state; nothing here uses those seeds."""
    return torch.Generator().manual_seed(0)
