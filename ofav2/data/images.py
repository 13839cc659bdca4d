"""Where images come from: arrays in memory, or files that are decoded on demand.

Both keep their items in one numpy array. Worker processes that are forked share its pages, which they could not do
with a Python list: counting references writes to every item.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional

from ofav2.errors import UserError

Indices = npt.NDArray[np.int64]


class Images(Protocol):
    """A row of images, from which some can be taken."""

    def read(self, index: int) -> Tensor:
        """Give image `index` as a fresh uint8 tensor (3, H, W)."""
        ...

    def take(self, indices: Indices) -> "Images":
        """Give the images at `indices`, in that order."""
        ...

    def identity(self) -> bytes:
        """Give bytes that change when the images do."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images of one size in memory: uint8 (N, 3, H, W)."""

    array: npt.NDArray[np.uint8]

    def read(self, index: int) -> Tensor:
        """Give image `index` as a fresh uint8 tensor (3, H, W)."""
        return torch.from_numpy(self.array[index].copy())

    def take(self, indices: Indices) -> "ArrayImages":
        """Give the images at `indices`, in that order."""
        return ArrayImages(self.array[indices])

    def identity(self) -> bytes:
        """Give shape and pixels."""
        return str(self.array.shape).encode() + np.ascontiguousarray(self.array).tobytes()


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files below a folder; `paths` are relative to it, as file-system bytes (N,)."""

    root: Path
    paths: npt.NDArray[np.bytes_]

    def path(self, index: int) -> Path:
        """Give the file of image `index`."""
        return self.root / os.fsdecode(self.paths[index].item())

    def read(self, index: int) -> Tensor:
        """Decode image `index` to a uint8 tensor (3, H, W), see `decode_file`."""
        return decode_file(self.path(index))

    def take(self, indices: Indices) -> "FileImages":
        """Give the images at `indices`, in that order."""
        return FileImages(self.root, self.paths[indices])

    def identity(self) -> bytes:
        """Give each file's relative path, size and time of change: cheap, and enough to notice other data."""
        lines = []
        for index in range(len(self.paths)):
            status = self.path(index).stat()
            lines.append(b"%s %d %d\n" % (self.paths[index].item(), status.st_size, status.st_mtime_ns))
        return b"".join(lines)


@dataclass(frozen=True, eq=False)
class JoinedImages:
    """Images of two rows: place p stands for image p of the first row, or p - `count` of the second one."""

    first: Images
    count: int
    second: Images
    places: Indices

    def read(self, index: int) -> Tensor:
        """Give image `index` as a fresh uint8 tensor (3, H, W)."""
        place = int(self.places[index])
        return self.first.read(place) if place < self.count else self.second.read(place - self.count)

    def take(self, indices: Indices) -> "JoinedImages":
        """Give the images at `indices`, in that order."""
        return JoinedImages(self.first, self.count, self.second, self.places[indices])

    def identity(self) -> bytes:
        """Give what identifies both rows, and the places."""
        parts = (self.places.astype("<i8").tobytes(), self.first.identity(), self.second.identity())
        return b"".join(b"%d\n%b" % (len(part), part) for part in parts)


def file_images(root: Path, paths: Sequence[str]) -> FileImages:
    """Make `FileImages` of paths relative to `root`."""
    return FileImages(root, np.array([os.fsencode(path) for path in paths], dtype=np.bytes_))


def decode_file(path: Path) -> Tensor:
    """Decode a JPEG, PNG or WebP file to a uint8 tensor (3, H, W).

    Grey is repeated, CMYK and palettes are converted, alpha is dropped, 16-bit samples keep their upper half.

    Raises:
        UserError: The file cannot be read or decoded.
    """
    try:
        image: Tensor = decode_image(str(path), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"image {path}: cannot be decoded ({reason}); replace the file or remove it") from error
    if image.dtype == torch.uint16:
        image = functional.to_dtype(image, torch.uint8, scale=True)
    return image
