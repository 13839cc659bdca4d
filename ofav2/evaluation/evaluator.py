"""Evaluating sub-networks: extract, recalibrate batch norm, measure.

A sub-network's batch-norm statistics are gathered anew before it is evaluated (OFA; OFAv2, section 2), since the
supernet's running ones belong to no network. A network that is cut at exit 3 computes, and so has the statistics of,
the first three stages of the one that goes on to exit 5: such nested_groups are extracted, recalibrated and run once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import distill
from ofav2.config.schema import Config, EvaluationConfig
from ofav2.data import Batch, ImageData, Split, calibration_batches, eval_batches, normalise
from ofav2.evaluation.recalibration import recalibrate
from ofav2.runtime.device import Runtime
from supernets import Exits, Subnet, Supernet, fold_norms_
from supernets.outputs import exit_logits

KEPT_BYTES = 2**30
"""A split's decoded images are kept in memory up to this size, per resolution."""
CHUNK_PIXELS = 2**17
"""Pixels of the images that a CPU evaluates at once: what a layer leaves is then still in the caches for the next."""


@dataclass(frozen=True)
class Score:
    """How a sub-network did on a split, after recalibration."""

    subnet: Subnet
    """The network."""
    top1: float
    """Share of images whose most likely class is the label, 0..1."""
    images: int
    """Images it was measured on."""


class Views(NamedTuple):
    """Images as a network, or the rest of one, is given them; anew at each call."""

    calibration: Callable[[], Iterable[Tensor]]
    """Batches to gather statistics from."""
    labelled: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    """Images and their labels, in the portions that are evaluated at once."""


class Evaluator:
    """Measures sub-networks of a supernet on one data set.

    Batches are decoded once per split and resolution and kept, as long as a split's take no more than `KEPT_BYTES`.

    Args:
        data: The data set.
        config: How much to calibrate and measure with.
        eval_crop: Share of the resized image that the centre crop keeps.
        seed: Seed of the calibration images.
        workers: Processes that decode images; 0 decodes in this one.
        runtime: Device, precision and processes; of several, all have to measure the same in the same order.
    """

    def __init__(
        self, data: ImageData, config: EvaluationConfig, *, eval_crop: float, seed: int, workers: int, runtime: Runtime
    ) -> None:
        self.data = data
        self.config = config
        self.eval_crop = eval_crop
        self.seed = seed
        self.workers = workers
        self.runtime = runtime
        self._decoded: dict[tuple[str, int, int, int], Sequence[Batch]] = {}

    def scores(self, net: Supernet, subnets: Iterable[Subnet], split: Split) -> Iterator[Score]:
        """Measures sub-networks; nested_groups that share their stages come together, so not in the given order.

        Args:
            net: The supernet.
            subnets: What to measure; equal ones are measured once.
            split: The images to measure on.

        Yields:
            A score per different sub-network, the same ones in every process.
        """
        for group, correct in self._counted(net, sorted(nested_groups(subnets), key=_beginning), split):
            for subnet, count in zip(reversed(group), correct, strict=True):
                yield Score(subnet, count / len(split), len(split))

    def calibrated(self, net: Supernet, subnet: Subnet, exits: Exits) -> GraphModule:
        """The sub-network with these exits as a plain module, its batch norms recalibrated at its resolution."""
        module = net.extract(subnet, exits=exits)
        self.runtime.place(module)
        recalibrate(module, self._inputs(self._calibration(subnet.resolution)))
        return module

    def ensemble_top1(self, module: nn.Module, weights: Sequence[Fraction], resolution: int, split: Split) -> float:
        """Top-1 (0..1) of the weighted sum of a module's exits: how good a teacher it is."""
        module.eval()
        correct = 0
        with torch.inference_mode(), self.runtime.autocast():
            for images, labels in self._own_images(split, resolution):
                output = distill.ensemble(exit_logits(module(images)), weights)
                correct += int((output.argmax(1) == labels).sum())
        return sum(self.runtime.processes.gather(correct)) / len(split)

    def single_top1(self, module: nn.Module, resolution: int, split: Split) -> float:
        """Top-1 (0..1) of a module with one exit, as it is."""
        (top1,) = self.exit_top1(module, resolution, split)
        return top1

    def exit_top1(self, module: nn.Module, resolution: int, split: Split) -> tuple[float, ...]:
        """Top-1 (0..1) of each exit of a module, as it is."""
        correct = self._correct(module, self._own_images(split, resolution))
        return tuple(total / len(split) for total in self.runtime.processes.totals(correct))

    def views(self, split: Split, resolution: int, part: int = 0, parts: int = 1) -> Views:
        """Calibration images, and a split's, as networks are given them.

        Args:
            split: The images to measure on.
            resolution: Their side in pixels.
            part: Number of the split's first batch, from 0.
            parts: Distance to the next one; 1 takes all.
        """
        return Views(
            lambda: self._inputs(self._calibration(resolution)),
            lambda: self._labelled(self._chunks(self._batches(split, resolution, part, parts))),
        )

    def prepare(self, images: Tensor) -> Tensor:
        """Makes uint8 images (N, C, H, W) the network's normalised input."""
        return normalise(images, self.data.mean, self.data.std)

    def sample_inputs(self, resolution: int) -> Tensor:
        """A batch of normalised calibration images, to compare two forms of a network on."""
        return next(iter(self._inputs(self._calibration(resolution))))

    def _counted(
        self, net: Supernet, found: Sequence[tuple[Subnet, ...]], split: Split
    ) -> Iterator[tuple[tuple[Subnet, ...], list[int]]]:
        """Groups with the correctly classified images of their exits.

        Each process takes a group of its own, as long as there are enough; of the others, each takes some batches.
        Recalibration is not shared: the statistics are then those of one process to the last bit, and so the counts.
        """
        processes = self.runtime.processes
        # Of two nested_groups, the larger one alone takes longer than half of both.
        apart = len(found) - len(found) % processes.count if len(found) >= 2 * processes.count else 0
        own = self._corrects(net, found[processes.rank : apart : processes.count], split, 0, 1)
        for start, correct in zip(range(0, apart, processes.count), own, strict=True):
            yield from zip(found[start : start + processes.count], processes.gather(correct), strict=True)
        parts = self._corrects(net, found[apart:], split, processes.rank, processes.count)
        for group, correct in zip(found[apart:], parts, strict=True):
            yield group, processes.totals(correct)

    def _corrects(
        self, net: Supernet, found: Sequence[tuple[Subnet, ...]], split: Split, part: int, parts: int
    ) -> Iterator[list[int]]:
        """Correctly classified images of each group in turn; what several in a row begin with is run once.

        All up to the first block is a quarter of an evaluation. A second block is far smaller, and few networks agree
        in two.
        """
        for _, alike in groupby(found, _beginning):
            yield from self._corrects_alike(net, list(alike), split, part, parts)

    def _corrects_alike(
        self, net: Supernet, found: Sequence[tuple[Subnet, ...]], split: Split, part: int, parts: int
    ) -> Iterator[list[int]]:
        views = self.views(split, found[0][0].resolution, part, parts)
        first, rest = self._parts(net, found[0])
        through = self._through(first, views, split) if len(found) > 1 else None
        calibration, images = through or views
        for number, group in enumerate(found):
            first, rest = self._parts(net, group) if number else (first, rest)
            module = rest if through else nn.Sequential(first, rest)
            recalibrate(module, calibration())
            if not through:
                fold_norms_(first)
            fold_norms_(rest)
            yield self._correct(module, images())

    def _through(self, first: GraphModule, views: Views, split: Split) -> Views | None:
        """What the first layers make of the images, recalibrated; nothing where that is too large to keep."""
        calibration, images = views
        with torch.inference_mode():
            bytes_per_image = first(next(iter(calibration()))[:1]).nbytes
        if bytes_per_image * (len(split) + self.config.calibration_images) > KEPT_BYTES:
            return None
        calibrated: list[Tensor] = []
        hook = first.register_forward_hook(lambda layers, given, made: calibrated.append(made))
        recalibrate(first, calibration())
        hook.remove()
        fold_norms_(first)
        with torch.inference_mode(), self.runtime.autocast():
            evaluated = [(first(given), labels) for given, labels in images()]
        return Views(lambda: calibrated, lambda: evaluated)

    def _parts(self, net: Supernet, group: tuple[Subnet, ...]) -> tuple[GraphModule, GraphModule]:
        """A group's networks in one, in two parts, on the device."""
        first, rest = net.extract_parts(group[0], tuple(sorted(subnet.height for subnet in group)))
        for part in (first, rest):
            self.runtime.place(part)
            self.runtime.use_cpu_kernels(part)
        return first, rest

    def _correct(self, module: nn.Module, images: Iterable[tuple[Tensor, Tensor]]) -> list[int]:
        """Correctly classified images, per exit; of no images, nothing."""
        module.eval()
        counts: list[Tensor] = []
        with torch.inference_mode(), self.runtime.autocast():
            for given, labels in images:
                found = torch.stack([(out.argmax(1) == labels).sum() for out in exit_logits(module(given))])
                counts.append(found)
        correct: list[int] = torch.stack(counts).sum(0).tolist() if counts else []
        return correct

    def _labelled(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            yield self.prepare(self.runtime.send(batch.images)), self.runtime.send(batch.labels)

    def _chunks(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches in the parts that are evaluated at once; their bounds depend on nothing but the batch."""
        if self.runtime.device.type != "cpu":
            yield from batches
            return
        for images, labels in batches:
            count = max(1, CHUNK_PIXELS // (images.shape[-2] * images.shape[-1]))
            yield from map(Batch, images.split(count), labels.split(count))

    def _inputs(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        return (images for images, _ in self._labelled(batches))

    def _own_images(self, split: Split, resolution: int) -> Iterable[tuple[Tensor, Tensor]]:
        """This process's share of a split, in batches as they are in one process."""
        processes = self.runtime.processes
        return self.views(split, resolution, processes.rank, processes.count).labelled()

    def _batches(self, split: Split, resolution: int, part: int, parts: int) -> Iterable[Batch]:
        key = split.name, resolution, part, parts
        if key in self._decoded:
            return self._decoded[key]
        batches = eval_batches(
            split,
            resolution=resolution,
            eval_crop=self.eval_crop,
            batch_size=self.config.batch_size,
            workers=self.workers,
            part=part,
            parts=parts,
        )
        if len(split) * self.data.channels * resolution**2 > KEPT_BYTES:
            return batches
        return self._decoded.setdefault(key, list(batches))

    def _calibration(self, resolution: int) -> Sequence[Batch]:
        key = "calibration", resolution, 0, 1
        if key not in self._decoded:
            self._decoded[key] = calibration_batches(
                self.data,
                resolution=resolution,
                eval_crop=self.eval_crop,
                images=self.config.calibration_images,
                batch_size=self.config.calibration_batch,
                seed=self.seed,
            )
        return self._decoded[key]


def open_evaluator(config: Config, data: ImageData, runtime: Runtime) -> Evaluator:
    """The evaluate that a recipe asks for."""
    return Evaluator(
        data,
        config.evaluation,
        eval_crop=config.data.eval_crop,
        seed=config.data.split_seed,
        workers=config.data.workers,
        runtime=runtime,
    )


def nested_groups(subnets: Iterable[Subnet]) -> list[tuple[Subnet, ...]]:
    """Different sub-networks, grouped: in a group, each is the first one cut at an earlier exit; highest first."""
    found: dict[Subnet, list[Subnet]] = {}
    hosts: list[Subnet] = []
    for subnet in sorted(dict.fromkeys(subnets), key=lambda subnet: -subnet.height):
        host = next((host for host in hosts if subnet == host or _cut(host, subnet.height) == subnet), None)
        if host is None:
            hosts.append(subnet)
            found[subnet] = [subnet]
        else:
            found[host].append(subnet)
    return [tuple(members) for members in found.values()]


def mean_top1(scores: Iterable[Score]) -> float:
    """Mean accuracy of some scores."""
    values = [score.top1 for score in scores]
    return sum(values) / len(values)


def _beginning(group: tuple[Subnet, ...]) -> tuple[Any, ...]:
    """What decides over a group's layers up to its first block, in a form that can be sorted."""
    resolution, block = group[0].resolution, group[0].blocks(0)[0]
    return resolution, block.kernel or 0, block.expand or 0, block.level


def _cut(subnet: Subnet, height: int) -> Subnet:
    return replace(subnet, height=height) if height <= subnet.height else subnet
