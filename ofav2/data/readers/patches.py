"""Read patches: `patches.yaml` names arrays of bands and targets (`.npy`), and where on Earth each patch lies."""

import logging
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ofav2 import files
from ofav2.config import recipe
from ofav2.config.schema import DataConfig
from ofav2.data.digests import content_digests
from ofav2.data.images import Indices, composed, file_images
from ofav2.data.importing.in_place import SampleImages, SampleList, read_samples
from ofav2.data.patches import CHUNK, DTYPES, IGNORED, Array, Bands, Codes, Numbers, Part, PatchImages
from ofav2.data.readers.folders import root_of
from ofav2.data.splits import Listed, Split
from ofav2.errors import UserError
from ofav2.messages import first_line, show
from ofav2.typed_json import MisfitError, fit

logger = logging.getLogger(__name__)

FILE = "patches.yaml"
FORMAT = "ofav2-patches/1"
NO_TARGET = "none"
"""`data.target` that chooses none of the targets, so no target has this name."""
MOST_NAMES = 4096
"""Bands, classes or planes that a file may name."""

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class TargetEntry:
    """What `patches.yaml` says of a target."""

    kind: Literal["classes", "codes", "numbers"]
    """`classes`: one per patch; `codes`: a plane of classes; `numbers`: planes of numbers."""
    names: tuple[str, ...]
    """Names of the classes or of the planes."""
    codes: tuple[int, ...] | None = None
    """The stored value of each class, in the order of names; None: 0, 1, 2 …."""
    nodata: float | None = None
    """The stored value of a missing number."""
    scale: float = 1.0
    """What stored numbers are multiplied by."""
    offset: float = 0.0
    """What is added to them then."""

    def __post_init__(self) -> None:
        """Refuse names, codes, a scale and an offset that do not go together."""
        _check_names(self.names)
        if self.kind == "numbers":
            if self.codes is not None:
                raise ValueError("numbers have no codes: leave codes out")
            if self.scale == 0:
                raise ValueError("scale (0) would make all numbers 0")
            return
        if len(self.names) < 2:
            raise ValueError("names must be two classes or more")
        if len(set(self.values)) != len(self.names):
            raise ValueError(f"codes must be {len(self.names)} different whole numbers, one for each name")
        if self.nodata is not None or self.scale != 1 or self.offset:
            raise ValueError("nodata, scale and offset are for numbers; codes that are not named are ignored anyway")

    @property
    def values(self) -> tuple[int, ...]:
        """The stored value of each class."""
        return tuple(range(len(self.names))) if self.codes is None else self.codes


@dataclass(frozen=True)
class PartEntry:
    """What `patches.yaml` says of one file of patches."""

    images: str
    """The file of bands, an array (n, H, W, C), or a `.json` that lists samples which are read in place."""
    targets: Mapping[str, str]
    """Files of targets by the target's name: (n,) classes, (n, H, W) codes, (n, H, W, P) numbers, or (n, P)
    numbers of whole patches; a last axis of length one may be there or not."""
    places: str | None = None
    """A text file with a line for each patch: the name of the place where it lies."""
    place: str | None = None
    """The name of the place where all patches lie, instead of `places`."""
    split: SplitName | None = None
    """The split that the patches belong to; None: `train`, out of which missing splits are held."""
    patches: tuple[int, ...] | None = None
    """Which patches of the file there are, by position from 0, ascending; None: all."""

    def __post_init__(self) -> None:
        """Refuse a part without place, or with two, and patches that are out of order."""
        if (self.places is None) == (self.place is None):
            raise ValueError("a part has either places, a file, or place, a name")
        if self.place is not None and not (self.place.strip() and self.place.isprintable()):
            raise ValueError(f"place {self.place!r} can't be printed")
        chosen = self.patches
        if chosen is not None and (not chosen or chosen[0] < 0 or any(a >= b for a, b in pairwise(chosen))):
            raise ValueError("patches must be positions from 0, ascending, each once")


@dataclass(frozen=True)
class PatchesFile:
    """What `patches.yaml` holds."""

    bands: tuple[str, ...]
    """Names of the bands, in the order of the arrays."""
    parts: tuple[PartEntry, ...]
    """The files."""
    targets: Mapping[str, TargetEntry]
    """The targets by name; none for patches without any."""
    nodata: float | None = None
    """The stored value of a pixel without data."""
    about: str = ""
    """Where the patches come from, and what was done to them."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        _check_names(self.bands)
        if not self.parts:
            raise ValueError("parts must name one file or more")
        if NO_TARGET in self.targets:
            raise ValueError(f"a target may not be called {NO_TARGET}, as data.target={NO_TARGET} chooses no target")
        for part in self.parts:
            if unknown := part.targets.keys() - self.targets.keys():
                raise ValueError(f"part {part.images}: target {min(unknown)!r} is not described in targets")


def _check_names(names: tuple[str, ...]) -> None:
    if not 1 <= len(names) <= MOST_NAMES or len(set(names)) != len(names):
        raise ValueError(f"names must be 1 to {MOST_NAMES} different ones")
    for name in names:
        if not name or not name.isprintable():
            raise ValueError(f"name {name!r} can't be printed")


def read_patches(config: DataConfig) -> Listed:
    """Read the patches that `patches.yaml` in `data.root` describes.

    Raises:
        UserError: The description, a file, or a setting does not fit; the message names it.
    """
    root = root_of(config)
    described = read_description(root)
    bands = _chosen_bands(config, described.bands)
    target = _chosen_target(config, described)
    parts = _parts(root, described, target, config)
    side = _side(parts, described)
    if config.window is not None and config.window > min(side):
        raise UserError(f"data.window ({config.window}): patches have {side[0]} x {side[1]} pixels; set a smaller one")
    _check_sides(config, side if config.window is None else (config.window, config.window))
    images = PatchImages(parts, np.zeros((0, 4), np.int64), side, bands, described.nodata, None)
    splits: dict[str, Indices] = {
        name: _rows(
            parts, {n: part.patches for n, part in enumerate(described.parts) if (part.split or "train") == name}
        )
        for name in SPLITS
    }
    names = tuple(described.bands[band] for band in bands)
    kind, classes, listed = _with_targets(images, splits, target, config)
    _refuse_shared_places(listed)
    if "train" not in listed:
        raise UserError(f"file {root / FILE}: no part has the split train; give one")
    found = Listed(classes, listed["train"], listed.get("val"), listed.get("test"))
    return found._replace(kind=kind, bands=names, nodata=described.nodata)


def read_description(root: Path) -> PatchesFile:
    """Read and check `patches.yaml` of a folder.

    Raises:
        UserError: It is missing, malformed, or of another format.
    """
    path = root / FILE
    values = _filled(
        recipe.read_mapping(path, "write it as docs/earth_observation.md shows, or let `ofav2 patches` write it")
    )
    found = values.pop("format", None)
    if found != FORMAT:
        raise UserError(f"file {path}: format ({show(found)}) must be {FORMAT}; write the file as it is described now")
    try:
        described: PatchesFile = fit(PatchesFile, values)
    except MisfitError as error:
        raise UserError(f"file {path}: {error}; correct it") from error
    return described


def _filled(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a description with the defaults of keys that it leaves out."""
    filled = {**_defaults(PatchesFile), "targets": {}, **values}
    if isinstance(filled["targets"], dict):
        filled["targets"] = {
            name: {**_defaults(TargetEntry), **entry} if isinstance(entry, dict) else entry
            for name, entry in filled["targets"].items()
        }
    if isinstance(filled.get("parts"), list):
        filled["parts"] = [
            {**_defaults(PartEntry), "targets": {}, **part} if isinstance(part, dict) else part
            for part in filled["parts"]
        ]
    return filled


def _defaults(kind: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def _chosen_bands(config: DataConfig, bands: Sequence[str]) -> tuple[int, ...]:
    if config.bands is None:
        return tuple(range(len(bands)))
    for band in config.bands:
        if band not in bands:
            raise UserError(f"data.bands ({band}): bands are {', '.join(bands)}; choose of these")
    return tuple(bands.index(band) for band in config.bands)


@dataclass(frozen=True)
class _Target:
    """The target that is learnt."""

    name: str
    entry: TargetEntry
    chosen: tuple[int, ...]
    """Which of its names are learnt, in this order."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.entry.names[index] for index in self.chosen)

    @property
    def planes(self) -> Codes | Numbers:
        if self.entry.kind == "numbers":
            return Numbers(self.entry.scale, self.entry.nodata, self.entry.offset)
        return Codes(tuple(self.entry.values[index] for index in self.chosen))


def target_name(config: DataConfig) -> str | None:
    """Return the name of the target that is learnt; None if there is none.

    Raises:
        UserError: The description can't be read, or the target can't be told.
    """
    chosen = _chosen_target(config, read_description(root_of(config)))
    return None if chosen is None else chosen.name


def _chosen_target(config: DataConfig, described: PatchesFile) -> _Target | None:
    there = () if config.target == NO_TARGET else tuple(described.targets)
    if config.target is None and len(there) > 1:
        raise UserError(f"data.target (null): targets are {', '.join(there)}; name the one to learn, or {NO_TARGET}")
    name = next(iter(there), None) if config.target in (None, NO_TARGET) else config.target
    if name is not None and name not in there:
        raise UserError(f"data.target ({name}): targets are {', '.join(there) or 'none'}; choose of these")
    entry = None if name is None else described.targets[name]
    kind = "none" if entry is None else entry.kind
    for key, given, needs in (("classes", config.classes, ("classes", "codes")), ("window", config.window, ("codes",))):
        if given is not None and kind not in needs:
            raise UserError(
                f"data.{key} ({show(given if isinstance(given, int) else list(given))}): needs a target of "
                f"{' or '.join(needs)}, and {name or 'this data set'} has {kind}; set data.{key}=null"
            )
    if entry is None or name is None:
        return None
    for one in config.classes or ():
        if one not in entry.names:
            raise UserError(f"data.classes ({one}): classes of {name} are {', '.join(entry.names)}; choose of these")
    return _Target(name, entry, tuple(map(entry.names.index, config.classes or entry.names)))


# Files


def _parts(root: Path, described: PatchesFile, target: _Target | None, config: DataConfig) -> tuple[Part, ...]:
    """Open the files of all parts, and digest them."""
    names = [(part.images, *_target_files(root, part, target)) for part in described.parts]
    flat = [name for some in names for name in some]
    for name in (*flat, *(part.places for part in described.parts if part.places is not None)):
        if os.path.isabs(name) or ".." in Path(name).parts or not name.isprintable():
            raise UserError(f"file {root / FILE}: {show(name)} must be a path below its folder; move the file there")
    if twice := {
        part.images for part in described.parts if [one.images for one in described.parts].count(part.images) > 1
    }:
        raise UserError(f"file {root / FILE}: {min(twice)} is in two parts; name each file once")
    lists = {part.images: read_samples(root / part.images) for part in described.parts if _in_place(part)}
    arrays = {name: open_array(root / name) for name in flat if name not in lists}
    flat += sorted({table for listed in lists.values() for table in listed.tables()})
    cache = Path(config.cache).expanduser() if config.cache is not None else None
    digests = content_digests([file_images(root, flat)], name=config.name, root=root, cache=cache)
    known = {name: digest.to_bytes(8, "little") for name, digest in zip(flat, digests.tolist(), strict=True)}
    parts = []
    for part, found in zip(described.parts, names, strict=True):
        images = _samples(root, part, lists[part.images], known, described) if _in_place(part) else arrays[found[0]]
        _check_images(root / found[0], images, described)
        stored = _check_target(root / found[1], arrays[found[1]], images, target) if target else None
        if part.patches is not None and part.patches[-1] >= len(images):
            raise UserError(
                f"file {root / FILE}: part {part.images} names patch {part.patches[-1]}, and has {len(images)}, from 0;"
                " correct patches"
            )
        places = _places(root, part, len(images))
        tables = lists[part.images].tables() if _in_place(part) else []
        identity = b"".join(map(known.__getitem__, [*found, *tables])) + "\n".join(places.tolist()).encode()
        parts.append(Part(found[0], images, stored, places, identity))
    return tuple(parts)


def _in_place(part: PartEntry) -> bool:
    return part.images.endswith(".json")


def _samples(
    root: Path, part: PartEntry, listed: SampleList, digests: Mapping[str, bytes], described: PatchesFile
) -> SampleImages:
    if (listed.bands, listed.nodata) != (described.bands, described.nodata):
        raise UserError(
            f"file {root / part.images}: has bands {', '.join(listed.bands)} and nodata {listed.nodata}, and {FILE} has"
            f" {', '.join(described.bands)} and {described.nodata}; both must be alike"
        )
    listed.require_same(digests)
    return SampleImages(root, listed, digests)


def _target_files(root: Path, part: PartEntry, target: _Target | None) -> tuple[str, ...]:
    if target is None:
        return ()
    if target.name not in part.targets:
        raise UserError(
            f"file {root / FILE}: part {part.images} has no file of target {target.name!r}; name it, or remove the part"
        )
    return (part.targets[target.name],)


def open_array(path: Path) -> Array:
    """Map a `.npy` file into memory, without running code from it.

    Raises:
        UserError: It can't be read, holds objects, is in Fortran's order, or has another length than its head says.
    """
    try:
        with files.open_to_read(path) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
            expected = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or fortran or not shape or not expected:
                raise ValueError("holds no plain array in C's order")
            if size - start != expected:
                raise ValueError(f"has {size - start} bytes of data, and its head promises {expected}")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype, math.prod(shape), start).reshape(shape)
    except OSError as error:
        raise UserError(f"file {path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise UserError(
            f"file {path}: is no .npy array that can be read ({first_line(error)}); write it again"
        ) from error


def _check_images(path: Path, images: Bands, described: PatchesFile) -> None:
    if images.dtype.name not in DTYPES or not images.dtype.isnative:
        raise UserError(f"file {path}: has type {images.dtype}; bands are {', '.join(DTYPES)}: convert them")
    if images.ndim != 4 or images.shape[3] != len(described.bands):
        raise UserError(
            f"file {path}: has shape {images.shape}; it must be (patches, height, width, {len(described.bands)}), as "
            f"{FILE} names that many bands"
        )


def _check_target(path: Path, stored: Array, images: Bands, target: _Target) -> Array:
    """Return a target's array: planes (n, H, W, P), numbers (n, P) or classes (n,)."""
    kind, planes = target.entry.kind, len(target.entry.names)
    if kind == "numbers":
        shapes: tuple[tuple[int, ...], ...] = ((*images.shape[:3], planes), (len(images), planes))
        stored = stored[..., None] if planes == 1 and stored.ndim in (1, 3) else stored
    elif kind == "codes":
        shapes = ((*images.shape[:3], 1),)
        stored = stored[..., None] if stored.ndim == 3 else stored
    else:
        shapes = ((len(images),),)
        stored = stored[:, 0] if stored.ndim == 2 and stored.shape[1] == 1 else stored
    if stored.shape not in shapes:
        raise UserError(
            f"file {path}: has shape {stored.shape}; target {target.name} ({kind}) must have "
            f"{' or '.join(map(str, shapes))}"
        )
    if stored.dtype.kind not in ("iuf" if kind == "numbers" else "iu") or not stored.dtype.isnative:
        needs = "numbers" if kind == "numbers" else "whole numbers"
        raise UserError(f"file {path}: has type {stored.dtype}; {kind} must be {needs}: convert them")
    return stored


def _places(root: Path, part: PartEntry, count: int) -> npt.NDArray[np.str_]:
    if part.places is None:
        return np.array([_place(part.place or "")] * count, dtype=np.str_)
    return _read_places(root / part.places, count)


def _read_places(path: Path, count: int) -> npt.NDArray[np.str_]:
    try:
        lines = files.read_bytes(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UserError(f"file {path}: cannot be read ({reason}); write a line with each patch's place") from error
    if len(lines) != count:
        raise UserError(f"file {path}: has {len(lines)} lines for {count} patches; write one for each")
    names = list(map(_place, lines))
    for number, name in enumerate(names, start=1):
        if not name or not name.isprintable():
            raise UserError(
                f"file {path}, line {number} ({show(lines[number - 1])}): must be the printable name of a place"
            )
    return np.array(names, dtype=np.str_)


def _place(text: str) -> str:
    """Return a place's name as it is compared: names that look alike are one place, in one split."""
    return composed(text.strip())


def _side(parts: Sequence[Part], described: PatchesFile) -> tuple[int, int]:
    first = parts[0]
    for part, entry in zip(parts, described.parts, strict=True):
        if part.images.shape[1:] != first.images.shape[1:] or part.images.dtype != first.images.dtype:
            raise UserError(
                f"file {entry.images}: has patches {part.images.shape[1:]} of {part.images.dtype}, and "
                f"{described.parts[0].images} has {first.images.shape[1:]} of {first.images.dtype}; all must be alike"
            )
    return int(first.images.shape[1]), int(first.images.shape[2])


# Splits


def _rows(parts: Sequence[Part], chosen: Mapping[int, Sequence[int] | None]) -> Indices:
    """Return the rows of some patches of some parts, or of all of a part, see `PatchImages.rows`."""
    found = [np.zeros((0, 4), np.int64)]
    for number, patches in chosen.items():
        positions = np.arange(len(parts[number].images)) if patches is None else np.array(patches)
        found.append(np.stack([np.full(len(positions), number), positions, *np.zeros((2, len(positions)))], 1))
    return np.concatenate(found).astype(np.int64)


def _with_targets(
    images: PatchImages, splits: Mapping[str, Indices], target: _Target | None, config: DataConfig
) -> tuple[Literal["classes", "codes", "numbers"], tuple[str, ...], dict[str, Split]]:
    """Return what targets are, their names, and the splits that there are."""
    full = {name: rows for name, rows in splits.items() if len(rows)}
    if target is None:
        planes = replace(images, target=Numbers(1.0, None), parts=_without_planes(images.parts))
        return "numbers", (), {name: _of_planes(name, planes, rows) for name, rows in full.items()}
    if config.window is not None:
        found = {name: _of_windows(name, images, rows, target, config) for name, rows in full.items()}
        return "classes", target.names, _settled(found, target)
    if target.entry.kind == "classes":
        found = {name: _of_classes(name, images, rows, target) for name, rows in full.items()}
        return "classes", target.names, _settled(found, target)
    planes = replace(images, target=target.planes)
    return target.entry.kind, target.names, {name: _of_planes(name, planes, rows) for name, rows in full.items()}


def _without_planes(parts: Sequence[Part]) -> tuple[Part, ...]:
    return tuple(part._replace(target=np.zeros((len(part.images), 0), np.float32)) for part in parts)


def _of_planes(name: str, images: PatchImages, rows: Indices) -> Split:
    return Split(name, np.zeros((len(rows), 0), np.int64), replace(images, rows=rows))


def _of_classes(name: str, images: PatchImages, rows: Indices, target: _Target) -> Split:
    # Rows of a part follow each other.
    own = [(part, rows[rows[:, 0] == part, 1]) for part in np.unique(rows[:, 0]).tolist()]
    stored = np.concatenate([np.asarray(images.parts[part].target)[positions] for part, positions in own])
    classes = Codes(tuple(target.entry.values[index] for index in target.chosen)).of(stored[:, None])
    return _known(name, images, rows, classes, "patches of classes that are not learnt")


def _of_windows(name: str, images: PatchImages, rows: Indices, target: _Target, config: DataConfig) -> Split:
    """Return the windows of patches whose class is clear."""
    assert config.window is not None, "asked for"
    side = config.window
    every = Codes(target.entry.values)
    learnt = np.full(len(target.entry.names) + 1, IGNORED)
    learnt[list(target.chosen)] = np.arange(len(target.chosen))
    patches = replace(images, rows=rows, target=every)
    found, classes, seen = [], [], 0
    for start in range(0, len(rows), CHUNK):
        some = np.arange(start, min(start + CHUNK, len(rows)))
        planes = patches.whole(some).target
        assert planes is not None, "patches of codes"
        tops, lefts, counts = _counts(planes, side, len(target.entry.names))
        clear = counts.max(-1) >= config.window_share * side**2 - 1e-9
        seen += clear.size
        which, row, column = np.nonzero(clear)
        found.append(np.stack([rows[some[which], 0], rows[some[which], 1], tops[row], lefts[column]], 1))
        classes.append(learnt[counts[clear].argmax(-1)])
    unclear = seen - sum(map(len, classes))
    if unclear:
        logger.info(f"{name}: windows without a clear class (data.window_share), left out: {unclear} of {seen}")
    windows = replace(images, side=(side, side))
    return _known(
        name, windows, np.concatenate(found), np.concatenate(classes), "windows of classes that are not learnt"
    )


def _counts(planes: Array, side: int, classes: int) -> tuple[Indices, Indices, Indices]:
    """Count the pixels of each class in each window of a grid: tops, lefts, and counts (n, rows, columns, classes)."""
    count, height, width = planes.shape
    rows, columns = height // side, width // side
    whole = planes[:, : rows * side, : columns * side].reshape(count, rows, side, columns, side)
    counts = np.stack([(whole == label).sum((2, 4)) for label in range(classes)], -1)
    return np.arange(rows) * side, np.arange(columns) * side, counts


def _known(name: str, images: PatchImages, rows: Indices, classes: Indices, what: str) -> Split:
    """Return the split of those whose class is learnt."""
    kept = np.flatnonzero(classes != IGNORED)
    if len(kept) < len(classes):
        logger.info(f"{name}: {what}, left out: {len(classes) - len(kept)} of {len(classes)}")
    return Split(name, classes[kept].astype(np.int64), replace(images, rows=rows[kept]))


def _settled(splits: Mapping[str, Split], target: _Target) -> dict[str, Split]:
    """Return splits that have patches of every class to train with.

    Raises:
        UserError: A split is empty, or training lacks a class.
    """
    for name, split in splits.items():
        counts = np.bincount(split.targets, minlength=len(target.names))
        if not len(split) or (name == "train" and not counts.all()):
            lacking = target.names[int(counts.argmin())]
            raise UserError(
                f"class {lacking!r} of target {target.name}: {name} has no patch or window of it; leave it out by "
                "data.classes, or lower data.window_share"
            )
    return dict(splits)


def _check_sides(config: DataConfig, size: tuple[int, int]) -> None:
    height, width = size
    for side in config.resolutions:
        if height % side or width % side:
            what = "windows" if config.window is not None else "patches"
            raise UserError(
                f"data.resolutions ({side}): {what} have {height} x {width} pixels, which windows of that side must "
                f"fill, as nothing is resized; choose a divisor such as {math.gcd(height, width)}"
            )


def _refuse_shared_places(splits: Mapping[str, Split]) -> None:
    seen: dict[str, str] = {}
    for name, split in splits.items():
        assert isinstance(split.images, PatchImages), "patches"
        for place in np.unique(split.images.places).tolist():
            if place in seen:
                raise UserError(
                    f"place {place!r}: has patches in {seen[place]} and in {name}, which flatters the results; put all "
                    "patches of a place into one split"
                )
            seen[place] = name
