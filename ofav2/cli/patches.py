"""`ofav2 patches`: import satellite images as patches."""

import argparse
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ofav2.cli import console
from ofav2.cli.verb import Verb
from ofav2.errors import UserError
from ofav2.messages import show

if TYPE_CHECKING:
    # They load numpy and torch.
    from ofav2.data.importing.scenes import Imported

STRIDE = 32
"""Total stride of the supernets of the recipes for patches, which images must have at least."""

_EPILOG = """\
examples:
  ofav2 patches tif scenes --side 128 --out patches
  ofav2 patches tif images --codes water=masks --places folder --out patches
  ofav2 patches majortom Core-S2L2A/images --offset product_id --out patches
  ofav2 patches phileo downstream_np --target roads --shots 50 --out roads_50

`ofav2 patches tif --help` and so on show each source's options.

next: ofav2 plan eo_segment data.root=DIR data.target=NAME
"""
_TIF = """\
A file is a scene, or with --single-bands a folder is one. Folders train, val and test on top are splits. Masks lie at
the same path in a folder of their own. What is written is described in patches.yaml, where names can be edited.
"""
_MAJORTOM = """\
SOURCE is a .parquet file, or a folder of these or of unpacked samples (ROW/ROW_COLUMN/PRODUCT/BAND.tif). Bands of 20 m
are doubled to 10 m. A place is a cell of MajorTOM's grid.
"""
_PHILEO = """\
SOURCE has PhilEO Bench's .npy files. DIR gets a description and a link to SOURCE; nothing is copied. With --shots or
--list, training and validation take few patches; all test patches are always taken.
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    forms = parser.add_subparsers(title="sources", metavar="FORM", required=True, dest="form")
    tif = _form(forms, "tif", "Import a folder of GeoTIFFs.", _TIF, _run_tif)
    _add_common(tif, "side of the patches in pixels; each scene is a patch without it")
    tif.add_argument("--bands", metavar="A,B", help="which bands, in this order; all of the first scene without it")
    tif.add_argument("--band-names", metavar="A,B", help="names of the bands of each file, in the file's order")
    tif.add_argument("--single-bands", action="store_true", help="files of one band: SCENE/ANYTHING_BAND.tif")
    tif.add_argument(
        "--codes", action="append", default=[], metavar="NAME=DIR", help="a target: masks of classes; may be repeated"
    )
    tif.add_argument(
        "--numbers", action="append", default=[], metavar="NAME=DIR", help="a target: masks of numbers; likewise"
    )
    tif.add_argument("--classes", action="store_true", help="the folder that a scene lies in is its class")
    tif.add_argument(
        "--places",
        choices=("cell", "file", "folder"),
        default="cell",
        help="what tells places apart: the 10 km cell of a scene's middle (default), its file or its folder",
    )
    tom = _form(forms, "majortom", "Import MajorTOM.", _MAJORTOM, _run_majortom)
    _add_common(tom, "side of the patches in pixels (128, in place 1024)")
    tom.add_argument(
        "--in-place", action="store_true", help="copy no bands: read parquet while training, a sample as a patch"
    )
    tom.add_argument("--bands", metavar="A,B", help="which bands, in this order (PhilEO's ten)")
    tom.add_argument("--clouds", action="store_true", help="make the cloud mask a target")
    tom.add_argument("--first", type=_whole, metavar="N", help="import the first N samples only")
    phileo = _form(forms, "phileo", "Open PhilEO Bench's files.", _PHILEO, _run_phileo)
    phileo.add_argument("--target", choices=("roads", "building", "lc"), required=True, help="what is learnt")
    few = phileo.add_mutually_exclusive_group()
    few.add_argument("--shots", type=_whole, metavar="N", help="draw N training patches per bucket, as the bench does")
    few.add_argument("--list", metavar="FILE", help="take the patches of a released list (indices_….json)")
    phileo.add_argument(
        "--published-validation", action="store_true", help="validate as the bench does: on the tiles of training"
    )
    phileo.add_argument(
        "--highest", type=int, choices=(1, 100), help="largest number of roads and building; found without it"
    )


def _form(forms: Any, name: str, summary: str, text: str, run: Any) -> argparse.ArgumentParser:
    own: argparse.ArgumentParser = forms.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own.add_argument("source", metavar="SOURCE", help="where the images are")
    own.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    own.set_defaults(import_form=run)
    return own


def _add_common(parser: argparse.ArgumentParser, side_help: str) -> None:
    parser.add_argument("--side", type=_whole, metavar="N", help=side_help)
    parser.add_argument(
        "--nodata", type=float, metavar="N", help="value of a pixel without data, if files don't state it"
    )
    parser.add_argument("--location", action="store_true", help="make the direction of each patch's middle a target")
    parser.add_argument(
        "--offset",
        default="0",
        metavar="N|product_id",
        help="subtract N from all bands, or with product_id 1000 where the product's baseline is 04.00 or later",
    )
    parser.add_argument(
        "--broken", choices=("refuse", "skip"), default="refuse", help="what to do with scenes that can't be used"
    )


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def _run(arguments: argparse.Namespace) -> None:
    arguments.import_form(arguments)


def _run_tif(arguments: argparse.Namespace) -> None:
    codes, numbers = _folders("--codes", arguments.codes), _folders("--numbers", arguments.numbers)
    masks = codes | numbers
    if len(masks) < len(arguments.codes) + len(arguments.numbers):
        raise UserError("--codes and --numbers: a target is named twice; give each its own name")
    from ofav2.data.importing.geotiffs import Layout, import_geotiffs
    from ofav2.data.importing.scenes import Form

    kinds: dict[str, Literal["codes", "numbers"]] = {name: "codes" if name in codes else "numbers" for name in masks}
    layout = Layout(
        single_bands=arguments.single_bands,
        band_names=_names("--band-names", arguments.band_names),
        places=arguments.places,
        classes=arguments.classes,
        masks=masks,
    )
    form = Form(
        side=arguments.side,
        bands=_names("--bands", arguments.bands),
        nodata=arguments.nodata,
        masks=kinds,
        location=arguments.location,
        offset=_offset(arguments.offset),
        broken=arguments.broken,
    )
    _told(import_geotiffs(Path(arguments.source), layout, form, Path(arguments.out)), arguments.out)


def _run_majortom(arguments: argparse.Namespace) -> None:
    from ofav2.data.importing.majortom import BANDS, import_majortom
    from ofav2.data.importing.scenes import Form

    form = Form(
        side=arguments.side or (1024 if arguments.in_place else 128),
        bands=_names("--bands", arguments.bands) or BANDS,
        nodata=arguments.nodata,
        location=arguments.location,
        offset=_offset(arguments.offset),
        broken=arguments.broken,
        in_place=arguments.in_place,
    )
    found = import_majortom(
        Path(arguments.source), form, Path(arguments.out), clouds=arguments.clouds, limit=arguments.first
    )
    _told(found, arguments.out)


def _run_phileo(arguments: argparse.Namespace) -> None:
    from ofav2.data.importing.phileo import Choice, describe_phileo

    choice = Choice(
        target=arguments.target,
        shots=arguments.shots,
        indices=Path(arguments.list) if arguments.list else None,
        published_validation=arguments.published_validation,
        highest=arguments.highest,
    )
    found = describe_phileo(Path(arguments.source), choice, Path(arguments.out))
    console.show(arguments.out)
    said = "" if found.highest is None else f", numbers from 0 to {found.highest}"
    console.say(
        f"made {arguments.out}: {_counted(found.patches)} of {found.tiles} tiles, target {arguments.target}{said};"
        f" files without its labels: {found.unlabelled}"
    )
    task = "eo_segment" if found.highest is None else "eo_regress"
    console.say(f"next: ofav2 plan {task} {shlex.quote(f'data.root={arguments.out}')}")


def _told(found: "Imported", out: str) -> None:
    console.show(out)
    height, width = found.side
    console.say(
        f"made {out}: {_counted(found.patches)} patches of {height} x {width} pixels and {len(found.bands)} bands"
        f" ({', '.join(found.bands)}), from {found.scenes} scenes in {found.places} places"
    )
    if found.left_out:
        said = ", ".join(f"{fault} {count}" for fault, count in sorted(found.left_out.items()))
        console.say(f"scenes left out: {sum(found.left_out.values())} ({said}); see left_out.csv there")
    if found.blank:
        console.say(f"patches left out as no pixel has data in all bands: {found.blank}")
    if (common := math.gcd(*found.side)) < STRIDE or common % 2:
        console.say(
            f"patches of {height} x {width} pixels don't fit the recipes for patches: import again with --side 64, or"
            f" another even side of {STRIDE} or more"
        )
    else:
        console.say(f"next: ofav2 plan {shlex.join(_plan(found, out))}")


def _plan(found: "Imported", out: str) -> list[str]:
    """Return the arguments of `ofav2 plan` that fit what was imported: to learn its first target, or to pretrain."""
    name = next(iter(found.targets), None)
    kind = None if name is None or name == "location" else found.targets[name]
    recipe = {None: "eo_pretrain", "numbers": "eo_regress"}.get(kind, "eo_segment")
    given = [recipe, *(["task=classification"] if kind == "classes" else []), f"data.root={out}"]
    given += [f"data.target={name}"] if name is not None else []
    # The recipes' side, which windows of a patch must fill.
    fits = all(side % 64 == 0 for side in found.side)
    return given if fits else [*given, f"data.resolutions=[{math.gcd(*found.side)}]"]


def _counted(patches: Mapping[str, int]) -> str:
    parts = [f"{count} {name}" for name, count in patches.items() if count]
    return " + ".join(parts) if len(parts) > 1 else parts[0].split()[0]


def _names(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(name and name.isprintable() for name in names) or len(set(names)) != len(names):
        raise UserError(f"{option} ({show(text)}): must be different names with commas between")
    return names


def _folders(option: str, given: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not (equals and folder and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name)):
            raise UserError(f"{option} ({show(text)}): must be NAME=DIR, with a name of letters, digits, _ and -")
        found[name] = Path(folder)
    return found


def _offset(text: str) -> int | Literal["product_id"]:
    if text == "product_id":
        return "product_id"
    if not re.fullmatch(r"-?[0-9]{1,5}", text):
        raise UserError(f"--offset ({show(text)}): must be a whole number, or product_id")
    return int(text)


VERB = Verb("patches", "Import satellite images as patches.", _EPILOG, _add_arguments, _run)
