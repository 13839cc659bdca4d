"""Calibrate early exits: thresholds on validation, the chosen one on test, measured times."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofav2.data import Batch, Split, count_views
from ofav2.deploy.agreement import require_same
from ofav2.errors import UserError
from ofav2.evaluation.evaluator import refuse_nan
from ofav2.exits.collect import split_inputs
from ofav2.exits.early import NEVER, EarlyExits, ExitPolicy
from ofav2.exits.opened import OpenedExits, open_exits
from ofav2.exits.policy_file import (
    EARLY_RECORD,
    CurveRecord,
    EarlyExitsRecord,
    Outcome,
    Timed,
    TimesRecord,
    write_early_record,
)
from ofav2.exits.thresholds import ThresholdCurve, threshold_curve
from ofav2.nas.latency import BATCHES, stream_times
from ofav2.nas.limits import Limits
from ofav2.nas.machine import this_machine
from ofav2.output_folder import check_writable
from ofav2.progress import log_progress
from ofav2.rng import generator
from ofav2.tasks.classification import confidence_of, predict
from supernets.graphs import alone

logger = logging.getLogger(__name__)

TIMED_IMAGES = 128
"""Validation images, drawn at random, that are classified to measure times, one by one and in batches."""
ROUNDS = 5
"""How often each call is timed; its median counts."""
SHOWN = 7
"""Thresholds that are timed, about evenly spaced in cost, besides the chosen one."""
KEPT = 200
"""Thresholds that are kept for the curve, at most."""
HIDDEN = 0.01
"""Loss of top-1 (0..1) that may hide, with 95 % confidence, where nothing else is asked for."""


@dataclass(frozen=True)
class CalibrationStudy:
    """A calibrated network: the policy, and what it and others cost and reach."""

    name: str
    """The sub-network."""
    data: str
    """The data set."""
    record: EarlyExitsRecord
    """What `early_exits.json` holds."""
    curve: ThresholdCurve
    """All thresholds, on validation."""
    chosen: int
    """Index of the policy among the measured rows."""
    validation_is_test: bool
    """Whether test images are the validation images, which chose, so that scores on test flatter."""

    @property
    def own(self) -> Timed:
        """The policy."""
        return self.record.measured.rows[self.chosen]

    @property
    def last(self) -> Timed:
        """The network of the last exit alone."""
        name = f"exit {self.record.exits[-1]} alone"
        return next(row for row in self.record.measured.rows if row.name == name)


def study_columns(study: CalibrationStudy) -> tuple[str, ...]:
    """Return the columns of `study_rows`."""
    times = (f"ms per image, batch {size}" for size in study.record.measured.batches)
    return ("", "mean multiply-adds", "top-1 %", "% of images per exit", *times)


def study_rows(study: CalibrationStudy) -> list[tuple[object, ...]]:
    """Return what was measured on validation as rows of a table; an arrow marks the chosen threshold."""
    return [
        (
            f"{'->' if index == study.chosen else '  '} {row.name}",
            f"{row.mean_macs:,.0f}",
            f"{100 * row.top1:.2f}",
            " ".join(f"{100 * share:.0f}" for share in row.shares) if row.shares else "-",
            *(f"{time / 1e6:.3g}" for time in row.nanoseconds),
        )
        for index, row in enumerate(study.record.measured.rows)
    ]


def calibrate_exits(
    directory: str | Path,
    overrides: Sequence[str] = (),
    *,
    max_macs: int | None = None,
    min_top1: float | None = None,
    confidence: str = "max_softmax",
    ensemble: bool | None = None,
    timed: bool = True,
) -> CalibrationStudy:
    """Find the threshold of an extracted network that keeps a target, measure it, and write `early_exits.json`.

    The threshold is chosen on validation, the most accurate one of a mean cost, or the cheapest one of an accuracy;
    without a target, the cheapest one that loses no image which the last exit has right, or with an ensemble all exits
    together, and lets so few exit early that at most a point may be lost unseen. Test images are looked at once it is
    chosen, with it and with the last exit alone.

    Args:
        directory: A folder of `ofav2 extract` with several exits.
        overrides: Settings of its recipe as `key=value`: where the images are, and what computes.
        max_macs: Mean multiply-adds per image, at most.
        min_top1: Validation top-1 (0..1), at least.
        confidence: One of `ofav2.exits.early.confidences()`.
        ensemble: Whether an exit averages all exits up to it; None: where the network has weights for that, as those of
            `ofav2 prune` have.
        timed: Whether to measure times.

    Returns:
        `record` is what `early_exits.json` holds: the policy, and its top-1 (0..1) and mean multiply-adds per image on
        validation and test. `curve` has all thresholds, on validation. `own` and `last` compare the policy with the
        last exit alone, with times in nanoseconds per image where they were measured.

    Raises:
        RunError: If the folder holds no network with several exits, a file is damaged or can't be written, or logits
            are NaN.
        UserError: If an argument can't be used, the network was fine-tuned, its data set can't be opened or is another
            one, or no threshold keeps the target.
    """
    ExitPolicy(0.0, confidence, bool(ensemble))
    limits = Limits(macs=max_macs)
    _check_target(max_macs, min_top1)
    opened = open_exits(directory, overrides)
    ensemble = opened.record.ensemble is not None if ensemble is None else ensemble
    check_writable(opened.folder / EARLY_RECORD)
    logger.info(f"measuring {len(opened.net.exits)} exits on {len(opened.data.val)} validation images")
    curve, single = _observe(opened, confidence, ensemble)
    whole = "all exits together have" if ensemble else "the last exit has"
    index, target = _choose(curve, limits.macs, min_top1, whole)
    policy = ExitPolicy(float(curve.thresholds[index]), confidence, ensemble)
    indices = sorted({index, *curve.spread(SHOWN)})
    batches = BATCHES if timed else ()
    record = EarlyExitsRecord(
        subnet_sha256=opened.record.sha256,
        data_fingerprint=opened.data.fingerprint,
        policy=policy,
        target=target,
        exits=opened.net.exits,
        macs=opened.macs,
        val=_on_curve(curve, index),
        test=evaluate_policy(opened, opened.data.test, policy),
        # Not the extraction's record, which may be of other test images.
        last_exit_test_top1=evaluate_policy(opened, opened.data.test, ExitPolicy(NEVER)).top1,
        measured=TimesRecord(
            machine=this_machine(opened.runtime.device),
            batches=batches,
            images=count_views(_timed_images(opened.data.val), opened.record.subnet.resolution),
            rounds=ROUNDS,
            rows=_timed(opened, curve, indices, policy, single, batches),
        ),
        curve=_kept(curve),
    )
    write_early_record(opened.folder, record)
    chosen = indices.index(index)
    return CalibrationStudy(opened.record.name, opened.data.name, record, curve, chosen, opened.data.validation_is_test)


def evaluate_policy(opened: OpenedExits, split: Split, policy: ExitPolicy) -> Outcome:
    """Return what an exit policy does to a split."""
    exits = torch.tensor(opened.net.exits)
    right, exited = 0, torch.zeros(len(exits), dtype=torch.int64)
    for images, target in _inputs(opened, split):
        found = opened.net.decide(images, policy)
        right += int((found.classes == target).sum())
        exited += (found.exits.cpu()[:, None] == exits).sum(0)
    counts = exited.tolist()
    macs = sum(count * cost.passed for count, cost in zip(counts, opened.macs, strict=True))
    # Of patches, there are more windows than images.
    total = sum(counts)
    return Outcome(total, right / total, macs / total, tuple(count / total for count in counts))


def _check_target(max_macs: int | None, min_top1: float | None) -> None:
    if max_macs is not None and min_top1 is not None:
        raise UserError("both a cost and an accuracy are given: leave one out, the other one follows from it")
    if min_top1 is not None and not 0 <= min_top1 <= 1:
        raise UserError(f"top-1 ({min_top1:g}) must be a share from 0 to 1: divide a percentage by 100")


def _choose(curve: ThresholdCurve, max_macs: int | None, min_top1: float | None, whole: str) -> tuple[int, str]:
    """Return a threshold's index, and what it keeps; `whole` says what has an image right without early exits."""
    if max_macs is not None:
        return curve.within(max_macs), f"at most {max_macs:,} multiply-adds per image"
    if min_top1 is not None:
        return curve.reaching(min_top1), f"top-1 of at least {100 * min_top1:g} % on validation"
    rule = f"none of {curve.images} validation images is lost that {whole} right"
    free, index = curve.harmless(None), curve.harmless(HIDDEN)
    if index == free:
        return index, rule
    early, allowed = (f"{100 * (1 - curve.shares[one, -1]):.0f} %" for one in (index, free))
    return index, (
        f"{rule}, and {early} exit early instead of {allowed}, as more than {100 * HIDDEN:g} point of loss may hide in"
        " so few images"
    )


def _inputs(opened: OpenedExits, split: Split, batch_size: int | None = None) -> Iterator[Batch]:
    return split_inputs(opened.evaluator, split, opened.record.subnet.resolution, batch_size)


def _observe(opened: OpenedExits, confidence: str, ensemble: bool) -> tuple[ThresholdCurve, tuple[float, ...]]:
    """All thresholds on validation, and the top-1 of each exit by itself."""
    sure: list[npt.NDArray[np.float32]] = []
    right: list[npt.NDArray[np.bool_]] = []
    alone_right: list[npt.NDArray[np.bool_]] = []
    with torch.inference_mode():
        for images, target in _inputs(opened, opened.data.val):
            own = opened.net(images)
            if not sure:
                require_same(own, opened.module(images), "network split at its exits")
            refuse_nan(own, opened.data.val)
            outputs = opened.net.exit_outputs(own, ensemble)
            sure.append(np.stack([confidence_of(confidence, logits).float().cpu().numpy() for logits in outputs[:-1]]))
            right.append(_right(outputs, target))
            alone_right.append(_right(own, target))
    macs = [cost.passed for cost in opened.macs]
    curve = threshold_curve(np.concatenate(sure, 1), np.concatenate(right, 1), macs)
    return curve, tuple(np.concatenate(alone_right, 1).mean(1).tolist())


def _right(exits: Sequence[Tensor], target: Tensor) -> npt.NDArray[np.bool_]:
    return torch.stack([predict(logits) == target for logits in exits]).cpu().numpy()


def _on_curve(curve: ThresholdCurve, index: int) -> Outcome:
    shares = tuple(curve.shares[index].tolist())
    return Outcome(curve.images, float(curve.top1[index]), float(curve.mean_macs[index]), shares)


def _timed(
    opened: OpenedExits,
    curve: ThresholdCurve,
    indices: Sequence[int],
    policy: ExitPolicy,
    single: Sequence[float],
    batches: Sequence[int],
) -> tuple[Timed, ...]:
    """Time the thresholds at these indices, then each exit alone, then all exits; the calls take turns."""
    outcomes = [_on_curve(curve, index) for index in indices]
    thresholds = [float(curve.thresholds[index]) for index in indices]
    calls: list[Callable[[Tensor], object]] = [_deciding(opened.net, policy, threshold) for threshold in thresholds]
    calls += [alone(opened.module, index).eval() for index in range(len(opened.net.exits))]
    calls.append(opened.module)
    times = _call_times(opened, calls, batches)
    early = [
        Timed(_named(threshold), threshold, one.mean_macs, one.top1, one.shares, time)
        for threshold, one, time in zip(thresholds, outcomes, times, strict=False)
    ]
    exits = zip(opened.macs, single, times[len(indices) :], strict=False)
    ends = [Timed(f"exit {cost.exit} alone", None, cost.alone, top1, None, time) for cost, top1, time in exits]
    last = float(curve.top1[curve.thresholds == NEVER][0])
    everything = Timed("all exits", None, opened.macs[-1].passed, last, None, times[-1])
    return (*early, *ends, everything)


def _named(threshold: float) -> str:
    return "no early exit" if threshold == NEVER else f"threshold {threshold:.4g}"


def _deciding(net: EarlyExits, policy: ExitPolicy, threshold: float) -> Callable[[Tensor], object]:
    own = ExitPolicy(threshold, policy.confidence, policy.ensemble)
    return lambda images: net.decide(images, own)


def _call_times(
    opened: OpenedExits, calls: Sequence[Callable[[Tensor], object]], sizes: Sequence[int]
) -> list[tuple[int, ...]]:
    """Mean nanoseconds per image of each call, at each number of images per call."""
    if not sizes:
        return [()] * len(calls)
    split = _timed_images(opened.data.val)
    found = []
    with log_progress("measuring times of networks", len(sizes) * ROUNDS * len(calls)) as advance:
        for size in sizes:
            batches = _whole_batches([images for images, _ in _inputs(opened, split, size)], size)
            count = size * len(batches)
            found.append([round(time / count) for time in stream_times(calls, batches, ROUNDS, advance)])
    return list(zip(*found, strict=True))


def _whole_batches(batches: Sequence[Tensor], size: int) -> Sequence[Tensor]:
    """Return batches of the given size, the last one filled up with the first images: smaller ones take longer each."""
    images = torch.cat([*batches])
    total = -(-len(images) // size) * size
    # Joining keeps the layout in memory, which times depend on.
    return torch.cat([images] * -(-total // len(images)))[:total].split(size)


def _timed_images(val: Split) -> Split:
    # Splits may be sorted by class, and one class may be easier than others.
    return val.take(val.name, generator("early timing", 0).permutation(len(val))[:TIMED_IMAGES])


def _kept(curve: ThresholdCurve) -> CurveRecord:
    """Return some thresholds of a curve, which a file is to keep."""
    kept = curve.spread(KEPT)
    return CurveRecord(
        thresholds=tuple(curve.thresholds[kept].tolist()),
        mean_macs=tuple(curve.mean_macs[kept].tolist()),
        top1=tuple(curve.top1[kept].tolist()),
        shares=tuple(map(tuple, curve.shares[kept].tolist())),
    )
