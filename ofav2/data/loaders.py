"""Make batches of images, with torch's own DataLoader.

What a training step sees is a function of (seed, phase, step) alone. The sampler does it: it yields a request per
batch, which carries the images' indices, the resolution, and the random numbers of crops and flips. So workers
may load batches in any order, and a run may start at any step.

Worker processes decode files. Images that are decoded already are taken by the training process, which has them sooner
than another one could send them. They are cut to the resolution one by one on the CPU, where torch's routine for bytes
is the fastest, and all at once on other devices; what torchvision adds is done to the batch, on the device.

While a step computes on CUDA, a thread loads the next batch and sends it there on a stream of its own. Everything that
draws from torch's global generator waits until the batch is requested, because a running step draws from it, too.
"""

import math
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ofav2.config.schema import DataConfig
from ofav2.data.augment import Augmentation, Key, augmentation, mixed, recoloured
from ofav2.data.images import Indices
from ofav2.data.patches import PatchImages
from ofav2.data.splits import ImageData, Split
from ofav2.data.views import crop_boxes, cut_each, cut_together, draw_views, evaluation_view, window_corners
from ofav2.errors import UserError
from ofav2.rng import Stream, code, generator
from ofav2.runtime.share import WHOLE, Share

T = TypeVar("T")
CPU = torch.device("cpu")


class Batch(NamedTuple):
    """Images of one resolution (N, C, r, r) and their targets: what `ImageData.normalise` takes.

    Pictures are uint8, or float32 in 0..255 where they are mixed; patches have the type that they are stored in.

    A target is a class, int64 (N,), or where images are mixed probabilities of classes, float32 (N, classes). Targets
    that are planes are classes, int64 (N, r, r), -100 where none counts, or numbers, float32 (N, planes, r, r), NaN
    where none does.
    """

    images: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Request:
    """A training batch, or a part of it, to be loaded."""

    indices: Indices
    """The images (N,)."""
    positions: Indices
    """Their positions in the whole batch (N,)."""
    batch_size: int
    """Images of the whole batch."""
    resolution: int
    """Side in pixels."""
    key: Key
    """Seed, phase's code and step, from which augmentation is drawn."""


class _Loaded(NamedTuple):
    """A batch on its way: cut already, or whole with what it takes to cut it on the device."""

    images: Tensor
    targets: Tensor
    boxes: Tensor | None
    mirrored: Tensor | None
    request: Request

    def on(self, device: torch.device) -> "_Loaded":
        """Return the same on a device; the copy may still be under way."""
        images, targets = (tensor.to(device, non_blocking=True) for tensor in (self.images, self.targets))
        boxes, mirrored = (
            None if tensor is None else tensor.to(device, non_blocking=True) for tensor in (self.boxes, self.mirrored)
        )
        return _Loaded(images, targets, boxes, mirrored, self.request)


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


def batch_resolution(resolutions: Sequence[int], stream: Stream, step: int) -> int:
    """Return the side in pixels that a training step's images have, drawn uniformly by (seed, phase, step)."""
    return resolutions[int(stream.at("resolution", step).integers(len(resolutions)))]


def train_batches(
    data: ImageData,
    config: DataConfig,
    stream: Stream,
    steps: range,
    *,
    share: Share = WHOLE,
    device: torch.device = CPU,
) -> "TrainBatches":
    """Load a training's batches, each augmented and at one resolution.

    Each epoch goes through the training split once, in an order of its own, or with `data.balance` has as many images
    of each class. The incomplete last batch is dropped. The equal shares of a batch, put side by side, are the batch.

    Args:
        data: The data set.
        config: The recipe's data part.
        stream: The training's random numbers.
        steps: Steps to load; from a later start on, batches are those of a training that did not stop.
        share: Which part of each batch to load; the number of parts divides the batch size.
        device: Where batches go.

    Returns:
        A `Batch` on the device for every step, anew each time it is iterated.

    Raises:
        UserError: If the training split is smaller than one batch, or the seed is negative.
    """
    assert config.batch_size % share.parts == 0, (config.batch_size, share)
    size = config.batch_size // share.parts
    settings = augmentation(config, len(data.classes))
    first = share.part * size
    # Each image is mixed with the one before it in the whole batch, which may be another part's, or its last one.
    before = [(first - 1) % config.batch_size] if settings.mixes else []
    schedule = _Schedule(
        images=len(data.train),
        labels=data.train.targets if config.balance == "classes" else None,
        batch_size=config.batch_size,
        resolutions=config.resolutions,
        stream=stream,
        epoch_steps=steps_per_epoch(len(data.train), config.batch_size),
        steps=steps,
        positions=np.array([*before, *range(first, first + size)], dtype=np.int64),
    )
    images = data.train.images
    together = device.type != "cpu" and images.decoded and images.size is not None
    loader = _Loader(
        _TrainPatches(data.train, images, config.flip)
        if isinstance(images, PatchImages)
        else _TrainImages(data.train, config.crop_scale, config.crop_ratio, config.flip, together),
        sampler=schedule,
        batch_size=None,
        num_workers=0 if images.decoded else config.workers,
        pin_memory=device.type == "cuda",
        collate_fn=_as_it_is,
        generator=_worker_seeds(),
    )
    return TrainBatches(loader, schedule, settings, device)


def eval_batches(
    split: Split,
    *,
    resolution: int,
    eval_crop: float,
    batch_size: int,
    workers: int = 0,
    share: Share = WHOLE,
) -> Iterable[Batch]:
    """Load a whole split in order, or a part of its batches, centre-cropped; the last batch may be smaller.

    Patches are loaded as the grid of windows of that side, all windows of one after the other.

    Args:
        split: What to load.
        resolution: Side in pixels.
        eval_crop: Share of the resized image's side that the centre crop keeps.
        batch_size: Images per batch.
        workers: Worker processes; 0 loads in this one.
        share: Which of the batches to load: every `parts`-th one, from `part` on.

    Returns:
        Batches, anew each time it is iterated.
    """
    views = _eval_views(split, resolution, eval_crop)
    starts = range(share.part * batch_size, len(views), share.parts * batch_size)
    return _Loader(
        views,
        sampler=[np.arange(start, min(start + batch_size, len(views))) for start in starts],
        batch_size=None,
        num_workers=0 if split.images.decoded else workers,
        collate_fn=_as_it_is,
        generator=_worker_seeds(),
    )


def count_views(split: Split, resolution: int) -> int:
    """Count what evaluation sees of a split: its images, or the windows of its patches."""
    return len(_eval_views(split, resolution, 1.0))


def view_bytes(split: Split, resolution: int) -> int:
    """Return the bytes of one of them, with its target where that is a map."""
    if isinstance(split.images, PatchImages) and len(split):
        view = _eval_views(split, resolution, 1.0)[np.zeros(1, np.int64)]
        return view.images.nbytes + view.targets.nbytes
    return 3 * resolution**2


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
    views = _eval_views(data.train, resolution, eval_crop)
    chosen = generator("calibration", seed).permutation(len(views))[:images]
    bounds = list(range(0, len(chosen), batch_size))
    if len(chosen) - bounds[-1] == 1 and len(bounds) > 1:
        bounds.pop()
    return [views[part] for part in np.split(chosen, bounds[1:])]


def _at_least_two(key: str, value: int) -> None:
    if value < 2:
        raise UserError(f"{key} ({value}): batch norm needs 2 images or more; set a larger number")


@dataclass(frozen=True, eq=False)
class TrainBatches:
    """A phase's training batches, finished on the training device."""

    loader: "DataLoader[_Loaded]"
    """What loads them, in this process or in workers."""
    schedule: "Sampler[Request]"
    """What is loaded, in order."""
    settings: Augmentation
    """What is done to them on the device."""
    device: torch.device
    """The device."""

    def __len__(self) -> int:
        """Count the batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batch after batch."""
        sent = _sent_ahead(self.loader, self.device) if self.device.type == "cuda" else self._sent()
        # An abandoned iteration must not leave a thread behind.
        with closing(sent):
            for loaded in sent:
                yield _finished(loaded, self.settings)

    def _sent(self) -> Generator[_Loaded]:
        for loaded in self.loader:
            yield loaded.on(self.device)


def _sent_ahead(loader: Iterable[_Loaded], device: torch.device) -> Generator[_Loaded]:
    """Yield a loader's batches on a CUDA device; a thread loads and sends each ahead, on its own stream."""
    stream = torch.cuda.Stream(device)

    def send(loaded: _Loaded) -> tuple[_Loaded, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return loaded.on(device), stream.record_event()

    # `map` has the loader start its workers here and now: the thread could not, as it hears no signals.
    with closing(one_ahead(map(send, loader))) as ahead:
        for loaded, there in ahead:
            reading = torch.cuda.current_stream(device)
            reading.wait_event(there)
            for tensor in (loaded.images, loaded.targets, loaded.boxes, loaded.mirrored):
                if tensor is not None:
                    # Or its memory would be handed out again, to a later copy, while this stream may still read it.
                    tensor.record_stream(reading)
            yield loaded


def one_ahead(items: Iterable[T]) -> Generator[T]:
    """Yield the items in their order; while one is in use, a thread gets the next one.

    An error comes where its item would have come. Whoever gives up early closes the iterator, which waits for the item
    that is on its way.
    """
    iterator = iter(items)

    def take() -> list[T]:
        return list(islice(iterator, 1))

    with ThreadPoolExecutor(1, "one-ahead") as thread:
        following = thread.submit(take)
        while found := following.result():
            following = thread.submit(take)
            yield from found


def _finished(loaded: _Loaded, settings: Augmentation) -> Batch:
    """Return a batch on its device, cut and augmented there."""
    images, targets, boxes, mirrored, request = loaded
    if boxes is not None and mirrored is not None:
        images = cut_together(images, boxes, mirrored, request.resolution)
    if settings.recolours:
        images = recoloured(images, request.positions, settings, request.key)
    if settings.mixes:
        images, targets = mixed(images, targets, settings, request.key)
    return Batch(images, targets)


@dataclass(frozen=True, eq=False)
class _Schedule(Sampler[Request]):
    """The requests of a training's steps, at some positions of each batch."""

    images: int
    labels: npt.NDArray[np.int64] | None
    """The images' classes, which come equally often; None takes each image once per epoch."""
    batch_size: int
    resolutions: tuple[int, ...]
    stream: Stream
    epoch_steps: int
    steps: range
    positions: Indices

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Request]:
        drawn = -1
        for step in self.steps:
            epoch, batch = divmod(step, self.epoch_steps)
            if epoch != drawn:
                rng = self.stream.at("order", epoch)
                order = rng.permutation(self.images) if self.labels is None else balanced_order(self.labels, rng)
                drawn = epoch
            resolution = batch_resolution(self.resolutions, self.stream, step)
            indices = order[batch * self.batch_size + self.positions]
            key = (self.stream.seed, code(self.stream.name), step)
            yield Request(indices, self.positions, self.batch_size, resolution, key)


def balanced_order(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Indices:
    """Draw an epoch in which all classes come equally often.

    Args:
        labels: The images' classes (N,).
        rng: Random numbers.

    Returns:
        Indices (N,) in random order. An image comes again only after all images of its class did.
    """
    classes = np.unique(labels)
    count, rest = divmod(len(labels), len(classes))
    parts = []
    for place, label in enumerate(rng.permutation(classes)):
        members, drawn = np.flatnonzero(labels == label), count + (place < rest)
        rounds = [rng.permutation(members) for _ in range(math.ceil(drawn / len(members)))]
        parts.append(np.concatenate(rounds)[:drawn])
    return rng.permutation(np.concatenate(parts))


@dataclass(frozen=True, eq=False)
class _TrainImages(Dataset[_Loaded]):
    """Training images, cut here one by one, or left to be cut together."""

    split: Split
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: bool
    together: bool

    def __getitem__(self, request: Request) -> _Loaded:
        images = self.split.images.look(request.indices)
        randoms = draw_views(request.batch_size, generator("augment", *request.key)).at(request.positions)
        boxes = crop_boxes(images.sizes, randoms, scale=self.crop_scale, ratio=self.crop_ratio)
        mirrored = (randoms.mirrors < 0.5) & self.flip
        targets = torch.from_numpy(self.split.targets[request.indices])
        if self.together:
            whole = torch.stack(images.images())
            return _Loaded(whole, targets, torch.from_numpy(boxes), torch.from_numpy(mirrored), request)
        return _Loaded(cut_each(images, boxes, mirrored, request.resolution), targets, None, None, request)


@dataclass(frozen=True, eq=False)
class _EvalImages(Dataset[Batch]):
    """Batches of images as evaluation sees them, by their indices."""

    split: Split
    resolution: int
    eval_crop: float
    together: bool

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, indices: Indices) -> Batch:
        images = self.split.images.look(indices).images()
        targets = torch.from_numpy(self.split.targets[indices])
        if self.together:
            return Batch(evaluation_view(torch.stack(images), self.resolution, self.eval_crop), targets)
        views = [evaluation_view(image, self.resolution, self.eval_crop) for image in images]
        return Batch(torch.stack(views), targets)


@dataclass(frozen=True, eq=False)
class _TrainPatches(Dataset[_Loaded]):
    """Training windows of patches, turned by one of the eight symmetries."""

    split: Split
    images: PatchImages
    turn: bool

    def __getitem__(self, request: Request) -> _Loaded:
        randoms = draw_views(request.batch_size, generator("augment", *request.key)).at(request.positions)
        corners = window_corners(self.images.size, request.resolution, randoms.offsets)
        turns = np.floor(8 * randoms.mirrors).astype(np.int64) * self.turn
        return _Loaded(
            *_windows(self.split, self.images, request.indices, corners, request.resolution, turns), None, None, request
        )


@dataclass(frozen=True, eq=False)
class _EvalPatches(Dataset[Batch]):
    """Batches of windows of patches, by their numbers: those of a patch, row by row, follow each other."""

    split: Split
    images: PatchImages
    resolution: int

    def __len__(self) -> int:
        return len(self.split) * self.images.grid(self.resolution)

    def __getitem__(self, numbers: Indices) -> Batch:
        indices, windows = np.divmod(numbers, self.images.grid(self.resolution))
        corners = np.stack(np.divmod(windows, self.images.size[1] // self.resolution), 1) * self.resolution
        return Batch(*_windows(self.split, self.images, indices, corners, self.resolution, np.zeros_like(numbers)))


def _eval_views(split: Split, resolution: int, eval_crop: float) -> _EvalImages | _EvalPatches:
    if isinstance(split.images, PatchImages):
        return _EvalPatches(split, split.images, resolution)
    return _EvalImages(split, resolution, eval_crop, split.images.size is not None)


def _windows(
    split: Split, images: PatchImages, indices: Indices, corners: Indices, side: int, turns: Indices
) -> tuple[Tensor, Tensor]:
    """Return windows (N, C, side, side) of patches, and their targets."""
    cut = images.cut(indices, corners, (side, side), turns)
    target = split.targets[indices] if cut.target is None else cut.target
    return torch.from_numpy(cut.images).permute(0, 3, 1, 2), torch.from_numpy(target)


def _as_it_is(loaded: T) -> T:
    return loaded


class _Loader(DataLoader[Any]):
    """torch's DataLoader, whose workers stay at work when all processes of a job are told to stop.

    The step that ends then still needs its images. A worker ends when the training process does, closes the loader, or
    stops it; as Python does at its exit with remaining workers.
    """

    def __init__(self, images: Dataset[Any], **options: Any) -> None:
        super().__init__(images, worker_init_fn=_heed_parent if _CAN_WAIT else None, **options)

    def __iter__(self) -> Any:
        if not _CAN_WAIT:
            return _freed_on_error(super().__iter__())
        # Workers inherit what is held back here; setting handlers in them would leave them a moment without.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            return _freed_on_error(super().__iter__())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _freed_on_error(batches: Iterator[T]) -> Generator[T]:
    """Yield the batches; on an error let go of what loads them, so that workers end at once.

    Frames of the traceback would hold it until a garbage collection, in which torch waits 5 seconds for each worker.
    """
    try:
        yield from batches
    except Exception as error:
        del batches
        raise error.with_traceback(None) from None


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
