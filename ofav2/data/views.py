"""How an image is cut to a resolution, in training and in evaluation, and how a batch becomes floats."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

ATTEMPTS = 10


class Crop(NamedTuple):
    """A box inside an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(
    height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Crop:
    """Draw a box of random area and aspect ratio inside an image, distributed as in torchvision's RandomResizedCrop.

    After ten boxes that stick out of the image it is the largest centred one whose ratio is allowed.

    Args:
        height: The image's height in pixels.
        width: The image's width in pixels.
        scale: Range of the box's share of the area, drawn uniformly.
        ratio: Range of width over height, drawn uniformly in its logarithm.
        rng: Where the numbers come from.

    Source: Szegedy et al., Going Deeper with Convolutions, section 6; torchvision, `RandomResizedCrop`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(low, high))
        w = round(math.sqrt(area * shape))
        h = round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    return _centred_crop(height, width, ratio)


def _centred_crop(height: int, width: int, ratio: tuple[float, float]) -> Crop:
    # torchvision does not guard against a side of zero pixels, which thin images and extreme ratios give
    h = min(height, max(1, round(width / ratio[0])))
    w = min(width, max(1, round(height * ratio[1])))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def training_view(
    image: Tensor,
    resolution: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: bool,
    rng: np.random.Generator,
) -> Tensor:
    """Cut a random box out of an image, resize it (bilinear, antialiased), and mirror it half the time.

    Args:
        image: uint8 (3, H, W).
        resolution: Side of the result in pixels.
        scale: See `draw_crop`.
        ratio: See `draw_crop`.
        flip: Whether mirroring is drawn at all.
        rng: Where the numbers come from.

    Returns:
        uint8 (3, resolution, resolution).
    """
    top, left, height, width = draw_crop(image.shape[-2], image.shape[-1], scale=scale, ratio=ratio, rng=rng)
    box = image[:, top : top + height, left : left + width]
    view = _tensor(functional.resize(box, [resolution, resolution], antialias=True))
    return view.flip(-1) if flip and rng.random() < 0.5 else view


def evaluation_view(image: Tensor, resolution: int, eval_crop: float) -> Tensor:
    """Resize an image's short side to ceil(resolution / eval_crop) pixels and cut out the centre.

    Args:
        image: uint8 (3, H, W).
        resolution: Side of the result in pixels.
        eval_crop: Share of the resized image's short side that stays, above 0 and up to 1.

    Returns:
        uint8 (3, resolution, resolution).
    """
    resized = functional.resize(image, [short_side(resolution, eval_crop)], antialias=True)
    return _tensor(functional.center_crop(resized, [resolution, resolution]))


def short_side(resolution: int, eval_crop: float) -> int:
    """Give ceil(resolution / eval_crop), with `eval_crop` taken as the decimal number that was written.

    In floating point 21 / 0.7 is a little over 30, and its ceiling 31.
    """
    return math.ceil(resolution / Fraction(str(eval_crop)))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn pixels into floats of about zero mean and unit deviation: (images / 255 - mean) / std, per channel.

    Args:
        images: uint8 (N, C, H, W) or (C, H, W), on any device.
        mean: Channel means in 0..1.
        std: Channel standard deviations in 0..1.

    Returns:
        float32 of the same shape, on the same device, in channels_last memory format where there is a batch.
    """
    assert images.dtype == torch.uint8, images.dtype
    layout = torch.channels_last if images.dim() == 4 else torch.contiguous_format
    floats = images.to(dtype=torch.float32, memory_format=layout)
    return floats.sub_(_per_channel(mean, floats)).div_(_per_channel(std, floats))


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor([255 * value for value in values], dtype=like.dtype, device=like.device).view(-1, 1, 1)


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value
