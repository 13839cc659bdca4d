"""Describe PhilEO Bench's files, so that they open as they are: nothing is copied, a folder of descriptions is written.

Files are `REGION_TILE_{train,val,test}_s2.npy` (patches, side, side, 10), with `label_roads`, `label_building` or
`label_lc` in place of `s2` (Fibaek et al., PhilEO Bench, 2024).
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ofav2 import files
from ofav2.config import recipe
from ofav2.data.importing.majortom import BANDS
from ofav2.data.importing.phileo_lists import Mean, draw, listed
from ofav2.data.patches import Array
from ofav2.data.readers.patches import FILE, FORMAT, SPLITS, SplitName, open_array
from ofav2.errors import UserError
from ofav2.messages import show
from ofav2.output_folder import making
from ofav2.progress import log_progress

logger = logging.getLogger(__name__)

Target = Literal["roads", "building", "lc"]

BUCKETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("europe", ("europe", "denmark-1", "denmark-2")),
    ("east-africa", ("east-africa", "tanzania-1", "tanzania-2", "tanzania-3", "tanzania-4", "tanzania-5", "uganda-1")),
    (
        "northwest-africa",
        ("eq-guinea", "ghana-1", "egypt-1", "israel-1", "israel-2", "nigeria", "senegal"),
    ),
    ("north-america", ("north-america",)),
    ("south-america", ("south-america",)),
    ("japan", ("japan",)),
)
"""Buckets of few shots, and their regions in order."""
LAND_COVER = (
    (10, "tree"),
    (20, "shrub"),
    (30, "grass"),
    (40, "crop"),
    (50, "built-up"),
    (60, "bare or sparse"),
    (70, "snow or ice"),
    (80, "permanent water"),
    (90, "herbaceous wetland"),
    (95, "mangrove"),
    (100, "moss or lichen"),
)
"""Codes of ESA WorldCover; 0, no data, is none of them and so is ignored."""
LINK = "files"
"""Name of the link to PhilEO Bench's folder."""
_NAME = re.compile(r"(?P<region>[a-z-]+(?:-\d+)?)_(?P<tile>.+)_(?P<split>train|val|test)_s2\.npy")
_CHUNK = 64


class Tile(NamedTuple):
    """Patches of a tile in one split."""

    name: str
    """Name of the file of bands."""
    place: str
    """Region and tile."""
    label: str
    """Name of the file of labels."""
    patches: int
    """How many."""


@dataclass(frozen=True)
class Choice:
    """Which patches are taken, and what their labels are."""

    target: Target
    """What is learnt."""
    shots: int | None = None
    """Training patches per bucket, drawn as PhilEO Bench draws them; None: all, or those of `indices`."""
    indices: Path | None = None
    """A released list of training and validation patches."""
    published_validation: bool = False
    """Whether validation is PhilEO Bench's own, which lies on the ground of training."""
    highest: Literal[1, 100] | None = None
    """The largest number that roads and buildings can have; None: found in the labels."""


@dataclass(frozen=True)
class Described:
    """What was described."""

    patches: Mapping[str, int]
    """Patches by split."""
    tiles: int
    """Tiles that they come from."""
    unlabelled: int
    """Files of bands that were left out, as they have no labels of this target."""
    highest: int | None
    """The largest number that labels can have; None for classes."""


def describe_phileo(root: Path, choice: Choice, out: Path) -> Described:
    """Write a folder that `data.name=patches` opens: a description, and a link to PhilEO Bench's folder.

    Without a list, validation patches train, and `data.val_fraction` holds whole tiles out. With one, they are those of
    the list, on the same tiles as training; so they are with `published_validation`.

    Args:
        root: The folder with the `.npy` files.
        choice: Which patches are taken.
        out: The folder to make.

    Raises:
        UserError: Files are missing or do not fit, a list was made for others, or labels have another range.
    """
    root = root.expanduser()
    tiles, unlabelled = find_tiles(root, choice.target)
    if not tiles["train"]:
        raise UserError(
            f"folder ({root}): has no file REGION_TILE_train_s2.npy with labels label_{choice.target}; correct the path"
        )
    highest = None if choice.target == "lc" else choice.highest or find_highest(root, tiles)
    chosen = _chosen(root, tiles, choice, highest)
    published = choice.published_validation or chosen is not None
    parts = list(_parts(tiles, choice.target, chosen, published))
    with making(out, last=FILE) as folder:
        (folder / LINK).symlink_to(root.resolve(), target_is_directory=True)
        recipe.write_mapping(folder / FILE, _description(choice, parts, highest, published))
    if published:
        logger.warning(
            "validation patches lie on the tiles that training patches come from, as in PhilEO Bench, and flatter early"
            " stopping; test tiles are apart"
        )
    counts: dict[str, int] = {
        name: sum(count for split, count in _counts(parts, tiles) if split == name) for name in SPLITS
    }
    named = {part["images"] for part in parts}
    places = {tile.place for some in tiles.values() for tile in some if f"{LINK}/{tile.name}" in named}
    return Described(counts, len(places), unlabelled, highest)


def find_tiles(root: Path, target: Target) -> tuple[dict[SplitName, list[Tile]], int]:
    """List the tiles of a folder by split, in the order of its lists, and count those without labels.

    Raises:
        UserError: The folder can't be read, or a file has a region that is not known.
    """
    try:
        names = {path.name for path in root.iterdir()}
    except OSError as error:
        raise UserError(f"folder ({root}): cannot be read ({error.strerror}); correct the path") from error
    regions = [region for _, some in BUCKETS for region in some]
    found: dict[SplitName, list[tuple[int, Tile]]] = {split: [] for split in SPLITS}
    unlabelled = 0
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        region = _spelled(match["region"])
        if region not in regions:
            raise UserError(f"file {root / name}: region {region} is none of {', '.join(regions)}; rename it")
        label = f"{name.removesuffix('_s2.npy')}_label_{target}.npy"
        if label not in names:
            unlabelled += 1
            continue
        tile = Tile(name, f"{region}_{match['tile']}", label, len(open_array(root / name)))
        found[next(split for split in SPLITS if split == match["split"])].append((regions.index(region), tile))
    return {
        split: [tile for _, tile in sorted(some, key=lambda one: one[0])] for split, some in found.items()
    }, unlabelled


def _spelled(region: str) -> str:
    """Return a region's name; newer files say israel where older ones say isreal."""
    return region.replace("isreal", "israel")


def find_highest(root: Path, tiles: Mapping[SplitName, Sequence[Tile]]) -> Literal[1, 100]:
    """Find out whether the numbers of a folder's labels are shares, or percent: the files do not say it.

    Raises:
        UserError: They are neither: negative, or above 100.
    """
    every = [tile for some in tiles.values() for tile in some]
    tops = []
    with log_progress("ranges of labels", len(every)) as advance:
        for tile in every:
            low, top = _range(open_array(root / tile.label))
            if low < 0 or top > 100:
                raise UserError(
                    f"file {root / tile.label}: has numbers from {low:g} to {top:g}, which are neither shares (0 to 1)"
                    " nor percent (0 to 100); correct it, or say which with --highest"
                )
            tops.append((top, tile.label))
            advance()
    if max(tops)[0] <= 1:
        return 1
    small = [label for top, label in tops if 0 < top <= 1]
    if small:
        logger.warning(
            f"labels are percent, as {max(tops)[1]} has {max(tops)[0]:g}; {len(small)} of {len(tops)} files stay up to"
            f" 1 (the first: {small[0]}): if these are shares, the folder mixes both"
        )
    return 100


def _range(labels: Array) -> tuple[float, float]:
    """Return the least and the largest number that is finite; 0 where there is none."""
    ends = [0.0]
    for start in range(0, len(labels), _CHUNK):
        some = labels[start : start + _CHUNK]
        finite = some[np.isfinite(some)]
        ends += [float(finite.min()), float(finite.max())] if finite.size else []
    return min(ends), max(ends)


def _chosen(
    root: Path, tiles: Mapping[SplitName, Sequence[Tile]], choice: Choice, highest: int | None
) -> dict[str, tuple[int, ...]] | None:
    """Return the positions of the chosen patches by file; None for all patches."""
    if choice.shots is None and choice.indices is None:
        return None
    where = f"list ({choice.indices})"
    lists = _read_list(choice.indices, where) if choice.indices is not None else None
    found: dict[str, tuple[int, ...]] = {}
    for bucket, regions in BUCKETS:
        own = {split: [tile for tile in tiles[split] if _region(tile) in regions] for split in ("train", "val")}
        train, val = (sum(tile.patches for tile in some) for some in own.values())
        if not train:
            continue
        if lists is not None:
            picked = listed(lists.get(bucket), bucket, train, val, where)
        else:
            assert choice.shots is not None, "a number or a list"
            means = None if highest is None else (_mean(root, own["train"], highest), _mean(root, own["val"], highest))
            picked = draw(choice.shots, train, val, means)
        found |= _by_file(own["train"], picked.train) | _by_file(own["val"], picked.val)
    if lists is not None and not any(tile.name in found for tile in tiles["train"]):
        raise UserError(f"{where}: chooses no training patch of this folder; give a list of PhilEO Bench")
    return found


def _read_list(path: Path, where: str) -> dict[str, Any]:
    """Read a list of patches.

    Raises:
        UserError: It can't be read, or is no JSON object.
    """
    try:
        value = files.parse_json(files.read_bytes(path, files.MAX_JSON_BYTES))
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); correct the path") from error
    except ValueError as error:
        raise UserError(f"{where}: is no JSON ({error}); give a list of PhilEO Bench") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: must hold an object; give a list of PhilEO Bench")
    return value


def _region(tile: Tile) -> str:
    return tile.place.partition("_")[0]


def _mean(root: Path, tiles: Sequence[Tile], highest: int) -> Mean:
    """Return what tells the mean of a bucket's label, as a share."""
    labels = [open_array(root / tile.label) for tile in tiles]
    ends = np.cumsum([len(some) for some in labels])

    def mean(index: int) -> float:
        number = int(np.searchsorted(ends, index, side="right"))
        stored: Array = labels[number][index - ends[number]]
        return float(np.mean(stored)) / highest

    return mean


def _by_file(tiles: Sequence[Tile], indices: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return positions in files of a bucket's indices, ascending."""
    starts = list(accumulate((tile.patches for tile in tiles), initial=0))
    rows = np.sort(np.array(indices, np.int64))
    found = {}
    for tile, start, end in zip(tiles, starts[:-1], starts[1:], strict=True):
        own = rows[(rows >= start) & (rows < end)] - start
        if len(own):
            found[tile.name] = tuple(own.tolist())
    return found


def _parts(
    tiles: Mapping[SplitName, Sequence[Tile]],
    target: Target,
    chosen: Mapping[str, tuple[int, ...]] | None,
    published: bool,
) -> Iterator[dict[str, Any]]:
    for split, some in tiles.items():
        for tile in some:
            if chosen is not None and split != "test" and tile.name not in chosen:
                continue
            part: dict[str, Any] = {
                "images": f"{LINK}/{tile.name}",
                "targets": {target: f"{LINK}/{tile.label}"},
                # The published validation lies on training ground, which is said aloud; only so it is let pass.
                "place": f"{tile.place} (validation)" if published and split == "val" else tile.place,
                "split": "train" if split == "val" and not published else split,
            }
            if chosen is not None and tile.name in chosen:
                part["patches"] = list(chosen[tile.name])
            yield part


def _counts(parts: Sequence[Mapping[str, Any]], tiles: Mapping[SplitName, Sequence[Tile]]) -> Iterator[tuple[str, int]]:
    lengths = {f"{LINK}/{tile.name}": tile.patches for some in tiles.values() for tile in some}
    for part in parts:
        yield part["split"], len(part["patches"]) if "patches" in part else lengths[part["images"]]


def _description(
    choice: Choice, parts: Sequence[Mapping[str, Any]], highest: int | None, published: bool
) -> dict[str, Any]:
    if highest is None:
        codes, names = zip(*LAND_COVER, strict=True)
        target: dict[str, Any] = {"kind": "codes", "names": list(names), "codes": list(codes)}
    else:
        target = {"kind": "numbers", "names": [choice.target], "scale": 1 / highest}
    which = (
        f"list {choice.indices.name}" if choice.indices else f"{choice.shots} shots" if choice.shots else "all patches"
    )
    validation = "published validation, on the ground of training" if published else "validation by tile"
    return {
        "format": FORMAT,
        "about": f"PhilEO Bench, {choice.target}: {show(which)}; {validation}; numbers as they are stored",
        "bands": list(BANDS),
        "nodata": 0,
        "targets": {choice.target: target},
        "parts": list(parts),
    }
