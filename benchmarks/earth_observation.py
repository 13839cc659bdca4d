"""Networks of a run beside linear models on the same images; docs/log/2026-11-26-earth-observation.md has the results.

python -m benchmarks.earth_observation RUN                 # any run of classes, maps of classes or maps of numbers
python -m benchmarks.earth_observation RUN --random 100    # with 100 random sub-networks

All is measured on test. Linear models see each image's mean and standard deviation per band (ridge, for classes), or
each pixel's bands and the normalised differences of their pairs (ridge and LDA, for maps). Standard errors are those of
the jackknife that leaves one place out at a time, or one image where places are not known.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

import ofav2
from benchmarks.sides import command_line
from ofav2.cli import console
from ofav2.data import Split
from ofav2.data.patches import PatchImages
from ofav2.evaluation.opened_run import OpenedRun
from ofav2.networks.cost import network_cost
from ofav2.rng import generator
from ofav2.tables import table
from ofav2.tasks.base import Task
from ofav2.tasks.classification import Classification
from ofav2.tasks.regression import Regression
from ofav2.tasks.segmentation import Segmentation
from supernets import Subnet

Array = npt.NDArray[np.floating[Any]]

STRIDE = 4
"""Linear models of pixels are fitted to every fourth pixel of every fourth line."""


class Row(NamedTuple):
    """A line of the table."""

    name: str
    """The network or linear model."""
    cost: tuple[str, ...]
    """Parameters, multiply-adds, and floating-point operations, as text."""
    sums: Tensor
    """The task's sums of each group of test images, float64 (groups, S)."""


@dataclass(frozen=True)
class Inputs:
    """Images of a split as linear models see them."""

    features: Array
    """Of images (N, 2 * bands), or of pixels (N, bands + pairs, H, W)."""
    targets: Tensor
    """Targets, as the task has them."""


def groups_of(split: Split, resolution: int) -> npt.NDArray[np.int64]:
    """Return which group each evaluated window belongs to: its place, or itself where places are not known."""
    images = split.images
    if not isinstance(images, PatchImages):
        return np.arange(len(split))
    _, numbers = np.unique(images.places, return_inverse=True)
    return np.repeat(numbers.astype(np.int64), images.grid(resolution))


def group_sums(task: Task, outputs: Iterator[tuple[Tensor, Tensor]], groups: npt.NDArray[np.int64]) -> Tensor:
    """Return the task's sums of each group (groups, S).

    Args:
        task: The task.
        outputs: Outputs and targets in batches, in the order of `groups`.
        groups: The group of each image.
    """
    own = [task.tally(one[None], target[None]) for batch in outputs for one, target in zip(*batch, strict=True)]
    found = torch.zeros(int(groups.max()) + 1, len(own[0]), dtype=torch.float64)
    return found.index_add_(0, torch.from_numpy(groups), torch.stack(own))


def with_errors(task: Task, sums: Tensor) -> Mapping[str, tuple[float, float]]:
    """Return each metric with its standard error by the jackknife over groups (groups, S)."""
    total, count = sums.sum(0), len(sums)
    values = task.read(total)
    without = [task.read(total - own) for own in sums] if count > 1 else []
    found = {}
    for name, value in values.items():
        others = np.array([read[name] for read in without if not np.isnan(read[name])])
        spread = np.square(others - others.mean()).sum() if len(others) else 0.0
        found[name] = (value, float(np.sqrt((count - 1) / count * spread)))
    return found


def network_rows(run: OpenedRun, subnets: Mapping[str, Subnet], test: Split) -> Iterator[Row]:
    """Yield the sums of sub-networks on a split, batch norm recalibrated."""
    net, evaluator = run.loaded.net, run.evaluator
    for name, subnet in subnets.items():
        module = evaluator.calibrated(net, subnet, "last")
        cost = network_cost(net.architecture, subnet)
        windows = test.images.grid(subnet.resolution) if isinstance(test.images, PatchImages) else 1
        operations = f"{2 * cost.macs * windows / 1e9:.4f}"
        with torch.inference_mode():
            outputs = ((module(images), target) for images, target in evaluator.inputs(test, subnet.resolution))
            sums = group_sums(evaluator.task, outputs, groups_of(test, subnet.resolution))
        yield Row(f"{name}: exit {subnet.height}", (f"{cost.params:,}", f"{cost.macs:,}", operations), sums)


def inputs(run: OpenedRun, split: Split, resolution: int) -> Inputs:
    """Return a split as linear models see it."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (run.data.mean, run.data.std))
    features, targets = [], []
    for images, target in run.evaluator.inputs(split, resolution):
        raw = images * std + mean
        pooled = not run.evaluator.task.dense
        features.append(torch.cat((raw.mean((2, 3)), raw.std((2, 3))), 1) if pooled else _pixel_features(raw))
        targets.append(target)
    return Inputs(torch.cat(features).numpy(), torch.cat(targets))


def _pixel_features(raw: Tensor) -> Tensor:
    """Return bands and normalised differences of their pairs (N, bands + pairs, H, W)."""
    pairs = [
        (raw[:, a] - raw[:, b]) / (raw[:, a] + raw[:, b]).clamp(min=1) for a, b in combinations(range(raw.shape[1]), 2)
    ]
    return torch.cat((raw, torch.stack([pair.clamp(-1, 1) for pair in pairs], 1)), 1)


def linear_rows(run: OpenedRun, resolution: int, split: Split) -> Iterator[Row]:
    """Yield the sums of linear models, fitted to the training split, on a split."""
    task = run.evaluator.task
    train, test = inputs(run, run.data.train, resolution), inputs(run, split, resolution)
    groups = groups_of(split, resolution)
    none = ("–", "–", "–")
    if isinstance(task, Classification | Segmentation):
        models = {"ridge": RidgeClassifier(), "ridge, classes balanced": RidgeClassifier(class_weight="balanced")}
        for name, model in {**models, "LDA": LinearDiscriminantAnalysis()}.items():
            known, truths = _flat(train, STRIDE)
            counted = truths >= 0
            fitted = make_pipeline(StandardScaler(), model).fit(known[counted], truths[counted])
            found = torch.from_numpy(fitted.predict(_flat(test, 1)[0])).view(
                test.targets.shape[0], *test.targets.shape[1:]
            )
            outputs = functional.one_hot(found, task.outputs).float()
            outputs = outputs.movedim(-1, 1) if task.dense else outputs
            yield Row(name, none, group_sums(task, iter([(outputs, test.targets)]), groups))
    if isinstance(task, Regression):
        known, truths = _flat(train, STRIDE)
        counted = np.isfinite(truths).all(-1)
        low, high = np.nanmin(truths, 0), np.nanmax(truths, 0)
        fitted = make_pipeline(StandardScaler(), Ridge()).fit(known[counted], truths[counted])
        numbers = np.clip(fitted.predict(_flat(test, 1)[0]).reshape(-1, truths.shape[1]), low, high).astype(np.float32)
        shape = test.targets.movedim(1, -1).shape
        outputs = torch.from_numpy(numbers).view(shape).movedim(-1, 1)
        yield Row("ridge, clipped", none, group_sums(task, iter([(outputs, test.targets)]), groups))


def _flat(found: Inputs, stride: int) -> tuple[Array, npt.NDArray[Any]]:
    """Return features (M, F) and targets (M,) or (M, planes) of images, or of every `stride`-th pixel each way."""
    features, targets = found.features, found.targets.numpy()
    if features.ndim == 2:
        return features, targets
    some = features[..., ::stride, ::stride].transpose(0, 2, 3, 1)
    truths = targets[..., ::stride, ::stride]
    truths = truths.transpose(0, 2, 3, 1) if truths.ndim == 4 else truths
    return some.reshape(-1, some.shape[-1]), truths.reshape(-1, *truths.shape[3:])


def shown(task: Task, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the lines of the table."""
    found = []
    for row in rows:
        read = with_errors(task, row.sums)
        cells = [_shown(*read[metric.name], metric.unit) for metric in task.metrics]
        found.append((row.name, *row.cost, *cells))
    return found


def _shown(value: float, error: float, unit: str) -> str:
    if np.isnan(value):
        return "–"
    return f"{100 * value:.1f} ± {100 * error:.1f}" if unit == "%" else f"{value:.3f} ± {error:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--random", type=int, default=5, help="random sub-networks of the largest resolution (5)")
    parser.add_argument("--images", type=int, help="measure on as many test images, drawn at random")
    parser.add_argument("--linear", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    run = ofav2.open_run(options.run)
    space, task = run.loaded.net.space, run.evaluator.task
    test = run.data.test
    if options.images:
        test = test.take("some-test", generator("earth observation images").permutation(len(test))[: options.images])
    whole = space.restrict(resolution=(max(space.resolution),))
    largest = whole.largest()
    exits = {f"largest to exit {exit}": whole.restrict(height=(exit,)).largest() for exit in space.height}
    rng = generator("earth observation")
    drawn = {f"random {number}": whole.sample(rng) for number in range(options.random)}
    subnets = {**exits, "smallest": whole.smallest(), **drawn}
    linear = linear_rows(run, largest.resolution, test) if options.linear else ()
    rows = [*linear, *network_rows(run, subnets, test)]
    columns = ("", "parameters", "multiply-adds", "GFLOP per image", *(metric.name for metric in task.metrics))
    console.show(table(f"{options.run}, test", columns, shown(task, rows)))
    values = [task.read(row.sums.sum(0))[task.metrics[0].name] for row in rows if row.name.startswith("random")]
    if values:
        console.show(f"{len(values)} random sub-networks: {task.metrics[0].name} {np.mean(values):.4f} on average")


if __name__ == "__main__":
    command_line(main)
