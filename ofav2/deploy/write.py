"""The folder of an extracted network: its files in all their forms, checked while they are written."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ofav2 import files
from ofav2.deploy.card import CARD, model_card
from ofav2.deploy.export import write_exports
from ofav2.deploy.load import SUBNET_FACTS, SUBNET_WEIGHTS
from ofav2.runs import checkpoint


def write_network(
    staging: Path, module: nn.Module, images: Tensor, names: Sequence[str], described: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes weights, description, ONNX, `torch.export` program and model card, as `load_subnet` reads them.

    Args:
        staging: An empty folder, of `folder.making`.
        module: A plain network in evaluation mode.
        images: Real, normalised images (N, C, H, W) to compare the forms on.
        names: Names of the ONNX file's outputs, one per exit.
        described: What is to be said of the network; `checks` are added to, `sha256` of the weights is set here.

    Returns:
        The content of `subnet.json`.

    Raises:
        RunError: If a file can't be written, or does not compute what the network does.
    """
    checks = {**described.get("checks", {}), **write_exports(module, images, names, staging)}
    weights = checkpoint.tensor_bytes(module.state_dict())
    whole = {**described, "checks": checks, "sha256": hashlib.sha256(weights).hexdigest()}
    files.write_bytes(staging / SUBNET_WEIGHTS, weights)
    files.write_json(staging / SUBNET_FACTS, whole)
    files.write_text(staging / CARD, model_card(whole))
    return whole
