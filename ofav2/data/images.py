"""Hold images: arrays in memory, or files that are decoded on demand.

All keep their items in numpy arrays. Worker processes that are forked share their pages, which they could not do with a
Python list: counting references writes to every item.
"""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofav2 import files
from ofav2.data.decoding import decode
from ofav2.errors import UserError

Indices = npt.NDArray[np.int64]
Size = tuple[int, int]
"""Height and width in pixels."""


class Pixels(NamedTuple):
    """Images of any sizes where they are kept, not to be written; all have the same channels."""

    memory: list[Tensor]
    """For each image, a tensor in whose memory it lies."""
    starts: Indices
    """Where in that memory (N,)."""
    strides: Indices
    """How far apart channels, rows and columns lie (N, 3)."""
    sizes: Indices
    """Heights and widths in pixels (N, 2)."""
    channels: int = 3
    """How many channels they have."""

    def images(self) -> list[Tensor]:
        """Return each image (C, H, W)."""
        return [
            memory.as_strided((self.channels, *size), stride, start)
            for memory, start, stride, size in zip(
                self.memory, self.starts.tolist(), self.strides.tolist(), self.sizes.tolist(), strict=True
            )
        ]

    def boxes(self, boxes: Indices) -> list[Tensor]:
        """Return a box of each image as a batch of one (1, C, height, width).

        Slices of images would do, but take longer, and hide from torch that a pixel's channels lie side by side.

        Args:
            boxes: Top, left, height and width of each box in pixels (N, 4).
        """
        starts = self.starts + (boxes[:, :2] * self.strides[:, 1:]).sum(1)
        parts = zip(self.memory, starts.tolist(), self.strides.tolist(), boxes[:, 2:].tolist(), strict=True)
        # A batch of one never takes its first stride; torch only wants one that looks like a batch's.
        return [
            memory.as_strided((1, self.channels, height, width), (height * row, channel, row, column), start)
            for memory, start, (channel, row, column), (height, width) in parts
        ]

    def at(self, order: Indices) -> "Pixels":
        """Return the images at these indices, in this order."""
        memory = [self.memory[position] for position in order.tolist()]
        return Pixels(memory, self.starts[order], self.strides[order], self.sizes[order], self.channels)


def pixels_of(images: Sequence[Tensor]) -> Pixels:
    """Describe images (C, H, W) of their own by where they lie."""
    starts = np.array([image.storage_offset() for image in images], dtype=np.int64)
    strides = np.array([image.stride() for image in images], dtype=np.int64).reshape(-1, 3)
    sizes = np.array([image.shape[1:] for image in images], dtype=np.int64).reshape(-1, 2)
    return Pixels(list(images), starts, strides, sizes, images[0].shape[0] if images else 3)


class Images(Protocol):
    """A row of images, from which some can be taken."""

    @property
    def decoded(self) -> bool:
        """Whether pixels are at hand, so that worker processes would only be in the way."""
        ...

    @property
    def size(self) -> Size | None:
        """The size that all images have; None where sizes differ or are not known."""
        ...

    def read(self, index: int) -> Tensor:
        """Return image `index` as a fresh uint8 tensor (3, H, W)."""
        ...

    def look(self, indices: Indices) -> Pixels:
        """Return images where they are kept."""
        ...

    def take(self, indices: Indices) -> "Images":
        """Return the images at `indices`, in that order."""
        ...

    def identity(self) -> bytes:
        """Return bytes that change when the images do."""
        ...

    def names(self) -> list[str] | None:
        """Return the images' paths; None where they are no files."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images of one size in memory: uint8 (N, C, H, W), cut fastest where a pixel's channels lie side by side."""

    array: npt.NDArray[np.uint8]

    @property
    def decoded(self) -> bool:
        """Whether pixels are at hand."""
        return True

    @property
    def size(self) -> Size:
        """The size of all images."""
        return self.array.shape[2], self.array.shape[3]

    def read(self, index: int) -> Tensor:
        """Return image `index` as a fresh uint8 tensor (3, H, W)."""
        return torch.from_numpy(self.array[index]).clone()

    def look(self, indices: Indices) -> Pixels:
        """Return images where they are kept."""
        array, count = torch.from_numpy(self.array), len(indices)
        each, *strides = array.stride()
        sizes = np.tile(self.size, (count, 1))
        return Pixels([array] * count, each * indices, np.tile(strides, (count, 1)), sizes, array.shape[1])

    def take(self, indices: Indices) -> "ArrayImages":
        """Return the images at `indices`, in that order."""
        return ArrayImages(self.array.transpose(0, 2, 3, 1)[indices].transpose(0, 3, 1, 2))

    def identity(self) -> bytes:
        """Return shape and pixels."""
        return str(self.array.shape).encode() + np.ascontiguousarray(self.array).tobytes()

    def names(self) -> None:
        """Return None: they are no files."""


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files below a folder, and what the system reported about them when they were listed."""

    root: Path
    paths: npt.NDArray[np.bytes_]
    """Relative to `root`, as file-system bytes (N,)."""
    nodes: npt.NDArray[np.uint64]
    """Device and number of each file (N, 2): equal ones are one file under two names."""
    stamps: npt.NDArray[np.int64]
    """Size in bytes, and times of change of content and of status in nanoseconds (N, 3); -1 if there is no file."""
    upright: bool = True
    """Whether images are turned as their EXIF orientation says."""
    shrink_to: int = 0
    """Pixels that the short side of larger images is shrunk to; 0 keeps them as they are."""

    @property
    def decoded(self) -> bool:
        """Whether pixels are at hand."""
        return False

    @property
    def size(self) -> None:
        """Known once they are decoded."""
        return None

    def path(self, index: int) -> Path:
        """Return the file of image `index`."""
        return self.root / os.fsdecode(self.paths[index].item())

    def read(self, index: int) -> Tensor:
        """Decode image `index` to a uint8 tensor (3, H, W), see `decode_file`."""
        return decode_file(self.path(index), self.upright, self.shrink_to)

    def look(self, indices: Indices) -> Pixels:
        """Decode images."""
        return pixels_of([self.read(index) for index in indices.tolist()])

    def take(self, indices: Indices) -> "FileImages":
        """Return the images at `indices`, in that order."""
        return replace(self, paths=self.paths[indices], nodes=self.nodes[indices], stamps=self.stamps[indices])

    def identity(self) -> bytes:
        """Return each file's relative path, size and a digest of its bytes, which are read for it."""
        digests = [digest_of(files.read_bytes(self.path(index))) for index in range(len(self.paths))]
        return self.identity_by(np.array(digests, dtype=np.uint64))

    def identity_by(self, digests: npt.NDArray[np.uint64]) -> bytes:
        """Return the identity, of digests that are known (N,)."""
        paths = [path if path.isascii() else os.fsencode(composed(os.fsdecode(path))) for path in self.paths.tolist()]
        rows = zip(paths, self.stamps[:, 0].tolist(), digests.tolist(), strict=True)
        return (b"" if self.upright else b"as stored\n") + b"".join(b"%s %d %016x\n" % row for row in rows)

    def names(self) -> list[str]:
        """Return the images' paths relative to `root`."""
        return [os.fsdecode(path) for path in self.paths.tolist()]


@dataclass(frozen=True, eq=False)
class JoinedImages:
    """Images of two rows: position p is image p of the first row, or p - `count` of the second one."""

    first: Images
    count: int
    second: Images
    positions: Indices

    @property
    def decoded(self) -> bool:
        """Whether the pixels of both rows are at hand."""
        return self.first.decoded and self.second.decoded

    @property
    def size(self) -> Size | None:
        """The size of all images, where both rows have the same one."""
        return self.first.size if self.first.size == self.second.size else None

    def read(self, index: int) -> Tensor:
        """Return image `index` as a fresh uint8 tensor (3, H, W)."""
        position = int(self.positions[index])
        return self.first.read(position) if position < self.count else self.second.read(position - self.count)

    def look(self, indices: Indices) -> Pixels:
        """Return images where they are kept."""
        positions = self.positions[indices]
        second = positions >= self.count
        one, other = self.first.look(positions[~second]), self.second.look(positions[second] - self.count)
        starts, strides, sizes = map(np.concatenate, zip(one[1:4], other[1:4], strict=True))
        both = Pixels(one.memory + other.memory, starts, strides, sizes, (one if one.memory else other).channels)
        # The first row's come first: a second sorting of a stable one says where each of them is.
        return both.at(np.argsort(np.argsort(second, kind="stable")))

    def take(self, indices: Indices) -> "JoinedImages":
        """Return the images at `indices`, in that order."""
        return JoinedImages(self.first, self.count, self.second, self.positions[indices])

    def identity(self) -> bytes:
        """Return what identifies both rows, and the positions."""
        parts = (self.positions.astype("<i8").tobytes(), self.first.identity(), self.second.identity())
        return b"".join(b"%d\n%b" % (len(part), part) for part in parts)

    def names(self) -> list[str] | None:
        """Return the images' paths; None where a row holds no files."""
        first, second = self.first.names(), self.second.names()
        if first is None or second is None:
            return None
        both = first + second
        return [both[position] for position in self.positions.tolist()]


def composed(name: str) -> str:
    """Return a name with its accented letters in the composed form (NFC); systems store them in two that look alike."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def file_images(root: Path, paths: Sequence[str], upright: bool = True, shrink_to: int = 0) -> FileImages:
    """Make `FileImages` of paths relative to `root`.

    Args:
        root: The folder.
        paths: Paths of the images.
        upright: Whether to turn them as their EXIF orientation says.
        shrink_to: Pixels that the short side of larger images is shrunk to; 0 keeps them as they are.
    """
    nodes = np.zeros((len(paths), 2), dtype=np.uint64)
    stamps = np.full((len(paths), 3), -1, dtype=np.int64)
    for number, path in enumerate(paths):
        try:
            found = os.stat(root / path)
        except OSError:
            # A link that leads nowhere is a broken image like others, and named as such by who decodes it.
            continue
        if not stat.S_ISREG(found.st_mode):
            continue
        nodes[number] = found.st_dev, found.st_ino
        stamps[number] = found.st_size, found.st_mtime_ns, found.st_ctime_ns
    encoded = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
    return FileImages(root, encoded, nodes, stamps, upright, shrink_to)


def digest_of(content: bytes | memoryview) -> int:
    """Digest bytes to 64 bits: enough to tell images apart, not to withstand someone who looks for equal digests."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def decode_file(path: Path, upright: bool = True, shrink_to: int = 0) -> Tensor:
    """Decode an image file to a uint8 tensor (3, H, W), see `ofav2.data.decoding.decode`.

    Raises:
        UserError: The file cannot be read or decoded.
    """
    try:
        return decode(files.read_bytes(path), upright, shrink_to)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"image {path}: cannot be decoded ({reason}); replace the file or remove it") from error
