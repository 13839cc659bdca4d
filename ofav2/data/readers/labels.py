"""Read images whose classes stand in a CSV file."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ofav2 import files
from ofav2.config.schema import DataConfig
from ofav2.data.images import file_images
from ofav2.data.readers.folders import SPLIT_NAMES, root_of
from ofav2.data.splits import Listed, Split
from ofav2.errors import UserError
from ofav2.messages import short, show

COLUMNS = ("path", "label", "split")


class _Row(NamedTuple):
    """A line of the file."""

    path: str
    label: str
    split: str


def read_labels(config: DataConfig, file: Path) -> Listed:
    """Read the images that a CSV file names, with the columns `path`, `label`, and `split` if it gives splits.

    Paths are relative to `data.root`, whose other files are not looked at. Classes are numbered in sorted order.

    Args:
        config: The recipe's data part.
        file: The CSV file.

    Raises:
        UserError: The file can't be read, or a line is wrong; the message names it.
    """
    root, rows = root_of(config), tuple(_rows(file))
    if not root.is_dir():
        raise UserError(f"data.root ({root}): there is no such folder; paths in {file} are relative to it")
    classes = tuple(sorted({row.label for row in rows}))
    if len(classes) < 2:
        raise UserError(f"file {file}: two or more labels are needed, and there are {len(classes)}; add images")
    splits = {
        name: _split(name, [row for row in rows if row.split == name], classes, root, config)
        for name in dict.fromkeys(("train", *(row.split for row in rows)))
    }
    for name, split in splits.items():
        lacking = sorted(set(range(len(classes))) - set(split.targets.tolist()))
        if lacking:
            raise UserError(f"file {file}: class {classes[lacking[0]]!r} has no image in {name}; every split needs one")
    return Listed(classes, splits["train"], splits.get("val"), splits.get("test"))


def _split(name: str, rows: Sequence[_Row], classes: Sequence[str], root: Path, config: DataConfig) -> Split:
    rows = sorted(rows)
    number = {name: index for index, name in enumerate(classes)}
    targets = np.array([number[row.label] for row in rows], dtype=np.int64)
    paths = [row.path for row in rows]
    return Split(name, targets, file_images(root, paths, config.exif_orientation, config.shrink_to))


def _rows(file: Path) -> Iterator[_Row]:
    try:
        text = files.read_bytes(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"data.labels ({file}): can't be read ({reason}); give a CSV file in UTF-8") from error
    lines = csv.reader(text.splitlines(), strict=True)
    seen: set[str] = set()
    try:
        columns = _columns(next(lines, []), file)
        for fields in lines:
            if not fields:
                continue
            if len(fields) != len(columns):
                raise UserError(
                    f"file {file}, line {lines.line_num}: has {len(fields)} fields, and the first line {len(columns)}"
                    f" ({','.join(columns)}); give one for each, in quotes where it holds a comma"
                )
            row = _row(dict(zip(columns, fields, strict=True)), f"file {file}, line {lines.line_num}")
            if row.path in seen:
                raise UserError(f"file {file}, line {lines.line_num}: {short(row.path)} is there twice; remove one")
            seen.add(row.path)
            yield row
    except csv.Error as error:
        raise UserError(f"file {file}, line {lines.line_num}: is no CSV ({error}); mend it") from error


def _columns(head: Sequence[str], file: Path) -> list[str]:
    columns = [name.strip().lower() for name in head]
    if missing := [name for name in ("path", "label") if name not in columns]:
        raise UserError(f"file {file}: column {missing[0]} is missing; the first line must be path,label,split")
    # A split under another name would be drawn anew, and its test images trained on.
    for name in columns:
        if name not in COLUMNS:
            raise UserError(
                f"file {file}: column {show(name)} must be one of {', '.join(COLUMNS)}; rename or remove it"
            )
        if columns.count(name) > 1:
            raise UserError(f"file {file}: column {name} is there twice; remove one")
    return columns


def _row(line: Mapping[str, str], where: str) -> _Row:
    given = line["path"].strip().replace("\\", "/")
    label, split = line["label"].strip(), line.get("split", "").strip() or "train"
    path = PurePosixPath(given)
    if not path.parts or path.is_absolute() or ".." in path.parts or not given.isprintable():
        raise UserError(f"{where}: path ({short(given)}) must lead from data.root to an image below it; mend it")
    if not label or not label.isprintable():
        raise UserError(f"{where}: label ({short(label)}) must be a name of printable characters; mend it")
    if split not in SPLIT_NAMES:
        raise UserError(f"{where}: split ({short(split)}) must be train, val or test; mend it")
    return _Row(os.path.join(*path.parts), label, SPLIT_NAMES[split])
