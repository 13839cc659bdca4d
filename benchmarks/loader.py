"""Loading images to train on: PIL and torchvision's transforms in DataLoader workers, and ofav2 streaming and cached.

python -m benchmarks.loader DATA_ROOT                       Tiny ImageNet, at 64 and 48 pixels
python -m benchmarks.loader DATA_ROOT --name imagefolder    a folder of one's own, with a folder train in it

All sides crop, flip, resize antialiased and normalise batches of 64 and keep their workers, and freed memory, as a run
does; each call takes some of them, after all files were read once. Then a training step (EE_D, the largest network with
all exits) is timed with the wait for its images. docs/performance.md has the results.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import distill
import supernets
from benchmarks.sides import command_line, time_sides, write
from ofav2.cli import console
from ofav2.config.schema import DataConfig
from ofav2.data import Batch, ImageData, normalise, open_data, train_batches
from ofav2.rng import Stream
from ofav2.runtime.memory import keep_freed_memory
from ofav2.tables import table
from ofav2.tasks.classification import Classification

BASE = "PIL + torchvision"
STREAMED = "ofav2, streaming"
CACHED = "ofav2, cached"
ENDLESS = 10**9
QUEUED = 2
"""Batches that a worker of torch's DataLoader loads ahead."""
SETTLED = 0.5
"""Seconds in which workers fill their queues, several times over."""


def compare(config: DataConfig, *, batches: int, repeats: int) -> dict[str, Any]:
    """Times all sides at each of the recipe's resolutions; returns images per second and how they compare."""
    streamed, cached = open_data(replace(config, cache=None)), open_data(config)
    found = {}
    for side in config.resolutions:
        one = replace(config, resolutions=(side,))
        loaders = {
            BASE: _torchvision(one, streamed),
            STREAMED: _ours(streamed, one),
            CACHED: _ours(cached, one),
        }
        times = time_sides(
            {name: _taking(loader, batches) for name, loader in loaders.items()},
            repeats=repeats,
            warmup=1,
            ready={name: partial(_steady, loader, config.workers) for name, loader in loaders.items()},
        )
        rates = {name: 1000 * batches * config.batch_size / taken.median for name, taken in times.items()}
        found[str(side)] = {
            "milliseconds": {name: asdict(taken) for name, taken in times.items()},
            "images_per_second": rates,
            "times_as_fast": {name: rate / rates[BASE] for name, rate in rates.items()},
            "equal": _equal(streamed, cached, one),
        }
        rows = [
            (name, rate, 1000 * batches * config.batch_size / times[name].upper, rate / rates[BASE])
            for name, rate in rates.items()
        ]
        columns = ("side", "images/s, median", "slow quartile", f"times as fast as {BASE}")
        console.show(table(f"{side} pixels, batches of {config.batch_size}", columns, rows))
    return found


def waits(config: DataConfig, *, width: float, steps: int) -> dict[str, Any]:
    """How much of a training step's time goes by until its images are there, streaming and cached."""
    side = max(config.resolutions)
    one = replace(config, resolutions=(side,))
    opened = {STREAMED: open_data(replace(one, cache=None)), CACHED: open_data(one)}
    net = supernets.create(
        "ee_d", num_classes=len(opened[CACHED].classes), width_mult=width, resolutions=(side,), seed=0
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    found = {}
    for name, data in opened.items():
        waited, worked = [], []
        loader = _ours(data, one)
        next(loader)
        for _ in range(steps):
            started = time.perf_counter()
            images, labels = next(loader)
            there = time.perf_counter()
            _step(net, optimizer, images, labels)
            waited.append(there - started)
            worked.append(time.perf_counter() - there)
        share = float(np.median(waited) / (np.median(waited) + np.median(worked)))
        found[name] = {
            "wait_ms": 1000 * float(np.median(waited)),
            "step_ms": 1000 * float(np.median(worked)),
            "share": share,
        }
    rows = [(name, *row.values()) for name, row in found.items()]
    columns = ("side", "wait for images, ms", "step, ms", "share of the wait")
    console.show(table(f"a training step, {side} pixels, batches of {config.batch_size}", columns, rows))
    return found


def _torchvision(config: DataConfig, data: ImageData) -> Iterator[Tensor]:
    """What one would write with torchvision: a folder of images, PIL, transforms of each, workers."""
    (side,) = config.resolutions
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=config.crop_scale, ratio=config.crop_ratio),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    folder = datasets.ImageFolder(str(Path(str(config.root)) / "train"), transform)
    loader = DataLoader(
        folder,
        config.batch_size,
        shuffle=True,
        num_workers=config.workers,
        drop_last=True,
        persistent_workers=config.workers > 0,
        generator=torch.Generator().manual_seed(0),
    )
    return (images for epoch in itertools.count() for images, _ in loader)


def _ours(data: ImageData, config: DataConfig) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in train_batches(data, config, Stream(0, "full"), range(ENDLESS)):
        yield normalise(batch.images, data.mean, data.std), batch.targets


def _taking(loader: Iterator[Any], batches: int) -> Callable[[], None]:
    def take() -> None:
        for _ in range(batches):
            next(loader)

    return take


def _steady(loader: Iterator[Any], workers: int) -> None:
    """Waits until all sides' workers have filled their queues, and takes what lay in this side's.

    Or one side's workers would still fill theirs while the next side is timed, and find those batches made.
    """
    time.sleep(SETTLED)
    for _ in range(workers * QUEUED):
        next(loader)


def _equal(streamed: ImageData, cached: ImageData, config: DataConfig) -> bool:
    """Whether both ways give the same first batches."""

    def first(data: ImageData) -> list[Batch]:
        return list(train_batches(data, config, Stream(0, "full"), range(3)))

    return all(
        torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
        for one, other in zip(first(streamed), first(cached), strict=True)
    )


def _step(net: supernets.Supernet, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    outputs = net(images, net.space.largest(), exits="all")
    weights = distill.exit_weights("ascending", len(outputs)).losses
    loss = partial(Classification(outputs[0].shape[1], 0.1).loss, target=labels)
    distill.joint_loss(outputs, loss, weights)["loss"].backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@console.show_logs()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="the data set's folder")
    parser.add_argument("--name", default="tiny_imagenet", help="the data set's name, as in recipes")
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 48])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="of the sides that decode")
    parser.add_argument("--batches", type=int, default=60, help="batches of a timed call")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=12, help="training steps to wait in")
    parser.add_argument("--width", type=float, default=1.0, help="width multiplier of the network")
    parser.add_argument("--cache", help="folder of the cache; by default a temporary one")
    chosen = parser.parse_args(arguments)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        config = DataConfig(
            chosen.name,
            chosen.root,
            cache=chosen.cache or temporary,
            resolutions=tuple(chosen.pixels),
            batch_size=chosen.batch,
            workers=chosen.workers,
        )
        loading = compare(config, batches=chosen.batches, repeats=chosen.repeats)
        waiting = waits(config, width=chosen.width, steps=chosen.steps)
    write("loader", {"loading": loading, "waiting": waiting, "workers": chosen.workers, "batch": chosen.batch})


if __name__ == "__main__":
    command_line(main)
