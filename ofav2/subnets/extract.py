"""Taking a sub-network out of a run: checked, recalibrated, measured, written whole."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ofav2 import console, folder, recipe
from ofav2.data import ImageData, open_data
from ofav2.errors import RunError
from ofav2.subnets.agreement import largest_gap, require_same
from ofav2.subnets.cost import subnet_cost
from ofav2.subnets.export import output_names
from ofav2.subnets.load import SUBNET_FORMAT, LoadedSupernet, load_run
from ofav2.subnets.write import write_network
from ofav2.training.evaluation import Judge, open_judge
from ofav2.training.objectives import exit_logits
from ofav2.training.runtime import Runtime, open_runtime
from supernets import Exits, Subnet, Supernet

COMPARED = 16
"""Real images on which two forms of a network are compared, at most."""
CANARY_GAP = 1e-5
"""Least difference of two networks' logits, as a share of the largest; rounding alone makes less."""


@dataclass(frozen=True)
class OpenedRun:
    """A run with its data, ready to judge and extract sub-networks."""

    loaded: LoadedSupernet
    data: ImageData
    judge: Judge
    runtime: Runtime
    same_data: bool
    """Whether the data set is, by its fingerprint, the one that the run was trained on."""
    recipe: str
    """The run's resolved recipe, as YAML."""


def open_for_judging(run: str | Path, phase: str | None = None) -> OpenedRun:
    """Opens a run's supernet and its data set, as the run's own recipe says.

    Raises:
        RunError: If the folder is no run.
        UserError: If its data set can't be opened.
    """
    loaded = load_run(run, phase)
    config = recipe.load(str(Path(run) / folder.RECIPE))
    runtime = open_runtime(config.run)
    data = open_data(config.data)
    if len(data.classes) != loaded.net.architecture.num_classes:
        raise RunError(
            f"data set ({data.name}) has {len(data.classes)} classes now, the run was trained on"
            f" {loaded.net.architecture.num_classes}: restore the images that it was trained on"
        )
    runtime.place(loaded.net)
    judge = open_judge(config, data, runtime)
    same_data = data.fingerprint == loaded.facts["data"]["fingerprint"]
    return OpenedRun(loaded, data, judge, runtime, same_data, recipe.dump(config))


def extract(
    run: OpenedRun,
    subnet: Subnet,
    out: str | Path,
    exits: Exits = "last",
    *,
    choice: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a sub-network as files: weights, description, ONNX, `torch.export` program, model card.

    Before it is recalibrated, the extracted network's logits are compared with the supernet's on real images, and a
    canary makes sure that another sub-network has other logits. ONNX file and program are read back and compared.

    Args:
        run: The opened run.
        subnet: A network of the run's space.
        out: Folder to make; it must not exist, or be empty.
        exits: Exits whose logits the network returns: `last`, `all`, or exits by number, ascending.
        choice: How it was chosen, `Choice.to_dict()`, to be kept in `subnet.json`; None for a network that was named.

    Returns:
        The content of `subnet.json`.

    Raises:
        SpaceError: If the sub-network is outside the space that was trained, or an exit is not on its way.
        UserError: If the folder is not empty or can't be written.
        RunError: If the extracted network, or a file, does not compute what the supernet does.
    """
    net, judge, path = run.loaded.net, run.judge, Path(out)
    net.space.check(subnet)
    names = output_names(net.chosen_exits(subnet, exits), exits == "last")
    folder.check_free(path)
    console.say(f"extracting {subnet}: measuring it, then writing the files and checking them")
    module = run.runtime.place(net.extract(subnet, exits))
    images = judge.sample_inputs(subnet.resolution)[:COMPARED]
    checks = {
        "images": len(images),
        "supernet_gap": _check_same(net, module, subnet, exits, images),
        "canary": _check_canary(run, module, subnet, exits, images),
    }
    before = _top1(run, module, subnet, exits)
    module = judge.calibrated(net, subnet, exits)
    after = _top1(run, module, subnet, exits)
    described = _describe(run, subnet, exits) | {
        "choice": choice,
        "top1": {"before_recalibration": _of_last(before), "after_recalibration": _of_last(after)},
        "top1_per_exit": {"before_recalibration": before, "after_recalibration": after},
        "checks": checks,
    }
    with folder.making(path) as staging:
        return write_network(staging, module, images, names, described)


def _describe(run: OpenedRun, subnet: Subnet, exits: Exits) -> dict[str, Any]:
    net, judge, facts = run.loaded.net, run.judge, run.loaded.facts
    return {
        "format": SUBNET_FORMAT,
        "name": str(subnet),
        "subnet": subnet.to_dict(),
        "exits": exits if exits == "last" else list(net.chosen_exits(subnet, exits)),
        "supernet": facts["supernet"],
        "input": {name: facts["data"][name] for name in ("channels", "mean", "std", "eval_crop")}
        | {"resolution": subnet.resolution},
        "data": facts["data"]["name"],
        "classes": facts["data"]["classes"],
        "cost": asdict(subnet_cost(net.architecture, subnet, exits)),
        "recalibration": {"images": judge.config.calibration_images, "seed": judge.seed},
        "provenance": {
            "run": facts["name"],
            "phase": run.loaded.phase,
            "checkpoint_sha256": run.loaded.sha256,
            "data_fingerprint": run.data.fingerprint,
            "versions": facts["versions"],
            "recipe": run.recipe,
        },
    }


def _top1(run: OpenedRun, module: nn.Module, subnet: Subnet, exits: Exits) -> dict[str, dict[str, float]]:
    """Top-1 (0..1) by split and exit."""
    keys = [str(exit) for exit in run.loaded.net.chosen_exits(subnet, exits)]
    return {
        split.name: dict(zip(keys, run.judge.exit_top1(module, subnet.resolution, split), strict=True))
        for split in (run.data.val, run.data.test)
    }


def _of_last(top1: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {split: list(per_exit.values())[-1] for split, per_exit in top1.items()}


def measure(run: OpenedRun, subnets: Iterable[Subnet], split: str) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Columns and rows of sub-networks measured on a split, batch norm recalibrated, from the dearest to the cheapest.

    Args:
        run: The opened run.
        subnets: Networks of the run's space.
        split: `val` or `test`.

    Raises:
        SpaceError: If a sub-network is outside the space that was trained.
    """
    net = run.loaded.net
    chosen = tuple(subnets)
    for subnet in chosen:
        net.space.check(subnet)
    images = {"val": run.data.val, "test": run.data.test}[split]
    with console.progress(f"measuring on {split}", len(set(chosen))) as advance:
        scores = []
        for score in run.judge.scores(net, chosen, images):
            scores.append(score)
            advance(top1=score.top1)
    ordered = sorted(
        ((subnet_cost(net.architecture, score.subnet), score) for score in scores), key=lambda pair: -pair[0].macs
    )
    rows: list[tuple[object, ...]] = [
        (str(score.subnet), f"{cost.params:,}", f"{cost.macs:,}", f"{100 * score.top1:.2f}") for cost, score in ordered
    ]
    return ("sub-network", "parameters", "multiply-adds", "top-1 %"), rows


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
