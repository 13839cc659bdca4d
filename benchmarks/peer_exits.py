"""Early exits beside `earlyon` (PyPI): same backbone, images and steps; docs/log/2026-11-26-exits.md has the results.

pip install earlyon==0.3.0
python -m benchmarks.peer_exits data.root=PATH --seeds 3        # a folder of images by class
python -m benchmarks.peer_exits data.root=PATH --epochs 12 network.name=resnet10t --folder DIR    # may be stopped

Both train a network of timm with an exit behind each stage, all of them together: AdamW, the same batches, the same
learning rate. Each library then calibrates on validation, by its own rule, for mean multiply-adds of some share of the
whole network's. `earlyon` looks at more thresholds than by default, as its default ones keep no budget below three
quarters. Test images are those that neither has seen.

With --folder, the same command goes on where it was stopped: networks that are trained and seeds that are measured are
kept there. A training by `earlyon` begins again, as it saves nothing on the way.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

import ofav2
from benchmarks.sides import command_line, mean_and_error, time_sides
from ofav2 import files
from ofav2.cli import console
from ofav2.config import recipe
from ofav2.data import Split, steps_per_epoch, train_batches
from ofav2.errors import UserError
from ofav2.exits.calibrate import calibrate_exits
from ofav2.exits.collect import split_inputs
from ofav2.exits.opened import OpenedExits, open_exits
from ofav2.rng import Stream
from ofav2.tables import table
from ofav2.training.run import train_or_resume
from ofav2.typed_json import to_plain
from supernets.backbone import Backbone

SETTINGS = (
    "network.name=resnet10t",
    "data.shrink_to=0",
    "optim.grad_clip=0",
    "optim.label_smoothing=0",
    "phases.all.dropout=0",
    "phases.all.warmup_epochs=0",
    "evaluation.every_epochs=0",
    "run.device=cpu",
    "run.threads=1",
)
"""What both sides do, so without what `earlyon` has no setting for: warm-up, clipping, smoothing."""
SHARES = (0.6, 0.7, 0.8, 0.9)
"""Mean multiply-adds per image, as a share of the whole network's, that both sides calibrate for."""
GRID = tuple(np.linspace(0.99, 0.1, 90).round(2).tolist())
"""Thresholds that `earlyon` tries at each exit."""
TIMED_SHARE = 0.7
BATCHES = (1, 64)
TIMED_IMAGES = 128


@dataclass(frozen=True)
class Reached:
    """What a side reaches on test at a share."""

    top1: float
    """Share of right images."""
    macs: float
    """Mean multiply-adds per image as a share of the whole network's."""


Seed = Mapping[str, Any]
"""By side and share: `Reached`; by side and batch: milliseconds per image; by side: seconds of training."""


@contextmanager
def adding_time(path: Path) -> Iterator[None]:
    """Add the processor time of what is done within to the seconds in a file."""
    started, before = time.process_time(), read_seconds(path)
    try:
        yield
    finally:
        path.write_text(json.dumps(before + time.process_time() - started), "utf-8")


def read_seconds(path: Path) -> float:
    """Return what `adding_time` wrote; 0 before."""
    return float(json.loads(path.read_text("utf-8"))) if path.exists() else 0.0


def train_ours(overrides: Sequence[str], folder: Path) -> tuple[Path, float]:
    """Train and extract with this project; return the network's folder and seconds of processor time."""
    seconds, net = folder / "ours_seconds.json", folder / "net"
    if not net.exists():
        with adding_time(seconds):
            run = train_or_resume(folder / "run", "exits", overrides)
        opened = ofav2.open_run(run.folder)
        ofav2.extract(opened, opened.loaded.net.space.largest(), net, "all", formats=())
    return net, read_seconds(seconds)


class Epochs:
    """The batches of this project's training, an epoch each time it is iterated."""

    def __init__(self, opened: OpenedExits, config: Any, epochs: int) -> None:
        self.normalise = opened.data.normalise
        self.steps = steps_per_epoch(len(opened.data.train), config.data.batch_size)
        stream = Stream(config.run.seed, "all")
        self.batches = iter(train_batches(opened.data, config.data, stream, range(epochs * self.steps)))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches."""
        for _ in range(self.steps):
            images, targets = next(self.batches)
            yield self.normalise(images), targets


class Loaded(list[tuple[Tensor, Tensor]]):
    """A split as normalised batches."""

    def __init__(self, opened: OpenedExits, split: Split, batch_size: int = 64) -> None:
        super().__init__(split_inputs(opened.evaluator, split, opened.record.subnet.resolution, batch_size))


def backbone(opened: OpenedExits) -> Backbone:
    """Return what the network is that both sides train."""
    found = opened.record.architecture
    assert isinstance(found, Backbone), "the recipe is of a network of timm"
    return found


def train_peer(opened: OpenedExits, config: Any, folder: Path) -> tuple[Any, float]:
    """Train the same network with `earlyon`, from the same seed; return it and seconds of processor time."""
    from earlyon.models.custom import custom_ee
    from earlyon.training.joint_trainer import joint_train_backbone_and_exits

    phase, side = config.phases["all"], opened.record.subnet.resolution
    taps = [tap.module for tap in backbone(opened).taps]
    torch.manual_seed(config.run.seed)
    net: Any = timm.create_model(backbone(opened).name, num_classes=len(opened.data.classes))
    net = net.to(memory_format=torch.channels_last)
    model = custom_ee(net, taps, len(opened.data.classes), input_shape=(1, 3, side, side))
    kept, seconds = folder / "earlyon.pt", folder / "earlyon_seconds.json"
    if kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model.eval(), read_seconds(seconds)
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.lr, weight_decay=config.optim.weight_decay)
    epochs = int(phase.epochs)
    seconds.unlink(missing_ok=True)
    with adding_time(seconds):
        joint_train_backbone_and_exits(
            model, Epochs(opened, config, epochs), epochs=epochs, optimizer=optimizer, on_epoch_end=lambda _: None
        )
    with files.replacing(kept) as path:
        torch.save(model.state_dict(), path)
    return model.eval(), read_seconds(seconds)


def peer_macs(opened: OpenedExits, model: Any) -> list[int]:
    """Return multiply-adds of an image that leaves `earlyon`'s network at each exit: the trunk's, and its heads'."""
    own = [tap.channels * len(opened.data.classes) for tap in backbone(opened).taps]
    heads = [
        sum(layer.in_features * layer.out_features for layer in head.modules() if isinstance(layer, torch.nn.Linear))
        for head in model.exit_heads.values()
    ]
    # What comes before the own head holds all heads, too.
    more = np.cumsum([given - before for given, before in zip(heads, own, strict=True)])
    return [cost.passed + int(extra) for cost, extra in zip(opened.macs, [*more, more[-1]], strict=True)]


def reached_by_peer(opened: OpenedExits, model: Any, test: Loaded) -> Reached:
    """Return what `earlyon`'s network reaches on test, image by image, at its current policy."""
    macs, right, spent, count = peer_macs(opened, model), 0, 0, 0
    for images, targets in test:
        for image, target in zip(images, targets, strict=True):
            found = model(image[None])
            right += int(found.prediction.argmax() == target)
            spent += macs[found.exit_taken]
            count += 1
    return Reached(right / count, spent / count / opened.macs[-1].passed)


def one_seed(seed: int, epochs: int, overrides: Sequence[str], folder: Path) -> Seed:
    """Train and measure both sides; what a folder holds of other settings is refused."""
    settings = [*SETTINGS, f"phases.all.epochs={epochs}", f"run.seed={seed}", *overrides]
    kept = folder / "result.json"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "settings.json").exists() and json.loads((folder / "settings.json").read_text("utf-8")) != settings:
        raise UserError(f"--folder ({folder}) is of other settings: name another one, or give them again")
    (folder / "settings.json").write_text(json.dumps(settings), "utf-8")
    if kept.exists():
        found = json.loads(kept.read_text("utf-8"))
        return {name: Reached(**value) if isinstance(value, dict) else value for name, value in found.items()}
    path, seconds = train_ours(settings, folder)
    opened = open_exits(path)
    model, peer_seconds = train_peer(opened, recipe.parse(opened.record.run.recipe, "recipe"), folder)
    trained = {"ours, training": seconds, "earlyon, training": peer_seconds}
    found = trained | accuracies(path, opened, model) | times(path, opened, model, seed)
    files.write_json(kept, to_plain(found))
    return found


def calibrate_peer(opened: OpenedExits, model: Any, share: float) -> None:
    """Set the thresholds of `earlyon`'s network on validation; 1 switches its exits off."""
    from earlyon.core.thresholds import calibrate_thresholds_for_budget

    with warnings.catch_warnings(action="ignore"):
        # It warns where no threshold reaches the share; the table shows what it spends.
        if share < 1:
            val = Loaded(opened, opened.data.val)
            calibrate_thresholds_for_budget(model, val, target_computation=share, grid=GRID)
        else:
            model.config.enabled_exits = [False] * len(model.config.enabled_exits)


def accuracies(path: Path, opened: OpenedExits, model: Any) -> dict[str, Reached]:
    """Return what each side reaches on test at each share."""
    found, test, whole = {}, Loaded(opened, opened.data.test), opened.macs[-1].passed
    for share in (*SHARES, 1.0):
        for side, ensemble in (("ours", False), ("ours, ensemble", True)):
            study = calibrate_exits(path, max_macs=round(share * whole), ensemble=ensemble, timed=False)
            found[f"{side} {share}"] = Reached(study.record.test.top1, study.record.test.mean_macs / whole)
        calibrate_peer(opened, model, share)
        found[f"earlyon {share}"] = reached_by_peer(opened, model, test)
    return found


def times(path: Path, opened: OpenedExits, model: Any, seed: int) -> dict[str, float]:
    """Return each side's milliseconds per image on some test images, at each batch size."""
    policy = calibrate_exits(path, max_macs=round(TIMED_SHARE * opened.macs[-1].passed), timed=False).record.policy
    calibrate_peer(opened, model, TIMED_SHARE)
    order = np.random.default_rng(seed).permutation(len(opened.data.test))
    picked, found = opened.data.test.take("test", order[:TIMED_IMAGES]), {}
    for size in BATCHES:
        batches = [images for images, _ in Loaded(opened, picked, size)]
        sides = {
            "ours": partial(opened.net.decide, policy=policy),
            "earlyon": model if size == 1 else model.forward_inference_batched,
            "no early exit": model.backbone,
        }
        calls = {name: partial(look, side, batches) for name, side in sides.items()}
        for name, taken in time_sides(calls, repeats=9, clock=time.process_time).items():
            found[f"{name}, batch {size}"] = taken.median / len(picked)
    return found


def look(side: Callable[[Tensor], object], batches: Sequence[Tensor]) -> None:
    """Classify all batches."""
    with torch.inference_mode():
        for images in batches:
            side(images)


def show(found: Sequence[Seed]) -> None:
    """Print both tables, means over seeds with standard errors."""
    names = ("ours", "ours, ensemble", "earlyon")
    rows = []
    for share in (*SHARES, 1.0):
        sides = [[seed[f"{name} {share}"] for seed in found] for name in names]
        cells = [mean_and_error([one.top1 for one in side]) for side in sides]
        costs = [mean_and_error([one.macs for one in side], digits=0) for side in sides]
        ahead = mean_and_error([one.top1 - other.top1 for one, other in zip(sides[0], sides[-1], strict=True)])
        rows.append((f"{share:.0%}", *(text for pair in zip(cells, costs, strict=True) for text in pair), ahead))
    heads = [text for name in names for text in (f"{name}: top-1 %", "% of MACs")]
    console.show(table("test, by mean multiply-adds asked for", ("asked", *heads, "ours less earlyon"), rows))
    milliseconds = partial(mean_and_error, scale=1, digits=2)
    per_image = [
        (name, *(milliseconds([seed[f"{name}, batch {size}"] for seed in found]) for size in BATCHES))
        for name in ("ours", "earlyon", "no early exit")
    ]
    title = f"milliseconds of processor time per image, calibrated for {TIMED_SHARE:.0%}"
    console.show(table(title, ("side", *(f"batch {size}" for size in BATCHES)), per_image))
    for side in ("ours", "earlyon"):
        seconds = mean_and_error([seed[f"{side}, training"] for seed in found], scale=1, digits=0)
        console.say(f"{side}: {seconds} seconds of training")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="key=value", help="of the recipe `exits`; data.root at least")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep what is trained, and go on from there")
    options = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(1)
    found: list[Seed] = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(options.seeds):
            folder = (options.folder or Path(temporary)) / f"seed-{seed}"
            found.append(one_seed(seed, options.epochs, options.settings, folder))
            console.say(f"seed {seed}: {found[-1]}")
    show(found)


if __name__ == "__main__":
    command_line(main)
