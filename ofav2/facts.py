"""The facts that a run records of itself, so that whoever finds the folder can tell what it is and repeat it."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ofav2.config import Config
from ofav2.data import ImageData
from ofav2.errors import RunError
from ofav2.training.phases import Plan
from ofav2.wording import short
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


def check_progress(facts: Mapping[str, Any], plan: Plan, where: Path) -> None:
    """Passes if a plan can go on where a run's facts say that it stands.

    Args:
        facts: What `run.json` holds.
        plan: The phases of the run's recipe as it is now.
        where: Path of `run.json`.

    Raises:
        RunError: If the facts are damaged, or the finished phases are not the plan's first.
    """
    finished = facts.get("phases")
    if (
        not isinstance(facts.get("status"), str)
        or not isinstance(facts.get("wandb_run_id"), str | None)
        or not isinstance(finished, list)
        or not all(isinstance(record, dict) and _is_record(record) for record in finished)
    ):
        raise RunError(f"{where} does not say how far the run is: restore it from a copy, or train again")
    took = [(record["name"], record["global_step"]) for record in finished]
    takes = [(phase.name, phase.first_step + phase.steps) for phase in plan.phases[: len(finished)]]
    if took != takes:
        raise RunError(
            f"phases that are finished ({_ends(took)}) are not the recipe's first ({_ends(takes)}):"
            " restore the recipe's first phases and data.batch_size, or train in a new folder"
        )


def _is_record(record: Mapping[str, Any]) -> bool:
    counts, top1 = (record.get("global_step"), record.get("metrics_bytes")), record.get("ensemble_top1")
    return (
        all(isinstance(record.get(key), str) for key in ("name", "leaves"))
        and all(type(count) is int and 0 <= count < 2**63 for count in counts)
        and isinstance(top1, int | float)
    )


def _ends(phases: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{short(name)} to step {end}" for name, end in phases) or "none"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
