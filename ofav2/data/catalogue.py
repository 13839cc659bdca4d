"""List the data sets by name, and open one: those of this package, and those of installed packages.

Another package adds a data set by an entry point of the group `ofav2.data`, an `Entry`, as in its `setup.cfg`:

    [options.entry_points]
    ofav2.data =
        flowers = my_package.flowers:FLOWERS
"""

import difflib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from ofav2.config.ranges import check_data
from ofav2.config.schema import DataConfig
from ofav2.data.checks import below_root, checked_files, log_absent_classes, log_duplicates
from ofav2.data.images import FileImages
from ofav2.data.patches import PatchImages
from ofav2.data.readers import arrays, folders, labels
from ofav2.data.readers.patches import read_description, read_patches
from ofav2.data.splits import (
    RGB,
    ImageData,
    Listed,
    Origin,
    Parts,
    Split,
    SplitRecord,
    TargetSpec,
    divide,
    few_shots,
    fingerprint,
    first_other_class,
    restore,
    select,
)
from ofav2.data.statistics import measure_bands
from ofav2.errors import UserError
from ofav2.messages import first_line, setting, show

logger = logging.getLogger(__name__)

GROUP = "ofav2.data"
"""Group of entry points that other packages add data sets to."""
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Entry:
    """One data set: how it is read, its colours, and which settings it takes."""

    name: str
    """Its name in recipes."""
    read: Callable[[DataConfig], Listed]
    """Lists its images with their labels, and splits of its own where it has any."""
    mean: Colour | None = None
    """Mean of each colour (0..1); None of a data set of patches, whose bands are measured."""
    std: Colour | None = None
    """Standard deviation of each colour, likewise."""
    rooted: bool = True
    """Whether it lies in a folder that the user names (`data.root`)."""
    downloads: bool = False
    """Whether it can be downloaded (`data.download`)."""
    labelled: bool = False
    """Whether a file may give the labels (`data.labels`)."""
    trees: tuple[str, ...] = ()
    """Folders below `data.root` in which everything is taken for classes and images; none where images are no files."""

    @property
    def files(self) -> bool:
        """Whether the images are files."""
        return bool(self.trees)

    @property
    def patches(self) -> bool:
        """Whether the images are patches."""
        return self.mean is None


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SPLITS = ("train", "val")

# Digits: over all 1,797 images. CIFAR: over the training images. Tiny ImageNet: as in the OFAv2 paper. A folder of
# unknown images takes ImageNet's, as is usual.
ENTRIES = (
    Entry("digits", arrays.read_digits, (0.3053,) * 3, (0.3759,) * 3, rooted=False),
    Entry("cifar10", arrays.read_cifar10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), downloads=True),
    Entry("cifar100", arrays.read_cifar100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), downloads=True),
    Entry(
        "tiny_imagenet", folders.read_tiny_imagenet, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), trees=SPLITS
    ),
    Entry("imagenet", folders.read_imagenet, IMAGENET_MEAN, IMAGENET_STD, trees=SPLITS),
    Entry("imagefolder", folders.read_imagefolder, IMAGENET_MEAN, IMAGENET_STD, labelled=True, trees=(".",)),
    Entry("patches", read_patches),
)
PATCH_SETTINGS = ("bands", "target", "classes", "window", "window_share")
"""Settings that only patches have."""
PICTURE_SETTINGS = ("jitter", "randaugment", "mixup", "cutmix", "crop_scale", "crop_ratio")
"""Settings that change pictures, and would change what a patch's numbers mean."""


def names() -> tuple[str, ...]:
    """List the data sets that `data.name` may name, this package's own first."""
    own = tuple(entry.name for entry in ENTRIES)
    return (*own, *sorted({point.name for point in entry_points(group=GROUP)} - set(own)))


def count_channels(config: DataConfig) -> int:
    """Return how many channels a data set's images have, without opening them; grey ones are repeated.

    Raises:
        UserError: The name is unknown, or patches are not described as they must be.
    """
    if not _entry(config.name).patches:
        return len(RGB)
    described = read_description(folders.root_of(config))
    return len(config.bands if config.bands is not None else described.bands)


def open_data(config: DataConfig, split: SplitRecord | None = None) -> ImageData:
    """Open a data set and split it; images are decoded later, one by one, or come from the recipe's cache.

    Validation images are held out of the training images, class by class, by `split_seed`, unless the data set brings
    its own; they are never test images. A run's own split is taken as it is: images that it does not know are left out.

    Args:
        config: The recipe's data part.
        split: The split of a run that was trained before; None draws one.

    Raises:
        UserError: A setting is impossible, the name is unknown, the folder is not as the data set needs it, an image
            cannot be used, or the cache cannot be written; or the data set lacks classes or images of the split.
    """
    entry = _entry(config.name)
    check_data(config)
    _refuse_idle_settings(entry, config)
    trees = _trees(entry, config)
    if config.cache is not None:
        refuse_inside(trees, Path(config.cache), "data.cache")
    try:
        listed = labels.read_labels(config, Path(config.labels).expanduser()) if config.labels else entry.read(config)
    except OSError as error:
        what, why = error.filename or config.root, error.strerror or first_line(error)
        raise UserError(f"data.name ({config.name}): {what} can't be read ({why})") from error
    skipped: tuple[str, ...] = ()
    if split:
        listed, skipped = _known(entry, listed, split, config)
    if entry.files:
        listed, unusable = checked_files(listed, config, folders.root_of(config))
        skipped = tuple(dict.fromkeys((*skipped, *unusable)))
    if listed.test is not None and not config.test_fraction:
        raise UserError(
            f"data.test_fraction (0): {config.name} brings its own test images, so none are held out; leave the key out"
        )
    if split:
        parts = restore(listed, split)
    else:
        fractions = {"val_fraction": config.val_fraction, "test_fraction": config.test_fraction}
        parts = with_shots(divide(listed, **fractions, seed=config.split_seed), len(listed.classes), config)
    if entry.files:
        log_duplicates(parts)
    mean, std = _spread(entry, listed, parts.train, config, split)
    found = ImageData(
        name=entry.name,
        bands=listed.bands,
        target=TargetSpec(listed.kind, listed.classes),
        mean=mean,
        std=std,
        train=parts.train,
        val=parts.val,
        test=parts.test,
        fingerprint=fingerprint(entry.name, listed.classes, (parts.train, parts.val, parts.test)),
        origins=parts.origins,
        skipped=skipped,
        trees=trees,
        white=1.0 if entry.patches else 255.0,
        nodata=listed.nodata,
        measured=entry.patches and config.mean is None,
    )
    if entry.patches and found.target.kind == "classes":
        log_absent_classes(parts, found.classes)
    if found.validation_is_test:
        logger.warning(
            "data.test_fraction (0): no image is held out for test, so test is measured on the validation images; that"
            " flatters, as networks are chosen on them"
        )
    return found


def with_shots(parts: Parts, classes: int, config: DataConfig) -> Parts:
    """Return splits of which the training split has the recipe's number of shots of so many classes."""
    if config.shots is None:
        return parts
    kept = few_shots(parts.train, config.shots, classes=classes, seed=config.split_seed)
    listed_name, indices = parts.origins["train"]
    origin = Origin(listed_name, indices[kept])
    return parts._replace(train=parts.train.take("train", kept), origins={**parts.origins, "train": origin})


def _spread(
    entry: Entry, listed: Listed, train: Split, config: DataConfig, split: SplitRecord | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard deviations of the bands: the recipe's, the data set's, the run's, or measured ones.

    Raises:
        UserError: The recipe's are not one per band, or nothing can be measured.
    """
    for key, values in (("mean", config.mean), ("std", config.std)):
        if values is not None and len(values) != len(listed.bands):
            raise UserError(
                f"data.{key} ({len(values)} numbers): there are {len(listed.bands)} bands ({', '.join(listed.bands)}); "
                "give one for each, or null"
            )
    if entry.mean is not None and entry.std is not None:
        return config.mean or entry.mean, config.std or entry.std
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    if split is not None and split.statistics is not None and set(listed.bands) <= split.statistics.keys():
        known = [split.statistics[band] for band in listed.bands]
        return tuple(one.mean for one in known), tuple(one.std for one in known)
    assert isinstance(train.images, PatchImages), "what is measured are patches"
    return measure_bands(train.images, listed.bands)


def refuse_inside(trees: Sequence[Path], path: Path, what: str) -> None:
    """Refuse to write to a folder whose content would be taken for classes and images.

    Args:
        trees: The folders of a data set, as `ImageData` has them.
        path: The folder to write to.
        what: Its name in the message.

    Raises:
        UserError: It lies in one of the trees, and no part of its path there begins with a dot.
    """
    inside = path.expanduser().resolve()
    for tree in trees:
        if inside.is_relative_to(tree) and not any(part[0] == "." for part in inside.relative_to(tree).parts):
            raise UserError(
                f"{what} ({path}): lies in {tree}, where it would be taken for images; give a folder outside of it"
            )


def _trees(entry: Entry, config: DataConfig) -> tuple[Path, ...]:
    return tuple((folders.root_of(config) / tree).resolve() for tree in entry.trees)


def _known(entry: Entry, listed: Listed, split: SplitRecord, config: DataConfig) -> tuple[Listed, tuple[str, ...]]:
    """Return the images that a run knows, and what was left out of those that it was to know.

    Raises:
        UserError: Classes are others, or images are missing and `data.bad_images` is `refuse`.
    """
    if difference := first_other_class(split.classes, listed.classes):
        raise UserError(f"data set ({config.name}): {difference}; restore the classes that the run was trained with")
    listed = _known_pictures(listed, split, config)
    what = "patches" if entry.patches else "images"
    listed, missing, unknown = select(listed, split, _left_out(split, config))
    # With shots, new training images can't be told from those that the draw left out.
    new = [name for kind, names in unknown.items() if config.shots is None or kind != "train" for name in names]
    if new:
        logger.info(f"{config.name}: {what} that the run was not trained with, left out: {_counted(new)}")
    if missing and config.bad_images == "refuse":
        step = ", or leave them out by data.bad_images: skip in the run's recipe.yaml" if entry.files else ""
        raise UserError(
            f"data set ({config.name}): {what} that the run was trained with are missing: {_counted(missing)};"
            f" put them back{step}"
        )
    if missing:
        logger.warning(f"{config.name}: {what} that the run was trained with are missing: {_counted(missing)}")
    return listed, (*split.skipped, *(f"image {name}: is missing" for name in missing))


def _known_pictures(listed: Listed, split: SplitRecord, config: DataConfig) -> Listed:
    """Leave pictures that can't be used to those that the run knew; say how many were added since."""
    if not listed.mislabelled:
        return listed
    root = folders.root_of(config)
    new = [reason for reason in listed.mislabelled if below_root(reason, root) not in split.skipped]
    if new:
        logger.info(
            f"{config.name}: pictures that can't be used and that the run was not trained with, left out:"
            f" {_counted(new)}"
        )
    return listed._replace(mislabelled=tuple(reason for reason in listed.mislabelled if reason not in new))


def _left_out(split: SplitRecord, config: DataConfig) -> Callable[[Split, str], bool]:
    """Return what says whether a run could not use a file."""

    def was_left_out(listed: Split, name: str) -> bool:
        if config.bad_images == "refuse":
            return False
        assert isinstance(listed.images, FileImages), "a data set of files as it is listed"
        path = os.path.relpath(listed.images.root / name, folders.root_of(config))
        return any(reason.startswith(f"image {path}: ") for reason in split.skipped)

    return was_left_out


def _counted(images: Sequence[str]) -> str:
    return f"{len(images)} (the first: {images[0]})"


def _entry(name: str) -> Entry:
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    if points := tuple(entry_points(group=GROUP, name=name)):
        return _brought(name, points)
    close = difflib.get_close_matches(name, names(), n=1)
    step = (
        f"did you mean {close[0]}?"
        if close
        else "choose one of them, imagefolder for images of your own, or install the package that brings it"
    )
    raise UserError(f"data.name ({name}): data sets are {', '.join(names())}; {step}")


def _brought(name: str, points: Sequence[EntryPoint]) -> Entry:
    """Return the data set that an installed package brings.

    Raises:
        UserError: There are several, or the package does not bring what it should.
    """
    where = ", ".join(point.value for point in points)
    if len(points) > 1:
        raise UserError(f"data.name ({name}): several installed packages bring it ({where}); remove all but one")
    try:
        brought = points[0].load()
    except Exception as error:
        raise UserError(
            f"data.name ({name}): {where} can't be imported ({first_line(error)}); repair its package"
        ) from error
    # Without colours it would be taken for patches, which have a form of their own.
    if not isinstance(brought, Entry) or brought.name != name or brought.mean is None or brought.std is None:
        raise UserError(
            f"data.name ({name}): {where} must be an Entry of ofav2.data with this name, and with mean and std; repair"
            " its package"
        )
    return brought


def _refuse_idle_settings(entry: Entry, config: DataConfig) -> None:
    _refuse_patch_settings(entry, config)
    if entry.rooted:
        folders.root_of(config)
    elif config.root is not None:
        raise UserError(
            f"data.root ({config.root}): {entry.name} comes with a package; for images of your own add"
            " data.name=imagefolder, else set data.root=null"
        )
    if config.download and not entry.downloads:
        able = ", ".join(other.name for other in ENTRIES if other.downloads)
        raise UserError(f"data.download (true): only {able} can be downloaded; set data.download=false")
    if config.labels is not None and not entry.labelled:
        raise UserError(
            f"data.labels ({show(config.labels)}): {entry.name} brings its labels; set data.name=imagefolder, or"
            " data.labels=null"
        )
    for key, usual in (("cache", None), ("bad_images", "refuse"), ("exif_orientation", True), ("shrink_to", 0)):
        given = getattr(config, key)
        if given != usual and not entry.files and not (entry.patches and key == "cache"):
            shown, step = (show(value).strip('"') for value in (given, usual))
            raise UserError(f"data.{key} ({shown}): {entry.name} is no folder of images; set data.{key}={step}")
    if config.bad_images == "skip" and config.cache is None:
        raise UserError(
            "data.bad_images (skip): images have to be decoded once to find those that cannot be, and the result kept "
            "somewhere; set data.cache=FOLDER"
        )


def _refuse_patch_settings(entry: Entry, config: DataConfig) -> None:
    """Refuse settings of patches for pictures, and those of pictures for patches.

    Raises:
        UserError: One is given; the message names it.
    """
    usual = {field.name: field.default for field in fields(DataConfig)}
    for key in PICTURE_SETTINGS if entry.patches else PATCH_SETTINGS:
        given = getattr(config, key)
        if given != usual[key]:
            why = "patches are never recoloured, mixed or resized" if entry.patches else "is for data.name=patches"
            step = setting(f"data.{key}", _written(usual[key]))
            raise UserError(f"data.{key} ({_written(given)}): {why}; leave it out, or set {step}")
    if entry.patches:
        if config.eval_crop != 1:
            raise UserError(
                f"data.eval_crop ({config.eval_crop:g}): patches are evaluated whole, window by window, and never "
                "resized; set data.eval_crop=1"
            )
        if (config.mean is None) != (config.std is None):
            raise UserError(
                "data.mean and data.std: of patches both are given, or both measured; give the other one, or set both"
                " to null"
            )
        return
    for key, low, values in (("mean", "from 0", config.mean), ("std", "above 0", config.std)):
        if values is not None and (len(values) != len(RGB) or max(values) > 1 or min(values) < 0):
            raise UserError(
                f"data.{key} ({_written(values)}): must be three numbers {low} to 1 for pictures; divide those in"
                " 0..255 by 255"
            )


def _written(value: object) -> str:
    """Return a value of a setting as a recipe has it."""
    return show(list(value) if isinstance(value, tuple) else value).strip('"')
