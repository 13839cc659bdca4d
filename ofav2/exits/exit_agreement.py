"""Measure how often exits of the largest network agree on validation images; keep it in the run folder."""

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ofav2.errors import UserError
from ofav2.evaluation.opened_run import open_run, refuse_other_images
from ofav2.exits.collect import predict_exits, require_classes
from ofav2.output_folder import check_writable
from ofav2.runs.records import RunRecord, read_kept
from ofav2.typed_json import Positive, Sha256, Share, write_record

logger = logging.getLogger(__name__)

EXITS = "exits.json"
FORMAT = "ofav2-exits/2"


@dataclass(frozen=True)
class Agreement:
    """How the exits of a network compare on the validation split."""

    phase: str
    """The phase whose weights were measured."""
    images: Positive
    """Validation images."""
    exits: tuple[int, ...]
    """The exits, from 1."""
    agree: tuple[tuple[Share, ...], ...]
    """Share (0..1) of images to which two exits give the same class, a row and a column per exit."""
    top1: tuple[Share, ...]
    """Share (0..1) that each exit classifies rightly."""
    right_together: Share
    """Share (0..1) on which at least one exit is right."""

    def __post_init__(self) -> None:
        """Refuse tables of other sizes than the exits."""
        if {len(self.top1), len(self.agree), *map(len, self.agree)} != {len(self.exits)}:
            raise ValueError("agree and top1 must have an entry per exit")


@dataclass(frozen=True)
class AgreementRecord:
    """What `exits.json` holds."""

    checkpoint_sha256: Sha256
    """Checksum of the weights that were measured."""
    agreement: Agreement
    """What was found."""


def measure_exits(run: str | Path) -> Agreement:
    """Measure how often exits agree, and keep it in the run folder as `exits.json`.

    The largest sub-network that was trained is extracted with all its exits and its batch norms are recalibrated.

    Args:
        run: A run folder with at least one finished phase; its data set must be at hand.

    Returns:
        Shares (0..1) of validation images: for each pair of exits those that both give the same class, and for each
        exit those that it classifies rightly.

    Raises:
        RunError: If the folder is no run, has no finished phase or can't be written to, or logits are NaN.
        UserError: If the network has one exit only, its task has no classes, or its data set can't be opened or holds
            other images now.
    """
    opened = open_run(run)
    check_writable(Path(run) / EXITS)
    require_classes(opened.evaluator.task)
    refuse_other_images(opened)
    net, evaluator, split = opened.loaded.net, opened.evaluator, opened.data.val
    exits = net.architecture.exits
    if len(exits) == 1:
        raise UserError(f"supernet ({net.architecture.variant}) has one exit, so none to compare: leave out --exits")
    largest = net.space.largest()
    module = evaluator.calibrated(net, largest, exits[: exits.index(largest.height) + 1])
    predicted, targets = predict_exits(module, evaluator, split, largest.resolution)
    agreement = compare_predictions(predicted, targets, exits=exits, phase=opened.loaded.phase)
    write_record(Path(run) / EXITS, AgreementRecord(opened.loaded.sha256, agreement), FORMAT)
    logger.info(f"measured how {len(agreement.exits)} exits agree on {agreement.images} validation images")
    return agreement


def compare_predictions(predicted: Tensor, targets: Tensor, *, exits: tuple[int, ...], phase: str) -> Agreement:
    """Count agreement.

    Args:
        predicted: Classes that each exit gives, (exits, images).
        targets: The right classes, (images,).
        exits: Names of the rows, from 1.
        phase: The phase whose weights were measured.
    """
    same = (predicted[:, None] == predicted[None]).double().mean(2)
    right = predicted == targets
    return Agreement(
        phase=phase,
        images=len(targets),
        exits=exits[: len(predicted)],
        agree=tuple(tuple(row) for row in same.tolist()),
        top1=tuple(right.double().mean(1).tolist()),
        right_together=float(right.any(0).double().mean()),
    )


def read_exits(folder: Path, run: RunRecord) -> Agreement | None:
    """Return what `measure_exits` kept, if it is of the weights that the run holds now; else None.

    Args:
        folder: The run folder.
        run: The run's record.

    Raises:
        RunError: If the file is damaged.
    """
    step = "remove it, or measure again with `ofav2 report RUN --exits`"
    kept = read_kept(folder / EXITS, AgreementRecord, FORMAT, step, run)
    return None if kept is None else kept.agreement
