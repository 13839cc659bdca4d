"""Digest the bytes of image files, and remember the digests for as long as the system reports no change.

Images are the same if their names and bytes are, wherever and whenever they were written. Times of change and file
numbers only decide whether bytes are read again. With a cache, a file `.NAME-ROOT.digests` in it remembers them:
a SHA-256 of the rest, then an npz archive of `paths`, `stamps` and `digests`, sorted by path.
"""

import hashlib
import io
import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ofav2 import files
from ofav2.data.ahead import worked_ahead
from ofav2.data.images import FileImages, Indices, digest_of
from ofav2.data.turns import CacheError, turn
from ofav2.errors import RunError, UserError
from ofav2.progress import Advance, log_progress

logger = logging.getLogger(__name__)

SAMPLE = 64
"""Files whose remembered digests are checked at each opening, at most."""
CHECKED = 2**26
"""Bytes of these files, at most: of larger ones, one is checked."""
CHUNK = 64
"""Files that a thread reads at a time."""
BLOCK = 2**26
"""Bytes of a file that are read at a time."""
SAID = 5_000
"""Files from which on reading them takes so long that its progress is logged."""

Digests = npt.NDArray[np.uint64]


class UnreadableError(UserError):
    """The system refuses to read an image, or it is being written: nothing is known of the image."""


class Listing(NamedTuple):
    """All files of a data set, in its order."""

    paths: npt.NDArray[np.bytes_]
    """Relative to the data set's folder (N,)."""
    stamps: npt.NDArray[np.int64]
    """What the system reports of each: size, times of change, file number (N, 4)."""


def content_digests(trees: Sequence[FileImages], *, name: str, root: Path, cache: Path | None) -> Digests:
    """Return a digest of each file's bytes (N,), in the order of the trees.

    Args:
        trees: The data set's files.
        name: Name of the data set.
        root: Its folder.
        cache: Folder in which digests are remembered; None reads all files.

    Raises:
        UserError: A file can't be read, or is being written.
    """
    if cache is None:
        return _read(trees, range(sum(len(tree.paths) for tree in trees)), name)
    listing = _listing(trees, root)
    memory = cache / f".{name}-{root_key(root)}.digests"
    digests, known = _recall(memory, listing, trees)
    if known.all():
        return digests
    try:
        with turn(cache, memory.name.removeprefix(".")):
            # Another process may have read them meanwhile.
            digests = _completed(*_recall(memory, listing, trees), trees, name)
            _remember(memory, listing, digests)
            return digests
    except CacheError:
        # A cache on a read-only disk may be complete all the same.
        return _completed(digests, known, trees, name)


def root_key(root: Path) -> str:
    """Return a name for a data set's folder, as part of file names."""
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]


def file_content(path: Path, size: int) -> bytes:
    """Read a whole image file.

    Args:
        path: The file.
        size: Its size in bytes when it was listed.

    Raises:
        UnreadableError: The system refuses, or the file is being written.
    """
    try:
        content = files.read_bytes(path)
    except OSError as error:
        raise UnreadableError(
            f"image {path}: cannot be read ({error.strerror}); see that it can be, or remove it"
            " (data.bad_images=skip is for images that are broken, and this one may not be)"
        ) from error
    if len(content) != size:
        raise UnreadableError(
            f"image {path}: had {size} bytes when it was listed, and has {len(content)} now;"
            " start again when nothing writes to data.root"
        )
    return content


def _listing(trees: Sequence[FileImages], root: Path) -> Listing:
    folders = [os.fsencode(os.path.relpath(tree.root, root)) + b"/" for tree in trees]
    paths = [np.char.add(folder, tree.paths) for folder, tree in zip(folders, trees, strict=True)]
    stamps = [np.column_stack((tree.stamps, tree.nodes[:, 1].astype(np.int64))) for tree in trees]
    return Listing(np.concatenate(paths), np.concatenate(stamps))


def _recall(memory: Path, listing: Listing, trees: Sequence[FileImages]) -> tuple[Digests, npt.NDArray[np.bool_]]:
    """Return the digests that are remembered, and of which files they are; some are checked."""
    digests, known = _matching(memory, listing)
    wrong = _first_wrong(trees, digests, np.flatnonzero(known))
    if wrong is None:
        return digests, known
    logger.warning(
        f"image {wrong}: has other content than before, though size and times are the same; all images are read again"
    )
    return digests, np.zeros_like(known)


def _matching(memory: Path, listing: Listing) -> tuple[Digests, npt.NDArray[np.bool_]]:
    digests, known = np.zeros(len(listing.paths), dtype=np.uint64), np.zeros(len(listing.paths), dtype=bool)
    try:
        content = files.read_bytes(memory)
    except OSError:
        return digests, known
    if content[:32] != hashlib.sha256(content[32:]).digest():
        logger.warning(f"cache {memory}: is damaged; images are read again")
        return digests, known
    try:
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as kept:
            paths, stamps, remembered = kept["paths"], kept["stamps"], kept["digests"]
        if not _is_table(paths, stamps, remembered):
            raise ValueError("no table of digests")
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
        logger.warning(f"cache {memory}: is no table of digests; images are read again")
        return digests, known
    positions = np.minimum(np.searchsorted(paths, listing.paths), len(paths) - 1)
    known = (paths[positions] == listing.paths) & (stamps[positions] == listing.stamps).all(1)
    return np.where(known, remembered[positions], digests), known


def _is_table(paths: npt.NDArray[Any], stamps: npt.NDArray[Any], digests: npt.NDArray[Any]) -> bool:
    kinds = (paths.dtype.kind, stamps.dtype.kind, digests.dtype.name)
    count = len(paths) if paths.ndim == 1 else 0
    return count > 0 and kinds == ("S", "i", "uint64") and stamps.shape == (count, 4) and digests.shape == (count,)


def _remember(memory: Path, listing: Listing, digests: Digests) -> None:
    order = np.argsort(listing.paths)
    archive = io.BytesIO()
    np.savez(
        archive, allow_pickle=False, paths=listing.paths[order], stamps=listing.stamps[order], digests=digests[order]
    )
    content = archive.getvalue()
    try:
        files.write_bytes(memory, hashlib.sha256(content).digest() + content)
    except RunError as error:
        logger.warning(f"digests of images are not remembered: {error}")


def _first_wrong(trees: Sequence[FileImages], digests: Digests, known: Indices) -> Path | None:
    """Return the first of some known files, others each time, whose content is not the remembered one."""
    order = np.random.default_rng().permutation(known)[:SAMPLE]
    sizes = np.concatenate([tree.stamps[:, 0] for tree in trees])[order]
    chosen = order[: max(1, int((np.cumsum(sizes) <= CHECKED).sum()))]
    for (path, size), digest in zip(located(trees, chosen.tolist()), digests[chosen].tolist(), strict=True):
        if _file_digest(path, size) != digest:
            return path
    return None


def _completed(digests: Digests, known: npt.NDArray[np.bool_], trees: Sequence[FileImages], name: str) -> Digests:
    """Return all digests; those of files that are not known are read."""
    missing = np.flatnonzero(~known)
    completed = digests.copy()
    completed[missing] = _read(trees, missing.tolist(), name)
    return completed


def _read(trees: Sequence[FileImages], numbers: Sequence[int], name: str) -> Digests:
    """Digest files, by their numbers among all, in several threads, a bounded number of them ahead."""
    found: list[int] = []
    chunks = (numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK))
    with _progress(name, len(numbers)) as advance:
        for digests in worked_ahead(partial(_read_chunk, trees), chunks):
            for digest in digests:
                found.append(digest)
                advance()
    return np.array(found, dtype=np.uint64)


def _progress(name: str, count: int) -> AbstractContextManager[Advance]:
    return log_progress(f"reading {name}", count) if count >= SAID else nullcontext(_advance_unsaid)


def _advance_unsaid(**shown: object) -> None:
    pass


def _read_chunk(trees: Sequence[FileImages], numbers: Sequence[int]) -> list[int]:
    return [_file_digest(path, size) for path, size in located(trees, numbers)]


def _file_digest(path: Path, size: int) -> int:
    """Return `digest_of` a file's bytes; of a large file without holding them all."""
    if size <= BLOCK:
        return digest_of(file_content(path, size))
    found, done = hashlib.blake2b(digest_size=8), 0
    try:
        with files.open_to_read(path) as file:
            while block := file.read(BLOCK):
                found.update(block)
                done += len(block)
    except OSError as error:
        raise UnreadableError(f"file {path}: cannot be read ({error.strerror}); see that it can be") from error
    if done != size:
        raise UnreadableError(f"file {path}: had {size} bytes when it was listed, and has {done} now; start again")
    return int.from_bytes(found.digest(), "little")


def located(trees: Sequence[FileImages], numbers: Sequence[int]) -> Iterator[tuple[Path, int]]:
    """Yield path and size, when they were listed, of files by their numbers among all."""
    starts = np.cumsum([0, *(len(tree.paths) for tree in trees)])
    positions = np.searchsorted(starts, numbers, side="right") - 1
    for position, index in zip(positions.tolist(), (numbers - starts[positions]).tolist(), strict=True):
        yield trees[position].path(index), int(trees[position].stamps[index, 0])
