"""Crop images to a resolution, in training and in evaluation, and normalise them."""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from ofav2.data.images import Indices, Pixels, Size

ATTEMPTS = 10

Floats = npt.NDArray[np.float64]


class ViewRandoms(NamedTuple):
    """Uniform random numbers in [0, 1) from which crops and flips are computed."""

    areas: Floats
    """For each attempt at a box, where in the range its area is (N, attempts)."""
    ratios: Floats
    """For each attempt, where in the range the logarithm of its aspect ratio is (N, attempts)."""
    offsets: Floats
    """Where the box lies among the rows, and the columns, that it can begin at (N, 2)."""
    mirrors: Floats
    """Below one half: mirrored (N,)."""

    def at(self, positions: Indices) -> "ViewRandoms":
        """Return those of some of the images."""
        return ViewRandoms(*(values[positions] for values in self))


def draw_views(images: int, rng: np.random.Generator) -> ViewRandoms:
    """Draw the random numbers of some images' crops and flips."""
    values = rng.random((images, 2 * ATTEMPTS + 3))
    return ViewRandoms(values[:, :ATTEMPTS], values[:, ATTEMPTS : 2 * ATTEMPTS], values[:, -3:-1], values[:, -1])


def crop_boxes(
    sizes: Indices, randoms: ViewRandoms, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Indices:
    """Return boxes of random area and aspect ratio inside images, distributed as in torchvision's RandomResizedCrop.

    After ten boxes that stick out of an image it is the largest centred one whose ratio is allowed.

    Args:
        sizes: Height and width of each image in pixels (N, 2).
        randoms: Random numbers of N images.
        scale: Range of the box's share of the area, drawn uniformly.
        ratio: Range of width over height, drawn uniformly in its logarithm.

    Returns:
        Top, left, height and width of each box in pixels (N, 4).

    Source: Szegedy et al., Going Deeper with Convolutions, section 6; torchvision, `RandomResizedCrop`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    areas = sizes.prod(1)[:, None] * (scale[0] + (scale[1] - scale[0]) * randoms.areas)
    shapes = np.exp(low + (high - low) * randoms.ratios)
    boxes = np.rint(np.sqrt(np.stack([areas / shapes, areas * shapes], 2))).astype(np.int64)
    fits = ((boxes > 0) & (boxes <= sizes[:, None])).all(2)
    first = boxes[np.arange(len(sizes)), fits.argmax(1)]
    found = fits.any(1)[:, None]
    chosen = np.where(found, first, _centred_boxes(sizes, ratio))
    slack = sizes - chosen
    offsets = np.where(found, np.floor(randoms.offsets * (slack + 1)).astype(np.int64), slack // 2)
    return np.concatenate([offsets, chosen], 1)


def _centred_boxes(sizes: Indices, ratio: tuple[float, float]) -> Indices:
    # torchvision does not guard against a side of zero pixels, which thin images and extreme ratios give
    preferred = np.rint(np.stack([sizes[:, 1] / ratio[0], sizes[:, 0] * ratio[1]], 1)).astype(np.int64)
    return np.minimum(sizes, np.maximum(1, preferred))


def window_corners(size: Size, side: int, offsets: Floats) -> Indices:
    """Return where windows begin, every place equally likely.

    Args:
        size: Height and width of the patches in pixels.
        side: Side of the windows.
        offsets: Random numbers, see `ViewRandoms.offsets` (N, 2).

    Returns:
        Top and left of each (N, 2).
    """
    return np.floor(offsets * (np.array(size) - side + 1)).astype(np.int64)


def cut_each(images: Pixels, boxes: Indices, mirrored: npt.NDArray[np.bool_], resolution: int) -> Tensor:
    """Cut a box out of each image, resize it (bilinear, antialiased), and mirror some: one by one, on the CPU.

    Args:
        images: N images, of any sizes.
        boxes: As of `crop_boxes` (N, 4).
        mirrored: Which images are mirrored left to right (N,).
        resolution: Side of the results in pixels.

    Returns:
        uint8 (N, 3, resolution, resolution).
    """
    views = [
        interpolate(box, size=(resolution, resolution), mode="bilinear", align_corners=False, antialias=True)
        for box in images.boxes(boxes)
    ]
    return torch.cat([view.flip(-1) if turn else view for view, turn in zip(views, mirrored.tolist(), strict=True)])


def cut_together(images: Tensor, boxes: Tensor, mirrored: Tensor, resolution: int) -> Tensor:
    """Do what `cut_each` does to images of one size at once, on any device: within one grey level of it.

    Resizing and mirroring are linear and act on rows and columns apart: each image is multiplied from the left and from
    the right by a matrix of its own.

    Args:
        images: uint8 (N, C, H, W).
        boxes: Top, left, height and width of each image's box in pixels, int64 (N, 4).
        mirrored: Which images are mirrored left to right, bool (N,).
        resolution: Side of the results in pixels.

    Returns:
        uint8 (N, C, resolution, resolution).
    """
    count, channels, height, width = images.shape
    rows = _sampling(boxes[:, 0], boxes[:, 2], height, resolution)
    columns = _sampling(boxes[:, 1], boxes[:, 3], width, resolution)
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    floats = images.permute(0, 2, 1, 3).to(torch.float32)
    lines = torch.bmm(rows, floats.reshape(count, height, channels * width))
    views = torch.bmm(lines.reshape(count, resolution * channels, width), columns.transpose(1, 2))
    return views.reshape(count, resolution, channels, resolution).permute(0, 2, 1, 3).round_().clamp_(0, 255).byte()


def _sampling(starts: Tensor, lengths: Tensor, side: int, resolution: int) -> Tensor:
    """Return, per image, how much each of `resolution` pixels takes of each of `side`: float32 (N, resolution, side).

    It is a triangle as wide as a pixel of the result, or one of the image where that is wider, inside the box.
    """
    starts, lengths = starts[:, None, None].to(torch.float32), lengths[:, None, None].to(torch.float32)
    step = lengths / resolution
    centres = starts + step * (torch.arange(resolution, device=starts.device)[:, None] + 0.5)
    pixels = torch.arange(side, device=starts.device) + 0.5
    inside = (pixels > starts) & (pixels < starts + lengths)
    weights = (1 - ((pixels - centres) / step.clamp(min=1)).abs()).clamp(min=0) * inside
    return weights / weights.sum(2, keepdim=True)


def evaluation_view(image: Tensor, resolution: int, eval_crop: float) -> Tensor:
    """Resize the short side of an image, or of each of a batch, to ceil(resolution / eval_crop) and cut out the centre.

    Args:
        image: uint8 (3, H, W) or (N, 3, H, W).
        resolution: Side of the result in pixels.
        eval_crop: Share of the resized image's short side that stays, above 0 and up to 1.

    Returns:
        uint8 (3, resolution, resolution) or (N, 3, resolution, resolution).
    """
    resized = functional.resize(image, [short_side(resolution, eval_crop)], antialias=True)
    return _tensor(functional.center_crop(resized, [resolution, resolution]))


def short_side(resolution: int, eval_crop: float) -> int:
    """Return ceil(resolution / eval_crop), with `eval_crop` taken as the decimal number that was written.

    In floating point 21 / 0.7 is a little over 30, and its ceiling 31.
    """
    return math.ceil(resolution / Fraction(str(eval_crop)))


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], *, white: float = 255.0, nodata: float | None = None
) -> Tensor:
    """Turn pixels into floats of about zero mean and unit deviation: (images / white - mean) / std, per band.

    Args:
        images: (N, C, H, W) or (C, H, W), on any device.
        mean: Means of the bands, in units of `white`.
        std: Standard deviations of the bands, likewise.
        white: What counts as 1.
        nodata: The value of a pixel without data. Such pixels, and those with NaN or infinity in any band, become 0.

    Returns:
        float32 of the same shape, on the same device, in channels_last memory format where there is a batch.
    """
    if images.dim() == 3:
        return normalise(images[None], mean, std, white=white, nodata=nodata)[0]
    count, channels, height, width = images.shape
    floats = images.to(dtype=torch.float32, memory_format=torch.channels_last, copy=True)
    # Whole lines of pixels beside each other: torch is several times slower where it repeats three values at a time.
    lines = floats.permute(0, 2, 3, 1).view(count * height, width * channels)
    scale, shift = _per_value(tuple(mean), tuple(std), white, width, floats.device)
    # Of whole numbers without a value for no data, all are data.
    invalid = _invalid(floats, nodata) if nodata is not None or images.dtype.is_floating_point else None
    torch.addcmul(shift, lines, scale, out=lines)
    return floats if invalid is None else floats.masked_fill_(invalid, 0)


def _invalid(images: Tensor, nodata: float | None) -> Tensor:
    """Say which pixels lack data in any band, (N, 1, H, W)."""
    missing = ~images.isfinite()
    return (missing if nodata is None else missing | (images == nodata)).any(1, keepdim=True)


@lru_cache(maxsize=256)
def _per_value(
    mean: tuple[float, ...], std: tuple[float, ...], white: float, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return what a line of pixels is multiplied by, and what is added (width * channels,).

    They are made once: a copy to a card would have it waited for in every step.
    """
    scale = [1 / (white * deviation) for deviation in std]
    shift = [-colour / deviation for colour, deviation in zip(mean, std, strict=True)]
    # Made in an evaluation, they are still to be used in training.
    with torch.inference_mode(False):
        first, second = (
            torch.tensor(values, dtype=torch.float32).repeat(width).to(device) for values in (scale, shift)
        )
    return first, second


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value
