"""Black images in place of a data set that is not there yet, to plan a training on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ofav2.config.schema import DataConfig
from ofav2.data.catalogue import IMAGENET_MEAN, IMAGENET_STD, with_shots
from ofav2.data.images import ArrayImages, Indices, Pixels, Size
from ofav2.data.splits import RGB, ImageData, Listed, Split, TargetSpec, divide
from ofav2.errors import UserError


@dataclass(frozen=True)
class BlankImages:
    """Black square images that take no memory."""

    count: int
    """How many."""
    side: int
    """Their side in pixels."""

    @property
    def decoded(self) -> bool:
        """Whether pixels are at hand."""
        return True

    @property
    def size(self) -> Size:
        """The size of all images."""
        return self.side, self.side

    def read(self, index: int) -> Tensor:
        """Return image `index` as a fresh uint8 tensor (3, H, W)."""
        return torch.zeros(3, self.side, self.side, dtype=torch.uint8)

    def look(self, indices: Indices) -> Pixels:
        """Return images where they are kept: all in one place."""
        return ArrayImages(self.read(0)[None].numpy()).look(np.zeros_like(indices))

    def take(self, indices: Indices) -> "BlankImages":
        """Return as many images as there are indices."""
        return BlankImages(len(indices), self.side)

    def identity(self) -> bytes:
        """Return count and side."""
        return f"{self.count} x {self.side}".encode()

    def names(self) -> None:
        """Return None: they are no files."""


def blank_data(config: DataConfig, *, images: int, classes: int) -> ImageData:
    """Return black images in classes of equal size, split as a recipe says.

    Args:
        config: The recipe's data part; images have the side of its largest resolution.
        images: How many, all splits together.
        classes: How many classes.

    Raises:
        UserError: There are fewer than two classes, or than three images for each.
    """
    if classes < 2:
        raise UserError(f"--classes ({classes}): must be 2 or more")
    if images < 3 * classes:
        raise UserError(f"--images ({images}): {classes} classes need {3 * classes} at least, one in each split")
    names = tuple(f"class {number}" for number in range(1, classes + 1))
    targets = np.arange(images, dtype=np.int64) % classes
    listed = Listed(names, Split("train", targets, BlankImages(images, max(config.resolutions))))
    parts = divide(listed, val_fraction=config.val_fraction, test_fraction=config.test_fraction, seed=config.split_seed)
    parts = with_shots(parts, classes, config)
    return ImageData(
        name="imagined images",
        bands=RGB,
        target=TargetSpec("classes", names),
        mean=config.mean or IMAGENET_MEAN,
        std=config.std or IMAGENET_STD,
        train=parts.train,
        val=parts.val,
        test=parts.test,
        fingerprint="",
        origins=parts.origins,
    )
