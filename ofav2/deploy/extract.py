"""Extract a sub-network from a run: check, recalibrate, measure and write it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ofav2 import files
from ofav2.deploy.agreement import largest_gap, require_same
from ofav2.deploy.export import FORMATS, check_formats, output_names
from ofav2.deploy.load import SUBNET_FORMAT
from ofav2.deploy.write import write_network
from ofav2.errors import RunError
from ofav2.evaluation.opened_run import OpenedRun
from supernets import Exits, Subnet, Supernet
from supernets.outputs import exit_logits
from supernets.subnet_cost import subnet_cost

logger = logging.getLogger(__name__)

COMPARED = 16
"""Real images on which two forms of a network are compared, at most."""
CANARY_GAP = 1e-5
"""Least difference of two networks' logits, as a share of the largest; rounding alone makes less."""


def extract(
    run: OpenedRun,
    subnet: Subnet,
    out: str | Path,
    exits: Exits = "last",
    *,
    choice: Mapping[str, Any] | None = None,
    formats: Sequence[str] = FORMATS,
) -> dict[str, Any]:
    """Write a sub-network as files: weights, description, ONNX, `torch.export` program, model card.

    Before it is recalibrated, the extracted network's logits are compared with the supernet's on real images, and a
    canary makes sure that another sub-network has other logits. ONNX file and program are read back and compared.

    Args:
        run: The opened run.
        subnet: A network of the run's space.
        out: Folder to make; it must not exist, or be empty.
        exits: Exits whose logits the network returns: `last`, `all`, or exits by number, ascending.
        choice: How it was chosen, `Choice.to_dict()`, to be kept in `subnet.json`; None for a network that was named.
        formats: Which files to write beside weights and description: `onnx`, `pt2` and `card`, all by default.

    Returns:
        The content of `subnet.json`.

    Raises:
        SpaceError: If the sub-network is outside the space that was trained, or an exit is not on its way.
        UserError: If the folder is not empty or can't be written, or a format does not exist.
        RunError: If the extracted network, or a file, does not compute what the supernet does.
    """
    net, evaluator, path = run.loaded.net, run.evaluator, Path(out)
    check_formats(formats)
    net.space.check(subnet)
    names = output_names(net.chosen_exits(subnet, exits), exits == "last")
    files.check_free(path)
    logger.info(f"extracting {subnet}: measuring it, then writing the files and checking them")
    module = run.runtime.place(net.extract(subnet, exits))
    images = evaluator.sample_inputs(subnet.resolution)[:COMPARED]
    checks = {
        "images": len(images),
        "supernet_gap": _check_same(net, module, subnet, exits, images),
        "canary": _check_canary(run, module, subnet, exits, images),
    }
    before = _top1(run, module, subnet, exits)
    module = evaluator.calibrated(net, subnet, exits)
    after = _top1(run, module, subnet, exits)
    described = _describe(run, subnet, exits) | {
        "choice": choice,
        "top1": {"before_recalibration": _of_last(before), "after_recalibration": _of_last(after)},
        "top1_per_exit": {"before_recalibration": before, "after_recalibration": after},
        "checks": checks,
    }
    with files.making(path) as staging:
        return write_network(staging, module, images, names, described, formats)


def _describe(run: OpenedRun, subnet: Subnet, exits: Exits) -> dict[str, Any]:
    net, evaluator, record = run.loaded.net, run.evaluator, run.loaded.record
    return {
        "format": SUBNET_FORMAT,
        "name": str(subnet),
        "subnet": subnet.to_dict(),
        "exits": exits if exits == "last" else list(net.chosen_exits(subnet, exits)),
        "supernet": record.architecture.to_dict(),
        "input": {
            "channels": record.data.channels,
            "mean": list(record.data.mean),
            "std": list(record.data.std),
            "eval_crop": record.data.eval_crop,
            "resolution": subnet.resolution,
        },
        "data": record.data.name,
        "classes": list(record.data.classes),
        "cost": asdict(subnet_cost(net.architecture, subnet, exits)),
        "recalibration": {"images": evaluator.config.calibration_images, "seed": evaluator.seed},
        "provenance": {
            "run": record.name,
            "phase": run.loaded.phase,
            "checkpoint_sha256": run.loaded.sha256,
            "data_fingerprint": run.data.fingerprint,
            "versions": record.versions,
            "recipe": run.recipe,
        },
    }


def _top1(run: OpenedRun, module: nn.Module, subnet: Subnet, exits: Exits) -> dict[str, dict[str, float]]:
    """Top-1 (0..1) by split and exit."""
    keys = [str(exit) for exit in run.loaded.net.chosen_exits(subnet, exits)]
    return {
        split.name: dict(zip(keys, run.evaluator.exit_scores(module, subnet.resolution, split), strict=True))
        for split in (run.data.val, run.data.test)
    }


def _of_last(top1: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {split: list(per_exit.values())[-1] for split, per_exit in top1.items()}


def _check_same(net: Supernet, module: nn.Module, subnet: Subnet, exits: Exits, images: Tensor) -> float:
    with torch.inference_mode():
        expected, found = exit_logits(net.eval()(images, subnet, exits)), exit_logits(module(images))
    return require_same(found, expected, "extracted network, beside the supernet,")


def _check_canary(run: OpenedRun, module: nn.Module, subnet: Subnet, exits: Exits, images: Tensor) -> dict[str, Any]:
    """Another network of the space must have other logits, or the comparison with the supernet would prove nothing."""
    net = run.loaded.net
    # One that ends at the same exit proves more: there, only kernel, expansion, depth or branches differ.
    spaces = (net.space.restrict(height=(subnet.height,)), net.space)
    ends = (end for space in spaces for end in (space.smallest(), space.largest()))
    others = [end for end in (replace(end, resolution=subnet.resolution) for end in ends) if end != subnet]
    if not others:
        return {"other": None, "gap": None}
    with torch.inference_mode():
        other = exit_logits(run.runtime.place(net.extract(others[0]))(images))[-1:]
        gap = largest_gap(other, exit_logits(module(images))[-1:])
    if not gap > CANARY_GAP:
        raise RunError(
            f"sub-networks ({subnet}) and ({others[0]}) have the same logits, so choices have no effect: nothing was"
            " written; if the run was trained at all, please report it with the recipe"
        )
    return {"other": str(others[0]), "gap": gap}
