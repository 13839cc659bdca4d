"""Write the folder of an extracted network, and check each file."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ofav2 import files
from ofav2.data.digests import Digests
from ofav2.deploy.agreement import require_same
from ofav2.deploy.artifact import WEIGHTS, ExportRecord, SubnetRecord, load_subnet, write_subnet_record
from ofav2.deploy.card import CARD, model_card
from ofav2.deploy.export import FORMATS, write_exports
from ofav2.deploy.seen import write_seen
from ofav2.runs import checkpoint
from ofav2.runtime.device import Runtime
from supernets.ensembles import with_ensemble
from supernets.outputs import exit_logits


def write_network(
    staging: Path,
    module: GraphModule,
    images: Tensor,
    usage: Mapping[str, Any],
    formats: Sequence[str] = FORMATS,
    ensemble: Sequence[float] | None = None,
) -> tuple[ExportRecord, str]:
    """Write a network's weights, and the network in other formats.

    Args:
        staging: An empty folder, of `output_folder.making`.
        module: A plain network in evaluation mode.
        images: Real, normalised images (N, C, H, W) to compare the formats on.
        usage: How it is used, as `artifact.usage` has it.
        formats: Which of `FORMATS` to write.
        ensemble: Weights of the exits' logits; the other formats then return their weighted sum as well, last.

    Returns:
        How the exported files compare with the network, and the SHA-256 of the weights.

    Raises:
        RunError: If a file can't be written, or does not compute what the network does.
    """
    form = module if ensemble is None else with_ensemble(module, ensemble)
    exports = write_exports(form, images, usage, staging, formats)
    weights = checkpoint.tensor_bytes(module.state_dict())
    files.write_bytes(staging / WEIGHTS, weights)
    return exports, hashlib.sha256(weights).hexdigest()


def weights_sha256(module: GraphModule) -> str:
    """Return the SHA-256 that the file of a network's weights has."""
    return hashlib.sha256(checkpoint.tensor_bytes(module.state_dict())).hexdigest()


def complete_folder(
    staging: Path, record: SubnetRecord, seen: Digests, module: GraphModule, images: Tensor, runtime: Runtime
) -> None:
    """Write all but the network itself: its record, the model card if asked for, what it has seen; then read it back.

    Args:
        staging: The folder, with what `write_network` wrote.
        record: What the network is.
        seen: Digests of all images that it has seen, ascending.
        module: The network, on the device.
        images: Real, normalised images (N, C, H, W), on the device.
        runtime: The device.

    Raises:
        RunError: If a file can't be written, or what is read back does not compute what the network does.
    """
    write_seen(staging, seen)
    write_subnet_record(staging, record)
    if "card" in record.formats:
        files.write_text(staging / CARD, model_card(record))
    with torch.inference_mode():
        loaded = runtime.place(load_subnet(staging))
        require_same(exit_logits(loaded(images)), exit_logits(module(images)), "network that was read back")
