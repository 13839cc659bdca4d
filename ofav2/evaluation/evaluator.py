"""Evaluate sub-networks: extract, recalibrate batch norm, score.

A sub-network's batch-norm statistics are gathered anew before it is evaluated (OFA; OFAv2, section 2), since the
supernet's running ones belong to no network. A network that is cut at exit 3 computes, and so has the statistics of,
the first three stages of the one that goes on to exit 5: such nested sub-networks are extracted, recalibrated and run
once.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import distill
from ofav2.config.schema import Config, EvaluationConfig
from ofav2.data import Batch, ImageData, Split, calibration_batches, count_views, eval_batches, view_bytes
from ofav2.errors import RunError
from ofav2.evaluation.recalibration import recalibrate
from ofav2.runtime.device import Runtime
from ofav2.runtime.share import WHOLE, Share
from ofav2.tasks.base import Task, to_float64
from supernets import Exits, Subnet, Supernet, fold_norms_
from supernets.multi_exit import Network
from supernets.outputs import Outputs, exit_logits

KEPT_BYTES = 2**30
"""Decoded images of all splits and resolutions together are kept in memory up to this size."""
CHUNK_PIXELS = 2**18
"""Pixels of the images that a CPU evaluates at once: what a layer leaves is then still in the caches for the next."""


@dataclass(frozen=True)
class Score:
    """How good a sub-network is on a split, after recalibration."""

    subnet: Subnet
    """The network."""
    value: float
    """The task's main metric."""
    images: int
    """Images, or windows of patches, that it was measured on."""
    others: tuple[float | None, ...] = ()
    """The task's other metrics, in its order; None for one that means nothing here."""


class JointScores(NamedTuple):
    """What the exits of one network reach on a split."""

    ensemble: float
    """Score of their weighted sum."""
    exits: tuple[float, ...]
    """Score of each exit."""
    loss: float
    """Their joint loss, the mean over images."""


class Begun(NamedTuple):
    """What the first layers of a network give, which is the input of the rest."""

    calibration: Sequence[Tensor]
    """Of batches to gather statistics from."""
    posed: Sequence[Batch]
    """Of a split's images, with targets, in the portions that are evaluated at once."""


@dataclass(eq=False)
class _Kept:
    """Decoded batches, kept up to a number of bytes over all that is kept."""

    budget: int
    batches: dict[Any, Sequence[Batch]] = field(default_factory=dict)
    used: int = 0

    def get(self, key: Any, size: int, load: Callable[[], Iterable[Batch]]) -> Iterable[Batch]:
        """Return the batches of a key, from memory where they fit in."""
        if key in self.batches:
            return self.batches[key]
        if self.used + size > self.budget:
            return load()
        self.used += size
        return self.batches.setdefault(key, list(load()))


class Evaluator:
    """Evaluates sub-networks of a supernet on one data set, in float32, as they are written.

    Decoded batches are kept, per split and resolution, as long as all of them take no more than `KEPT_BYTES`.

    Args:
        data: The data set.
        task: What outputs mean.
        config: How much to calibrate and measure with.
        eval_crop: Share of the resized image that the centre crop keeps.
        seed: Seed of the calibration images.
        workers: Processes that decode images; 0 decodes in this one.
        runtime: Device and processes; of several, all have to measure the same in the same order. Its precision is that
            of training steps, and has no effect here.
    """

    def __init__(
        self,
        data: ImageData,
        task: Task,
        config: EvaluationConfig,
        *,
        eval_crop: float,
        seed: int,
        workers: int,
        runtime: Runtime,
    ) -> None:
        self.data = data
        self.task = task
        self.config = config
        self.eval_crop = eval_crop
        self.seed = seed
        self.workers = workers
        self.runtime = runtime
        self._kept = _Kept(KEPT_BYTES)

    def scores(self, net: Network, subnets: Iterable[Subnet], split: Split) -> Iterator[Score]:
        """Score sub-networks; nested ones come together, so not in the given order.

        Args:
            net: The supernet.
            subnets: What to measure; equal ones are measured once.
            split: The images to measure on.

        Yields:
            A score per different sub-network, the same ones in every process.
        """
        for group, sums in self._summed(net, sorted(nested_groups(subnets), key=_beginning), split):
            for subnet, own in zip(reversed(group), sums, strict=True):
                value, *others = self._read(own)
                known = (other if math.isfinite(other) else None for other in others)
                yield Score(subnet, value, count_views(split, subnet.resolution), tuple(known))

    def calibrated(self, net: Network, subnet: Subnet, exits: Exits) -> GraphModule:
        """Return the sub-network with these exits as a plain module, its batch norms recalibrated if it needs that."""
        module = net.extract(subnet, exits=exits)
        self.runtime.place(module)
        if net.needs_recalibration:
            recalibrate(module, self.calibration(subnet.resolution))
        return module

    def ensemble_score(self, module: nn.Module, weights: Sequence[Fraction], resolution: int, split: Split) -> float:
        """Return the score of the weighted sum of a module's exits: how good a teacher it is."""
        module.eval()

        def ensemble(images: Tensor) -> Tensor:
            return distill.ensemble(exit_logits(module(images)), weights)

        posed = self.inputs(split, resolution, self.runtime.processes.share)
        (own,) = self.runtime.processes.totals(self._sums(ensemble, posed))
        return self._read(own)[0]

    def joint_scores(
        self, module: nn.Module, weights: distill.ExitWeights, resolution: int, split: Split
    ) -> JointScores:
        """Return what a module's exits reach together and each by itself, without recalibration."""
        found: list[Tensor] = []
        losses: list[Tensor] = []
        module.eval()
        with torch.inference_mode():
            for images, target in self.inputs(split, resolution, self.runtime.processes.share):
                exits = exit_logits(module(images))
                outputs = (distill.ensemble(exits, weights.ensemble), *exits)
                found.append(torch.stack([self.task.tally(output, target) for output in outputs]))
                loss = distill.joint_loss(exits, partial(self.task.loss, target=target), weights.losses)["loss"]
                # A loss is a mean over what counts, of which portions have more or less.
                valid = self.task.counted(target)
                count = to_float64(loss.new_tensor(len(images)) if valid is None else valid.sum())
                losses.append(torch.stack([count * to_float64(loss), count]))
        sums = [*torch.stack(found).sum(0).cpu(), torch.stack(losses).sum(0).cpu()] if found else []
        *tallies, (total, count) = self.runtime.processes.totals(sums)
        ensemble, *scores = (self._read(own)[0] for own in tallies)
        return JointScores(ensemble, tuple(scores), float(total / count))

    def exit_scores(self, module: nn.Module, resolution: int, split: Split) -> tuple[float, ...]:
        """Return the score of each exit of a module, without recalibration."""
        main = self.task.metrics[0].name
        return tuple(found[main] for found in self.exit_metrics(module, resolution, split))

    def exit_metrics(self, module: nn.Module, resolution: int, split: Split) -> tuple[Mapping[str, float], ...]:
        """Return all metrics of each exit of a module by name, without recalibration."""
        module.eval()
        sums = self._sums(module, self.inputs(split, resolution, self.runtime.processes.share))
        return tuple(map(self.task.read, self.runtime.processes.totals(sums)))

    def inputs(self, split: Split, resolution: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield a split's inputs and the task's targets, on the device, in the portions that are evaluated at once.

        Args:
            split: The images.
            resolution: Their side in pixels.
            share: Which of the split's batches: every `parts`-th one, from `part` on.
        """
        return self._posed(self._chunks(self._batches(split, resolution, share)))

    def calibration(self, resolution: int) -> Iterator[Tensor]:
        """Yield batches of calibration inputs (N, C, H, W) on the device."""
        return (batch.images for batch in self._posed(self._calibration(resolution)))

    def sample_inputs(self, resolution: int) -> Tensor:
        """Return a batch of calibration inputs, to compare two forms of a network on."""
        return next(self.calibration(resolution))

    def _read(self, sums: Tensor) -> tuple[float, ...]:
        found = self.task.read(sums)
        return tuple(found[metric.name] for metric in self.task.metrics)

    def _summed(
        self, net: Network, found: Sequence[tuple[Subnet, ...]], split: Split
    ) -> Iterator[tuple[tuple[Subnet, ...], list[Tensor]]]:
        """Yield nested groups with the task's sums of their exits.

        Each process takes a group of its own, as long as there are enough; of the others, each takes some batches.
        Recalibration is not shared: the statistics are then those of one process to the last bit, and so the sums.
        """
        processes = self.runtime.processes
        # Of two groups, the larger one alone takes longer than half of both.
        apart = len(found) - len(found) % processes.count if len(found) >= 2 * processes.count else 0
        own = self._group_sums(net, found[processes.rank : apart : processes.count], split, WHOLE)
        for start, sums in zip(range(0, apart, processes.count), own, strict=True):
            yield from zip(found[start : start + processes.count], processes.gather(sums), strict=True)
        parts = self._group_sums(net, found[apart:], split, processes.share)
        for group, sums in zip(found[apart:], parts, strict=True):
            yield group, processes.totals(sums)

    def _group_sums(
        self, net: Network, found: Sequence[tuple[Subnet, ...]], split: Split, share: Share
    ) -> Iterator[list[Tensor]]:
        """Yield each group's sums per exit; what several in a row begin with is run once.

        Everything up to the first block is a quarter of an evaluation. A second block is far smaller, and few networks
        agree in two. A dense head reads the first block's input again, so such networks are run whole.
        """
        if not isinstance(net, Supernet) or net.architecture.head_width is not None:
            yield from (self._whole_sums(net, group, split, share) for group in found)
            return
        for _, alike in groupby(found, _beginning):
            groups = list(alike)
            begun = self._begun(net, groups[0], split, share) if len(groups) > 1 else None
            for group in groups:
                yield self._rest_sums(net, group, begun) if begun else self._sums_in_parts(net, group, split, share)

    def _whole_sums(self, net: Network, group: tuple[Subnet, ...], split: Split, share: Share) -> list[Tensor]:
        """Return a group's sums per exit."""
        module = self.calibrated(net, group[0], _heights(group))
        if net.needs_recalibration:
            # It is a copy; a network with exits gives its own layers.
            fold_norms_(module)
        return self._sums(module, self.inputs(split, group[0].resolution, share))

    def _sums_in_parts(self, net: Supernet, group: tuple[Subnet, ...], split: Split, share: Share) -> list[Tensor]:
        """Return a group's sums per exit, folded in two parts: to the last bit those of `_rest_sums`."""
        first, rest = self._parts(net, group)
        whole = nn.Sequential(first, rest)
        recalibrate(whole, self.calibration(group[0].resolution))
        fold_norms_(first)
        fold_norms_(rest)
        return self._sums(whole, self.inputs(split, group[0].resolution, share))

    def _rest_sums(self, net: Supernet, group: tuple[Subnet, ...], begun: Begun) -> list[Tensor]:
        """Return a group's sums per exit, from what its first layers give."""
        _, rest = self._parts(net, group)
        recalibrate(rest, begun.calibration)
        fold_norms_(rest)
        return self._sums(rest, begun.posed)

    def _begun(self, net: Supernet, group: tuple[Subnet, ...], split: Split, share: Share) -> Begun | None:
        """Return what a group's first layers, recalibrated, give; None where that is too large to keep."""
        resolution = group[0].resolution
        first, _ = self._parts(net, group)
        with torch.inference_mode():
            bytes_per_image = first(next(self.calibration(resolution))[:1]).nbytes
        if bytes_per_image * (count_views(split, resolution) + self.config.calibration_images) > KEPT_BYTES:
            return None
        calibration: list[Tensor] = []
        hook = first.register_forward_hook(lambda layers, given, made: calibration.append(made))
        recalibrate(first, self.calibration(resolution))
        hook.remove()
        fold_norms_(first)
        with torch.inference_mode():
            posed = [Batch(first(images), target) for images, target in self.inputs(split, resolution, share)]
        return Begun(calibration, posed)

    def _parts(self, net: Supernet, group: tuple[Subnet, ...]) -> tuple[GraphModule, GraphModule]:
        """Return a group's networks in one, in two parts, on the device."""
        first, rest = net.extract_parts(group[0], _heights(group))
        for part in (first, rest):
            self.runtime.place(part)
            self.runtime.use_cpu_kernels(part)
        return first, rest

    def _sums(self, forward: Callable[[Tensor], Outputs], posed: Iterable[Batch]) -> list[Tensor]:
        """Return the task's sums per exit; of no images, nothing."""
        found: list[Tensor] = []
        with torch.inference_mode():
            for images, target in posed:
                found.append(torch.stack([self.task.tally(out, target) for out in exit_logits(forward(images))]))
        return list(torch.stack(found).sum(0).cpu()) if found else []

    def _posed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        send = self.runtime.send
        for images, targets in batches:
            yield Batch(*self.task.pose(self.data.normalise(send(images)), send(targets), None))

    def _chunks(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches in the portions that are evaluated at once; their bounds depend on nothing but the batch."""
        if self.runtime.device.type != "cpu":
            yield from batches
            return
        for images, targets in batches:
            count = max(1, CHUNK_PIXELS // (images.shape[-2] * images.shape[-1]))
            yield from map(Batch, images.split(count), targets.split(count))

    def _batches(self, split: Split, resolution: int, share: Share) -> Iterable[Batch]:
        size = count_views(split, resolution) * view_bytes(split, resolution) // share.parts
        # The split itself is the key: a part of it has its name.
        return self._kept.get(
            (split, resolution, share),
            size,
            lambda: eval_batches(
                split,
                resolution=resolution,
                eval_crop=self.eval_crop,
                batch_size=self.config.batch_size,
                workers=self.workers,
                share=share,
            ),
        )

    def count_calibration(self, resolution: int) -> int:
        """Count the training images, or windows of patches, that batch norm is recalibrated with."""
        return min(self.config.calibration_images, count_views(self.data.train, resolution))

    def _calibration(self, resolution: int) -> Iterable[Batch]:
        train = self.data.train
        size = self.count_calibration(resolution) * view_bytes(train, resolution)
        return self._kept.get(
            ("calibration", resolution),
            size,
            lambda: calibration_batches(
                self.data,
                resolution=resolution,
                eval_crop=self.eval_crop,
                images=self.config.calibration_images,
                batch_size=self.config.calibration_batch,
                seed=self.seed,
            ),
        )


def open_evaluator(config: Config, data: ImageData, task: Task, runtime: Runtime) -> Evaluator:
    """Make the evaluator that a recipe describes."""
    return Evaluator(
        data,
        task,
        config.evaluation,
        eval_crop=config.data.eval_crop,
        seed=config.data.split_seed,
        workers=config.data.workers,
        runtime=runtime,
    )


def refuse_nan(outputs: Iterable[Tensor], split: Split) -> None:
    """Refuse logits of which no class can be told.

    Raises:
        RunError: One is NaN.
    """
    if any(output.isnan().any() for output in outputs):
        raise RunError(
            f"network gives logits that are NaN on {split.name} images: train again with a lower learning rate"
        )


def nested_groups(subnets: Iterable[Subnet]) -> list[tuple[Subnet, ...]]:
    """Group different sub-networks: in a group, each is the first one cut at an earlier exit; highest first."""
    found: dict[Subnet, list[Subnet]] = {}
    first_with: dict[Subnet, Subnet] = {}
    for subnet in sorted(dict.fromkeys(subnets), key=lambda subnet: -subnet.height):
        if subnet in first_with:
            found[first_with[subnet]].append(subnet)
            continue
        found[subnet] = [subnet]
        for height in range(1, subnet.height + 1):
            first_with.setdefault(replace(subnet, height=height), subnet)
    return [tuple(members) for members in found.values()]


def beginning(subnet: Subnet) -> tuple[Any, ...]:
    """Sort key: the choices that fix stem and first block. Networks that are measured in this order share both."""
    block = subnet.blocks(0)[0]
    return subnet.resolution, block.kernel or 0, block.expand or 0, block.level


def _beginning(group: tuple[Subnet, ...]) -> tuple[Any, ...]:
    return beginning(group[0])


def _heights(group: tuple[Subnet, ...]) -> tuple[int, ...]:
    """Return the exits that a group's networks end at, ascending."""
    return tuple(sorted(subnet.height for subnet in group))
