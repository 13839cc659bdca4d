"""Read folders of image files: Tiny ImageNet, ImageNet, and any folder of classes.

Classes are numbered in the sorted order of their folders. Nothing goes missing unseen: what is known to be harmless is
passed over, what is no picture is counted in a log line, and a picture that can't be used is refused or left out by
name. Files of unknown suffixes are looked into.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ofav2 import files
from ofav2.config.schema import DataConfig
from ofav2.data import decoding
from ofav2.data.images import composed, file_images
from ofav2.data.splits import Listed, Split
from ofav2.errors import UserError
from ofav2.messages import one_line

logger = logging.getLogger(__name__)

READABLE = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Suffixes of images."""
UNREADABLE = MappingProxyType(
    {
        **{".gif": "GIF", ".dib": "DIB", ".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".jxl": "JPEG XL"},
        **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG 2000"),
        **dict.fromkeys((".pbm", ".pgm", ".ppm", ".pnm"), "PNM"),
        **{".ico": "ICO", ".psd": "PSD", ".svg": "SVG", ".tga": "TGA", ".exr": "OpenEXR", ".hdr": "HDR", ".eps": "EPS"},
        # These begin as TIFF does, and what a TIFF decoder finds in them is a small preview.
        **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), "camera raw"),
    }
)
"""Suffixes of pictures that are not read, and what they are."""

SPLIT_NAMES = MappingProxyType({"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"})
"""Names that folders of splits may have, and the splits."""
HARMLESS_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
"""Folders that systems put beside images."""
HARMLESS_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
"""Files that systems put beside images, in small letters."""
HARMLESS_SUFFIXES = frozenset(
    {
        *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log"),
        *(".aae", ".xmp"),
    }
)
"""Suffixes of texts, and of what photo software notes beside an image."""


_FORMATS = ", ".join(decoding.READABLE)
_IMAGE, _HARMLESS, _UNKNOWN = "image", "harmless", "unknown"


@dataclass(frozen=True)
class _Rest:
    """What lies in a data set's folders and is not among its images."""

    unusable: tuple[str, ...] = ()
    """Why a picture can't be used, and what to do, for each."""
    ignored: tuple[str, ...] = ()
    """Paths of files that are no pictures, and not known to be harmless."""
    nested: tuple[str, ...] = ()
    """Paths of images that lie in folders inside class folders."""

    def __add__(self, other: "_Rest") -> "_Rest":
        return _Rest(self.unusable + other.unusable, self.ignored + other.ignored, self.nested + other.nested)


def root_of(config: DataConfig) -> Path:
    """Return the folder that `data.root` names.

    Raises:
        UserError: It names none.
    """
    if config.root is None:
        raise UserError(f"data.root (null): {config.name} is read from a folder; set data.root=FOLDER")
    return Path(config.root).expanduser()


def read_imagefolder(config: DataConfig) -> Listed:
    """Read a folder of classes, or one of splits (train, and val and test where they are) that hold classes.

    Images in folders inside a class folder count for the class. `valid` and `validation` are names of val. A missing
    test split is held out of train, and then so is a missing validation split.
    """
    root = root_of(config)
    splits = _splits_at(root)
    whole = root / splits.get("train", "")
    classes = _class_names(whole)
    _refuse_deeper_classes(whole, classes)
    train, rest = _class_tree(whole, "train", classes, config)
    rest += _beside_splits(root, splits, classes)
    found: dict[str, Split] = {}
    for name in (name for name in splits if name != "train"):
        found[name], more = _class_tree(root / splits[name], name, classes, config)
        rest += more
    return _settled(Listed(classes, train, found.get("val"), found.get("test")), rest, config)


def read_imagenet(config: DataConfig) -> Listed:
    """Read ImageNet from class folders in train and val; val is the test split, validation is held out of train."""
    root = root_of(config)
    _require_entries(root, ("train", "val"))
    classes = _class_names(root / "train")
    train, rest = _class_tree(root / "train", "train", classes, config)
    test, more = _class_tree(root / "val", "test", classes, config)
    _log_unread(root, [name for name in _folders(root) if name not in ("train", "val")])
    return _settled(Listed(classes, train, test=test), rest + more + _beside(root), config)


def read_tiny_imagenet(config: DataConfig) -> Listed:
    """Read Tiny ImageNet as its archive unpacks.

    The labelled val split is the test split, and validation is held out of train: the archive's own test images have no
    labels.
    """
    root = root_of(config)
    _require_entries(root, ("train", "val", "wnids.txt"))
    wnids = tuple(sorted(set(_lines(root / "wnids.txt"))))
    _require_same(_class_names(root / "train"), wnids, root / "train", source="wnids.txt")
    train, rest = _class_tree(root / "train", "train", wnids, config, inner="images")
    test, more = _annotated(root / "val", "test", wnids, config)
    names = _readable_names(root / "words.txt", wnids)
    _log_unread(root, [name for name in _folders(root) if name not in ("train", "val", "test")])
    return _settled(Listed(names, train, test=test), rest + more + _beside(root) + _beside(root / "val"), config)


def _settled(listed: Listed, rest: _Rest, config: DataConfig) -> Listed:
    """Say what is no picture, and hand on which pictures can't be used."""
    _log_ignored(config.name, rest.ignored)
    if rest.nested:
        logger.info(
            f"{config.name}: images in folders inside class folders count for the class: {len(rest.nested)} (the first:"
            f" {one_line(rest.nested[0])})"
        )
    return listed._replace(mislabelled=rest.unusable)


def pictures_below(folder: Path) -> list[Path]:
    """Return all pictures in a folder, at any depth, sorted by path; decoding says of some that they can't be read.

    Files that are no pictures are counted in a log line.
    """
    kinds = {
        Path(parent, name): _kind(Path(parent, name))
        for parent, folders, names in os.walk(folder)
        for name in names
        if not any(_is_hidden(part) for part in Path(parent).relative_to(folder).parts)
    }
    _log_ignored(str(folder), [str(path) for path, kind in kinds.items() if kind == _UNKNOWN])
    return sorted(path for path, kind in kinds.items() if kind not in (_UNKNOWN, _HARMLESS))


def _log_ignored(name: str, ignored: Sequence[str]) -> None:
    if ignored:
        first = one_line(min(ignored))
        logger.warning(f"{name}: files that are no pictures, left out: {len(ignored)} (the first: {first})")


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") or folder in HARMLESS_FOLDERS


def _splits_at(root: Path) -> Mapping[str, str]:
    """Return the folders of `root` that are splits; none if its folders are classes (one of them may be called train).

    Raises:
        UserError: A split is there under two names, or in capitals, where it would be taken for a class.
    """
    deep = [name for name in _folders(root) if _folders(root / name)]
    # Beside other folders of folders, it is a class that is called so.
    for name in deep if all(name.lower() in SPLIT_NAMES for name in deep) else ():
        if name not in SPLIT_NAMES:
            raise UserError(
                f"folder {root / name}: holds folders, as a split does, and splits are called train, val and test;"
                f" rename it to {name.lower()}, or if it is a class, to another name"
            )
    present = [name for name in SPLIT_NAMES if name in deep]
    if "train" not in present:
        return {}
    splits: dict[str, str] = {}
    for name in present:
        if SPLIT_NAMES[name] in splits:
            raise UserError(f"folder {root}: {splits[SPLIT_NAMES[name]]} and {name} are one split; merge the two")
        splits[SPLIT_NAMES[name]] = name
    return splits


def _beside_splits(root: Path, splits: Mapping[str, str], classes: Sequence[str]) -> _Rest:
    """Return what lies beside the split folders, if there are any; folders without a class among it are logged.

    Raises:
        UserError: A folder looks like a split under another name, or like a split without its classes.
    """
    if not splits:
        return _Rest()
    others = [name for name in _folders(root) if name not in splits.values()]
    for name in others:
        if name in SPLIT_NAMES or not set(classes).isdisjoint(map(composed, _folders(root / name))):
            raise UserError(
                f"folder {root / name}: beside train, splits are folders called val and test that hold class folders; "
                "rename it, fill it, or move it out of data.root"
            )
    _log_unread(root, others)
    return _beside(root)


def _refuse_deeper_classes(folder: Path, classes: Sequence[str]) -> None:
    """Refuse class folders that hold the same folders and no image: those are the classes, or these are splits."""
    folders = _class_folders(folder)
    inside = [_entries(folder / folders[name]) for name in classes]
    if (
        all(inner == inside[0][0] for inner, _ in inside)
        and inside[0][0]
        and not any(
            _sorted_out(folder / folders[name], names)[0] for name, (_, names) in zip(classes, inside, strict=True)
        )
    ):
        raise UserError(
            f"folder {folder / folders[classes[0]]}: it holds no image, and the folder {inside[0][0][0]!r} like all"
            " others beside it; set data.root to the folder whose folders are train or the classes"
        )


def _log_unread(root: Path, folders: Sequence[str]) -> None:
    if folders:
        logger.warning(f"folders beside train that are not read: {len(folders)} (the first: {root / folders[0]})")


def _class_tree(
    folder: Path, split: str, classes: Sequence[str], config: DataConfig, *, inner: str = ""
) -> tuple[Split, _Rest]:
    """Read a split whose images lie in one folder per class, or in the folder `inner` of that."""
    folders = _class_folders(folder)
    _require_same(tuple(folders), classes, folder)
    rest = _beside(folder)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        # Tiny ImageNet's layout is fixed; in other class folders people sort images further.
        images, more = _image_files(folder / folders[name] / inner, nested=not inner)
        paths += [os.path.join(folders[name], inner, image) for image in images]
        labels += [label] * len(images)
        rest += more
        if inner:
            rest += _beside(folder / folders[name])
    found = file_images(folder, paths, config.exif_orientation, config.shrink_to)
    return Split(split, np.array(labels, dtype=np.int64), found), rest


def _annotated(folder: Path, split: str, wnids: Sequence[str], config: DataConfig) -> tuple[Split, _Rest]:
    """Read a split whose images lie in one folder and whose classes are written in a file (name, tab, class, tab …)."""
    annotations = folder / "val_annotations.txt"
    labels, wrong = _annotations(annotations, wnids)
    present, rest = _image_files(folder / "images")
    missing = sorted(set(labels) - set(present))
    wrong += [f"folder {folder / 'images'}: image {image!r} of {annotations.name} is missing" for image in missing]
    unknown = sorted(set(present) - set(labels))
    wrong += [
        f"folder {folder / 'images'}: image {image!r} is not in {annotations.name}, or wrongly" for image in unknown
    ]
    images = [image for image in present if image in labels]
    lacking = sorted(set(wnids) - {wnids[labels[image]] for image in images})
    if lacking and not wrong:
        raise UserError(
            f"file {annotations}: class {lacking[0]!r} has no image; every class needs one; unpack the archive again"
        )
    paths = [os.path.join("images", image) for image in images]
    found = file_images(folder, paths, config.exif_orientation, config.shrink_to)
    reasons = tuple(f"{reason}; unpack the archive again" for reason in wrong)
    return Split(split, np.array([labels[image] for image in images], dtype=np.int64), found), rest + _Rest(reasons)


def _annotations(file: Path, wnids: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Read which image has which label; an image that is given twice has none, as one of the two may be wrong."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    twice: set[str] = set()
    wrong = []
    for number, line in enumerate(_lines(file), start=1):
        image, wnid = [*line.split("\t"), ""][:2]
        if wnid in label_of and image not in labels:
            labels[image] = label_of[wnid]
            continue
        wrong.append(
            f"file {file}, line {number} ({line!r}): a line gives an image, each once, and a class of wnids.txt"
        )
        twice |= {image} & set(labels)
    return {image: label for image, label in labels.items() if image not in twice}, wrong


def _readable_names(words: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """Look classes up in a file of lines (class, tab, name); a class that it lacks keeps its number as name."""
    entries = dict(line.split("\t", 1) for line in _lines(words) if "\t" in line) if words.exists() else {}
    return tuple(entries.get(wnid, wnid) for wnid in wnids)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(_class_folders(folder))
    if len(names) < 2:
        found = f"the only one is {names[0]!r}" if names else "there is none"
        raise UserError(
            f"folder {folder}: two or more class folders are needed, and {found}; "
            "set data.root to the data set's own folder, with each class's images in a folder of their own"
        )
    # They are written to the run's record and shown on its page.
    _require_printable(folder, names)
    return names


def _class_folders(folder: Path) -> Mapping[str, str]:
    """Return the folders of classes by the classes' names, sorted.

    Systems store accented letters in two forms that look the same; a class is named in the composed one (NFC).
    """
    found: dict[str, str] = {}
    for name in sorted(_folders(folder), key=composed):
        if composed(name) in found:
            raise UserError(
                f"folder {folder}: class {composed(name)!r} is there in two Unicode forms; merge the two folders"
            )
        found[composed(name)] = name
    return found


def _require_printable(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if not name.isprintable():
            raise UserError(f"folder {folder}: {name!r} is no name that can be printed; rename it")


def _image_files(folder: Path, *, nested: bool = False) -> tuple[tuple[str, ...], _Rest]:
    """List a folder's images, sorted, and what else lies there; with `nested`, those in its folders too."""
    folders, names = _entries(folder)
    if folders and not nested:
        raise UserError(
            f"folder {folder}: images lie directly in it, and it holds the folder {folders[0]!r}; unpack the archive"
            " again"
        )
    images, rest = _sorted_out(folder, names)
    for inner in folders:
        deeper, more = _images_below(folder, inner)
        images += deeper
        rest += more + _Rest(nested=tuple(str(folder / image) for image in deeper))
    if not images and rest.unusable:
        raise UserError(f"{rest.unusable[0]}; no other image is in that folder")
    if not images:
        raise UserError(f"folder {folder}: no image in it ({_FORMATS}); add images or remove the folder")
    # Records and messages name them.
    _require_printable(folder, images)
    return images, rest


def _images_below(folder: Path, inner: str) -> tuple[tuple[str, ...], _Rest]:
    """List the images of a folder inside a class folder, at any depth, by their paths from the class folder."""
    here = folder / inner
    if here.is_symlink():
        # It may lead back to where it lies.
        return (), _Rest(ignored=(str(here),))
    folders, names = _entries(here)
    found, rest = _sorted_out(here, names)
    images = tuple(os.path.join(inner, image) for image in found)
    for deeper in folders:
        below, more = _images_below(folder, os.path.join(inner, deeper))
        images, rest = images + below, rest + more
    return images, rest


def _beside(folder: Path) -> _Rest:
    """Return what lies in a folder that should hold folders alone; a picture there has no class."""
    images, rest = _sorted_out(folder, _entries(folder)[1])
    step = "move it into the folder of its class, or away"
    stray = tuple(
        f"image {one_line(str(folder / name))}: lies beside the folders of classes; {step}" for name in images
    )
    return _Rest(stray) + rest


def _sorted_out(folder: Path, names: Sequence[str]) -> tuple[tuple[str, ...], _Rest]:
    """Tell images from other pictures, and these from what is no picture."""
    images, unusable, ignored = [], [], []
    for name in names:
        kind = _kind(folder / name)
        if kind == _IMAGE:
            images.append(name)
        elif kind == _UNKNOWN:
            ignored.append(str(folder / name))
        elif kind != _HARMLESS:
            step = "convert it to PNG or JPEG" + (", as the package pillow-heif can" if kind == "HEIC" else "")
            unusable.append(f"image {one_line(str(folder / name))}: {kind} is not read; {step}")
    return tuple(images), _Rest(tuple(unusable), tuple(ignored))


def _kind(path: Path) -> str:
    """Tell by its suffix, and else by its first bytes, what a file is; of a picture that is not read, its format."""
    suffix = path.suffix.lower()
    if path.name.startswith("._") or path.name.lower() in HARMLESS_FILES or suffix in HARMLESS_SUFFIXES:
        return _HARMLESS
    if path.name.startswith("."):
        return _UNKNOWN if suffix in READABLE or suffix in UNREADABLE else _HARMLESS
    if suffix in READABLE or suffix in UNREADABLE:
        return UNREADABLE.get(suffix, _IMAGE)
    found = _content(path)
    return _IMAGE if found in decoding.READABLE else found or _UNKNOWN


def _content(path: Path) -> str | None:
    """Return the picture format of a file; None if it has none, or can't be read."""
    try:
        with files.open_to_read(path) as file:
            return decoding.format_of(file.read(decoding.START))
    except OSError:
        return None


def _require_entries(root: Path, needed: Sequence[str]) -> None:
    """Refuse a folder that lacks an entry, and name the folder inside it that has them all, where there is one."""
    folders, names = _entries(root)
    missing = [name for name in needed if name not in folders + names]
    if not missing:
        return
    inside = [name for name in folders if all((root / name / entry).exists() for entry in needed)]
    step = (
        f"set data.root={root / inside[0]}"
        if inside
        else "set data.root to the folder that holds them; for images of your own add data.name=imagefolder"
    )
    raise UserError(f"data.root ({root}): {', '.join(needed)} are needed there, {missing[0]} is missing; {step}")


def _require_same(
    found: Sequence[str], expected: Sequence[str], folder: Path, *, what: str = "class", source: str = "train"
) -> None:
    missing = sorted(set(expected) - set(found))
    if missing:
        raise UserError(f"folder {folder}: {what} {missing[0]!r} of {source} is missing; add it, or remove it there")
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise UserError(f"folder {folder}: {what} {unknown[0]!r} is not in {source}; add it there, or remove it here")


def _folders(folder: Path) -> tuple[str, ...]:
    return _entries(folder)[0]


def _entries(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """List a folder's folders, without hidden and harmless ones, and its files, each sorted."""
    try:
        with os.scandir(folder) as entries:
            kinds = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        reason = error.strerror or "no reason given"
        raise UserError(f"folder {folder}: cannot be read ({reason}); check data.root and the layout there") from error
    folders = (name for name, is_dir in kinds if is_dir and not _is_hidden(name))
    return tuple(folders), tuple(name for name, is_dir in kinds if not is_dir)


def _lines(file: Path) -> tuple[str, ...]:
    """Read a text file's lines, without empty ones, and without the mark that Windows puts at the beginning."""
    try:
        text = files.read_bytes(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UserError(f"file {file}: cannot be read ({reason}); unpack the archive again") from error
    return tuple(line for line in text.splitlines() if line.strip())
