"""`ofav2 predict`: classify image files with an extracted network."""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ofav2.cli import console
from ofav2.cli.verb import Verb
from ofav2.errors import UserError
from ofav2.messages import one_line
from ofav2.tables import table

if TYPE_CHECKING:
    from ofav2.inference.classifier import Classified

_EPILOG = """\
examples:
  ofav2 predict small photo.jpg                the five most likely classes
  ofav2 predict small photos --top 1           all images of a folder, at any depth
  ofav2 predict small photos --csv             a line per image and class, for a spreadsheet
  ofav2 predict small photos --json            a JSON object per line and image

An image that can't be read is named, the others go on, and the exit code is 2.

next: ofav2 evaluate DIR
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of an extracted or fine-tuned network")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image file, or folder of images")
    parser.add_argument("--top", metavar="N", type=int, default=5, help="classes per image (default: 5)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object per line and image")
    form.add_argument("--csv", action="store_true", help="print comma-separated values")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.top < 1:
        raise UserError(f"--top ({arguments.top}) must be 1 or more")
    from ofav2.inference.classifier import classify_files, image_files, load_classifier

    classifier, files = load_classifier(arguments.directory), image_files(arguments.images)
    errors, rows = [], []
    show = _as_json if arguments.json else _as_csv if arguments.csv else None
    if arguments.csv:
        console.show("image,rank,class,probability,exit")
    for path, found in classify_files(classifier, files, arguments.top):
        if isinstance(found, UserError):
            errors.append(found)
            console.say(one_line(str(found)))
        elif show is not None:
            console.show_data(show(path, found))
        else:
            rows.append(_row(path, found))
    if rows:
        console.show(table("", ("image", "class", "probability", "exit", "next likely"), rows))
    if errors:
        raise UserError(f"{len(errors)} of {len(files)} images can't be classified: they are named above")


def _as_json(path: Path, found: "Classified") -> str:
    answer = {"classes": found.classes, "probabilities": found.probabilities, "exit": found.exit}
    return json.dumps({"image": str(path), **answer}, ensure_ascii=False)


def _as_csv(path: Path, found: "Classified") -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for rank, (name, probability) in enumerate(zip(found.classes, found.probabilities, strict=True), start=1):
        writer.writerow([path, rank, name, f"{probability:.6f}", found.exit])
    return text.getvalue().rstrip("\n")


def _row(path: Path, found: "Classified") -> tuple[object, ...]:
    first, *others = [
        (one_line(name), f"{100 * probability:.2f} %")
        for name, probability in zip(found.classes, found.probabilities, strict=True)
    ]
    return one_line(str(path)), *first, found.exit, ", ".join(f"{name} {share}" for name, share in others)


VERB = Verb("predict", "Classify images with an extracted network.", _EPILOG, _add_arguments, _run)
