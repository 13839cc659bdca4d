"""Classify image files with an extracted network, as it was evaluated."""

import os.path
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ofav2.data.decoding import READABLE, shrunk
from ofav2.data.images import decode_file
from ofav2.data.readers.folders import pictures_below
from ofav2.data.views import evaluation_view, normalise
from ofav2.deploy.artifact import InputRecord, SubnetRecord, describe_subnet
from ofav2.deploy.source import open_source
from ofav2.errors import UserError
from ofav2.exits.early import NEVER, EarlyExits, ExitPolicy, early_exits
from ofav2.exits.policy_file import EARLY_RECORD, load_exit_policy
from ofav2.messages import short
from ofav2.tasks import classification
from supernets.outputs import exit_logits

BATCH = 32
"""Images that are classified at once."""


@dataclass(frozen=True)
class Transform:
    """Prepare an image as it was prepared in evaluation: resize, centre crop, normalise."""

    input: InputRecord
    """What the network takes."""

    def __call__(self, image: Tensor) -> Tensor:
        """Prepare an image.

        Args:
            image: uint8 (3, H, W), RGB.

        Returns:
            float32 (3, resolution, resolution).

        Raises:
            UserError: If it is no such tensor: numbers of another range would be classified without a complaint.
        """
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise UserError(
                f"image ({image.dtype}, shape {tuple(image.shape)}) must be a uint8 tensor (3, H, W) of RGB values in"
                " 0..255: convert it, or name an image file"
            )
        view = evaluation_view(shrunk(image, self.input.shrink_to), self.input.resolution, self.input.eval_crop)
        return normalise(view, self.input.mean, self.input.std)


@dataclass(frozen=True)
class Classified:
    """What a network says of an image."""

    classes: tuple[str, ...]
    """The most likely classes, the likeliest first."""
    probabilities: tuple[float, ...]
    """Their probabilities, in 0..1."""
    exit: int
    """The exit that answered, by number; of an ensemble, the last one."""


@dataclass(frozen=True)
class Classifier:
    """An extracted network with its classes and its preparation of images.

    With several exits and a calibrated policy, confident images exit early. Otherwise the ensemble answers, where
    `ofav2 prune` gave them weights, or else the last exit.
    """

    record: SubnetRecord
    """What the network is."""
    net: EarlyExits | nn.Module
    """The network in evaluation mode, on the CPU."""
    policy: ExitPolicy
    """When images exit a network with several exits."""
    transform: Transform
    """Prepares an image."""

    def __call__(self, images: Sequence[str | Path | Tensor], top: int = 5) -> list[Classified]:
        """Classify images.

        Args:
            images: Files (JPEG, PNG, WebP, BMP, TIFF), or uint8 tensors (3, H, W), RGB.
            top: How many classes to return of each; of fewer classes, all.

        Returns:
            One result per image, in their order.

        Raises:
            UserError: An image can't be read or decoded, or a tensor is another one; the message names it.
        """
        found: list[Classified] = []
        for start in range(0, len(images), BATCH):
            group = images[start : start + BATCH]
            found += self.classify(torch.stack([self.prepare(image) for image in group]), top)
        return found

    def prepare(self, image: str | Path | Tensor) -> Tensor:
        """Read and prepare an image: -> float32 (3, resolution, resolution).

        Raises:
            UserError: It can't be read or decoded, or is another tensor; the message names it.
        """
        upright = self.record.input.exif_orientation
        return self.transform(image if isinstance(image, Tensor) else decode_file(Path(image), upright))

    def classify(self, batch: Tensor, top: int = 5) -> Iterator[Classified]:
        """Classify prepared images (N, 3, resolution, resolution)."""
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            if isinstance(self.net, EarlyExits):
                prediction = self.net.decide(batch, self.policy)
                logits, exits = prediction.logits, prediction.exits.tolist()
            else:
                logits, exits = exit_logits(self.net(batch))[-1], [self.record.exit_indices[-1]] * len(batch)
            best = logits.softmax(1).topk(min(top, logits.shape[1]), 1)
        for probabilities, indices, number in zip(best.values.tolist(), best.indices.tolist(), exits, strict=True):
            yield Classified(tuple(self.record.classes[index] for index in indices), tuple(probabilities), number)


def load_classifier(directory: str | Path) -> Classifier:
    """Read an extracted network, to classify images with it.

    Args:
        directory: The folder that `ofav2 extract` or `ofav2 finetune` wrote. With the policy of `ofav2 calibrate` in
            it, confident images exit early.

    Returns:
        The classifier, on the CPU. Called with image files or tensors, it returns a `Classified` for each.

    Raises:
        RunError: A file is missing, damaged or foreign.
        UserError: The network does something else than to classify, or takes no RGB pictures.
    """
    source = open_source(Path(directory))
    record, module = source.record, source.module
    if record.task != classification.NAME:
        raise UserError(f"network ({directory}) was trained for task {record.task}: only classes can be predicted")
    _require_pictures(record.input, directory)
    calibrated = (Path(directory) / EARLY_RECORD).exists()
    policy = load_exit_policy(directory) if calibrated else ExitPolicy(NEVER, ensemble=record.ensemble is not None)
    several = len(record.exit_indices) > 1
    net = early_exits(module, record.exit_indices, record.ensemble) if several else module
    return Classifier(record, net, policy, Transform(record.input))


def transform(directory: str | Path) -> Transform:
    """Return what prepares an image for an extracted network: uint8 (3, H, W) -> float32 (3, resolution, resolution).

    Args:
        directory: The folder that `ofav2 extract` or `ofav2 finetune` wrote.

    Returns:
        The transform. Called with one RGB image, it returns the normalised one, without a batch dimension.

    Raises:
        RunError: `subnet.json` is missing, damaged or foreign.
        UserError: The network takes no RGB pictures.
    """
    record = describe_subnet(directory)
    _require_pictures(record.input, directory)
    return Transform(record.input)


def _require_pictures(given: InputRecord, directory: str | Path) -> None:
    """Refuse a network whose images are no RGB pictures: it would be given other numbers than it was trained on."""
    if not given.pictures or given.channels != 3:
        raise UserError(
            f"network ({directory}) takes the bands {', '.join(given.bands)}, which image files don't have:"
            " evaluate it on patches with `ofav2 evaluate`"
        )


def image_files(paths: Sequence[str]) -> list[Path]:
    """Return image files: those that are named, and those in folders, at any depth, sorted by path.

    Raises:
        UserError: A path is missing, or a folder has no image.
    """
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        # Unlike pathlib's, these take a name that no file can have for a missing one.
        if os.path.isdir(path):
            inside = pictures_below(path)
            if not inside:
                raise UserError(f"folder {short(text)}: no image in it ({', '.join(READABLE)}); name another one")
            found += inside
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise UserError(f"image {short(text)}: no such file or folder; check the path")
    return found


def classify_files(
    classifier: Classifier, paths: Sequence[Path], top: int
) -> Iterator[tuple[Path, Classified | UserError]]:
    """Classify files; one that can't be read or decoded yields its error, and the others go on.

    Args:
        classifier: The network.
        paths: The files.
        top: How many classes to return of each.

    Yields:
        A file with what the network says of it, or with the error, in order.
    """
    for start in range(0, len(paths), BATCH):
        group = paths[start : start + BATCH]
        prepared = [_prepared(classifier, path) for path in group]
        images = [image for image in prepared if isinstance(image, Tensor)]
        results = classifier.classify(torch.stack(images), top) if images else iter(())
        for path, image in zip(group, prepared, strict=True):
            yield path, image if isinstance(image, UserError) else next(results)


def _prepared(classifier: Classifier, path: Path) -> Tensor | UserError:
    try:
        return classifier.prepare(path)
    except UserError as error:
        return error
