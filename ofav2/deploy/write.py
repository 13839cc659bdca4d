"""Write the folder of an extracted network, and check each file."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from ofav2 import files
from ofav2.deploy.artifact import WEIGHTS, ExportRecord, SubnetRecord, write_subnet_record
from ofav2.deploy.card import CARD, model_card
from ofav2.deploy.export import FORMATS, write_exports
from ofav2.runs import checkpoint
from supernets.ensembles import with_ensemble


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


def write_description(staging: Path, record: SubnetRecord) -> None:
    """Write a network's record, and its model card where that is among the record's formats.

    Raises:
        RunError: If a file can't be written.
    """
    write_subnet_record(staging, record)
    if "card" in record.formats:
        files.write_text(staging / CARD, model_card(record))
