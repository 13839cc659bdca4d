"""Extracted networks on disk without a run: only what loading them needs."""

import hashlib
import json
from pathlib import Path

from ofav2.runs import checkpoint
from supernets import Exits, Subnet, Supernet


def written(folder: Path, net: Supernet, subnet: Subnet, exits: Exits = "last") -> Path:
    """Writes `subnet.json` and `model.safetensors`; returns their folder."""
    folder.mkdir(parents=True)
    weights = checkpoint.tensor_bytes(net.extract(subnet, exits).state_dict())
    (folder / "model.safetensors").write_bytes(weights)
    facts = {
        "format": "ofav2-subnet/2",
        "subnet": subnet.to_dict(),
        "exits": exits,
        "supernet": net.architecture.to_dict(),
        "input": {
            "channels": net.architecture.in_channels,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.25, 0.3, 0.2],
            "eval_crop": 0.875,
            "resolution": subnet.resolution,
        },
        "classes": [f"class {number}" for number in range(net.architecture.num_classes)],
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    (folder / "subnet.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder
