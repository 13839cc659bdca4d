"""Add and read the arguments that several verbs take."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ofav2 import files
from ofav2.errors import UserError

if TYPE_CHECKING:
    from supernets import Subnet


def add_recipe(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    """Add RECIPE and its settings; without `needed`, RECIPE may be left out."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs=None if needed else "?",
        help="name out of `ofav2 recipes`, or path of a YAML file",
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change")


def shift_settings(arguments: argparse.Namespace) -> None:
    """Count RECIPE among the settings if it is one; argparse takes the first argument for the recipe."""
    if arguments.recipe is not None and "=" in arguments.recipe:
        arguments.recipe, arguments.overrides = None, [arguments.recipe, *arguments.overrides]


def add_formats(parser: argparse.ArgumentParser) -> None:
    """Add --formats, which files are written beside weights and description."""
    parser.add_argument(
        "--formats",
        metavar="NAMES",
        help="files beside weights and description: onnx,pt2,card (default: all), or none",
    )


def read_formats(text: str | None) -> tuple[str, ...]:
    """Return the formats that --formats names.

    Raises:
        UserError: One is unknown.
    """
    from ofav2.deploy.export import FORMATS, check_formats

    if text is None:
        return FORMATS
    formats = () if text == "none" else tuple(name.strip() for name in text.split(","))
    check_formats(formats)
    return formats


def read_subnet(name: str) -> "Subnet":
    """Return the sub-network that a JSON file describes.

    Raises:
        UserError, SpaceError: The file cannot be read, or describes none.
    """
    from supernets import Subnet

    try:
        fields = files.parse_json(files.read_bytes(Path(name)))
    except OSError as error:
        raise UserError(f"sub-network file ({name}) can't be read ({error.strerror}): give a JSON file") from error
    except ValueError as error:
        raise UserError(f"sub-network file ({name}) is no JSON: {error}") from error
    # What `extract` writes holds the sub-network under a key of its own.
    return Subnet.from_dict(fields["subnet"] if isinstance(fields, dict) and "subnet" in fields else fields)
