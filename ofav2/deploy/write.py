"""Write the folder of an extracted network, and check each file."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ofav2 import files
from ofav2.deploy.card import CARD, model_card
from ofav2.deploy.export import FORMATS, write_exports
from ofav2.deploy.load import SUBNET_FACTS, SUBNET_WEIGHTS
from ofav2.runs import checkpoint


def write_network(
    staging: Path,
    module: nn.Module,
    images: Tensor,
    names: Sequence[str],
    described: Mapping[str, Any],
    formats: Sequence[str] = FORMATS,
) -> dict[str, Any]:
    """Write weights and description, as `load_subnet` reads them, and the network in other formats.

    Args:
        staging: An empty folder, of `folder.making`.
        module: A plain network in evaluation mode.
        images: Real, normalised images (N, C, H, W) to compare the forms on.
        names: Names of the ONNX file's outputs, one per exit.
        described: What is to be said of the network; `checks` are added to, `formats` and the weights' `sha256` set.
        formats: Which of `FORMATS` to write.

    Returns:
        The content of `subnet.json`.

    Raises:
        RunError: If a file can't be written, or does not compute what the network does.
    """
    checks = {**described.get("checks", {}), **write_exports(module, images, names, staging, formats)}
    weights = checkpoint.tensor_bytes(module.state_dict())
    facts = {"checks": checks, "formats": list(formats), "sha256": hashlib.sha256(weights).hexdigest()}
    whole = {**described, **facts}
    files.write_bytes(staging / SUBNET_WEIGHTS, weights)
    files.write_json(staging / SUBNET_FACTS, whole)
    if "card" in formats:
        files.write_text(staging / CARD, model_card(whole))
    return whole
