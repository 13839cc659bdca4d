"""Read what `ofav2 calibrate` wrote beside an extracted network."""

from pathlib import Path

from ofav2 import files
from ofav2.deploy.load import describe_subnet, load_subnet
from ofav2.errors import RunError, UserError
from ofav2.exits.early import EarlyExits, ExitPolicy, early_exits

EARLY_FACTS = "early_exits.json"
EARLY_FORMAT = "ofav2-early-exits/1"


def load_early_exits(directory: str | Path) -> EarlyExits:
    """Reads an extracted sub-network with several exits as one that images can leave early.

    Args:
        directory: The folder of `ofav2 extract --exits all`, or of chosen exits.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        RunError: If a file is missing, damaged or foreign, or the network has one exit.
    """
    return early_exits(load_subnet(directory), several_exits(directory))


def several_exits(directory: str | Path) -> tuple[int, ...]:
    """The exits of an extracted sub-network, by number.

    Raises:
        RunError: If `subnet.json` is missing, damaged or foreign, or the network has one exit.
    """
    exits = describe_subnet(directory).get("exits")
    if not isinstance(exits, list) or len(exits) < 2:
        raise RunError(
            f"folder ({directory}) holds a network with one exit, so none to leave early at: extract it with"
            " --exits all"
        )
    return tuple(exits)


def load_exit_policy(directory: str | Path) -> ExitPolicy:
    """Reads when images leave an extracted sub-network, as `ofav2 calibrate` calibrated it.

    Args:
        directory: The folder of the network.

    Returns:
        The rule, for `EarlyExits.decide`.

    Raises:
        RunError: If a file is missing, damaged or foreign, or the rule is of other weights.
    """
    path = Path(directory)
    described, kept = describe_subnet(path), path / EARLY_FACTS
    if not kept.is_file():
        raise RunError(f"folder ({path}) has no {EARLY_FACTS}: make it with `ofav2 calibrate {path}`")
    facts = files.read_json(kept)
    if facts.get("format") != EARLY_FORMAT:
        raise RunError(f"{kept}: format ({facts.get('format')!r}) must be {EARLY_FORMAT!r}; make it anew")
    if facts.get("subnet_sha256") != described.get("sha256"):
        raise RunError(f"{kept} is of other weights than the network's: make it anew with `ofav2 calibrate {path}`")
    try:
        given = facts["rule"]
        threshold = tuple(given["threshold"]) if isinstance(given["threshold"], list) else given["threshold"]
        return ExitPolicy(threshold, given["confidence"], given["ensemble"])
    except (KeyError, TypeError) as error:
        raise RunError(f"{kept} lacks {error}: make it anew with `ofav2 calibrate {path}`") from error
    except UserError as error:
        raise RunError(f"{kept} holds no rule: {error}; make it anew with `ofav2 calibrate {path}`") from error
