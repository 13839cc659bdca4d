"""Runs and extracted networks, read back from disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

import supernets
from ofav2 import folder
from ofav2.errors import RunError, UserError
from ofav2.subnets.early import EarlyExits, LeavingRule, early_exits
from ofav2.training import checkpoint
from supernets import SpaceError, Subnet, Supernet

SUBNET_FORMAT = "ofav2-subnet/1"
SUBNET_FACTS = "subnet.json"
SUBNET_WEIGHTS = "model.safetensors"
EARLY_FACTS = "early_exits.json"
EARLY_FORMAT = "ofav2-early-exits/1"


@dataclass(frozen=True)
class LoadedSupernet:
    """A run's supernet, and where it came from."""

    net: Supernet
    """The supernet, in evaluation mode; `net.space` holds the networks that were trained."""
    phase: str
    """The phase that left these weights."""
    sha256: str
    """Checksum of the weights file."""
    facts: Mapping[str, Any]
    """What the run's `run.json` holds."""


def load_run(run: str | Path, phase: str | None = None) -> LoadedSupernet:
    """Reads a run's supernet with its facts.

    Args:
        run: A run folder.
        phase: The phase whose weights to take; None takes the last one that is finished.

    Raises:
        RunError: If the folder is no run, or the phase has left no weights.
    """
    path = Path(run)
    facts = folder.open_run(path)
    try:
        finished = {record["name"]: record for record in facts["phases"]}
        if not finished:
            raise RunError(f"run folder ({path}) has no finished phase yet: wait for the first one, or train again")
        chosen = phase or next(reversed(finished))
        if chosen not in finished:
            raise RunError(f"phase ({chosen}) has left no weights in {path}: choose one of {', '.join(finished)}")
        net = build_supernet(facts["supernet"])
        trained = finished[chosen]["space"]
        net.space = net.space.restrict(**{name: trained[name] for name in supernets.DIMENSIONS})
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path / folder.FACTS} lacks {error}: restore the file, or train again") from error
    except SpaceError as error:
        raise RunError(f"{path / folder.FACTS} describes no supernet: {error}; restore the file") from error
    tensors, record = checkpoint.load(folder.checkpoint_path(path, chosen))
    checkpoint.fill(net, tensors, str(path))
    net.eval()
    return LoadedSupernet(net, chosen, record["sha256"], facts)


def load_supernet(run: str | Path, phase: str | None = None) -> Supernet:
    """Reads a run's supernet.

    Args:
        run: A run folder.
        phase: The phase whose weights to take; None takes the last one that is finished.

    Returns:
        The supernet in evaluation mode, on the CPU. Its `space` holds the networks that were trained up to that phase;
        its batch-norm statistics are those of the largest network.

    Raises:
        RunError: If the folder is no run, or the phase has left no weights.
    """
    return load_run(run, phase).net


def load_subnet(directory: str | Path) -> GraphModule:
    """Reads an extracted sub-network that `ofav2 extract` wrote.

    Args:
        directory: The folder with `subnet.json` and `model.safetensors`.

    Returns:
        The network as a plain torch module in evaluation mode: normalised images (N, C, H, W) -> logits (N, classes),
        or a tuple of such logits where it was extracted with exits of its own choice.

    Raises:
        RunError: If a file is missing, damaged or foreign.
    """
    path = Path(directory)
    facts = describe_subnet(path)
    try:
        subnet = Subnet.from_dict(facts["subnet"])
        module = build_supernet(facts["supernet"]).extract(subnet, facts["exits"])
        sha256 = facts["sha256"]
    except (KeyError, TypeError) as error:
        raise RunError(f"{path / SUBNET_FACTS} lacks {error}: extract the network again") from error
    except SpaceError as error:
        raise RunError(f"{path / SUBNET_FACTS} describes no network: {error}; extract it again") from error
    tensors = checkpoint.read_tensors(path / SUBNET_WEIGHTS, sha256, SUBNET_FACTS)
    checkpoint.fill(module, tensors, str(path))
    return module


def describe_subnet(directory: str | Path) -> dict[str, Any]:
    """Reads what `subnet.json` says of an extracted sub-network.

    Args:
        directory: The folder that `ofav2 extract` wrote.

    Raises:
        RunError: If the file is missing, damaged or foreign.
    """
    path = Path(directory)
    if not (path / SUBNET_FACTS).is_file():
        raise RunError(f"folder ({path}) has no {SUBNET_FACTS}: give one that `ofav2 extract` made")
    facts = folder.read_json(path / SUBNET_FACTS)
    if facts.get("format") != SUBNET_FORMAT:
        raise RunError(
            f"{path / SUBNET_FACTS}: format ({facts.get('format')!r}) must be {SUBNET_FORMAT!r}; extract the network"
            " with this version of ofav2"
        )
    return facts


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


def load_leaving_rule(directory: str | Path) -> LeavingRule:
    """Reads when images leave an extracted sub-network, as `ofav2 early` calibrated it.

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
        raise RunError(f"folder ({path}) has no {EARLY_FACTS}: make it with `ofav2 early {path}`")
    facts = folder.read_json(kept)
    if facts.get("format") != EARLY_FORMAT:
        raise RunError(f"{kept}: format ({facts.get('format')!r}) must be {EARLY_FORMAT!r}; make it anew")
    if facts.get("subnet_sha256") != described.get("sha256"):
        raise RunError(f"{kept} is of other weights than the network's: make it anew with `ofav2 early {path}`")
    try:
        given = facts["rule"]
        threshold = tuple(given["threshold"]) if isinstance(given["threshold"], list) else given["threshold"]
        return LeavingRule(threshold, given["confidence"], given["ensemble"])
    except (KeyError, TypeError) as error:
        raise RunError(f"{kept} lacks {error}: make it anew with `ofav2 early {path}`") from error
    except UserError as error:
        raise RunError(f"{kept} holds no rule: {error}; make it anew with `ofav2 early {path}`") from error


def build_supernet(numbers: Mapping[str, Any], seed: int = 0) -> Supernet:
    """A supernet with fresh weights from the numbers that a run has recorded of it."""
    return supernets.create(
        numbers["variant"],
        num_classes=numbers["num_classes"],
        width_mult=numbers["width_mult"],
        kernel=tuple(numbers["kernel"]),
        expand=tuple(numbers["expand"]),
        depth=tuple(numbers["depth"]),
        resolutions=tuple(numbers["space"]["resolution"]),
        stem_stride=numbers["stem_stride"],
        in_channels=numbers["in_channels"],
        seed=seed,
    )
