"""Decode files once: keep a data set's pixels in one memory-mapped file, with facts about each image.

An entry of the cache is a folder `NAME-KEY`, whose key is a digest of the files' paths, sizes and times of change:

    pixels.bin   all images, one after another, as uint8 (H, W, 3); missing where they were only looked at
    index.npz    per image: where its pixels begin, its height and width, a digest of its file
    about.json   format, key, root, sizes, and the images that cannot be decoded, with the reason

An entry appears whole or not at all. Of several processes that open a data set at once one decodes, the others wait.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofav2 import files
from ofav2.data.images import FileImages, Indices, Pixels, Size, decode
from ofav2.errors import RunError, UserError
from ofav2.progress import log_progress

logger = logging.getLogger(__name__)

FORMAT = "ofav2-images/1"
PIXELS, INDEX, ABOUT = "pixels.bin", "index.npz", "about.json"
SAMPLE = 64
"""Images from which the size of a data set is estimated."""
CHUNK = 32
"""Images that a thread decodes at a time."""


@dataclass(frozen=True, eq=False)
class Store:
    """An entry of the cache, opened: of all images of a data set, in the order of its listing."""

    pixels: Tensor | None
    """uint8, one image after another, mapped from the file; None where images were only looked at."""
    offsets: Indices
    """Where each image begins (N,)."""
    shapes: npt.NDArray[np.int64]
    """Height and width of each (N, 2); of one that cannot be decoded, 0."""
    digests: npt.NDArray[np.uint64]
    """A digest of each file's bytes (N,)."""
    bad: Mapping[int, str]
    """Why an image cannot be decoded, by its number."""


@dataclass(frozen=True, eq=False)
class CheckedImages:
    """Image files that were decoded once, and whose pixels are read from the cache where they fitted in."""

    files: FileImages
    store: Store
    positions: Indices
    """The images' indices in the store (N,)."""

    @property
    def decoded(self) -> bool:
        """Whether pixels are at hand."""
        return self.store.pixels is not None

    @property
    def size(self) -> Size | None:
        """The size that all images have; None where sizes differ."""
        shapes = self.store.shapes[self.positions]
        return (int(shapes[0, 0]), int(shapes[0, 1])) if len(shapes) and (shapes == shapes[0]).all() else None

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """A digest of each file's bytes (N,)."""
        return self.store.digests[self.positions]

    def read(self, index: int) -> Tensor:
        """Return image `index` as a fresh uint8 tensor (3, H, W)."""
        (image,) = self.look(np.array([index])).images()
        return image.clone()

    def look(self, indices: Indices) -> Pixels:
        """Return images where they are kept."""
        pixels, positions = self.store.pixels, self.positions[indices]
        if pixels is None:
            return self.files.look(indices)
        sizes = self.store.shapes[positions]
        strides = np.array([1, 0, 3]) + np.array([0, 3, 0]) * sizes[:, 1:]
        return Pixels([pixels] * len(positions), self.store.offsets[positions], strides, sizes)

    def take(self, indices: Indices) -> "CheckedImages":
        """Return the images at `indices`, in that order."""
        return CheckedImages(self.files.take(indices), self.store, self.positions[indices])

    def identity(self) -> bytes:
        """Return the files' identity: images are the same, wherever their pixels come from."""
        return self.files.identity()

    def names(self) -> list[str]:
        """Return the images' paths relative to their folder."""
        return self.files.names()


def open_store(
    trees: Sequence[FileImages], *, name: str, root: Path, cache: Path, budget: int, check: bool
) -> Store | None:
    """Open a data set's entry in the cache; make it first where there is none.

    Args:
        trees: The data set's files.
        name: Name of the data set.
        root: Its folder.
        cache: The folder of all entries.
        budget: Bytes that an entry may take; images of a larger data set are not kept.
        check: Whether images that are too many to be kept are to be decoded all the same, to find those that cannot be.

    Returns:
        The entry; None for a data set over the budget that was not to be checked.

    Raises:
        UserError: The cache cannot be read or written, or its disk is full.
    """
    key = _key(name, trees)
    entry = cache / f"{name}-{key[:16]}"
    with _turn(cache, entry.name):
        _sweep(cache, entry)
        store = _load(entry, key, budget)
        if store is not None:
            return store
        expected = _estimate(trees)
        if expected > budget and not check:
            logger.info(
                f"{name}: about {_gib(expected)} decoded, more than data.cache_gib ({_gib(budget)}); images are "
                "decoded anew each time they are used"
            )
            return None
        _make(entry, trees, {"key": key, "name": name, "root": str(root.resolve())}, budget, expected <= budget)
        _remove_stale(entry, name, root)
        store = _load(entry, key, budget)
    assert store is not None, "it was just made"
    return store


def _key(name: str, trees: Sequence[FileImages]) -> str:
    digest = hashlib.sha256(f"{FORMAT} {name}".encode())
    for tree in trees:
        digest.update(f"{len(tree.paths)} images\n".encode())
        digest.update(tree.identity())
    return digest.hexdigest()


@contextmanager
def _turn(cache: Path, name: str) -> Iterator[None]:
    """Wait until no other process makes the entry; the system ends the turn of one that is killed."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = (cache / f".{name}.lock").open("a", encoding="utf-8")
    except OSError as error:
        raise _unusable(cache, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(f"cache {cache / name}: another process is at it, waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise _unusable(cache, error) from error
        yield


def _unusable(cache: Path, error: OSError) -> UserError:
    return UserError(
        f"data.cache ({cache}): cannot be used ({error.strerror}); give a folder that you may write to, on a disk with "
        "space, or set data.cache=null"
    )


def _sweep(cache: Path, entry: Path) -> None:
    """Remove files of the entry that a killed process wrote, as no other one makes it now."""
    for partial in cache.glob(f".{entry.name}-*"):
        logger.warning(f"cache {entry}: was left half-written; decoding again")
        shutil.rmtree(partial, ignore_errors=True)


def _load(entry: Path, key: str, budget: int) -> Store | None:
    """Open an entry; None, with a log line, if it is damaged, or holds no pixels although they would fit now."""
    if not entry.exists():
        return None
    try:
        about = files.read_json(entry / ABOUT)
        store = _open(entry, about, key)
    except (RunError, OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        logger.warning(f"cache {entry}: is damaged ({error}); decoding again")
        shutil.rmtree(entry, ignore_errors=True)
        return None
    if store.pixels is None and about["bytes"] <= budget:
        shutil.rmtree(entry, ignore_errors=True)
        return None
    return store


def _open(entry: Path, about: Mapping[str, Any], key: str) -> Store:
    if (about["format"], about["key"]) != (FORMAT, key):
        raise ValueError(f"{ABOUT} is of other images")
    content = (entry / INDEX).read_bytes()
    if hashlib.sha256(content).hexdigest() != about["index_sha256"]:
        raise ValueError(f"{INDEX} has changed")
    with np.load(entry / INDEX, allow_pickle=False) as index:
        offsets, shapes, digests = index["offsets"], index["shapes"], index["digests"]
    bad = {int(number): str(reason) for number, reason in about["bad"].items()}
    return Store(_map(entry / PIXELS, about["bytes"]) if about["kept"] else None, offsets, shapes, digests, bad)


def _map(path: Path, size: int) -> Tensor:
    found = path.stat().st_size
    if found != size:
        raise ValueError(f"{PIXELS} has {found} bytes instead of {size}")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.zeros(0).byte()


def _estimate(trees: Sequence[FileImages]) -> int:
    """Estimate the bytes of all images, from some that lie evenly among them."""
    paths = [(tree, index) for tree in trees for index in _evenly(len(tree.paths), SAMPLE)]
    sizes = [
        found.pixels.size for found in (_look(tree.path(index)) for tree, index in paths) if found.pixels is not None
    ]
    return int(sum(sizes) / max(len(sizes), 1) * sum(len(tree.paths) for tree in trees))


def _evenly(count: int, groups: int) -> list[int]:
    return sorted({number * count // groups for number in range(groups)}) if count else []


class _Look(NamedTuple):
    """What decoding one file gave: pixels uint8 (H, W, 3), or why there are none; and a digest of its bytes."""

    pixels: npt.NDArray[np.uint8] | None
    reason: str
    digest: int


def _look(path: Path) -> _Look:
    try:
        content = path.read_bytes()
    except OSError as error:
        return _Look(None, error.strerror or "cannot be read", 0)
    digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    try:
        return _Look(decode(content).permute(1, 2, 0).contiguous().numpy(), "", digest)
    except ValueError as error:
        return _Look(None, str(error), digest)


def _make(entry: Path, trees: Sequence[FileImages], about: Mapping[str, Any], budget: int, keep: bool) -> None:
    """Decode all files into an entry; over the budget, go on without keeping pixels."""
    try:
        with files.making(entry) as staging:
            index, facts = _decode_all(staging / PIXELS, trees, str(about["name"]), budget if keep else -1)
            np.savez(staging / INDEX, allow_pickle=False, **index)
            sha256 = hashlib.sha256((staging / INDEX).read_bytes()).hexdigest()
            files.write_json(staging / ABOUT, {"format": FORMAT, **about, **facts, "index_sha256": sha256})
            for path in (*staging.iterdir(), staging):
                files.flush_to_disk(path)
        files.flush_to_disk(entry.parent)
    except OSError as error:
        raise _unusable(entry.parent, error) from error
    except UserError as error:
        # `making` turns what the system refuses into its own words, which name a folder that the user gave.
        raise (_unusable(entry.parent, error.__cause__) if isinstance(error.__cause__, OSError) else error) from error


def _decode_all(
    path: Path, trees: Sequence[FileImages], name: str, budget: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Decode all files in parallel and write their pixels in order, up to a budget in bytes; over it none are kept."""
    total = sum(len(tree.paths) for tree in trees)
    offsets, shapes = np.zeros(total, dtype=np.int64), np.zeros((total, 2), dtype=np.int64)
    digests = np.zeros(total, dtype=np.uint64)
    bad: dict[str, str] = {}
    end, kept = 0, budget >= 0
    verb = "decoding" if kept else "looking at"
    with path.open("wb") as file, log_progress(f"{verb} {name}", total) as advance:
        for number, found in enumerate(_looks(trees)):
            digests[number] = found.digest
            offsets[number] = end
            if found.pixels is None:
                bad[str(number)] = found.reason
            else:
                shapes[number] = found.pixels.shape[:2]
                end += found.pixels.size
                kept = kept and end <= budget
                _write(file, found.pixels, kept)
            advance()
    if not kept:
        path.unlink()
    return {"offsets": offsets, "shapes": shapes, "digests": digests}, {"bytes": end, "kept": kept, "bad": bad}


def _write(file: IO[bytes], pixels: npt.NDArray[np.uint8], kept: bool) -> None:
    if kept:
        file.write(pixels.data)
    elif file.tell():
        # What lies there by now will not be read.
        file.seek(0)
        file.truncate()


def _looks(trees: Sequence[FileImages]) -> Iterator[_Look]:
    """Decode files in several threads, a bounded number of them ahead, and give them in order."""
    threads = os.cpu_count() or 1
    chunks = ((tree, start) for tree in trees for start in range(0, len(tree.paths), CHUNK))
    ahead: deque[Future[list[_Look]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for tree, start in chunks:
            ahead.append(pool.submit(_look_at_chunk, tree, start))
            if len(ahead) > 3 * threads:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _look_at_chunk(tree: FileImages, start: int) -> list[_Look]:
    return [_look(tree.path(index)) for index in range(start, min(start + CHUNK, len(tree.paths)))]


def _remove_stale(entry: Path, name: str, root: Path) -> None:
    """Remove entries of what lay at the data set's root before its files changed."""
    for other in sorted(entry.parent.glob(f"{name}-*")):
        if other == entry:
            continue
        try:
            about = files.read_json(other / ABOUT)
        except RunError:
            continue
        if about.get("root") == str(root.resolve()):
            logger.info(f"cache {other}: was made before files below {root} changed; removed")
            shutil.rmtree(other, ignore_errors=True)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
