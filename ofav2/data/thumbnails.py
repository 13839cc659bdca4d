"""Make small pictures of images, for pages."""

import torch
from torch import Tensor
from torchvision.io import encode_jpeg, encode_png

from ofav2.data.splits import Split
from ofav2.data.views import evaluation_view

SIDE = 96
"""Side of a thumbnail in pixels, at most."""


def thumbnail(split: Split, index: int, *, resolution: int, eval_crop: float) -> bytes | None:
    """Return a JPEG file of what evaluation sees of an image; None of an image that is no picture of 3 channels.

    Args:
        split: The images.
        index: Which of them.
        resolution: Side in pixels that it is evaluated at; `SIDE` bounds it.
        eval_crop: Share of the resized image's side that evaluation keeps.
    """
    image = split.image(index)
    if image.dtype != torch.uint8 or image.shape[0] != 3:
        return None
    view = evaluation_view(image, min(resolution, SIDE), eval_crop)
    return encode_jpeg(view.contiguous(), quality=85).numpy().tobytes()


def png(picture: Tensor) -> bytes:
    """Return a PNG file of colours, uint8 (3, H, W)."""
    return encode_png(picture.contiguous()).numpy().tobytes()
