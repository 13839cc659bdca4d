"""Taking a sub-network out of a run: checked, recalibrated, measured, written whole."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ofav2 import console, folder, recipe
from ofav2.data import ImageData, open_data
from ofav2.errors import RunError, UserError
from ofav2.subnets.cost import subnet_cost
from ofav2.subnets.load import SUBNET_FACTS, SUBNET_FORMAT, SUBNET_WEIGHTS, LoadedSupernet, load_run
from ofav2.training import checkpoint
from ofav2.training.evaluation import Judge, open_judge
from ofav2.training.runtime import Runtime, open_runtime
from supernets import Subnet


@dataclass(frozen=True)
class OpenedRun:
    """A run with its data, ready to judge and extract sub-networks."""

    loaded: LoadedSupernet
    data: ImageData
    judge: Judge
    runtime: Runtime
    same_data: bool
    """Whether the data set is, by its fingerprint, the one that the run was trained on."""


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
    return OpenedRun(loaded, data, judge, runtime, data.fingerprint == loaded.facts["data"]["fingerprint"])


def extract(run: OpenedRun, subnet: Subnet, out: str | Path) -> dict[str, Any]:
    """Writes a sub-network as `model.safetensors` and `subnet.json`.

    Before it is recalibrated, the extracted network's logits are compared with the supernet's on real images.

    Args:
        run: The opened run.
        subnet: A network of the run's space.
        out: Folder to make; it must not exist, or be empty.

    Returns:
        The content of `subnet.json`.

    Raises:
        SpaceError: If the sub-network is outside the space that was trained.
        UserError: If the folder is not empty or can't be written.
        RunError: If the extracted network does not compute what the supernet does.
    """
    net, judge, path = run.loaded.net, run.judge, Path(out)
    net.space.check(subnet)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"output folder ({path}) is not empty: give a new one with --out")
    module = run.runtime.place(net.extract(subnet))
    _check_same(run, module, subnet)
    before = {
        split.name: judge.single_top1(module, subnet.resolution, split) for split in (run.data.val, run.data.test)
    }
    module = judge.calibrated(net, subnet, (subnet.height,))
    after = {split.name: judge.single_top1(module, subnet.resolution, split) for split in (run.data.val, run.data.test)}
    weights = checkpoint.tensor_bytes(module.state_dict())
    facts = run.loaded.facts
    described = {
        "format": SUBNET_FORMAT,
        "subnet": subnet.to_dict(),
        "supernet": facts["supernet"],
        "input": {name: facts["data"][name] for name in ("channels", "mean", "std", "eval_crop")}
        | {"resolution": subnet.resolution},
        "classes": facts["data"]["classes"],
        "cost": asdict(subnet_cost(net.architecture, subnet)),
        "top1": {"before_recalibration": before, "after_recalibration": after},
        "recalibration": {"images": judge.config.calibration_images, "seed": judge.seed},
        "provenance": {
            "run": facts["name"],
            "phase": run.loaded.phase,
            "checkpoint_sha256": run.loaded.sha256,
            "data_fingerprint": run.data.fingerprint,
            "versions": facts["versions"],
        },
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    _write_folder(path, weights, described)
    return described


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


def _check_same(run: OpenedRun, module: nn.Module, subnet: Subnet) -> None:
    images = run.judge.sample_inputs(subnet.resolution)
    with torch.inference_mode():
        expected, found = run.loaded.net.eval()(images, subnet), module(images)
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
        gap = float((found - expected).abs().max())
        raise RunError(f"extracted network differs from the supernet by {gap} in its logits: this is a bug, report it")


def _write_folder(path: Path, weights: bytes, described: dict[str, Any]) -> None:
    """Makes the folder with both files, or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise UserError(
            f"output folder ({path}) cannot be made ({error.strerror}): give one that you may write to"
        ) from error
    try:
        staging.chmod(0o755)
        folder.write_bytes(staging / SUBNET_WEIGHTS, weights)
        folder.write_json(staging / SUBNET_FACTS, described)
        staging.rename(path)
    except OSError as error:
        raise UserError(f"output folder ({path}) cannot be written ({error.strerror}): give a new one") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
