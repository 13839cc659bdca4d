"""Add and read the arguments that several verbs take."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ofav2 import files
from ofav2.errors import UserError

if TYPE_CHECKING:
    from ofav2.nas.limits import Limits
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


def add_formats(parser: argparse.ArgumentParser, default: str = "all") -> None:
    """Add --formats, which files are written beside weights and description."""
    parser.add_argument(
        "--formats",
        metavar="NAMES",
        help=f"files beside weights and description: onnx,pt2,card (default: {default}), or none",
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


def add_limits(parser: argparse._ActionsContainer) -> None:
    """Add the options that limit which sub-networks of a run may be chosen."""
    parser.add_argument("--max-macs", metavar="30M", help="multiply-adds per image")
    parser.add_argument("--max-params", metavar="2M", help="parameters")
    parser.add_argument("--max-memory", metavar="512KiB", help="peak activation memory, batch 1, float32")
    parser.add_argument("--max-latency", metavar="8ms", help="latency that the run's table predicts")
    parser.add_argument("--exit", metavar="3", help="exits to end at: a number, a list 2,4 or a range 3..5")
    parser.add_argument("--resolution", metavar="48..64", help="resolutions, likewise")
    parser.add_argument(
        "--latency-table", metavar="FILE", help="table of `ofav2 latency` (default: latency.json in the run folder)"
    )


LIMITS = ("max_macs", "max_params", "max_memory", "max_latency")
"""Names of the limits that `add_limits` adds."""
PARTS = ("exit", "resolution", "latency_table")
"""Names of what else it adds."""


def read_limits(arguments: argparse.Namespace) -> "Limits":
    """Return the limits that the options of `add_limits` set.

    Raises:
        UserError: One can't be read.
    """
    from ofav2.nas.limits import parse_limits

    return parse_limits(**{name.removeprefix("max_"): getattr(arguments, name) for name in LIMITS})


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
