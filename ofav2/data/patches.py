"""Hold patches: images of any number of bands in memory-mapped arrays, with target planes on the same pixels.

A patch is never resampled, so counts stay counts and codes stay codes. What is cut out of its bands is cut out of its
target planes, too, and turned with them.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofav2.data.images import Indices, Pixels, Size, digest_of, pixels_of

Array = npt.NDArray[Any]

DType = Literal["uint8", "int16", "uint16", "float32"]
"""Types that bands may have."""
DTYPES: tuple[DType, ...] = get_args(DType)
IGNORED = -100
"""Code of target pixels that count neither in loss nor in metric, as in torch's cross-entropy."""
CHUNK = 64
"""Patches that are looked at together, at most."""
CHUNK_BYTES = 2**28
"""Bytes of their bands, at most."""


class Bands(Protocol):
    """Bands (n, H, W, C) of patches: an array, or what decodes them as they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Patches, height, width and bands."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the bands."""
        ...

    @property
    def ndim(self) -> int:
        """Four."""
        ...

    def __len__(self) -> int:
        """Count the patches."""
        ...

    def __getitem__(self, window: tuple[int, slice, slice], /) -> Array:
        """Return rows and columns (h, w, C) of a patch."""
        ...


@runtime_checkable
class ReadInPlace(Bands, Protocol):
    """Bands that are decoded as they are asked for, which takes time."""

    def identity(self, position: int) -> bytes:
        """Return bytes that tell a patch from all others, without decoding it."""
        ...


class Part(NamedTuple):
    """Some patches of a data set: a row of them in one file, with their targets in another one."""

    name: str
    """Path of the file of images below the data set's folder."""
    images: Bands
    """Bands (n, H, W, C)."""
    target: Array | None
    """Target planes (n, H, W, P), or numbers of whole patches (n, P); None where classes are kept elsewhere."""
    places: npt.NDArray[np.str_]
    """Where on Earth each patch lies, by name (n,)."""
    identity: bytes
    """Bytes that change when the files do."""


@dataclass(frozen=True)
class Codes:
    """A plane of codes, each of which stands for a class."""

    values: tuple[int, ...]
    """The code of each class."""

    def of(self, stored: Array) -> npt.NDArray[np.int64]:
        """Return classes (...,) of codes (..., 1); `IGNORED` for codes of no class."""
        codes = stored[..., 0]
        order = np.argsort(self.values)
        known = np.asarray(self.values)[order]
        positions = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        return np.where(known[positions] == codes, order[positions], IGNORED)

    def masked(self, stored: Array, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return classes (N, s, s) of codes (N, s, s, 1), with those of invalid pixels ignored."""
        return np.where(valid, self.of(stored), IGNORED)


@dataclass(frozen=True)
class Numbers:
    """Planes of numbers."""

    scale: float
    """What stored values are multiplied by."""
    nodata: float | None
    """The stored value of a missing number; NaN and infinity are missing ones, too."""
    offset: float = 0.0
    """What is added then."""

    def of(self, stored: Array) -> npt.NDArray[np.float32]:
        """Return numbers (..., P), NaN where one is missing."""
        missing = ~valid_values(stored, self.nodata)
        # In float64, as an offset may leave little of large numbers.
        numbers = np.multiply(stored, self.scale, dtype=np.float64) + self.offset
        return np.where(missing, np.nan, numbers).astype(np.float32)

    def masked(self, stored: Array, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Return numbers (N, s, s, P) as planes (N, P, s, s), NaN at invalid pixels."""
        return np.where(valid[:, None], self.of(stored).transpose(0, 3, 1, 2), np.float32(np.nan))


class Cut(NamedTuple):
    """Windows of some patches."""

    images: Array
    """Bands as they are stored (N, s, s, C)."""
    target: Array | None
    """Classes, int64 (N, s, s), or numbers, float32 (N, P, s, s); None where targets are classes of whole patches."""


@dataclass(frozen=True, eq=False)
class PatchImages:
    """Patches of one size."""

    parts: tuple[Part, ...]
    """All files of the data set."""
    rows: Indices
    """Each patch's part, its position there, and the top and left of the window that it is (N, 4)."""
    side: Size
    """Height and width of each in pixels."""
    bands: tuple[int, ...]
    """Which of the stored bands it has, in this order."""
    nodata: float | None
    """The stored value of a pixel without data; NaN and infinity are such values, too."""
    target: Codes | Numbers | None
    """What target planes mean; None where targets are classes of whole patches."""

    @property
    def decoded(self) -> bool:
        """Whether pixels are at hand: the system reads them from the disk as they are asked for."""
        return not any(isinstance(part.images, ReadInPlace) for part in self.parts)

    @property
    def size(self) -> Size:
        """The size of all patches."""
        return self.side

    @property
    def places(self) -> npt.NDArray[np.str_]:
        """Where on Earth each patch lies, by name (N,)."""
        return np.array([self.parts[part].places[position] for part, position in self.rows[:, :2]], dtype=np.str_)

    def grid(self, side: int) -> int:
        """Return how many windows of a side lie in a patch, side by side."""
        return (self.side[0] // side) * (self.side[1] // side)

    def cut(self, indices: Indices, corners: Indices, side: Size, turns: Indices) -> Cut:
        """Cut a window out of each of some patches, and turn it.

        Args:
            indices: The patches (N,).
            corners: Top and left of each window in its patch (N, 2).
            side: Height and width of the windows.
            turns: Which of the eight symmetries of the square each takes (N,), see `turned`; 0 for windows that are no
                squares.
        """
        places = [
            (self.parts[part], position, slice(top, top + side[0]), slice(left, left + side[1]))
            for part, position, top, left in (self.rows[indices] + np.pad(corners, ((0, 0), (2, 0)))).tolist()
        ]
        images = np.empty((len(places), *side, len(self.bands)), self.parts[0].images.dtype)
        # Windows of one patch follow each other, so that what is read in place is decoded once.
        for number in np.lexsort(self.rows[indices, 1::-1].T).tolist():
            part, position, rows, columns = places[number]
            # Whole pixels are read first: picking bands of a mapped file at once would read it value by value.
            images[number] = turned(part.images[position, rows, columns], int(turns[number]))[..., self.bands]
        if self.target is None:
            return Cut(images, None)
        planes = np.stack(
            [
                turned(_planes(part, position, side, rows, columns), turn)
                for (part, position, rows, columns), turn in zip(places, turns.tolist(), strict=True)
            ]
        )
        return Cut(images, self.target.masked(planes, valid_pixels(images, self.nodata)))

    def whole(self, indices: Indices) -> Cut:
        """Return some patches as they are."""
        count = len(indices)
        return self.cut(indices, np.zeros((count, 2), np.int64), self.side, np.zeros(count, np.int64))

    def labels(self, index: int) -> Array:
        """Return the target of patch `index`, without reading its bands: classes (h, w), or numbers (h, w, P).

        Pixels without data have theirs, too, which `cut` ignores.
        """
        assert self.target is not None, "a data set of target planes"
        return self.target.of(self.stored_labels(index))

    def stored_labels(self, index: int) -> Array:
        """Return the target of patch `index` as it is stored (h, w, P)."""
        part, position, top, left = self.rows[index].tolist()
        rows, columns = slice(top, top + self.side[0]), slice(left, left + self.side[1])
        return _planes(self.parts[part], position, self.side, rows, columns)

    def chunks(self, indices: Indices) -> Iterator[Cut]:
        """Yield patches as they are, some at a time."""
        each = math.prod(self.side) * self.parts[0].images.shape[3] * self.parts[0].images.dtype.itemsize
        count = max(1, min(CHUNK, CHUNK_BYTES // each))
        for start in range(0, len(indices), count):
            yield self.whole(indices[start : start + count])

    def read(self, index: int) -> Tensor:
        """Return patch `index` as a fresh tensor of its stored type (C, H, W)."""
        return torch.from_numpy(self.whole(np.array([index])).images[0]).permute(2, 0, 1)

    def digest(self, index: int) -> int:
        """Digest patch `index`: its pixels, or where they are read in place what tells it from others.

        One whose numbers with data are all equal, band by band, can't be told from others and has 0.
        """
        part, position, top, left = self.rows[index].tolist()
        bands = self.parts[part].images
        if isinstance(bands, ReadInPlace):
            return digest_of(bands.identity(position) + repr((top, left, self.side, self.bands)).encode())
        pixels = self.read(index).contiguous().numpy()
        return digest_of(pixels.tobytes()) if self._is_told_apart(pixels.transpose(1, 2, 0)) else 0

    def _is_told_apart(self, pixels: Array) -> bool:
        """Say whether numbers with data differ in a band of pixels (h, w, C), where others may have none."""
        valid = valid_values(pixels, self.nodata)
        bands = (pixels[..., band][valid[..., band]] for band in range(pixels.shape[-1]))
        return any(bool((band != band[:1]).any()) for band in bands)

    def stored_digests(self) -> npt.NDArray[np.uint64]:
        """Digest the whole patch, in these bands, that each patch is or is a window of (N,).

        Those whose numbers with data are all equal, band by band, can't be told apart and have 0.
        """
        stored, windows = np.unique(self.rows[:, :2], axis=0, return_inverse=True)
        found = [self._stored_digest(part, position) for part, position in stored.tolist()]
        return np.array(found, dtype=np.uint64)[windows.reshape(-1)]

    def _stored_digest(self, part: int, position: int) -> int:
        bands = self.parts[part].images
        if isinstance(bands, ReadInPlace):
            return digest_of(bands.identity(position))
        pixels = np.ascontiguousarray(bands[position, :, :][..., self.bands])
        return digest_of(pixels.tobytes()) if self._is_told_apart(pixels) else 0

    def look(self, indices: Indices) -> Pixels:
        """Read patches."""
        return pixels_of([self.read(index) for index in indices.tolist()])

    def take(self, indices: Indices) -> "PatchImages":
        """Return the patches at `indices`, in that order."""
        return replace(self, rows=self.rows[indices])

    def joined(self, other: "PatchImages") -> "PatchImages":
        """Return these patches and then others of the same data set."""
        assert self.parts is other.parts, "patches of one data set"
        return replace(self, rows=np.concatenate((self.rows, other.rows)))

    def identity(self) -> bytes:
        """Return the patches' names, and what identifies files, bands and targets."""
        used = sorted(set(self.rows[:, 0].tolist()))
        facts = repr((self.side, self.bands, self.nodata, self.target, self.names()))
        files = b"".join(hashlib.sha256(self.parts[part].identity).digest() for part in used)
        return hashlib.sha256(facts.encode()).digest() + files

    def names(self) -> list[str]:
        """Return the patches' names: file, position in it, and where it is a part of a patch, top and left."""
        found = []
        for part, position, top, left in self.rows.tolist():
            stored = self.parts[part]
            window = "" if stored.images.shape[1:3] == self.side else f"+{top}+{left}"
            found.append(f"{stored.name}:{position}{window}")
        return found


def valid_values(stored: Array, nodata: float | None) -> npt.NDArray[np.bool_]:
    """Say which values are data: finite, and not the one that stands for none."""
    finite = np.isfinite(stored) if stored.dtype.kind == "f" else np.ones(stored.shape, dtype=bool)
    return finite if nodata is None else finite & (stored != nodata)


def valid_pixels(stored: Array, nodata: float | None) -> npt.NDArray[np.bool_]:
    """Say which pixels (...,) have data in all bands of (..., C)."""
    valid: npt.NDArray[np.bool_] = np.logical_and.reduce(valid_values(stored, nodata), axis=-1)
    return valid


def turned(planes: Array, turn: int) -> Array:
    """Return a view of planes (s, s, C) under one of the square's eight symmetries: 0 leaves them as they are.

    The last two bits count quarter turns; 4 and more are mirrored before.
    """
    return np.rot90(planes[:, ::-1] if turn >= 4 else planes, turn % 4)


def _planes(part: Part, position: int, side: Size, rows: slice, columns: slice) -> Array:
    """Return a window's target planes (s, s, P); numbers of a whole patch hold at each of its pixels."""
    target = part.target
    assert target is not None, "a data set of target planes"
    if target.ndim == 2:
        return np.broadcast_to(target[position], (*side, target.shape[1]))
    return target[position, rows, columns]
