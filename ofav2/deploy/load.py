"""Runs and extracted networks, read back from disk."""

import os.path
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from ofav2 import files
from ofav2.errors import RunError
from ofav2.networks.build import build_supernet
from ofav2.runs import checkpoint
from supernets import Architecture, SpaceError, Subnet

SUBNET_FORMAT = "ofav2-subnet/2"
SUBNET_FACTS = "subnet.json"
SUBNET_WEIGHTS = "model.safetensors"


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
        module = build_supernet(Architecture.from_dict(facts["supernet"]), (subnet.resolution,)).extract(
            subnet, facts["exits"]
        )
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
    # Unlike pathlib's, this takes a name that no file can have for a missing file.
    if not os.path.isfile(path / SUBNET_FACTS):
        raise RunError(f"folder ({path}) has no {SUBNET_FACTS}: give one that `ofav2 extract` made")
    facts = files.read_json(path / SUBNET_FACTS)
    if facts.get("format") != SUBNET_FORMAT:
        raise RunError(
            f"{path / SUBNET_FACTS}: format ({facts.get('format')!r}) must be {SUBNET_FORMAT!r}; extract the network"
            " with this version of ofav2"
        )
    return facts
