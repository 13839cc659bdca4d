"""Prune exits: score every subset of a network's exits on validation, choose one, and write it (AEP).

AEP (Sarti et al., *Anticipate, Ensemble and Prune*, 2023) tries every subset of exits and drops all that the best one
does not need. Here the front of subsets is kept as well, limits can be set, and the ensemble's weights can be learned.
"""

import logging
import os.path
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

import distill
from ofav2.config import recipe
from ofav2.data import Split, refuse_inside
from ofav2.data.digests import Digests
from ofav2.deploy.agreement import COMPARED, require_same
from ofav2.deploy.artifact import RECORD, Accuracy, PruningRecord, SubnetRecord, SubsetRecord, usage
from ofav2.deploy.export import FORMATS, check_formats, output_names
from ofav2.deploy.extract import take_out
from ofav2.deploy.seen import read_seen, seen_sha256
from ofav2.deploy.write import complete_folder, write_network
from ofav2.errors import UserError
from ofav2.evaluation.by_class import class_results
from ofav2.evaluation.evaluator import Evaluator
from ofav2.evaluation.opened_run import open_run
from ofav2.exits.collect import exit_batches, require_classes, warn_of_chosen_test
from ofav2.exits.exit_agreement import Agreement, compare_predictions
from ofav2.exits.opened import open_exits
from ofav2.exits.scoring import Scored, score_fixed, score_learned
from ofav2.exits.subsets import Choice, ExitBatch, SubsetTable, choose, joined, tally
from ofav2.messages import show
from ofav2.nas.latency import BATCHES, stream_times, subset_times
from ofav2.nas.limits import Limits
from ofav2.nas.machine import this_machine
from ofav2.output_folder import making
from ofav2.runtime.signals import interruptible
from supernets import Subnet
from supernets.ensembles import with_ensemble
from supernets.graphs import alone, keep
from supernets.output_costs import output_costs
from supernets.outputs import exit_logits

logger = logging.getLogger(__name__)

LEARNED = "learned"
"""The ensemble whose weights are learned on validation."""
LEAST_WEIGHT = 1e-9
"""The least weight of an exit that counts, as `subnet.json` has it."""
ROUNDS = 9
"""How often each call is timed; its median counts."""


@dataclass(frozen=True)
class Source:
    """A network with several exits, before any is left out."""

    module: GraphModule
    """Images -> a tuple of logits, one per exit; on the evaluator's device."""
    record: SubnetRecord
    """What it is."""
    evaluator: Evaluator
    """What scores it, on the data set that it was trained on."""
    seen: Digests
    """Digests of all images that it has seen, ascending."""

    @property
    def exits(self) -> tuple[int, ...]:
        """Its exits by number."""
        return self.record.exit_indices

    @property
    def resolution(self) -> int:
        """Side of its images in pixels."""
        return self.record.input.resolution

    def batches(self, split: Split) -> Iterator[ExitBatch]:
        """Yield all exits' logits on a split."""
        return exit_batches(self.module, self.exits, self.evaluator, split, self.resolution)


@dataclass(frozen=True, eq=False)
class PruneStudy:
    """All subsets of a network's exits, and the one that was written."""

    name: str
    """The network with all exits."""
    data: str
    """The data set."""
    table: SubsetTable
    """All subsets on validation."""
    choice: Choice
    """The one that was written, and the rule that chose it."""
    whole: int
    """Index in the table of all exits together, without those whose weight is 0."""
    last: int
    """Index of the last exit alone."""
    record: SubnetRecord
    """What the written network is."""
    agreement: Agreement
    """How often exits agree on validation."""
    nanoseconds: tuple[tuple[int, ...], ...]
    """Predicted time per image of each subset at each of the batches."""

    @property
    def compared(self) -> dict[str, int]:
        """The subsets that are looked at closely, as indices in the table by name."""
        return {"chosen": self.choice.index, "whole": self.whole, "last": self.last}

    @property
    def whole_name(self) -> str:
        """What pages and tables call `whole`."""
        together = len(self.table.choices[self.whole]) == len(self.table.exits)
        return "all exits" if together else "all exits with a weight"

    @property
    def pruning(self) -> PruningRecord:
        """What the written record says of the choice."""
        assert self.record.pruning, "it was just pruned"
        return self.record.pruning


def prune_columns(study: PruneStudy) -> tuple[str, ...]:
    """Return the columns of `prune_rows`."""
    times = (f"ms per image, batch {size}" for size in study.pruning.batches)
    return ("", "exits", "top-1 %", "top-5 %", "multiply-adds", "parameters", *times)


def prune_rows(study: PruneStudy) -> list[tuple[object, ...]]:
    """Return subsets on validation as rows of a table: the front, all exits, and the last one.

    An arrow marks the chosen one. Times are predicted, as the sum of those of a network's pieces.
    """
    table = study.table
    names = {study.whole: study.whole_name, study.last: "last exit alone"}
    indices = dict.fromkeys([*table.front(), study.choice.index, study.whole, study.last])
    return [
        (
            f"{'->' if index == study.choice.index else '  '} {names.get(index, '')}".rstrip(),
            " ".join(map(str, table.named(index))),
            f"{100 * table.top1(index):.2f}",
            f"{100 * table.top5(index):.2f}",
            f"{table.costs[index].macs:,}",
            f"{table.costs[index].params:,}",
            *(f"{time / 1e6:.3g}" for time in study.nanoseconds[index]),
        )
        for index in indices
    ]


def prune_exits(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path,
    subnet: Subnet | None = None,
    ensemble: str | Sequence[float] | None = None,
    max_macs: int | None = None,
    max_params: int | None = None,
    min_top1: float | None = None,
    cautious: bool = False,
    formats: Sequence[str] = FORMATS,
) -> PruneStudy:
    """Score every subset of a network's exits on validation, and write the best one as `ofav2 extract` writes networks.

    A subset's logits are the weighted mean of its exits'. AEP's winner is taken, the subset of most top-1, then top-5;
    of equals, the one of fewest multiply-adds. Test images choose nothing: the chosen subset is measured on them, all
    exits, and the last exit alone.

    Args:
        source: A run folder, or a folder of `ofav2 extract` with several exits.
        overrides: Settings of an extracted network's recipe as `key=value`: where images are, and what computes.
        out: Folder to make; it must not exist, or be empty.
        subnet: Which sub-network of a run; None takes the largest that was trained.
        ensemble: A scheme of `distill.schemes()`, one number per exit of the network, or of all that it was trained
            with, or `learned`: weights of least cross-entropy, each half of the validation images scored with weights
            learned on the other half. None takes the network's own weights, or else those of its recipe.
        max_macs: Multiply-adds per image, at most.
        max_params: Parameters, at most.
        min_top1: Validation top-1 (0..1), at least: the cheapest subset that reaches it is taken.
        cautious: Whether to take the cheapest subset within one standard error of the best one.
        formats: Which files to write beside weights and description: `onnx`, `pt2` and `card`, all by default.

    Returns:
        All subsets, and the written network's record.

    Raises:
        RunError: If the folder holds no run and no network with several exits, logits are not finite, or a written file
            does not compute what it should.
        UserError, DistillError, SpaceError: If something given can't be used; the message says what and why.
    """
    limits = Limits(params=max_params, macs=max_macs)
    _check_wishes(min_top1, cautious)
    check_formats(formats)
    with interruptible(), making(Path(out), RECORD) as staging:
        opened = open_source(source, overrides, subnet, out=Path(out))
        study, pruning, scores = _chosen(opened, ensemble, limits, min_top1, cautious)
        logger.info(f"writing exits {', '.join(map(str, pruning.chosen.exits))} and checking the files")
        return _write(opened, study, pruning, scores, staging, formats)


class _Chosen(NamedTuple):
    """What is to be written."""

    study: PruneStudy
    """All subsets, and the chosen one."""
    pruning: PruningRecord
    """What the network's description says of it."""
    scores: Mapping[str, Sequence[float]]
    """Top-1 of each exit that is kept, by split."""


def _chosen(
    opened: Source, ensemble: str | Sequence[float] | None, limits: Limits, min_top1: float | None, cautious: bool
) -> _Chosen:
    """Score all subsets on validation, choose one, and look at it once on test."""
    scheme, weights = _weights(opened.record, ensemble)
    val = opened.evaluator.data.val
    logger.info(f"scoring subsets of {len(opened.exits)} exits on {len(val)} validation images")
    batches = opened.batches(val)
    scored = score_learned(batches, len(opened.exits)) if weights is None else score_fixed(batches, weights)
    input_shape = (opened.record.input.channels, opened.resolution, opened.resolution)
    costs = output_costs(opened.module, input_shape, scored.choices)
    table = SubsetTable(opened.exits, scored.choices, scored.weights, scored.tally, costs)
    choice = choose(table, limits, min_top1=min_top1, cautious=cautious)
    study = _study(opened, table, scored, choice)
    singles = [table.choices.index((i,)) for i in table.choices[choice.index]]
    test = _test(opened, table, [*study.compared.values(), *singles])
    pruning = _pruning(opened, study, scored, scheme, test[:3])
    scores = {"val": [table.top1(index) for index in singles], "test": [found.top1 for found in test[3:]]}
    return _Chosen(study, pruning, scores)


def open_source(
    source: str | Path, overrides: Sequence[str] = (), subnet: Subnet | None = None, out: Path | None = None
) -> Source:
    """Open a network with several exits and its data set, out of a run or from its own folder.

    Args:
        source: As for `prune_exits`.
        overrides: As for `prune_exits`.
        subnet: As for `prune_exits`.
        out: A folder that is to be made, which must not lie among the images; None makes none.

    Raises:
        RunError, UserError, SpaceError: As for `prune_exits`.
    """
    if os.path.isfile(Path(source) / RECORD):
        if subnet is not None:
            raise UserError(f"network ({source}) is extracted already, so there is none to choose: leave --subnet out")
        opened = open_exits(source, overrides)
        _refuse_among_images(opened.evaluator, out)
        return Source(opened.module, opened.record, opened.evaluator, read_seen(Path(source), opened.record))
    if overrides:
        raise UserError(f"setting ({overrides[0]}) belongs to an extracted network: change recipe.yaml in {source}")
    run = open_run(source)
    require_classes(run.evaluator.task)
    _refuse_among_images(run.evaluator, out)
    if not run.same_data:
        raise UserError(
            f"data set ({run.data.name}) is not the one that {source} was trained on, so its validation images may be"
            " ones that the network knows: restore it, or its place in recipe.yaml"
        )
    warn_of_chosen_test(run.data)
    chosen = subnet or run.loaded.net.space.largest()
    exits = run.loaded.net.chosen_exits(chosen, "all")
    if len(exits) < 2:
        raise UserError(f"network ({chosen}) has one exit, so none to leave out: choose one that ends later")
    taken = take_out(run, chosen, exits)
    return Source(taken.module, taken.record, run.evaluator, taken.seen)


def _refuse_among_images(evaluator: Evaluator, out: Path | None) -> None:
    if out is not None:
        refuse_inside(evaluator.data.trees, out, "output folder")


def _check_wishes(min_top1: float | None, cautious: bool) -> None:
    if min_top1 is not None and not 0 <= min_top1 <= 1:
        raise UserError(f"top-1 ({min_top1:g}) must be a share from 0 to 1: divide a percentage by 100")
    if min_top1 is not None and cautious:
        raise UserError("a least top-1 and a cautious choice each say how much accuracy to give up: leave one out")


def _weights(record: SubnetRecord, ensemble: str | Sequence[float] | None) -> tuple[str, tuple[Fraction, ...] | None]:
    """Return the name of the ensemble, and its weights; None of weights that are to be learned."""
    if ensemble == LEARNED:
        return LEARNED, None
    if ensemble is None and record.ensemble:
        return "its own", tuple(map(Fraction, record.ensemble))
    if isinstance(ensemble, str) and ensemble not in distill.schemes():
        known = ", ".join((LEARNED, *distill.schemes()))
        raise UserError(f"ensemble ({show(ensemble)}) is unknown: use one of {known}")
    scheme = _trained_scheme(record) if ensemble is None else ensemble
    weights = _scheme_weights(record, scheme)
    name = scheme if isinstance(scheme, str) else show(list(map(float, weights)))
    least = min(weight for weight in weights if weight) / sum(weights)
    if least < LEAST_WEIGHT:
        raise UserError(
            f"ensemble ({name}) has a weight of {float(least):g}: each must be {LEAST_WEIGHT:g} or more, or 0, which"
            " leaves the exit out"
        )
    return name, weights


def _scheme_weights(record: SubnetRecord, scheme: Any) -> tuple[Fraction, ...]:
    """Return the weight of each exit that a network returns, out of those of all exits that were trained with it.

    Numbers may also be given for its own exits alone.
    """
    own, exits = record.exit_indices, record.architecture.exits
    numbers = not isinstance(scheme, str | Mapping)
    if own == exits or (numbers and len(scheme) != len(exits)):
        return distill.exit_weights(scheme, len(own)).ensemble
    of_all = dict(zip(exits, distill.exit_weights(scheme, len(exits)).ensemble, strict=True))
    if not any(of_all[exit] for exit in own):
        raise UserError(
            f"ensemble ({show(scheme)}) gives no weight to exits {', '.join(map(str, own))}: use another one, such as"
            " uniform"
        )
    kept = distill.renormalised(of_all, own)
    return tuple(kept.get(exit, Fraction(0)) for exit in own)


def _trained_scheme(record: SubnetRecord) -> Any:
    """Return the exit weights of the phase that left the network's weights, as its recipe has them."""
    config = recipe.parse(record.run.recipe, f"recipe in {RECORD}")
    phase = config.phases.get(record.run.phase)
    own = phase.exit_weights if phase else None
    return config.teacher.exit_weights if own is None else own


def _study(source: Source, table: SubsetTable, scored: Scored, choice: Choice) -> PruneStudy:
    predicted, targets = torch.from_numpy(scored.predicted), torch.from_numpy(scored.targets)
    return PruneStudy(
        name=source.record.name,
        data=source.record.data,
        table=table,
        choice=choice,
        whole=scored.whole,
        last=table.choices.index((len(source.exits) - 1,)),
        record=source.record,
        agreement=compare_predictions(predicted, targets, exits=source.exits, phase=source.record.run.phase),
        nanoseconds=_predicted_times(source, table),
    )


def _predicted_times(source: Source, table: SubsetTable) -> tuple[tuple[int, ...], ...]:
    """Return each subset's time per image at each of the batches, as the sum of its pieces' times."""
    found = []
    for size in BATCHES:
        times = subset_times(source.module, _images(source, size), table.choices, ROUNDS)
        found.append([round(time / size) for time in times])
    return tuple(zip(*found, strict=True))


def _measured_times(source: Source, networks: Sequence[GraphModule]) -> list[tuple[int, ...]]:
    """Return each network's time per image at each of the batches; the calls take turns, their median counts."""
    found = []
    for size in BATCHES:
        times = stream_times(networks, [_images(source, size)], ROUNDS)
        found.append([round(time / size) for time in times])
    return list(zip(*found, strict=True))


def _images(source: Source, count: int) -> Tensor:
    """Return so many real images; few are repeated."""
    images = source.evaluator.sample_inputs(source.resolution)
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    # As images come in use: repeating leaves another layout, which takes longer.
    return images.contiguous(memory_format=torch.channels_last)


def _pruning(source: Source, study: PruneStudy, scored: Scored, scheme: str, test: Sequence[Accuracy]) -> PruningRecord:
    table, three = study.table, study.compared
    times = _measured_times(source, [_network(source.module, table.choices[index]) for index in three.values()])
    return PruningRecord(
        source_sha256=source.record.sha256,
        ensemble=scheme,
        rule=study.choice.rule,
        images=table.tally.images,
        scale=None if scored.scales is None else float(scored.scales[study.choice.index]),
        chosen=_subset(study, study.choice.index),
        whole=_subset(study, study.whole),
        last=_subset(study, study.last),
        test=dict(zip(three, test, strict=True)),
        nanoseconds=dict(zip(three, times, strict=True)),
        front=tuple(_subset(study, index) for index in table.front()),
        machine=this_machine(source.evaluator.runtime.device),
        batches=BATCHES,
    )


def _subset(study: PruneStudy, index: int) -> SubsetRecord:
    table = study.table
    return SubsetRecord(
        exits=table.named(index),
        weights=tuple(table.weights[index, list(table.choices[index])].tolist()),
        val=Accuracy(table.top1(index), table.top5(index)),
        cost=table.costs[index],
        nanoseconds=study.nanoseconds[index],
    )


def _test(source: Source, table: SubsetTable, indices: Sequence[int]) -> list[Accuracy]:
    """Return what subsets reach on test."""
    rows = table.weights[list(indices)]
    found = joined([tally(batch, rows) for batch in source.batches(source.evaluator.data.test)])
    return [
        Accuracy(int(top1) / found.images, int(top5) / found.images)
        for top1, top5 in zip(found.top1, found.top5, strict=True)
    ]


def _network(module: GraphModule, indices: Sequence[int]) -> GraphModule:
    """Return the network with some of its exits: one tensor for one exit, a tuple for several."""
    return (alone(module, indices[0]) if len(indices) == 1 else keep(module, indices)).eval()


def _write(
    source: Source,
    study: PruneStudy,
    pruning: PruningRecord,
    scores: Mapping[str, Sequence[float]],
    staging: Path,
    formats: Sequence[str],
) -> PruneStudy:
    """Write the pruned network into an empty folder, and read it back."""
    exits, evaluator = pruning.chosen.exits, source.evaluator
    single = len(exits) == 1
    kept = study.table.choices[study.choice.index]
    network, images = _network(source.module, kept), evaluator.sample_inputs(source.resolution)[:COMPARED]
    with torch.inference_mode():
        found, whole = exit_logits(network(images)), exit_logits(source.module(images))
        require_same(found, [whole[i] for i in kept], "pruned network, beside the one with all exits,")
    weights = None if single else pruning.chosen.weights
    names = output_names(exits, single=single, ensemble=not single)
    about = usage(source.record.input, source.record.task, source.record.classes, names)
    form = network if weights is None else with_ensemble(network, weights)
    exports, sha256 = write_network(staging, network, images, about, formats, weights)
    record = replace(
        source.record,
        subnet=replace(source.record.subnet, height=exits[-1]),
        exits="last" if single else exits,
        ensemble=weights,
        cost=pruning.chosen.cost,
        scores={split: dict(zip(exits, found, strict=True)) for split, found in scores.items()},
        by_class=class_results(form, evaluator, source.resolution),
        pruning=pruning,
        formats=tuple(formats),
        exports=exports,
        sha256=sha256,
        seen_sha256=seen_sha256(source.seen),
    )
    complete_folder(staging, record, source.seen, network, images, evaluator.runtime)
    return replace(study, record=record)
