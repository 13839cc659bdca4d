"""List the data sets by name, and open one."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from ofav2.config.ranges import check_data
from ofav2.config.schema import DataConfig
from ofav2.data.checks import checked_files, log_duplicates
from ofav2.data.readers import arrays, folders
from ofav2.data.splits import Colour, ImageData, Listed, divide, fingerprint
from ofav2.errors import UserError


@dataclass(frozen=True)
class Entry:
    """One data set: how it is read, its colours, and which settings it takes."""

    name: str
    read: Callable[[DataConfig], Listed]
    mean: Colour
    std: Colour
    rooted: bool = True
    downloads: bool = False
    files: bool = False


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Digits: over all 1,797 images. CIFAR: over the training images. Tiny ImageNet: as in the OFAv2 paper. A folder of
# unknown images takes ImageNet's, as is usual.
ENTRIES = (
    Entry("digits", arrays.read_digits, (0.3053,) * 3, (0.3759,) * 3, rooted=False),
    Entry("cifar10", arrays.read_cifar10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), downloads=True),
    Entry("cifar100", arrays.read_cifar100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), downloads=True),
    Entry("tiny_imagenet", folders.read_tiny_imagenet, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), files=True),
    Entry("imagenet", folders.read_imagenet, IMAGENET_MEAN, IMAGENET_STD, files=True),
    Entry("imagefolder", folders.read_imagefolder, IMAGENET_MEAN, IMAGENET_STD, files=True),
)


def names() -> tuple[str, ...]:
    """List the data sets that `data.name` may name."""
    return tuple(entry.name for entry in ENTRIES)


def open_data(config: DataConfig) -> ImageData:
    """Open a data set and split it; images are decoded later, one by one, or come from the recipe's cache.

    Validation images are held out of the training images, class by class, by `split_seed`, unless the data set brings
    its own; they are never test images.

    Args:
        config: The recipe's data part.

    Raises:
        UserError: A setting is impossible, the name is unknown, the folder is not as the data set needs it, an image
            cannot be used, or the cache cannot be written.
    """
    entry = _entry(config.name)
    check_data(config)
    _refuse_idle_settings(entry, config)
    listed = entry.read(config)
    skipped: tuple[str, ...] = ()
    if entry.files:
        listed, skipped = checked_files(listed, config, folders.root_of(config))
    parts = divide(listed, val_fraction=config.val_fraction, test_fraction=config.test_fraction, seed=config.split_seed)
    if entry.files:
        log_duplicates(parts)
    return ImageData(
        name=entry.name,
        classes=listed.classes,
        channels=3,
        mean=config.mean or entry.mean,
        std=config.std or entry.std,
        train=parts.train,
        val=parts.val,
        test=parts.test,
        fingerprint=fingerprint(entry.name, listed.classes, (parts.train, parts.val, parts.test)),
        drawn=parts.drawn,
        skipped=skipped,
    )


def _entry(name: str) -> Entry:
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    close = difflib.get_close_matches(name, names(), n=1)
    step = f"did you mean {close[0]}?" if close else "choose one of them, imagefolder for images of your own"
    raise UserError(f"data.name ({name}): data sets are {', '.join(names())}; {step}")


def _refuse_idle_settings(entry: Entry, config: DataConfig) -> None:
    if config.root is not None and not entry.rooted:
        raise UserError(f"data.root ({config.root}): {entry.name} comes with a package; set data.root=null")
    if config.download and not entry.downloads:
        able = ", ".join(other.name for other in ENTRIES if other.downloads)
        raise UserError(f"data.download (true): only {able} can be downloaded; set data.download=false")
    for key, idle in (("cache", config.cache is not None), ("bad_images", config.bad_images != "refuse")):
        if idle and not entry.files:
            usual = "null" if key == "cache" else "refuse"
            raise UserError(
                f"data.{key} ({getattr(config, key)}): {entry.name} is no folder of images; set data.{key}={usual}"
            )
    if config.bad_images == "skip" and config.cache is None:
        raise UserError(
            "data.bad_images (skip): images have to be decoded once to find those that cannot be, and the result kept "
            "somewhere; set data.cache=FOLDER"
        )
