"""Augment a whole batch on the training device: colour, RandAugment, mixup and cutmix, all by torchvision.

torchvision draws from torch's global generator. Here it does so from seeds that are functions of (seed, phase, step),
and the generator is left as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from ofav2.config.schema import DataConfig
from ofav2.data.images import Indices
from ofav2.rng import generator

GROUP = 8
"""Images, side by side in a batch, that share a draw of colour and of RandAugment's operations."""

Key = tuple[int, int, int]
"""Seed, phase's code and step."""


@dataclass(frozen=True)
class Augmentation:
    """Settings of a batch's augmentation."""

    jitter: tuple[float, float, float, float]
    """Strengths of changes of brightness, contrast, saturation, hue."""
    randaugment: tuple[int, int]
    """Operations per image and their magnitude."""
    mixup: float
    """Alpha of mixup."""
    cutmix: float
    """Alpha of cutmix."""
    classes: int
    """Classes of the data set."""

    @property
    def recolours(self) -> bool:
        """Whether images are changed one by one."""
        return any(self.jitter) or self.randaugment[0] > 0

    @property
    def mixes(self) -> bool:
        """Whether each image is mixed with the one before it in the batch."""
        return self.mixup > 0 or self.cutmix > 0


def augmentation(config: DataConfig, classes: int) -> Augmentation:
    """Return a recipe's augmentation."""
    return Augmentation(config.jitter, config.randaugment, config.mixup, config.cutmix, classes)


def recoloured(images: Tensor, positions: Indices, settings: Augmentation, key: Key) -> Tensor:
    """Change colours and apply RandAugment's operations, drawn for each `GROUP` of a batch's images.

    Args:
        images: uint8 (N, 3, H, W).
        positions: The images' positions in the whole batch (N,); what is drawn for one depends on its position alone.
        settings: What is done.
        key: What seeds the generator: seed, phase's code and step.

    Returns:
        uint8 (N, 3, H, W).
    """
    operations, magnitude = settings.randaugment
    steps = [v2.ColorJitter(*settings.jitter)] if any(settings.jitter) else []
    steps += [v2.RandAugment(operations, magnitude)] if operations else []
    change = v2.Compose(steps)
    groups = positions // GROUP
    bounds = np.flatnonzero(np.diff(groups)) + 1
    changed = []
    for part, group in zip(images.tensor_split(bounds.tolist()), groups[[0, *bounds]], strict=True):
        with _seeded(generator("colour", *key, int(group))):
            changed.append(change(part))
    return torch.cat(changed)


def mixed(images: Tensor, labels: Tensor, settings: Augmentation, key: Key) -> tuple[Tensor, Tensor]:
    """Mix each image, and its label, with the one before it by mixup or cutmix (drawn per batch where both are on).

    Args:
        images: uint8 (N + 1, 3, H, W): a first image that is only mixed in, and those to mix.
        labels: Their labels, int64 (N + 1,).
        settings: What is done.
        key: What seeds the generator: seed, phase's code and step.

    Returns:
        Images, float32 in 0..255 (N, 3, H, W), and the classes' probabilities, float32 (N, classes).

    Source: Zhang et al., mixup, 2018; Yun et al., CutMix, 2019; torchvision, `MixUp` and `CutMix`.
    """
    rng = generator("mix", *key)
    either = settings.mixup > 0 and settings.cutmix > 0
    by_mixup = rng.random() < 0.5 if either else settings.mixup > 0
    mix: v2.MixUp | v2.CutMix = (
        v2.MixUp(alpha=settings.mixup, num_classes=settings.classes)
        if by_mixup
        else v2.CutMix(alpha=settings.cutmix, num_classes=settings.classes)
    )
    with _seeded(rng):
        pictures, probabilities = mix(images.to(torch.float32), labels)
    return pictures[1:], probabilities[1:]


@contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    """Let torch's global generator of the CPU, which torchvision draws from on every device, start at a drawn seed."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        yield
