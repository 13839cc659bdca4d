"""Write scenes as patches: read one after the other, cut into squares, and describe all of them in `patches.yaml`."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ofav2 import files
from ofav2.config import recipe
from ofav2.data.digests import content_digests
from ofav2.data.images import file_images
from ofav2.data.importing.arrays import ArrayFile
from ofav2.data.importing.in_place import LINK, Sample, SampleList, write_samples
from ofav2.data.importing.offsets import Offset, offset_of, without_offset
from ofav2.data.importing.overlaps import Footprint, footprint_of, overlaps
from ofav2.data.importing.parquet import Row
from ofav2.data.importing.places import cell_of, directions
from ofav2.data.importing.rasters import (
    BandFile,
    Planes,
    SceneError,
    Unit,
    coordinates,
    lies_on,
    pixel_metres,
    planes_of,
    refuse_empty,
)
from ofav2.data.patches import DTYPES, Array, valid_pixels, valid_values
from ofav2.data.readers.patches import FILE, FORMAT, SPLITS, SplitName
from ofav2.errors import UserError
from ofav2.messages import show
from ofav2.output_folder import making
from ofav2.progress import log_progress

logger = logging.getLogger(__name__)

LOCATION = "location"
"""The target of three numbers that says where a patch lies."""
CLASS = "class"
"""The target that is a class of each scene."""
SCENES = "scenes.csv"
"""File that says which patches come from which scene."""
LEFT_OUT = "left_out.csv"
"""File that says which scenes were left out, and why."""
MOST_CODES = 256
"""Different codes that masks may have; more are no classes."""
MASK_TYPES = (*DTYPES, "int8", "int32", "uint32", "int64")
"""Types that masks may have."""
AS_IS = Unit(1.0, 0.0)
"""What files of plain numbers state."""
OTHER_SIZE = 1.5
"""Factor by which a scene's pixels may be larger or smaller on the ground than those of the first one."""


class Content(NamedTuple):
    """What is read of a scene."""

    bands: Sequence[BandFile]
    """Files of bands."""
    masks: Mapping[str, BandFile]
    """Files of targets, by the target's name."""


@dataclass(frozen=True)
class Scene:
    """An image that patches are cut out of."""

    name: str
    """What messages call it."""
    read: Callable[[], Content]
    """Reads its files, when it is its turn; raises `SceneError` where they can't be read."""
    split: SplitName | None = None
    """The split of its patches; None leaves that to `data.val_fraction` and `data.test_fraction`."""
    place: str | None = None
    """Where it lies; None takes the cell of the Earth that its middle lies in."""
    label: str | None = None
    """Its class, if scenes have any."""
    product: str | None = None
    """Name of the satellite's product that it comes from."""
    sample: tuple[str, Row] | None = None
    """The table that holds it, as a path below the source, and where it lies there; None: it is in no table."""


@dataclass(frozen=True)
class Form:
    """How patches are to be made of scenes."""

    side: int | None = None
    """Side of the patches in pixels; None takes each scene as a patch."""
    bands: tuple[str, ...] | None = None
    """Which bands, in this order; None: all of the first scene."""
    nodata: float | None = None
    """The value of a pixel without data; None: the one that the first scene states."""
    masks: Mapping[str, Literal["codes", "numbers"]] = field(default_factory=dict)
    """Targets that are planes: what kind each is, by name."""
    names: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Names of codes, by target, whether masks have them or not; others are called by their number."""
    location: bool = False
    """Whether the direction of each patch's middle becomes a target."""
    offset: Offset = 0
    """What is subtracted from bands."""
    broken: Literal["refuse", "skip"] = "refuse"
    """What is done with a scene that can't be used."""
    about: str = ""
    """Where the scenes come from."""
    in_place: bool = False
    """Whether bands stay in the tables, and are read there whenever they are needed; a scene is then one patch."""


@dataclass(frozen=True)
class Imported:
    """What was written."""

    patches: Mapping[str, int]
    """Patches by split; `train` holds those of no split."""
    scenes: int
    """Scenes that they come from."""
    places: int
    """Places that they lie in."""
    bands: tuple[str, ...]
    """Names of the bands."""
    side: tuple[int, int]
    """Height and width in pixels."""
    targets: Mapping[str, str]
    """Kind of each target by name."""
    left_out: Mapping[str, int]
    """How many scenes were left out, by fault."""
    blank: int
    """Patches that were left out as no pixel of them has data."""


def import_scenes(scenes: Sequence[Scene], form: Form, out: Path, source: Path | None = None) -> Imported:
    """Write a folder that `data.name=patches` opens.

    Args:
        scenes: The scenes, in the order in which they are written.
        form: How patches are made of them.
        out: The folder to make; it appears whole or not at all.
        source: The folder of tables that stay in place.

    Raises:
        UserError: A scene can't be used and is not to be skipped, none is left, or the folder can't be written.
    """
    if taken := form.masks.keys() & {LOCATION, CLASS}:
        raise UserError(f"target {min(taken)}: is the name of a target that is made here; give the masks another one")
    if not scenes:
        raise UserError("scenes (none): there is nothing to import; check the folder")
    left_out: list[tuple[str, str, str]] = []
    with making(out, last=FILE) as folder, _Writer.opened(folder, form) as writer:
        with log_progress("scenes", len(scenes)) as advance:
            for scene in scenes:
                try:
                    writer.add(scene)
                except SceneError as error:
                    if form.broken == "refuse":
                        raise UserError(
                            f"scene {show(scene.name)}: {error.detail}; correct it, or leave such scenes out with"
                            " --broken skip"
                        ) from error
                    logger.warning(f"scene {show(scene.name)}: {error.detail}; left out")
                    left_out.append((scene.name, error.fault, error.detail))
                advance(patches=writer.count)
        if form.in_place:
            assert source is not None, "tables have a folder"
            (folder / LINK).symlink_to(source.resolve(), target_is_directory=True)
        found = writer.finish(left_out)
    return found


class _Cut(NamedTuple):
    """The patches of a scene."""

    images: Array
    """Bands (n, s, s, C)."""
    masks: Mapping[str, Array]
    """Target planes by name (n, s, s, P)."""
    middles: Array
    """Row and column of each patch's middle in the scene (n, 2)."""
    blank: int
    """Squares that were left out, as no pixel of them has data."""


class _Writer:
    """Appends patches to the files of a folder. It holds no patch: a scene is in memory at a time."""

    def __init__(self, folder: Path, form: Form, stack: ExitStack) -> None:
        self.folder = folder
        self.form = form
        self.stack = stack
        self.files: dict[str, ArrayFile] = {}
        self.places: dict[str, list[str]] = {}
        self.labels: dict[str, list[str]] = {}
        self.rows: list[tuple[object, ...]] = []
        self.samples: dict[str, list[Sample]] = {}
        self.side: tuple[int, int] = (0, 0)
        self.codes: dict[str, set[int]] = {name: set() for name, kind in form.masks.items() if kind == "codes"}
        self.ignored: Counter[str] = Counter()
        self.footprints: list[Footprint] = []
        self.metres: float | None = None
        self.first: Planes | None = None
        self.first_masks: Mapping[str, Planes] = {}
        self.count = self.blank = 0

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, form: Form) -> "Iterator[_Writer]":
        """Open a writer whose files are closed in the end."""
        with ExitStack() as stack:
            yield cls(folder, form, stack)

    def add(self, scene: Scene) -> None:
        """Append the patches of a scene; one that can't be used leaves nothing.

        Raises:
            SceneError: It can't be used.
        """
        content = scene.read()
        bands = self.first.names if self.first else self.form.bands
        nodata = self.first.nodata if self.first else self.form.nodata
        planes = planes_of(content.bands, bands, nodata, only=self.form.bands is None)
        refuse_empty(planes)
        self._check_like_first(planes)
        metres = pixel_metres(planes.grid)
        self._check_pixels(metres)
        offset = offset_of(scene.product, self.form.offset)
        masks = {name: self._mask(name, content.masks, planes) for name in self.form.masks}
        cut = _cut(without_offset(planes, offset), masks, self.form.side)
        place = scene.place or _cell(planes)
        middles = coordinates(planes.grid, *cut.middles.T.tolist()) if self.form.location and len(cut.images) else None
        # From here on nothing can go wrong but the disk.
        self.first = self.first or _without_pixels(planes)
        self.metres = self.metres or metres
        self.first_masks = self.first_masks or {name: _without_pixels(mask) for name, mask in masks.items()}
        split = scene.split or "patches"
        start = len(self.places.get(split, ()))
        self.rows.append((self._images(split), start, len(cut.images), scene.name, place, scene.product or "", offset))
        self.blank += cut.blank
        if not len(cut.images):
            return
        if scene.place is None:
            self.footprints.append(footprint_of(scene.name, place, planes.grid))
        self.count += len(cut.images)
        self.side = (cut.images.shape[1], cut.images.shape[2])
        if self.form.in_place:
            assert scene.sample is not None, "a scene of a table"
            self.samples.setdefault(split, []).append(Sample(*scene.sample, offset))
        else:
            self._append(split, "", cut.images)
        for name, stored in cut.masks.items():
            self._append(split, name, stored)
            if name in self.codes:
                valid = valid_values(stored, masks[name].nodata)
                self.codes[name] |= set(np.unique(stored[valid]).tolist())
                self.ignored[name] += int((~valid).sum())
        if middles is not None:
            self._append(split, LOCATION, directions(middles))
        self.places.setdefault(split, []).extend([place] * len(cut.images))
        if scene.label is not None:
            self.labels.setdefault(split, []).extend([scene.label] * len(cut.images))

    def _check_like_first(self, planes: Planes) -> None:
        side = self.form.side
        if side is not None and side % planes.factor:
            raise UserError(
                f"side ({side}): the coarsest band has pixels of {planes.factor} on a side, which a patch must not cut;"
                f" choose a multiple of {planes.factor}"
            )
        if side is not None and side > min(planes.grid.height, planes.grid.width):
            raise SceneError(
                "small scene", f"has {planes.grid.height} x {planes.grid.width} pixels, less than a patch of {side}"
            )
        squares = 1 if side is None else (planes.grid.height // side) * (planes.grid.width // side)
        if self.form.in_place and squares > 1:
            raise UserError(
                f"side ({side}): a sample of {planes.grid.height} x {planes.grid.width} pixels has {squares} patches of"
                " that side, and in place it is one; choose a larger one, of which training cuts windows"
            )
        first = self.first
        if first is None:
            return
        if side is None and (planes.grid.height, planes.grid.width) != (first.grid.height, first.grid.width):
            raise SceneError(
                "other size",
                f"has {planes.grid.height} x {planes.grid.width} pixels, and the first one {first.grid.height} x"
                f" {first.grid.width}; cut all to patches of one --side",
            )
        if planes.values.dtype != first.values.dtype:
            raise SceneError("other type", f"has {planes.values.dtype}, and the first one {first.values.dtype}")
        if planes.nodata != first.nodata:
            raise SceneError(
                "other nodata",
                f"states nodata {planes.nodata}, and the first one {first.nodata}; say which to write with --nodata",
            )
        for name, unit, other in zip(planes.names, planes.units, first.units, strict=True):
            if unit != other:
                raise SceneError(
                    "other scale",
                    f"states scale {unit.scale:g} and offset {unit.offset:g} of band {name}, and the first one"
                    f" {other.scale:g} and {other.offset:g}; apply them (gdal_translate -unscale)",
                )

    def _check_pixels(self, metres: float | None) -> None:
        if metres and self.metres and not 1 / OTHER_SIZE < metres / self.metres < OTHER_SIZE:
            raise SceneError(
                "other pixel size",
                f"has pixels of about {float(f'{metres:.2g}'):g} m, and the first one of"
                f" {float(f'{self.metres:.2g}'):g} m; bring all to one size (gdalwarp -tr)",
            )

    def _mask(self, name: str, found: Mapping[str, BandFile], planes: Planes) -> Planes:
        """Return a target's planes on the grid of the bands."""
        if name not in found:
            raise SceneError("missing mask", f"has no mask of {name}")
        path, mask = found[name].path, planes_of([found[name]], types=MASK_TYPES)
        if difference := lies_on(mask.grid, planes.grid):
            raise SceneError("other mask", f"mask {path} {difference}")
        bands, dtype = mask.values.shape[2], mask.values.dtype
        if self.form.masks[name] == "codes" and (bands != 1 or dtype.kind not in "iu"):
            raise SceneError(
                "other mask",
                f"mask {path} has {bands} bands of {dtype}; codes are one band of whole numbers (gdal_translate -ot)",
            )
        if self.form.masks[name] == "numbers" and len(set(mask.units)) > 1:
            raise SceneError(
                "other mask", f"mask {path} has bands of several scales; apply them (gdal_translate -unscale)"
            )
        first = self.first_masks.get(name, mask)
        if (bands, dtype, mask.nodata) != (first.values.shape[2], first.values.dtype, first.nodata):
            raise SceneError("other mask", f"mask {path} has other bands, another type or nodata than the first one")
        if mask.units != first.units:
            raise SceneError(
                "other mask",
                f"mask {path} states another scale than the first one; apply them (gdal_translate -unscale)",
            )
        return mask

    def _append(self, split: str, target: str, stored: Array) -> None:
        key = _file(split, target)
        if key not in self.files:
            self.files[key] = self.stack.enter_context(ArrayFile.made(self.folder / key, stored))
        self.files[key].append(stored)

    def finish(self, left_out: Sequence[tuple[str, str, str]]) -> Imported:
        """Write everything but the arrays, and return what there is.

        Raises:
            UserError: There is no patch, or a target has less than two classes.
        """
        faults = Counter(fault for _, fault, _ in left_out)
        if self.first is None or not self.count:
            said = ", ".join(f"{fault} {count}" for fault, count in sorted(faults.items()))
            raise UserError(f"scenes: none can be used ({said or 'no pixel has data'}); nothing is written")
        splits = [split for split in (*SPLITS, "patches") if self.places.get(split)]
        targets = self._targets(splits)
        self._warn_of_overlaps()
        for split in splits:
            files.write_text(self.folder / f"{split}.txt", "".join(f"{place}\n" for place in self.places[split]))
        header = ("file", "first patch", "patches", "scene", "place", "product", "subtracted")
        files.write_text(self.folder / SCENES, _table(header, self.rows))
        if left_out:
            files.write_text(self.folder / LEFT_OUT, _table(("scene", "fault", "what"), left_out))
        parts = []
        for split in splits:
            if self.form.in_place:
                self._write_samples(split)
            named = {target: _file(split, target) for target in targets}
            part = {"images": self._images(split), "targets": named, "places": f"{split}.txt"}
            parts.append(part | ({"split": split} if split in SPLITS else {}))
        described = {
            "format": FORMAT,
            "about": self._about(),
            "bands": list(self.first.names),
            "nodata": _plain(self.first.nodata),
            "targets": targets,
            "parts": parts,
        }
        recipe.write_mapping(self.folder / FILE, described)
        # What is in no split is trained on.
        counts = Counter[str]()
        for split in splits:
            counts["train" if split == "patches" else split] += len(self.places[split])
        return Imported(
            dict(counts),
            len(self.rows),
            len({place for split in splits for place in self.places[split]}),
            self.first.names,
            self.side,
            {name: target["kind"] for name, target in targets.items()},
            dict(faults),
            self.blank,
        )

    def _images(self, split: str) -> str:
        """Return the file of a split's bands: an array, or the list of where they lie."""
        return f"{split}.json" if self.form.in_place else _file(split, "")

    def _write_samples(self, split: str) -> None:
        assert self.first is not None, "there are patches"
        (dtype,) = (name for name in DTYPES if name == self.first.values.dtype.name)
        samples = tuple(self.samples[split])
        tables = sorted({sample.table for sample in samples})
        root = self.folder / LINK
        digests = content_digests([file_images(root, tables)], name="tables", root=root, cache=None)
        known = {
            table: digest.to_bytes(8, "little").hex() for table, digest in zip(tables, digests.tolist(), strict=True)
        }
        listed = SampleList(self.first.names, self.side, dtype, self.first.nodata, samples, known)
        write_samples(self.folder / self._images(split), listed)

    def _targets(self, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, kind in self.form.masks.items():
            if kind == "numbers":
                found[name] = {"kind": kind, "names": _names(name, self.first_masks[name].names)}
                found[name]["nodata"] = _plain(self.first_masks[name].nodata)
                unit = self.first_masks[name].units[0]
                found[name] |= {} if unit == AS_IS else {"scale": unit.scale, "offset": unit.offset}
                continue
            ignored, nodata = self.ignored[name], _plain(self.first_masks[name].nodata)
            names = self.form.names.get(name, {})
            codes = sorted(self.codes[name] | names.keys())
            if not 2 <= len(codes) <= MOST_CODES:
                raise UserError(
                    f"codes of {name}: masks have {len(codes)} different ones, and classes are 2 to {MOST_CODES};"
                    + (
                        f" {nodata} is their nodata and no class; if it is one, unset it (gdal_edit.py -unsetnodata)"
                        if ignored
                        else " give measured values as --numbers"
                    )
                )
            if ignored:
                logger.info(
                    f"codes of {name}: {nodata} is the masks' nodata, so {ignored} pixels of it are no class and are"
                    " ignored; if it is a class, unset it (gdal_edit.py -unsetnodata)"
                )
            found[name] = {"kind": kind, "names": [names.get(code, str(code)) for code in codes], "codes": codes}
        if self.form.location:
            found[LOCATION] = {"kind": "numbers", "names": ["x", "y", "z"]}
        if self.labels:
            classes = sorted({label for split in splits for label in self.labels[split]})
            if len(classes) < 2:
                raise UserError(f"classes: all scenes are of class {show(classes[0])}; give two classes or more")
            found[CLASS] = {"kind": "classes", "names": classes}
            for split in splits:
                stored = np.array([classes.index(label) for label in self.labels[split]], np.int32)
                self._append(split, CLASS, stored)
        return found

    def _warn_of_overlaps(self) -> None:
        """Log that scenes share ground and lie in different places, as both may be in different splits."""
        found = [(one, other) for one, other in overlaps(self.footprints) if one.place != other.place]
        if found:
            one, other = found[0]
            logger.warning(
                f"scenes {show(one.name)} and {show(other.name)} overlap and lie in different cells (pairs:"
                f" {len(found)}), so training and test may hold the same ground, which flatters; put overlapping"
                " scenes into one folder with --places folder, or cut the overlap off"
            )

    def _about(self) -> str:
        changed = Counter(row[-1] for row in self.rows)
        if self.form.offset == 0:
            said = "numbers as they are stored, no offset subtracted"
        else:
            how = "by product_id" if self.form.offset == "product_id" else "from all"
            said = f"{how}: " + ", ".join(f"{value} subtracted from {n} scenes" for value, n in sorted(changed.items()))
        assert self.first is not None, "there are patches"
        stated = [unit for unit in self.first.units if unit != AS_IS]
        if stated:
            said += f"; files state scale {stated[0].scale:g} and offset {stated[0].offset:g}, which is not applied"
        return f"{self.form.about}; {said}"


def _cut(planes: Planes, masks: Mapping[str, Planes], side: int | None) -> _Cut:
    """Cut a scene into squares side by side from its upper left corner; those without any data are left out."""
    height, width = planes.values.shape[:2]
    rows, columns = side or height, side or width
    tops = np.repeat(np.arange(height // rows) * rows, width // columns)
    lefts = np.tile(np.arange(width // columns) * columns, height // rows)
    images = _squares(planes.values, rows, columns)
    kept = valid_pixels(images, planes.nodata).any((1, 2))
    stored = {name: _squares(mask.values, rows, columns)[kept] for name, mask in masks.items()}
    middles = np.stack([tops + rows / 2, lefts + columns / 2], 1)
    return _Cut(images[kept], stored, middles[kept], int((~kept).sum()))


def _without_pixels(planes: Planes) -> Planes:
    """Return what later scenes are compared with, without keeping this one in memory."""
    return replace(planes, values=planes.values[:0].copy())


def _cell(planes: Planes) -> str:
    if not planes.grid.placed:
        raise SceneError(
            "unknown place", "does not say where on Earth it lies; name places by file or folder with --places"
        )
    (point,) = coordinates(planes.grid, [planes.grid.height / 2], [planes.grid.width / 2])
    return cell_of(*point.tolist())


def _names(target: str, bands: tuple[str, ...]) -> list[str]:
    return [target] if len(bands) == 1 else list(bands)


def _squares(planes: Array, height: int, width: int) -> Array:
    """Return the squares (n, height, width, P) of planes (H, W, P), row by row; what is left over is not taken."""
    rows, columns = planes.shape[0] // height, planes.shape[1] // width
    whole = planes[: rows * height, : columns * width]
    split = whole.reshape(rows, height, columns, width, planes.shape[2]).swapaxes(1, 2)
    return split.reshape(rows * columns, height, width, planes.shape[2])


def _file(split: str, target: str) -> str:
    return f"{split}_{target}.npy" if target else f"{split}.npy"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _plain(value: float | None) -> float | int | None:
    """Return a whole number as such; one of so many digits that it may have been rounded stays what it is."""
    return value if value is None or value % 1 or abs(value) >= 2**53 else int(value)
