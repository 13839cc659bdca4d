"""Read folders of image files: Tiny ImageNet, ImageNet, and any folder of classes.

Classes are numbered in the sorted order of their folders. Names with a leading dot are always passed over, and so are
files that are no images; anything else that a layout does not have is refused, since it would go missing unseen.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ofav2.config.schema import DataConfig
from ofav2.data.images import file_images
from ofav2.data.splits import Listed, Split
from ofav2.errors import UserError

READABLE = (".jpg", ".jpeg", ".png", ".webp")
UNREADABLE = (".bmp", ".gif", ".heic", ".jp2", ".pgm", ".ppm", ".tif", ".tiff")


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

    A missing test split is held out of train, and then so is a missing validation split.
    """
    root = root_of(config)
    splits = _splits_at(root)
    whole = root / "train" if splits else root
    classes = _class_names(whole)
    train = _class_tree(whole, "train", classes)
    _refuse_other_splits(root, splits, classes)
    val, test = (_class_tree(root / name, name, classes) if name in splits else None for name in ("val", "test"))
    return Listed(classes, train, val, test)


def read_imagenet(config: DataConfig) -> Listed:
    """Read ImageNet from class folders in train and val; val is the test split, validation is held out of train."""
    root = root_of(config)
    _require_entries(root, ("train", "val"))
    classes = _class_names(root / "train")
    train = _class_tree(root / "train", "train", classes)
    return Listed(classes, train, test=_class_tree(root / "val", "test", classes))


def read_tiny_imagenet(config: DataConfig) -> Listed:
    """Read Tiny ImageNet as its archive unpacks.

    The labelled val split is the test split, and validation is held out of train: the archive's own test images have no
    labels.
    """
    root = root_of(config)
    _require_entries(root, ("train", "val", "wnids.txt"))
    wnids = tuple(sorted(set(_lines(root / "wnids.txt"))))
    _require_same(_class_names(root / "train"), wnids, root / "train", source="wnids.txt")
    train = _class_tree(root / "train", "train", wnids, inner="images")
    test, mislabelled = _annotated(root / "val", "test", wnids)
    if mislabelled and config.bad_images == "refuse":
        raise UserError(f"{mislabelled[0]}; unpack the archive again, or leave such images out by data.bad_images=skip")
    return Listed(_readable_names(root / "words.txt", wnids), train, test=test, mislabelled=mislabelled)


def _splits_at(root: Path) -> tuple[str, ...]:
    """Name the split folders of `root`; none if its folders are classes (one of them may be called train)."""
    present = [name for name in ("train", "val", "test") if name in _folders(root) and _folders(root / name)]
    return tuple(present) if "train" in present else ()


def _refuse_other_splits(root: Path, splits: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse folders beside train that look like splits under another name, or like a split without its classes."""
    if not splits:
        return
    for name in _folders(root):
        looks_like_split = name in ("val", "test") or not set(classes).isdisjoint(_folders(root / name))
        if looks_like_split and name not in splits:
            raise UserError(
                f"folder {root / name}: beside train, splits are folders called val and test that hold class folders; "
                "rename it, fill it, or move it out of data.root"
            )


def _class_tree(folder: Path, split: str, classes: Sequence[str], *, inner: str = "") -> Split:
    """Read a split whose images lie in one folder per class, or in the folder `inner` of that."""
    _require_same(_folders(folder), classes, folder)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = _image_files(folder / name / inner)
        paths += [os.path.join(name, inner, file) for file in files]
        labels += [label] * len(files)
    return Split(split, np.array(labels, dtype=np.int64), file_images(folder, paths))


def _annotated(folder: Path, split: str, wnids: Sequence[str]) -> tuple[Split, tuple[str, ...]]:
    """Read a split whose images lie in one folder and whose classes are written in a file (name, tab, class, tab …).

    Returns:
        The images with a class, and why others are none of them.
    """
    annotations = folder / "val_annotations.txt"
    labels, wrong = _annotations(annotations, wnids)
    present = _image_files(folder / "images")
    missing = sorted(set(labels) - set(present))
    wrong += [f"folder {folder / 'images'}: image {file!r} of {annotations.name} is missing" for file in missing]
    unknown = sorted(set(present) - set(labels))
    wrong += [
        f"folder {folder / 'images'}: image {file!r} is not in {annotations.name}, or wrongly" for file in unknown
    ]
    files = [file for file in present if file in labels]
    lacking = sorted(set(wnids) - {wnids[labels[file]] for file in files})
    if lacking and not wrong:
        raise UserError(
            f"file {annotations}: class {lacking[0]!r} has no image; every class needs one; unpack the archive again"
        )
    paths = [os.path.join("images", file) for file in files]
    found = Split(split, np.array([labels[file] for file in files], dtype=np.int64), file_images(folder, paths))
    return found, tuple(wrong)


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
    names = _folders(folder)
    if len(names) < 2:
        found = f"the only one is {names[0]!r}" if names else "there is none"
        raise UserError(
            f"folder {folder}: two or more class folders are needed, and {found}; "
            "set data.root to the data set's own folder, with each class's images in a folder of their own"
        )
    # They are written to the run's facts and shown on its page.
    _require_printable(folder, names)
    return names


def _require_printable(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if not name.isprintable():
            raise UserError(f"folder {folder}: {name!r} is no name that can be printed; rename it")


def _image_files(folder: Path) -> tuple[str, ...]:
    """List a folder's images, sorted."""
    folders, files = _entries(folder)
    if folders:
        raise UserError(
            f"folder {folder}: images lie directly in a class folder, and this one holds the folder {folders[0]!r}; "
            "move its images up, or set data.root to the folder whose folders are train or the classes"
        )
    for file in files:
        if file.lower().endswith(UNREADABLE):
            raise UserError(f"image {folder / file}: read are {', '.join(READABLE)}; convert it, for instance to PNG")
    images = tuple(file for file in files if file.lower().endswith(READABLE))
    if not images:
        raise UserError(f"folder {folder}: no image in it ({', '.join(READABLE)}); add images or remove the folder")
    # torchvision opens no file whose name is not UTF-8.
    _require_printable(folder, images)
    return images


def _require_entries(root: Path, needed: Sequence[str]) -> None:
    """Refuse a folder that lacks an entry, and name the folder inside it that has them all, where there is one."""
    folders, files = _entries(root)
    missing = [name for name in needed if name not in folders + files]
    if not missing:
        return
    inside = [name for name in folders if all((root / name / entry).exists() for entry in needed)]
    step = f"set data.root={root / inside[0]}" if inside else "set data.root to the folder that holds them"
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
    """List a folder's folders and files, each sorted, without names that begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            kinds = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        reason = error.strerror or "no reason given"
        raise UserError(f"folder {folder}: cannot be read ({reason}); check data.root and the layout there") from error
    return tuple(name for name, is_dir in kinds if is_dir), tuple(name for name, is_dir in kinds if not is_dir)


def _lines(file: Path) -> tuple[str, ...]:
    """Read a text file's lines, without empty ones."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"file {file}: cannot be read ({error}); unpack the archive again") from error
    return tuple(line for line in text.splitlines() if line.strip())
