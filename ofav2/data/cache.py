"""Decode files once: keep a data set's pixels in one memory-mapped file, with facts about each image.

An entry of the cache is a folder `NAME-KEY`, whose key is a digest of the images' names and contents:

    pixels.bin   all images, one after another, as uint8 (H, W, 3); missing where they were only looked at
    index.npz    per image: where its pixels begin, height and width, digests of its file and of its pixels
    about.json   the folder it was made from, sizes, and the images that cannot be decoded, with the reason

An entry appears whole or not at all, and is then only read; so one on a read-only disk serves as well. Of several
processes that open a data set at once one decodes, the others wait.
"""

import hashlib
import io
import logging
import mmap
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofav2 import files
from ofav2.config.schema import DataConfig
from ofav2.data.ahead import worked_ahead
from ofav2.data.decoding import decode, decoder_versions, read_size, shrunk_size
from ofav2.data.digests import Digests, UnreadableError, file_content, located, root_key
from ofav2.data.images import FileImages, Indices, Pixels, Size, digest_of
from ofav2.data.turns import CacheError, free_turn, turn, unusable
from ofav2.errors import RunError
from ofav2.progress import log_progress
from ofav2.typed_json import Count, Sha256, read_record, write_record

logger = logging.getLogger(__name__)

FORMAT = "ofav2-images/3"
PIXELS, INDEX, ABOUT = "pixels.bin", "index.npz", "about.json"
SAMPLE = 4096
"""Images of a split whose headers are read, to know how much a data set needs; of more, as many that lie evenly."""
CHUNK = 32
"""Images that a thread decodes at a time."""
CHECKED = 2**25
"""Bytes of pixels that are compared with their digests when an entry is opened: of a larger one, others each time."""
OLD_ENTRIES = 1
"""Entries of a folder that are kept beside a new one, if they only lack images, or only have further ones."""
_COLUMNS = MappingProxyType({"offsets": ("int64", ()), "shapes": ("int64", (2,)), "checks": ("uint64", ())})
"""What `index.npz` has of each image beside the digest of its file: type and shape."""
_STAGING = re.compile(r"\.(?P<entry>[a-z0-9_]+-[0-9a-f]{16})-[a-z0-9_]+")


@dataclass(frozen=True)
class About:
    """What `about.json` holds."""

    key: Sha256
    """Digest of the images' names and contents."""
    root: str
    """Digest of the folder and the settings that it was made with, see `_origin`."""
    bytes: Count
    """Size of all pixels."""
    kept: bool
    """Whether they are kept, in `pixels.bin`."""
    bad: Mapping[int, str]
    """Why an image cannot be decoded, by its number."""
    index_sha256: Sha256
    """Checksum of `index.npz`."""
    decoders: Mapping[str, str]
    """Versions of the packages that decoded them."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Decoded images in a file."""

    pixels: Tensor
    """uint8, one image after another, mapped from the file."""
    file: mmap.mmap | None
    """The file; None where it is empty."""
    offsets: Indices
    """Where each image begins (N,)."""

    def require_whole(self) -> None:
        """Refuse a file that was cut off meanwhile: the system would end the process that reads on.

        Raises:
            RunError: It was.
        """
        if self.file is not None and self.file.size() < len(self.pixels):
            raise RunError(
                f"data.cache: {PIXELS} was cut off to {self.file.size()} bytes of {len(self.pixels)} while in use;"
                " start again, and it is decoded anew"
            )


@dataclass(frozen=True, eq=False)
class Store:
    """What is known of all images of a data set, in the order of its listing."""

    digests: Digests
    """A digest of each file's bytes (N,)."""
    shapes: npt.NDArray[np.int64] | None = None
    """Height and width of each (N, 2); of one that cannot be decoded, 0. None where no image was decoded."""
    kept: Kept | None = None
    """Their pixels; None where they were only looked at."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Why an image cannot be decoded, by its number."""

    @property
    def bytes(self) -> int:
        """Size of all pixels; 0 where no image was decoded."""
        return 0 if self.shapes is None else 3 * int(self.shapes.prod(1).sum())


@dataclass(frozen=True, eq=False)
class CheckedImages:
    """Image files whose contents are known, and whose pixels are read from the cache where they are kept there."""

    files: FileImages
    store: Store
    positions: Indices
    """The images' indices in the store (N,)."""

    @property
    def decoded(self) -> bool:
        """Whether pixels are at hand."""
        return self.store.kept is not None

    @property
    def size(self) -> Size | None:
        """The size that all images have; None where sizes differ or are not known."""
        if self.store.shapes is None:
            return None
        shapes = self.store.shapes[self.positions]
        return (int(shapes[0, 0]), int(shapes[0, 1])) if len(shapes) and (shapes == shapes[0]).all() else None

    @property
    def digests(self) -> Digests:
        """A digest of each file's bytes (N,)."""
        return self.store.digests[self.positions]

    def read(self, index: int) -> Tensor:
        """Return image `index` as a fresh uint8 tensor (3, H, W)."""
        (image,) = self.look(np.array([index])).images()
        return image.clone()

    def look(self, indices: Indices) -> Pixels:
        """Return images where they are kept."""
        kept, shapes, positions = self.store.kept, self.store.shapes, self.positions[indices]
        if kept is None or shapes is None:
            return self.files.look(indices)
        kept.require_whole()
        sizes = shapes[positions]
        strides = np.array([1, 0, 3]) + np.array([0, 3, 0]) * sizes[:, 1:]
        return Pixels([kept.pixels] * len(positions), kept.offsets[positions], strides, sizes)

    def take(self, indices: Indices) -> "CheckedImages":
        """Return the images at `indices`, in that order."""
        return CheckedImages(self.files.take(indices), self.store, self.positions[indices])

    def identity(self) -> bytes:
        """Return the files' identity: images are the same, wherever their pixels come from."""
        return self.files.identity_by(self.digests)

    def names(self) -> list[str]:
        """Return the images' paths relative to their folder."""
        return self.files.names()


def open_store(
    trees: Sequence[FileImages], digests: Digests, config: DataConfig, root: Path, cache: Path
) -> Store | None:
    """Open a data set's entry in the cache; make it first where there is none.

    Args:
        trees: The data set's files.
        digests: Digests of their bytes (N,).
        config: Its settings. Images that need more than `cache_gib` are not kept, and decoded all the same where bad
            ones are to be skipped.
        root: The data set's folder.
        cache: The folder of all entries.

    Returns:
        The entry; None for a data set over the budget of which bad images are not to be skipped.

    Raises:
        UserError: The cache cannot be read or written, its disk is full, or the system refuses to read an image.
    """
    name, budget = config.name, int(config.cache_gib * 2**30)
    key = _key(name, trees, digests)
    origin = _origin(root, config.labels, trees)
    entry = cache / f"{name}-{key[:16]}"
    # An entry that is there needs no turn, and so no right to write.
    store = _load(entry, key, digests, budget)
    if store is not None:
        return store
    with turn(cache, entry.name):
        _sweep(cache, entry.name)
        store = _load(entry, key, digests, budget)
        if store is not None:
            return store
        shutil.rmtree(entry, ignore_errors=True)
        expected = _needed(trees)
        if expected > budget and config.bad_images != "skip":
            _log_too_large(config, trees, expected)
            return None
        # What is expected is an estimate: only decoding tells whether all images fit.
        _make(entry, trees, digests, key, origin, budget)
        _remove_stale(entry, name, root, origin, digests)
        store = _load(entry, key, digests, budget)
        if store is not None and store.kept is None:
            _log_too_large(config, trees, store.bytes)
    if store is None:
        raise CacheError(f"data.cache ({cache}): what was just written reads otherwise; check the disk")
    return store


def _key(name: str, trees: Sequence[FileImages], digests: Digests) -> str:
    found = hashlib.sha256(f"{FORMAT} {name}".encode())
    start = 0
    for tree in trees:
        end = start + len(tree.paths)
        shrunk = f" shrunk to {tree.shrink_to}" if tree.shrink_to else ""
        found.update(f"{end - start} images{shrunk}\n".encode())
        found.update(tree.identity_by(digests[start:end]))
        start = end
    return found.hexdigest()


def _origin(root: Path, labels: str | None, trees: Sequence[FileImages]) -> str:
    """Return what tells entries apart that serve at the same time, of one folder with one set of settings or another.

    What was written before settings belonged to it has the folder's key alone, which no digest of these is.
    """
    settings = sorted({(tree.upright, tree.shrink_to) for tree in trees})
    listed = None if labels is None else str(Path(labels).expanduser().resolve())
    return hashlib.sha256(repr((root_key(root), listed, settings)).encode()).hexdigest()[:16]


def _sweep(cache: Path, own: str) -> None:
    """Remove what killed processes left of entries that no process makes now; the turn at one's own is taken."""
    for left in cache.iterdir():
        named = _STAGING.fullmatch(left.name)
        if not named or not left.is_dir():
            continue
        if named["entry"] == own:
            _remove_leftover(left)
            continue
        with free_turn(cache, named["entry"]) as free:
            if free:
                _remove_leftover(left)


def _remove_leftover(left: Path) -> None:
    logger.warning(f"cache {left}: was left half-written; removed")
    shutil.rmtree(left, ignore_errors=True)


def _load(entry: Path, key: str, digests: Digests, budget: int) -> Store | None:
    """Open an entry; None, with a log line, if it is damaged, or holds no pixels although they would fit now."""
    if not entry.exists():
        return None
    try:
        about = read_record(entry / ABOUT, About, FORMAT, "it is made again")
        if not about.kept and about.bytes <= budget:
            return None
        return _open(entry, about, key, digests)
    except (RunError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning(f"cache {entry}: is damaged ({error}); decoding again")
        return None


def _open(entry: Path, about: About, key: str, digests: Digests) -> Store:
    if about.key != key:
        raise ValueError(f"{ABOUT} is of other images")
    index = _read_index(entry / INDEX, about.index_sha256)
    if not np.array_equal(index["digests"], digests):
        raise ValueError(f"{INDEX} is of other images")
    offsets, shapes, checks = (_column(index[name], digests, *kind) for name, kind in _COLUMNS.items())
    # Numbers that are made up may be so large that whole ones would turn around.
    if (offsets < 0).any() or (shapes < 0).any() or (offsets + 3.0 * shapes[:, 0] * shapes[:, 1] > about.bytes).any():
        raise ValueError(f"{INDEX} has images that lie outside {PIXELS}")
    kept = _map(entry / PIXELS, about.bytes, offsets) if about.kept else None
    if kept is not None:
        _check_some(kept, offsets + 3 * shapes.prod(1), checks)
        _tell_other_decoders(entry, about.decoders)
    return Store(index["digests"], shapes, kept, about.bad)


def _tell_other_decoders(entry: Path, before: Mapping[str, str]) -> None:
    now = decoder_versions()
    if before != now:
        listed = ", ".join(f"{name} {before.get(name, 'none')}, now {now[name]}" for name in now)
        logger.warning(
            f"cache {entry}: was decoded by other versions ({listed}), and pixels may differ by some units; remove it"
            " to decode again"
        )


def _column(found: npt.NDArray[Any], digests: Digests, kind: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if found.dtype.name != kind or found.shape != (len(digests), *shape):
        raise ValueError(f"{INDEX} has a table of {found.dtype} of shape {found.shape}")
    return found


def _read_index(path: Path, sha256: str) -> Mapping[str, npt.NDArray[Any]]:
    content = files.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path.name} has changed")
    with np.load(io.BytesIO(content), allow_pickle=False) as index:
        return dict(index)


def _map(path: Path, size: int, offsets: Indices) -> Kept:
    with files.open_to_read(path) as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise ValueError(f"{path.name} has {found} bytes instead of {size}")
        if not size:
            return Kept(torch.zeros(0, dtype=torch.uint8), None, offsets)
        # A private mapping, though nothing is written to it: torch warns of memory that can't be written to.
        mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return Kept(torch.frombuffer(mapped, dtype=torch.uint8), mapped, offsets)


def _check_some(kept: Kept, ends: Indices, checks: Digests) -> None:
    """Compare some images' pixels, others each time, with their digests: one at least, of which size ever."""
    order = np.random.default_rng().permutation(len(checks))
    sizes = (ends - kept.offsets)[order]
    chosen = order[np.cumsum(sizes) - sizes < CHECKED]
    pixels = kept.pixels.numpy()
    for start, end, check in zip(
        kept.offsets[chosen].tolist(), ends[chosen].tolist(), checks[chosen].tolist(), strict=True
    ):
        if digest_of(pixels[start:end].data) != check:
            raise ValueError(f"{PIXELS} has changed")


def _needed(trees: Sequence[FileImages], shrink_to: int | None = None) -> int:
    """Return the bytes of all images, decoded, from the headers of some that lie evenly among them.

    Args:
        trees: The files.
        shrink_to: Pixels that short sides are shrunk to; None takes each tree's own.
    """
    needed = 0
    for tree in trees:
        side = tree.shrink_to if shrink_to is None else shrink_to
        sizes = [_pixel_bytes(tree, index, side) for index in _evenly(len(tree.paths), SAMPLE)]
        # Images of one split may be larger than those of another.
        needed += sum(sizes) * len(tree.paths) // max(len(sizes), 1)
    return needed


def _pixel_bytes(tree: FileImages, index: int, shrink_to: int) -> int:
    """Return the bytes of an image, decoded; of one whose header can't be read, 0."""
    try:
        with files.open_to_read(tree.path(index)) as file:
            height, width = shrunk_size(*read_size(file), shrink_to)
    except (OSError, ValueError):
        return 0
    return 3 * height * width


def _log_too_large(config: DataConfig, trees: Sequence[FileImages], expected: int) -> None:
    count = sum(len(tree.paths) for tree in trees)
    said = (
        f"{config.name}: {count:,} images need about {_gib(expected)} decoded, more than"
        f" data.cache_gib ({config.cache_gib:.3g} GiB); they are decoded anew each time they are used"
    )
    enough = 2 * max(config.resolutions)
    small = _needed(trees, enough)
    step = f"; with data.shrink_to={enough} they would need {_gib(small)}" if small < expected else ""
    logger.warning(f"{said}{step}")


def _evenly(count: int, groups: int) -> list[int]:
    return sorted({number * count // groups for number in range(groups)}) if count else []


class _Look(NamedTuple):
    """What decoding one file gave."""

    pixels: npt.NDArray[np.uint8] | None
    """uint8 (H, W, 3); None where it cannot be decoded."""
    reason: str
    """Why not."""
    digest: int
    """A digest of the file's bytes."""
    check: int
    """A digest of the pixels, or of no bytes."""


def _look(tree: FileImages, index: int) -> _Look:
    content = file_content(tree.path(index), int(tree.stamps[index, 0]))
    digest = digest_of(content)
    try:
        pixels = decode(content, tree.upright, tree.shrink_to).permute(1, 2, 0).contiguous().numpy()
    except ValueError as error:
        return _Look(None, str(error), digest, digest_of(b""))
    return _Look(pixels, "", digest, digest_of(pixels.tobytes()))


def _make(entry: Path, trees: Sequence[FileImages], digests: Digests, key: str, origin: str, budget: int) -> None:
    """Decode all files into an entry; over the budget in bytes, go on without keeping pixels."""
    try:
        with _staged(entry) as staging:
            found = _decode_all(staging / PIXELS, trees, digests, entry.name.rpartition("-")[0], budget)
            np.savez(
                staging / INDEX,
                allow_pickle=False,
                offsets=found.offsets,
                shapes=found.shapes,
                digests=digests,
                checks=found.checks,
            )
            sha256 = hashlib.sha256(files.read_bytes(staging / INDEX)).hexdigest()
            about = About(key, origin, found.bytes, found.kept, found.bad, sha256, decoder_versions())
            write_record(staging / ABOUT, about, FORMAT)
            for path in (*staging.iterdir(), staging):
                files.flush_to_disk(path)
        files.flush_to_disk(entry.parent)
    except OSError as error:
        raise unusable(entry.parent, error) from error
    except RunError as error:
        # That `about.json` can't be written is said in words that name a file which the user does not know.
        raise (unusable(entry.parent, error.__cause__) if isinstance(error.__cause__, OSError) else error) from error


@contextmanager
def _staged(entry: Path) -> Iterator[Path]:
    """Make a folder with everything in it, or nothing: the body fills the yielded one, which then takes its name."""
    staging = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        # Temporary folders are made for their owner alone.
        staging.chmod(0o755)
        yield staging
        staging.rename(entry)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _Decoded(NamedTuple):
    """What decoding all files gave, per image where nothing else is said."""

    offsets: Indices
    shapes: npt.NDArray[np.int64]
    checks: Digests
    bad: dict[int, str]
    bytes: int
    """Size of all pixels."""
    kept: bool
    """Whether they were written."""


def _decode_all(path: Path, trees: Sequence[FileImages], digests: Digests, name: str, budget: int) -> _Decoded:
    """Decode all files in parallel and write their pixels in order, up to a budget in bytes; over it none are kept."""
    total = len(digests)
    offsets, shapes = np.zeros(total, dtype=np.int64), np.zeros((total, 2), dtype=np.int64)
    checks = np.zeros(total, dtype=np.uint64)
    bad: dict[int, str] = {}
    end, kept = 0, True
    with files.open_in_place(path, "ab+") as file, log_progress(f"decoding {name}", total) as advance:
        for number, found in enumerate(_looks(trees)):
            _require_same(found.digest, digests, number, trees)
            offsets[number], checks[number] = end, found.check
            if found.pixels is None:
                bad[number] = found.reason
            else:
                shapes[number] = found.pixels.shape[:2]
                end += found.pixels.size
                kept = kept and end <= budget
                _write(file, found.pixels, kept)
            advance()
    if not kept:
        path.unlink()
    return _Decoded(offsets, shapes, checks, bad, end, kept)


def _require_same(digest: int, digests: Digests, number: int, trees: Sequence[FileImages]) -> None:
    if digest != digests[number]:
        ((path, _),) = located(trees, [number])
        raise UnreadableError(f"image {path}: changed while it was read; start again when nothing writes to data.root")


def _write(file: IO[bytes], pixels: npt.NDArray[np.uint8], kept: bool) -> None:
    if kept:
        file.write(pixels.data)
    elif file.tell():
        # What lies there by now will not be read.
        file.seek(0)
        file.truncate()


def _looks(trees: Sequence[FileImages]) -> Iterator[_Look]:
    """Decode files in several threads, a bounded number of them ahead, and give them in order."""
    chunks = ((tree, start) for tree in trees for start in range(0, len(tree.paths), CHUNK))
    for found in worked_ahead(_look_at_chunk, chunks):
        yield from found


def _look_at_chunk(chunk: tuple[FileImages, int]) -> list[_Look]:
    tree, start = chunk
    return [_look(tree, index) for index in range(start, min(start + CHUNK, len(tree.paths)))]


def _remove_stale(entry: Path, name: str, root: Path, origin: str, digests: Digests) -> None:
    """Remove entries of what lay at the data set's root, with the same settings, before its files changed.

    The newest of those that only lack images, or only have further ones, is kept: a run goes on seeing the images that
    it began with after others were added.
    """
    times = {}
    for other in entry.parent.glob(f"{name}-*"):
        # Another process may remove one meanwhile.
        with suppress(FileNotFoundError):
            times[other] = other.stat().st_mtime_ns
    kept = 0
    for other in sorted(times, key=lambda other: times[other], reverse=True):
        if other == entry or not _STAGING.fullmatch(f".{other.name}-x"):
            continue
        try:
            about = read_record(other / ABOUT, About, FORMAT, "")
            theirs = _read_index(other / INDEX, about.index_sha256)["digests"]
        except (RunError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
        if about.root != origin:
            continue
        nested = bool(np.isin(theirs, digests).all() or np.isin(digests, theirs).all())
        if nested and kept < OLD_ENTRIES:
            kept += 1
            continue
        logger.info(f"cache {other}: was made before files below {root}, or their list, changed; removed")
        shutil.rmtree(other, ignore_errors=True)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
