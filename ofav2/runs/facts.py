"""The facts that a run records of itself, so that whoever finds the folder can tell what it is and repeat it."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ofav2.config.schema import Config
from ofav2.data import ImageData
from supernets import Supernet

PACKAGES = ("ofav2", "torch", "torchvision", "timm", "numpy", "omegaconf", "wandb")


def describe_run(name: str, config: Config, data: ImageData, net: Supernet) -> dict[str, Any]:
    """Facts of a run that starts now.

    Args:
        name: The run's name.
        config: Its recipe.
        data: Its data set.
        net: Its supernet.
    """
    return {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "training",
        "versions": versions(),
        "seed": config.run.seed,
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "channels": data.channels,
            "mean": list(data.mean),
            "std": list(data.std),
            "eval_crop": config.data.eval_crop,
            "fingerprint": data.fingerprint,
            "images": {split.name: len(split) for split in (data.train, data.val, data.test)},
            # Runs from before images could be left out lack the key, and go on.
            **({"skipped": {"count": len(data.skipped), "first": list(data.skipped[:20])}} if data.skipped else {}),
        },
        "supernet": {**asdict(net.architecture), "space": asdict(net.space)},
        "wandb_run_id": None,
        "phases": [],
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results may depend on; None for one that is not installed."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


def lasting_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that stay the same for as long as a run lasts: its data, its supernet, its seed."""
    # Through JSON once, as facts that were read from a file have been.
    plain = json.loads(json.dumps({name: facts.get(name) for name in ("seed", "data", "supernet")}))
    return {str(name): value for name, value in plain.items()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
