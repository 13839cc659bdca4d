"""Views of training images in the plainest way: one image after another, with torchvision's routines."""

import math
from typing import NamedTuple

import torch
from torchvision.transforms.v2 import functional

from ofav2.data.views import ViewRandoms


class Crop(NamedTuple):
    """A box inside an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def plain_view(
    size: tuple[int, int], randoms: ViewRandoms, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Crop:
    """The box of one image, attempt after attempt."""
    height, width = map(int, size)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ((down, right),) = randoms.offsets
    for share, position in zip(randoms.areas[0], randoms.ratios[0], strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        shape = math.exp(low + (high - low) * position)
        h, w = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < w <= width and 0 < h <= height:
            return Crop(math.floor(down * (height - h + 1)), math.floor(right * (width - w + 1)), h, w)
    h = min(height, max(1, round(width / ratio[0])))
    w = min(width, max(1, round(height * ratio[1])))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def plain_cut(image: torch.Tensor, crop: Crop, resolution: int, mirrored: bool) -> torch.Tensor:
    """A view of one image, by torchvision."""
    view = functional.resize(functional.crop(image, *crop), [resolution, resolution], antialias=True)
    return view.flip(-1) if mirrored else view
