"""Write the patches on which docs/log measures dense tasks, from a checkout of the public water set.

python -m benchmarks.water_set CHECKOUT patches                     # splits keep places apart
python -m benchmarks.water_set CHECKOUT patches --split published   # the random split that its U-Nets were tested on

CHECKOUT is a copy of github.com/mohamedhazem889/Water-Segmentation: `data/images/<0..305>.tif` with 12 planes, and
`data/masks/<0..305>.png`. It has no licence file, so nothing of it is in this repository.

The patches repeat places. Two are of one place if their maps of classes are the same, or if they share `SHARED` runs of
`RUN` pixels of elevation in a row that are not flat. Places of `LARGE` patches and more train. The others, in an order
drawn with `--seed`, test until there are `TEST` patches, then validate until there are `VALIDATION`, then train.
"""

import argparse
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from sklearn.model_selection import train_test_split

from benchmarks.sides import command_line
from ofav2.cli import console
from ofav2.config import recipe
from ofav2.data.images import Indices
from ofav2.data.readers.patches import FILE, FORMAT, PartEntry, PatchesFile, SplitName, TargetEntry
from ofav2.errors import UserError
from ofav2.output_folder import making
from ofav2.typed_json import to_plain

Planes = npt.NDArray[np.int16]

SOURCE = "github.com/mohamedhazem889/Water-Segmentation"
REFLECTANCE = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")
BANDS = (*REFLECTANCE, "quality", "merit_elevation", "elevation", "worldcover", "jrc_occurrence")
"""All planes of a file, in their order. The last two hold answers: they are bands for the published protocol alone."""
COVER = {
    **{"tree": 10, "shrub": 20, "grass": 30, "crop": 40, "built": 50, "bare": 60, "snow": 70, "water": 80},
    **{"wetland": 90, "mangrove": 95, "moss": 100},
}
"""Classes of WorldCover and their codes."""
TARGETS = {
    "landcover": TargetEntry("codes", tuple(COVER), tuple(COVER.values())),
    "water": TargetEntry("codes", ("land", "water")),
    "occurrence": TargetEntry("numbers", ("occurrence",), scale=0.01),
    "elevation": TargetEntry("numbers", ("elevation",), scale=0.001),
}
"""What can be learnt: occurrence as a share of the time, elevation in kilometres."""
RUN, RANGE, LEVELS, SHARED = 32, 12, 10, 3
"""Pixels of a run; the metres between its lowest and highest, and the different heights, that make it not flat; and how
many shared runs make one place."""
LARGE, TEST, VALIDATION = 9, 60, 30
"""Patches of a place that trains whatever the seed; patches that test and validate, at least."""


def read_scenes(checkout: Path) -> tuple[Planes, npt.NDArray[np.uint8]]:
    """Return all planes (N, H, W, 12) and water masks of 0 and 1 (N, H, W), by number."""
    folder = checkout / "data"
    numbers = range(len(list((folder / "images").glob("*.tif"))))
    if not numbers:
        raise UserError(f"CHECKOUT ({checkout}): has no file data/images/0.tif; give a copy of {SOURCE}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        planes = np.stack([_read_planes(folder / "images" / f"{number}.tif") for number in numbers])
    masks = np.stack([np.asarray(Image.open(folder / "masks" / f"{number}.png")) for number in numbers])
    assert planes.shape == (*masks.shape, len(BANDS)), "the set has other shapes"
    return planes, (masks > 0).astype(np.uint8)


def _read_planes(path: Path) -> Planes:
    with rasterio.open(path) as file:
        return np.moveaxis(file.read(), 0, -1)


def find_places(elevation: Planes, cover: Planes) -> Indices:
    """Return the place of each patch, as the number of the place's first patch.

    Args:
        elevation: Metres (N, H, W).
        cover: Codes of classes (N, H, W).
    """
    runs: Mapping[bytes, list[int]] = _owners((number, _runs(plane)) for number, plane in enumerate(elevation))
    shared = Counter(pair for owners in runs.values() for pair in combinations(owners, 2))
    maps = _owners((number, [plane.tobytes()]) for number, plane in enumerate(cover))
    alike = [pair for owners in maps.values() for pair in combinations(owners, 2)]
    places = np.arange(len(elevation))
    for first, second in (*(pair for pair, count in shared.items() if count >= SHARED), *alike):
        one, other = sorted((places[first], places[second]))
        places[places == other] = one
    return places


def _runs(elevation: Planes) -> set[bytes]:
    """Return all runs of a patch (H, W) that are not flat, each once."""
    runs = np.lib.stride_tricks.sliding_window_view(elevation, RUN, axis=1).reshape(-1, RUN)
    heights = np.sort(runs, axis=1).astype(np.int64)
    levels = 1 + (np.diff(heights, axis=1) > 0).sum(1)
    return {run.tobytes() for run in runs[(heights[:, -1] - heights[:, 0] >= RANGE) & (levels >= LEVELS)]}


def _owners(found: Iterable[tuple[int, Iterable[bytes]]]) -> Mapping[bytes, list[int]]:
    """Return which patches have each thing, ascending."""
    owners = defaultdict(list)
    for number, things in found:
        for thing in things:
            owners[thing].append(number)
    return owners


def split_by_place(places: Indices, seed: int) -> Mapping[SplitName, list[int]]:
    """Return the patches of each split, ascending; a place is in one split alone."""
    names, counts = np.unique(places, return_counts=True)
    found: dict[SplitName, list[int]] = {"train": np.flatnonzero(np.isin(places, names[counts >= LARGE])).tolist()}
    found |= {"val": [], "test": []}
    for place in np.random.default_rng(seed).permutation(names[counts < LARGE]):
        split: SplitName = "test" if len(found["test"]) < TEST else "val" if len(found["val"]) < VALIDATION else "train"
        found[split] += np.flatnonzero(places == place).tolist()
    return {name: sorted(patches) for name, patches in found.items()}


def published_split(masks: npt.NDArray[np.uint8]) -> Mapping[SplitName, list[int]]:
    """Return the random split of the U-Nets: a fifth tests, as many patches without water as in training."""
    wet = masks.any((1, 2)).astype(int)
    train, test = train_test_split(np.arange(len(masks)), test_size=0.2, random_state=42, stratify=wet)
    return {"train": sorted(train.tolist()), "test": sorted(test.tolist())}


def write(checkout: Path, out: Path, *, published: bool, seed: int) -> Mapping[SplitName, tuple[int, int]]:
    """Write the folder that `data.name=patches` opens, and return the patches and places of each split.

    Args:
        checkout: The copy of the water set.
        out: The folder to make.
        published: Whether to split as published; each patch is then a place of its own.
        seed: Else, what the order of the places is drawn with.
    """
    planes, masks = read_scenes(checkout)
    names = [BANDS.index(name) for name in ("elevation", "worldcover", "jrc_occurrence")]
    elevation, cover, occurrence = (np.ascontiguousarray(planes[..., index]) for index in names)
    places = np.arange(len(planes)) if published else find_places(elevation, cover)
    splits = published_split(masks) if published else split_by_place(places, seed)
    # Some occurrences exceed 100 %.
    shares = occurrence.clip(0, 100)
    targets: dict[str, npt.NDArray[np.integer[Any]]] = {
        "landcover": cover,
        "water": masks,
        "occurrence": shares,
        "elevation": elevation,
    }
    parts = tuple(
        PartEntry(f"{split}.npy", {name: f"{split}_{name}.npy" for name in targets}, f"{split}.txt", None, split)
        for split in splits
    )
    described = PatchesFile(BANDS, parts, TARGETS, about=SOURCE)
    with making(out, last=FILE) as folder:
        for split, patches in splits.items():
            np.save(folder / f"{split}.npy", planes[patches])
            for name, values in targets.items():
                np.save(folder / f"{split}_{name}.npy", values[patches])
            (folder / f"{split}.txt").write_text("".join(f"{place}\n" for place in places[patches]), encoding="utf-8")
        recipe.write_mapping(folder / FILE, {"format": FORMAT, **to_plain(described)})
    return {split: (len(patches), len(set(places[patches].tolist()))) for split, patches in splits.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the patches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", metavar="CHECKOUT", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--split", choices=("places", "published"), default="places")
    parser.add_argument("--seed", type=int, help="of the order of places (0)")
    options = parser.parse_args(arguments)
    published = options.split == "published"
    if published and options.seed is not None:
        parser.error("--seed: the published split has no seed; leave it out")
    written = write(options.checkout, options.out, published=published, seed=options.seed or 0)
    for split, (patches, places) in written.items():
        console.show(f"{split}: {patches} patches in {places} places")


if __name__ == "__main__":
    command_line(main)
